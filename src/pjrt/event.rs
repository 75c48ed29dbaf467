//! Events: the end of device work, with its status.

use std::cell::Cell;
use std::ffi::c_void;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{self, Poll, Waker};

use super::api::Api;
use super::client::Client;
use super::ffi;
use crate::error::{Error, ErrorCode, Result};

/// How long a wait asks again and again before it sleeps. Small functions end within it, and to be woken takes several
/// times as long.
const POLLED: Duration = Duration::from_micros(20);

/// The longest that a wait sleeps before it asks again, where there is a time limit.
const LONGEST_SLEEP: Duration = Duration::from_millis(5);

/// How long a wait sleeps where a plugin can only be asked.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// The completion of asynchronous device work.
///
/// Dropping an event does not wait for the work, and does not cancel it.
pub struct Event {
    raw: *mut ffi::PJRT_Event,
    /// The C function that started the work, for errors.
    origin: &'static str,
    client: Client,
}

// SAFETY: the C API allows events to be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above; every method of the C API on an event is a read or is synchronised by the plugin.
unsafe impl Sync for Event {}

impl Event {
    /// Takes ownership of an event.
    ///
    /// # Safety
    /// `raw` is an event of this client that nobody else will free.
    pub(super) unsafe fn from_raw(client: &Client, raw: *mut ffi::PJRT_Event, origin: &'static str) -> Event {
        Event { raw, origin, client: client.clone() }
    }

    /// Blocks until the work has ended.
    ///
    /// # Errors
    /// The error that the work ended with; that of the plugin, if it does not say in any way when that is;
    /// [`Error::TimeLimit`] if the client has one ([`super::ClientBuilder::time_limit`]).
    pub fn wait(&self) -> Result<()> {
        self.end().outcome()
    }

    /// As [`Event::wait`], for so long at most.
    ///
    /// # Errors
    /// As for [`Event::wait`]; [`Error::TimeLimit`].
    pub fn wait_for(&self, limit: Duration) -> Result<()> {
        self.end_within(Some(limit)).outcome()
    }

    /// Blocks until the work has ended, whatever the client's time limit: for work that uses memory which cannot be given up.
    ///
    /// # Errors
    /// The error that the work ended with.
    pub(super) fn wait_for_good(&self) -> Result<()> {
        let mut is_told = false;
        loop {
            match self.end_within(None) {
                End::Over(outcome) => return outcome,
                End::Unknown(error) if !is_told => {
                    tracing::warn!(%error, "the plugin does not say when work ends; asking until it does");
                    is_told = true;
                }
                End::Unknown(_) => {}
            }
            std::thread::sleep(LONGEST_SLEEP);
        }
    }

    /// Blocks until the work has ended, as far as the plugin tells and the client's time limit lets it.
    pub(super) fn end(&self) -> End {
        self.end_within(self.client.time_limit())
    }

    fn end_within(&self, limit: Option<Duration>) -> End {
        if self.raw.is_null() {
            return End::Over(Ok(())); // Plugins may return no event for work that ended during the call.
        }
        let started = Instant::now();
        while !self.is_ready().unwrap_or(true) && started.elapsed() < POLLED {
            std::hint::spin_loop();
        }
        if let Some(limit) = limit
            && let Err(error) = self.poll_until(started, limit)
        {
            return End::Unknown(error);
        }
        let mut args = ffi::PJRT_Event_Await_Args::new();
        args.event = self.raw;
        // SAFETY: the event is alive until `self` is dropped.
        let awaited = unsafe { self.client.api().call(ffi::PJRT_Event_Await, &mut args) };
        let Err(error) = awaited else { return End::Over(Ok(())) };
        // It is the work's error, or the plugin's, which does not wait. Memory is freed when this says that it is over.
        loop {
            match self.is_ready() {
                Ok(true) => {
                    return End::Over(self.outcome(error).map_err(|error| rename(error, self.origin)));
                }
                Ok(false) => std::thread::sleep(POLL_INTERVAL),
                Err(_) => return End::Unknown(rename(error, self.origin)),
            }
        }
    }

    /// Asks until the work has ended or the time is over, since the C API has no wait that ends by itself.
    fn poll_until(&self, started: Instant, limit: Duration) -> Result<()> {
        loop {
            let is_ready = self.is_ready();
            if let Ok(true) = is_ready {
                return Ok(());
            }
            let waited = started.elapsed();
            if waited >= limit {
                // A plugin that does not answer is not asked to wait, which could be for ever.
                return is_ready.and(Err(Error::TimeLimit { work: self.origin, limit }));
            }
            let sleep = (waited / 16).clamp(POLLED, LONGEST_SLEEP);
            std::thread::sleep(sleep.min(limit.saturating_sub(waited)));
        }
    }

    /// The outcome of work that has ended. The waiting for it failed with this error.
    fn outcome(&self, awaited: Error) -> Result<()> {
        let mut args = ffi::PJRT_Event_Error_Args::new();
        args.event = self.raw;
        // SAFETY: as in `end`, and the event is ready, which this function asks for.
        match unsafe { self.client.api().call(ffi::PJRT_Event_Error, &mut args) } {
            Err(Error::Unsupported { .. }) => Err(awaited),
            outcome => outcome,
        }
    }

