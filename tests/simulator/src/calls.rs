//! What every call goes through: it is counted, it may have a fault, and a panic in it is an error.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::c_api as c;
use crate::config::{Config, Fault, FaultKind, Report};
use crate::control;
use crate::dma::HostMemoryUse;
use crate::failure::{Failure, Result};
use crate::lane::Job;
use crate::memory::Usage;
use crate::objects::Objects;

/// The state of this library.
pub struct Plugin {
    config: RwLock<Arc<Config>>,
    counters: Mutex<Vec<&'static Counter>>,
    faults: Mutex<Vec<Fault>>,
    has_faults: AtomicBool,
    happened: AtomicU64,
    violations: Mutex<Vec<String>>,
    pub objects: Objects,
    pub host: HostMemoryUse,
    pub usage: Usage,
    pub is_lost: AtomicBool,
    /// Work that never ends.
    pub endless: Mutex<Vec<Job>>,
    pub exchanged_keys: AtomicU64,
}

/// How often a function was called.
pub struct Counter {
    function: &'static str,
    calls: AtomicU64,
}

impl Counter {
    pub const fn new(function: &'static str) -> Counter {
        Counter { function, calls: AtomicU64::new(0) }
    }
}

/// A call that is being answered.
pub struct Call {
    /// What becomes of the work that it starts.
    pub work: Option<WorkFault>,
}

/// What goes wrong with work.
#[derive(Debug, Clone)]
pub enum WorkFault {
    Fails(Failure),
    IsLate(Duration),
    IsEndless,
}

thread_local! {
    /// The function that this thread answers.
    static CURRENT: Cell<&'static str> = const { Cell::new("") };
}

/// Locks, also after a panic: what is wrong then shows elsewhere.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn plugin() -> &'static Plugin {
    static PLUGIN: LazyLock<Plugin> = LazyLock::new(|| {
        let config = control::config_of_environment();
        Plugin {
            has_faults: AtomicBool::new(!config.faults.is_empty()),
            faults: Mutex::new(config.faults.clone()),
            config: RwLock::new(Arc::new(config)),
            counters: Mutex::default(),
            happened: AtomicU64::new(0),
            violations: Mutex::default(),
            objects: Objects::default(),
            host: HostMemoryUse::default(),
            usage: Usage::default(),
            is_lost: AtomicBool::new(false),
            endless: Mutex::default(),
            exchanged_keys: AtomicU64::new(0),
        }
    });
    &PLUGIN
}

impl Plugin {
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the report tell what this counts.
    pub fn register(&self, counter: &'static Counter) {
        lock(&self.counters).push(counter);
    }

    pub fn configure(&self, config: Config) {
        self.set_faults(config.faults.clone());
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Counts from 0 again, with these faults.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.has_faults.store(!faults.is_empty(), Ordering::SeqCst);
        *lock(&self.faults) = faults;
        for counter in &*lock(&self.counters) {
            counter.calls.store(0, Ordering::SeqCst);
        }
        lock(&self.violations).clear();
        self.happened.store(0, Ordering::SeqCst);
        self.is_lost.store(false, Ordering::SeqCst);
        self.usage.restart();
        self.host.restart();
    }

    /// What the caller must not do.
    pub fn violation(&self, what: impl AsRef<str>) {
        let function = CURRENT.get();
        let place = if function.is_empty() { String::new() } else { format!("{function}: ") };
        lock(&self.violations).push(format!("{place}{}", what.as_ref()));
    }

    /// Refuses what a lost device cannot do.
    pub fn check_device(&self) -> Result<()> {
        if self.is_lost.load(Ordering::SeqCst) { Err(Failure::lost()) } else { Ok(()) }
    }

    /// Ends what never ends.
    pub fn release(&self) {
        for job in std::mem::take(&mut *lock(&self.endless)) {
            let failure = Failure::new(c::PJRT_Error_Code_CANCELLED, "the work was given up");
            job.done.end((job.run)(Err(failure)));
        }
    }

