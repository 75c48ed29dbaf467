//! What a test tells the simulator, and what it is told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the accelerator is like.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What the platform is called.
    pub platform: String,
    /// The devices of this process.
    pub devices: usize,
    /// Bytes of memory that each device has.
    pub memory_bytes: u64,
    /// Whether a device says how much of it is in use.
    pub has_memory_stats: bool,
    /// Bytes a second to the device, and from it; 0 takes no time.
    pub bytes_per_second: f64,
    /// Bytes a second for memory that is not registered; 0 for the same as registered memory.
    pub unregistered_bytes_per_second: f64,
    /// What every transfer takes beside its bytes, in microseconds. Transfers in one direction take turns.
    pub transfer_micros: u64,
    /// What every execution takes, in microseconds.
    pub execute_micros: u64,
    /// Whether bytes are kept, so that they can be read again. Without it, transfers only take their time: a device of its own
    /// takes none of the processor's.
    pub stores: bool,
    /// Whether memory can be registered for direct access.
    pub has_registration: bool,
    /// How arrays of two dimensions and more lie in the device's memory.
    pub layout: DeviceLayout,
    /// The version that the plugin says it has. Its function table ends where that of this version did, as far as that is known
    /// ([`Config::last_function`]).
    pub api_minor: i32,
    /// The last function of the table; all of the header's without it.
    pub last_function: Option<String>,
    /// Functions that the table has no entry for.
    pub missing: Vec<String>,
    /// Whether callbacks are always called by a thread of the plugin's, also where the event is over already.
    pub calls_back_elsewhere: bool,
    /// Processes that share the devices. With more than one, creating a client exchanges a key with the caller's store.
    pub processes: usize,
    /// Where the report is written to whenever a client goes, for tests of the command.
    pub report: Option<PathBuf>,
    /// Faults from the beginning.
    pub faults: Vec<Fault>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            platform: "simulator".into(),
            devices: 1,
            memory_bytes: 1 << 30,
            has_memory_stats: true,
            bytes_per_second: 0.0,
            unregistered_bytes_per_second: 0.0,
            transfer_micros: 0,
            execute_micros: 0,
            stores: true,
            has_registration: true,
            layout: DeviceLayout::RowMajor,
            api_minor: 90,
            last_function: None,
            missing: Vec::new(),
            calls_back_elsewhere: false,
            processes: 1,
            report: None,
            faults: Vec::new(),
        }
    }
}

/// How arrays of two dimensions and more lie in a device's memory. Smaller ones lie as the host has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceLayout {
    /// As on the host.
    RowMajor,
    /// The first dimension side by side.
    ColumnMajor,
    /// Row-major in tiles of so many rows and columns, the last ones padded.
    Tiled(usize, usize),
}

/// Something that goes wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// The function, such as `PJRT_Client_BufferFromHostBuffer`.
    pub function: String,
    /// Which of its calls, counted from 0 since the faults were set; every call without it.
    pub call: Option<u64>,
    /// What happens.
    pub kind: FaultKind,
}

impl Fault {
    /// One call of a function goes wrong.
    pub fn once(function: &str, call: u64, kind: FaultKind) -> Fault {
        Fault { function: function.to_owned(), call: Some(call), kind }
    }

    /// Every call of a function goes wrong.
    pub fn always(function: &str, kind: FaultKind) -> Fault {
        Fault { function: function.to_owned(), call: None, kind }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// The call does nothing and returns an error of this code; one that gives something back does, and says that it failed.
    Error(u32),
    /// The call waits so many milliseconds before it does what it should.
    Delay(u64),
    /// The call returns, and the work that it started fails with this code.
    FailingWork(u32),
    /// The work that it started ends so many milliseconds later.
    LateWork(u64),
    /// The work that it started never ends, until the client is destroyed or [`crate::Simulator::release`] is called.
    EndlessWork,
    /// The devices are lost: this call, everything that is under way and every later call to a device fails.
    DeviceLost,
}

/// What happened since the simulator was made or [`crate::Simulator::set_faults`] was called last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// How often each function was called.
    pub calls: BTreeMap<String, u64>,
    /// The handles that were handed out and not given back, by kind, those of clients and their devices included.
    pub alive: BTreeMap<String, usize>,
    /// What a caller must not do, a sentence each: using what is gone, changing memory that is being read, …
    pub violations: Vec<String>,
    /// Bytes of the devices' memory that are in use now, all together.
    pub bytes_in_use: u64,
    /// The most of it at once.
    pub peak_bytes_in_use: u64,
    /// What went to the devices.
    pub to_device: Transfers,
    /// What came from the devices.
    pub from_device: Transfers,
    /// Bytes of the host's memory that are registered now.
    pub registered_bytes: u64,
    /// The most of it at once.
    pub peak_registered_bytes: u64,
    /// The most bytes of the host's that were read at once, or waited to be.
    pub peak_bytes_in_flight: u64,
    /// Faults that happened.
    pub faults: u64,
    /// The processes' keys that creating a client has got from the caller's store.
    pub exchanged_keys: u64,
}

/// Transfers in one direction.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Transfers {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of those, bytes from or to memory that was not registered, which went through a copy of the driver's.
    pub unregistered_bytes: u64,
}

/// What is asked of a library.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Configure(Config),
    SetFaults(Vec<Fault>),
    Report,
    Release,
}
