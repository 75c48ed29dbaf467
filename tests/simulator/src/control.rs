//! The tests' side of the simulator, and the door between the two.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::calls::plugin;
use crate::config::{Config, Fault, Report, Request};

/// The environment variable with a [`Config`] as JSON, for processes of which no test is a part.
pub const CONFIG_VARIABLE: &str = "SAFEJAX_SIMULATOR";

/// The function of the library that tests call.
const CONTROL: &str = "simulator_control";

type Reply = extern "C" fn(to: *mut Vec<u8>, bytes: *const u8, count: usize);
type Control = unsafe extern "C" fn(request: *const u8, count: usize, reply: Reply, to: *mut Vec<u8>);

/// A plugin of one's own: a copy of the library, whose state nobody else touches. The copy goes with this; the library stays in
/// the process.
pub struct Simulator {
    path: PathBuf,
    /// None for the state of this library itself.
    copy: Option<Copy>,
}

struct Copy {
    control: libloading::Library,
    _directory: tempfile::TempDir,
}

impl Simulator {
    /// A plugin like this.
    ///
    /// # Panics
    /// When the library was not built beside the test, or cannot be copied or loaded.
    pub fn new(config: Config) -> Simulator {
        let directory = tempfile::tempdir().expect("there is room for a copy");
        let path = directory.path().join("simulator.so");
        std::fs::copy(Simulator::library(), &path).expect("the simulator is built beside the tests");
        // SAFETY: loading it runs nothing.
        let control = unsafe { libloading::Library::new(&path) }.expect("the simulator can be loaded");
        let simulator = Simulator { path, copy: Some(Copy { control, _directory: directory }) };
        simulator.ask(&Request::Configure(config));
        simulator
    }

    /// The plugin that is linked into the test, by [`Simulator::get_pjrt_api`]. There is one a process.
    pub fn linked(config: Config) -> Simulator {
        let simulator = Simulator { path: PathBuf::from("the linked simulator"), copy: None };
        simulator.ask(&Request::Configure(config));
        simulator
    }

    /// `GetPjrtApi` of the plugin that is linked into the test.
    pub extern "C" fn get_pjrt_api() -> *const std::ffi::c_void {
        crate::table::GetPjrtApi().cast()
    }

    /// The library that was built for the tests: next to them, or where newer versions of cargo put what a package made.
    ///
    /// # Panics
    /// When it is in neither place.
    pub fn library() -> PathBuf {
        let name =
            format!("{}safejax_simulator{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let test = std::env::current_exe().expect("a test has a path");
        let beside = test.with_file_name(&name);
        if beside.exists() {
            return beside;
        }
        let built = test.ancestors().map(|directory| directory.join("build/safejax-simulator"));
        let built = built.filter_map(|directory| std::fs::read_dir(directory).ok()).flatten().flatten();
        let built = built.map(|entry| entry.path().join("out").join(&name)).filter(|path| path.exists());
        let newest = built.max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok());
        newest.expect("the simulator is built with the tests")
    }

    /// What the plugin is loaded by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets what goes wrong from now on, and counts from 0 again.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.ask(&Request::SetFaults(faults));
    }

    /// What happened.
    pub fn report(&self) -> Report {
        serde_json::from_slice(&self.ask(&Request::Report)).expect("a report can be read")
    }

    /// Ends the work that never ends.
    pub fn release(&self) {
        self.ask(&Request::Release);
    }

    fn ask(&self, request: &Request) -> Vec<u8> {
        extern "C" fn reply(to: *mut Vec<u8>, bytes: *const u8, count: usize) {
            // SAFETY: both are alive during the call: the reply of `ask`, and the library's own bytes.
            unsafe { (*to).extend_from_slice(std::slice::from_raw_parts(bytes, count)) };
        }
        let request = serde_json::to_vec(request).expect("a request can be written");
        let mut answer = Vec::new();
        // SAFETY: the function is `simulator_control` below, of the same build.
        unsafe {
            let copy = self.copy.as_ref();
            let of_copy =
                copy.map(|copy| copy.control.get::<Control>(CONTROL).expect("the library has its door"));
            let control = of_copy.map_or(simulator_control as Control, |control| *control);
            control(request.as_ptr(), request.len(), reply, &mut answer);
        }
        answer
    }
}

/// What clients have of their own.
const OF_CLIENTS: [&str; 4] = ["client", "device", "device description", "memory"];

/// How long handles may take that other threads give back.
const PATIENCE: Duration = Duration::from_secs(5);

impl Simulator {
    /// The report when all is at rest: when there are no more than so many clients and nothing else, or after some seconds. The
    /// last to hold something can be a callback, which has another thread give it back.
    pub fn report_at_rest(&self, clients: usize) -> Report {
        let started = Instant::now();
        loop {
            let report = self.report();
            if report.is_at_rest(clients) || started.elapsed() > PATIENCE {
                return report;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Fails the test unless everything was given back and nothing was done that must not be: what is left are so many clients
    /// and what they have of their own.
    ///
    /// # Panics
    /// With what is left and what was done.
    #[track_caller]
    pub fn assert_clean(&self, clients: usize) {
        let problems = self.report_at_rest(clients).problems(clients);
        assert!(problems.is_empty(), "{problems:#?}");
    }
}

impl Report {
    fn left(&self) -> impl Iterator<Item = (&String, &usize)> {
        self.alive.iter().filter(|(kind, _)| !OF_CLIENTS.contains(&kind.as_str()))
    }

    fn clients(&self) -> usize {
        self.alive.get("client").copied().unwrap_or(0)
    }

    fn is_at_rest(&self, clients: usize) -> bool {
        self.left().next().is_none() && self.clients() == clients && self.bytes_in_use == 0
    }

    /// What is wrong if no more than so many clients should be left.
    pub fn problems(&self, clients: usize) -> Vec<String> {
        let mut problems = self.violations.clone();
        problems
            .extend(self.left().map(|(kind, count)| format!("{count} of kind {kind} were not given back")));
        if self.clients() != clients {
            problems.push(format!("{} clients are left, not {clients}", self.clients()));
        }
        if self.bytes_in_use > 0 {
            problems.push(format!("{} bytes of the device's memory are in use", self.bytes_in_use));
        }
        if clients == 0 && self.registered_bytes > 0 {
            problems.push(format!("{} bytes are registered", self.registered_bytes));
        }
        problems
    }
}

/// The configuration of processes that are told by their environment.
pub(crate) fn config_of_environment() -> Config {
    let said = std::env::var(CONFIG_VARIABLE).ok();
    said.map_or_else(Config::default, |said| serde_json::from_str(&said).expect("the configuration is JSON"))
}

/// Answers a request.
///
/// # Safety
/// `request` points to so many bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn simulator_control(request: *const u8, count: usize, reply: Reply, to: *mut Vec<u8>) {
    // SAFETY: passed on to the caller.
    let request = unsafe { std::slice::from_raw_parts(request, count) };
    let answer = match serde_json::from_slice(request) {
        Ok(Request::Configure(config)) => {
            plugin().configure(config);
            Vec::new()
        }
        Ok(Request::SetFaults(faults)) => {
            plugin().set_faults(faults);
            Vec::new()
        }
        Ok(Request::Report) => serde_json::to_vec(&plugin().report()).unwrap_or_default(),
        Ok(Request::Release) => {
            plugin().release();
            Vec::new()
        }
        Err(error) => error.to_string().into_bytes(),
    };
    reply(to, answer.as_ptr(), answer.len());
}