    pub fn report(&self) -> Report {
        let counters = lock(&self.counters);
        let counted = counters.iter().map(|counter| (counter.function, counter.calls.load(Ordering::SeqCst)));
        let calls =
            counted.filter(|(_, calls)| *calls > 0).map(|(name, calls)| (name.to_owned(), calls)).collect();
        drop(counters);
        let mut report = Report {
            calls,
            alive: self.objects.alive(),
            violations: lock(&self.violations).clone(),
            faults: self.happened.load(Ordering::SeqCst),
            exchanged_keys: self.exchanged_keys.load(Ordering::SeqCst),
            ..Report::default()
        };
        (report.bytes_in_use, report.peak_bytes_in_use) = self.usage.get();
        self.host.report(&mut report);
        report
    }

    /// Counts a call, and returns what goes wrong with it.
    fn count(&self, counter: &'static Counter) -> Option<FaultKind> {
        let call = counter.calls.fetch_add(1, Ordering::SeqCst);
        if !self.has_faults.load(Ordering::SeqCst) {
            return None;
        }
        let faults = lock(&self.faults);
        let is_meant = |fault: &&Fault| {
            fault.function == counter.function && fault.call.is_none_or(|which| which == call)
        };
        let fault = faults.iter().find(is_meant)?;
        self.happened.fetch_add(1, Ordering::SeqCst);
        Some(fault.kind)
    }
}

/// Answers a call: null, or an error that is the caller's.
///
/// # Safety
/// `args` is null or points to such a struct.
pub unsafe fn answer<A>(
    counter: &'static Counter,
    args: *mut A,
    run: impl FnOnce(&mut A, &mut Call) -> Result<()>,
) -> *mut c::PJRT_Error {
    let outer = CURRENT.replace(counter.function);
    // SAFETY: passed on to the caller.
    let result = catch_unwind(AssertUnwindSafe(|| unsafe { answer_or_fail(counter, args, run) }));
    CURRENT.set(outer);
    let result =
        result.unwrap_or_else(|_| Err(Failure::new(c::PJRT_Error_Code_INTERNAL, "the simulator panicked")));
    match result {
        Ok(()) => std::ptr::null_mut(),
        Err(failure) => plugin().objects.give(failure),
    }
}

/// # Safety
/// As for [`answer`].
unsafe fn answer_or_fail<A>(
    counter: &'static Counter,
    args: *mut A,
    run: impl FnOnce(&mut A, &mut Call) -> Result<()>,
) -> Result<()> {
    let plugin = plugin();
    let injected = |code| Failure::new(code, "a fault was asked for");
    let (fault, function) = (plugin.count(counter), counter.function);
    // SAFETY: the caller says that it points to the struct, if it is not null.
    let args = unsafe { args.as_mut() }.ok_or_else(|| {
        plugin.violation("the arguments are null");
        Failure::invalid("the arguments are null")
    })?;
    let mut call = Call { work: None };
    match fault {
        None => {}
        Some(FaultKind::Error(code)) => {
            // What is given back is gone, whatever is said of it.
            let gives_back = ["_Destroy", "_DmaUnmap", "_SetBufferError", "_DecreaseExternalReferenceCount"];
            if gives_back.iter().any(|end| function.ends_with(end)) {
                run(args, &mut call)?;
            }
            return Err(injected(code));
        }
        Some(FaultKind::Delay(milliseconds)) => std::thread::sleep(Duration::from_millis(milliseconds)),
        Some(FaultKind::FailingWork(code)) => call.work = Some(WorkFault::Fails(injected(code))),
        Some(FaultKind::LateWork(milliseconds)) => {
            call.work = Some(WorkFault::IsLate(Duration::from_millis(milliseconds)));
        }
        Some(FaultKind::EndlessWork) => call.work = Some(WorkFault::IsEndless),
        Some(FaultKind::DeviceLost) => plugin.is_lost.store(true, Ordering::SeqCst),
    }
    run(args, &mut call)
}