    /// Whether the work has ended, well or badly. Does not block.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_ready(&self) -> Result<bool> {
        if self.raw.is_null() {
            return Ok(true);
        }
        let mut args = ffi::PJRT_Event_IsReady_Args::new();
        args.event = self.raw;
        // SAFETY: as in `wait`.
        unsafe { self.client.api().call(ffi::PJRT_Event_IsReady, &mut args) }?;
        Ok(args.is_ready)
    }

    /// Runs `callback` with the outcome once the work has ended: at once on this thread if it already has,
    /// else on a thread of the plugin, which it must not block. Does not block.
    ///
    /// # Errors
    /// When the plugin does not take the callback; it is then dropped without being called.
    pub fn on_ready(self, callback: impl FnOnce(Result<()>) + Send + 'static) -> Result<()> {
        self.try_on_ready(Box::new(callback)).map_err(|(_, error)| error)
    }

    /// As [`Event::on_ready`]; gives the event back where the plugin does not take the callback.
    fn try_on_ready(self, run: Box<dyn FnOnce(Result<()>) + Send>) -> Result<(), (Event, Error)> {
        if self.raw.is_null() {
            run(Ok(()));
            return Ok(());
        }
        let api = self.client.api();
        let state = Box::new(Callback { api, event: self.raw, origin: self.origin, run });
        let mut args = ffi::PJRT_Event_OnReady_Args::new();
        args.event = self.raw;
        args.callback = Some(call_back);
        args.user_arg = Box::into_raw(state).cast();
        // SAFETY: the event is alive, and stays so until the callback destroys it; `user_arg` is the
        // callback's to free.
        match unsafe { api.call(ffi::PJRT_Event_OnReady, &mut args) } {
            Ok(()) => {
                let mut this = self;
                this.raw = std::ptr::null_mut(); // The callback destroys it.
                Ok(())
            }
            Err(error) => {
                // SAFETY: the plugin refused the callback, so the state is still ours.
                drop(unsafe { Box::from_raw(args.user_arg.cast::<Callback>()) });
                Err((self, error))
            }
        }
    }
}

impl Event {
    /// Blocks until the work that uses this memory has ended, and gives the memory back. Where that is not known, it stays
    /// allocated until the work ends.
    ///
    /// # Errors
    /// As for [`Event::wait`].
    pub(super) fn end_with<M: Send + Sync + 'static>(self, memory: M) -> Result<M> {
        match self.end() {
            End::Over(outcome) => outcome.map(|()| memory),
            End::Unknown(error) => {
                self.hold_until_ready(memory);
                Err(error)
            }
        }
    }

    /// Keeps host memory that the device is using until the work has ended. Does not block.
    pub(super) fn hold_until_ready(self, memory: impl Send + Sync + 'static) {
        let memory = Arc::new(memory);
        // Freed by hand: what is not known to be over must not free it, whatever becomes of the thread below.
        let held = ManuallyDrop::new(Arc::clone(&memory));
        let Err((event, error)) = self.try_on_ready(Box::new(move |_| drop(memory))) else {
            return drop(ManuallyDrop::into_inner(held));
        };
        tracing::debug!(%error, "the plugin takes no callback; a thread waits for the end of its work");
        // The memory comes back all the same: others wait for it.
        let client = event.client.clone();
        let wait = move || match event.end_within(None) {
            End::Over(_) => drop(ManuallyDrop::into_inner(held)),
            End::Unknown(error) => {
                tracing::warn!(%error, "the plugin will not say when it is done with host memory, which stays");
                event.client.count_lost_memory();
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn(wait) {
            tracing::warn!(%error, "there is no thread to wait for the device, and host memory stays");
            client.count_lost_memory();
        }
    }
}

/// What is known of the end of work.
pub(super) enum End {
    /// It has ended, and so.
    Over(Result<()>),
    /// The plugin does not say. Memory that the work uses must stay.
    Unknown(Error),
}

impl End {
    /// What whoever waits for the work is told.
    fn outcome(self) -> Result<()> {
        match self {
            End::Over(outcome) => outcome,
            End::Unknown(error) => Err(error),
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({})", self.origin)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        // SAFETY: the event is ours and is not used after this.
        unsafe { destroy(self.client.api(), self.raw) };
    }
}

/// What a registered callback needs. It deliberately does not hold the client: the last handle of a
/// client must not be dropped by the callback, on a thread that the client would wait for.
struct Callback {
    api: Api,
    event: *mut ffi::PJRT_Event,
    origin: &'static str,
    run: Box<dyn FnOnce(Result<()>) + Send>,
}

thread_local! {
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a callback from a plugin, where a client must not be destroyed.
pub(super) fn in_callback() -> bool {
    IN_CALLBACK.get()
}

/// Runs what a thread of the plugin must not do: here, or on a thread of its own if this is one of the plugin's.
pub(super) fn outside_callback(run: impl FnOnce() + Send + 'static) {
    if !in_callback() {
        return run();
    }
    if let Err(error) = std::thread::Builder::new().spawn(run) {
        tracing::error!(%error, "a PJRT handle is not freed, since there is no thread for it");
    }
}

/// The C callback behind [`Event::on_ready`].
unsafe extern "C" fn call_back(error: *mut ffi::PJRT_Error, user_arg: *mut c_void) {
    // SAFETY: `user_arg` is the box that `on_ready` made, handed over once.
    let state = unsafe { Box::from_raw(user_arg.cast::<Callback>()) };
    // SAFETY: the C API hands the error over to the callback.
    let outcome = unsafe { state.api.result(state.origin, error) };
    // SAFETY: `on_ready` gave the event up to this callback.
    unsafe { destroy(state.api, state.event) };
    run_in_callback(|| (state.run)(outcome));
}

/// Runs code of the caller's on a thread of the plugin: it is known to be there (see [`in_callback`]), and a
/// panic does not unwind into C.
pub(super) fn run_in_callback(run: impl FnOnce()) {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IN_CALLBACK.set(self.0);
        }
    }
    let _restore = Restore(IN_CALLBACK.replace(true));
    if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
        tracing::error!("a callback from a PJRT plugin panicked");
        // Dropping it could panic again.
        std::mem::forget(payload);
    }
}

