//! The end of work: what the caller has as events, and what work waits for.

use std::sync::{Arc, Condvar, Mutex};

use crate::c_api as c;
use crate::calls::{Call, lock, plugin};
use crate::failure::Result;
use crate::objects::Object;

type Callback = Box<dyn FnOnce(Result<()>) + Send>;

/// Ends once, well or badly.
#[derive(Default)]
pub struct Signal {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    outcome: Option<Result<()>>,
    callbacks: Vec<Callback>,
}

impl Object for Signal {
    type Raw = c::PJRT_Event;
    const NAME: &'static str = "event";
}

impl Signal {
    /// One that has ended.
    pub fn ended(outcome: Result<()>) -> Arc<Signal> {
        let signal = Arc::new(Signal::default());
        signal.end(outcome);
        signal
    }

    /// Ends it; what was to be called is called by this thread. Does nothing to one that has ended.
    pub fn end(&self, outcome: Result<()>) {
        let callbacks = {
            let mut state = lock(&self.state);
            if state.outcome.is_some() {
                return;
            }
            state.outcome = Some(outcome.clone());
            std::mem::take(&mut state.callbacks)
        };
        self.ended.notify_all();
        callbacks.into_iter().for_each(|callback| callback(outcome.clone()));
    }

    pub fn outcome(&self) -> Option<Result<()>> {
        lock(&self.state).outcome.clone()
    }

    pub fn wait(&self) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            if let Some(outcome) = &state.outcome {
                return outcome.clone();
            }
            state = self.ended.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Calls this when it ends: now, if it has.
    pub fn then(&self, callback: impl FnOnce(Result<()>) + Send + 'static) {
        let mut state = lock(&self.state);
        match state.outcome.clone() {
            None => state.callbacks.push(Box::new(callback)),
            Some(outcome) => {
                drop(state);
                callback(outcome);
            }
        }
    }
}

/// Calls this when all have ended, with a failure of one of them if there is one.
pub fn when_all(signals: Vec<Arc<Signal>>, callback: impl FnOnce(Result<()>) + Send + 'static) {
    if signals.is_empty() {
        return callback(Ok(()));
    }
    let waiting = Arc::new(Mutex::new((signals.len(), Ok(()), Some(callback))));
    for signal in signals {
        let waiting = Arc::clone(&waiting);
        signal.then(move |outcome| {
            let mut waiting = lock(&waiting);
            waiting.0 -= 1;
            if waiting.1.is_ok() {
                waiting.1 = outcome;
            }
            if waiting.0 > 0 {
                return;
            }
            let (all, callback) = (waiting.1.clone(), waiting.2.take());
            drop(waiting);
            if let Some(callback) = callback {
                callback(all);
            }
        });
    }
}

pub fn destroy(args: &mut c::PJRT_Event_Destroy_Args, _: &mut Call) -> Result<()> {
    plugin().objects.take::<Signal>(args.event).map(drop)
}

pub fn is_ready(args: &mut c::PJRT_Event_IsReady_Args, _: &mut Call) -> Result<()> {
    args.is_ready = plugin().objects.get::<Signal>(args.event)?.outcome().is_some();
    Ok(())
}

pub fn error(args: &mut c::PJRT_Event_Error_Args, _: &mut Call) -> Result<()> {
    let signal = plugin().objects.get::<Signal>(args.event)?;
    signal.outcome().unwrap_or_else(|| {
        plugin().violation("the event has not ended");
        Ok(())
    })
}

pub fn wait(args: &mut c::PJRT_Event_Await_Args, _: &mut Call) -> Result<()> {
    plugin().objects.get::<Signal>(args.event)?.wait()
}

/// What a callback is given; a number, since it is the caller's.
struct UserArgument(usize);

pub fn on_ready(args: &mut c::PJRT_Event_OnReady_Args, _: &mut Call) -> Result<()> {
    let signal = plugin().objects.get::<Signal>(args.event)?;
    let Some(callback) = args.callback else {
        return Err(crate::failure::Failure::invalid("the callback is null"));
    };
    let argument = UserArgument(args.user_arg.expose_provenance());
    let call = move |outcome: Result<()>| {
        let error = match outcome {
            Ok(()) => std::ptr::null_mut(),
            Err(failure) => plugin().objects.give(failure),
        };
        let UserArgument(argument) = argument;
        // SAFETY: the caller says that this may be called once with this argument, from any thread.
        unsafe { callback(error, std::ptr::with_exposed_provenance_mut(argument)) };
    };
    if plugin().config().calls_back_elsewhere && signal.outcome().is_some() {
        std::thread::spawn(move || signal.then(call));
    } else {
        signal.then(call);
    }
    Ok(())
}