/// # Safety
/// `event` is alive, ours, and not used after this.
unsafe fn destroy(api: Api, event: *mut ffi::PJRT_Event) {
    let mut args = ffi::PJRT_Event_Destroy_Args::new();
    args.event = event;
    // SAFETY: passed on to the caller.
    unsafe { api.call_in_drop(ffi::PJRT_Event_Destroy, &mut args) };
}

/// Waits without blocking, on whatever runtime: the plugin wakes the task. The client's time limit is for threads that wait; a
/// task has its runtime's own.
///
/// ```no_run
/// # async fn f(buffer: safejax::Buffer) -> Result<(), safejax::Error> {
/// buffer.ready()?.await?;
/// let bytes = buffer.start_to_host()?.await?;
/// # Ok(()) }
/// ```
impl IntoFuture for Event {
    type Output = Result<()>;
    type IntoFuture = EventFuture;

    fn into_future(self) -> EventFuture {
        EventFuture(self.awaited_with(()))
    }
}

/// An [`Event`] that is awaited.
pub struct EventFuture(AwaitedWith<()>);

impl Future for EventFuture {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Result<()>> {
        self.0.poll(context)
    }
}

/// Work that is awaited, and the host memory that it uses. Whoever tells of its end holds the memory too: it is freed then, if
/// this is dropped before.
pub(super) struct AwaitedWith<M>(Arc<Mutex<Awaited<M>>>);

struct Awaited<M> {
    outcome: Option<Result<M>>,
    /// Dropped by hand, when the end of the work is known.
    memory: Option<ManuallyDrop<M>>,
    waker: Option<Waker>,
}

impl Event {
    /// Awaits the end of the work that uses this memory, which comes back with it.
    pub(super) fn awaited_with<M: Send + 'static>(self, memory: M) -> AwaitedWith<M> {
        let awaited = Awaited { outcome: None, memory: Some(ManuallyDrop::new(memory)), waker: None };
        let shared = Arc::new(Mutex::new(awaited));
        let state = Arc::clone(&shared);
        if let Err((event, _)) = self.try_on_ready(Box::new(move |outcome| wake(&state, End::Over(outcome))))
        {
            // Where the plugin takes no callback, a thread waits in its place.
            let state = Arc::clone(&shared);
            let origin = event.origin;
            let wait = move || wake(&state, event.end_within(None));
            if let Err(error) = std::thread::Builder::new().spawn(wait) {
                let message = format!("there is no thread to wait for it: {error}");
                let code = ErrorCode::ResourceExhausted;
                wake(&shared, End::Unknown(Error::Pjrt { function: origin, code, message }));
            }
        }
        AwaitedWith(shared)
    }
}

/// Wakes the task that awaits, with this end.
fn wake<M>(awaited: &Mutex<Awaited<M>>, end: End) {
    let mut state = awaited.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = state.memory.take();
    state.outcome = match end {
        End::Over(outcome) => {
            let memory = memory.map(ManuallyDrop::into_inner);
            outcome.map(|()| memory).transpose()
        }
        // The device may use the memory still: it stays.
        End::Unknown(error) => Some(Err(error)),
    };
    if let Some(waker) = state.waker.take() {
        waker.wake();
    }
}

impl<M> AwaitedWith<M> {
    /// As [`Future::poll`].
    pub(super) fn poll(&self, context: &task::Context<'_>) -> Poll<Result<M>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// An awaited failure is the failure of the work, not of the waiting.
fn rename(error: crate::Error, origin: &'static str) -> crate::Error {
    match error {
        crate::Error::Pjrt { code, message, .. } => crate::Error::Pjrt { function: origin, code, message },
        other => other,
    }
}
