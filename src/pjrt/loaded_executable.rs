//! Executables that are loaded: compiled by a client, or read back by it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::api::slice;
use super::client::Client;
use super::compile_options::CompileOptions;
use super::device::Device;
use super::executable::{Executable, ProgramFormat};
use super::ffi;
use crate::array::ArraySpec;
use crate::error::{Error, Result};

/// A program compiled and loaded onto devices. Cheap to clone.
#[derive(Clone)]
pub struct LoadedExecutable {
    inner: Arc<LoadedInner>,
}

struct LoadedInner {
    /// What it is without its devices. Goes before what it was asked of.
    executable: Executable,
    loaded: Loaded,
    devices: Vec<Device>,
    /// What each device takes, where somebody knows it: the C API does not say.
    parameters: OnceLock<Vec<ArraySpec>>,
}

/// The handle, destroyed with this.
struct Loaded {
    raw: *mut ffi::PJRT_LoadedExecutable,
    client: Client,
}

// SAFETY: the C API allows executables to be used from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Client {
    /// Compiles a program and loads it onto its devices. Blocks while it compiles.
    ///
    /// Only for programs that one trusts: plugins parse StableHLO carefully, but a damaged HLO proto can make
    /// one abort the process.
    ///
    /// # Errors
    /// [`Error::Pjrt`] with the compiler's words when the program does not parse, needs a newer plugin, or
    /// calls something that the plugin does not have.
    pub fn compile_program(
        &self,
        code: &[u8],
        format: ProgramFormat,
        options: &CompileOptions,
    ) -> Result<LoadedExecutable> {
        let known: Vec<i32> = self.addressable_devices().iter().map(Device::id).collect();
        let is_one_of_several = known.len() < self.devices().len();
        let (holder, whereabouts) = if is_one_of_several {
            ("this process", "one of this process: a program runs on the devices of one process")
        } else {
            ("this client", "there")
        };
        options.check_devices(&known, holder, whereabouts)?;
        let options = match options.device_assignment {
            // A plugin would take the first devices of all processes.
            None if is_one_of_several => options.clone().on_first(&known).to_bytes()?,
            _ => options.to_bytes()?,
        };
        let program = format.program(code);
        let mut args = ffi::PJRT_Client_Compile_Args::new();
        args.client = self.raw();
        args.program = &program;
        args.compile_options = options.as_ptr().cast();
        args.compile_options_size = options.len();
        // SAFETY: the client is alive; the program and options outlive the call; the executable is ours.
        unsafe {
            self.api().call(ffi::PJRT_Client_Compile, &mut args)?;
            LoadedExecutable::from_raw(self, args.executable, None)
        }
    }

    /// Loads an executable that [`Executable::serialize`] wrote with the same plugin on the same kind
    /// of device. Blocks while it loads.
    ///
    /// Only for bytes that one trusts: a plugin may run code that they contain, and may crash on bytes that
    /// another version wrote.
    ///
    /// # Errors
    /// [`Error::Pjrt`] when the plugin does not accept the bytes.
    pub fn load_serialized(&self, serialized: &[u8]) -> Result<LoadedExecutable> {
        let mut args = ffi::PJRT_Executable_DeserializeAndLoad_Args::new();
        args.client = self.raw();
        args.serialized_executable = serialized.as_ptr().cast();
        args.serialized_executable_size = serialized.len();
        // SAFETY: the client is alive; the bytes outlive the call; the executable is ours.
        unsafe {
            self.api().call(ffi::PJRT_Executable_DeserializeAndLoad, &mut args)?;
            LoadedExecutable::from_raw(self, args.loaded_executable, Some(serialized.into()))
        }
    }
}

impl LoadedExecutable {
    /// Takes ownership of an executable and reads what is constant about it.
    ///
    /// # Safety
    /// `loaded` is an executable of `client` that nobody else will destroy.
    unsafe fn from_raw(
        client: &Client,
        loaded: *mut ffi::PJRT_LoadedExecutable,
        serialized: Option<Box<[u8]>>,
    ) -> Result<LoadedExecutable> {
        let api = client.api();
        // From here on it is destroyed if reading it fails.
        let loaded = Loaded { raw: loaded, client: client.clone() };
        let mut get = ffi::PJRT_LoadedExecutable_GetExecutable_Args::new();
        get.loaded_executable = loaded.raw;
        let mut addressable = ffi::PJRT_LoadedExecutable_AddressableDevices_Args::new();
        addressable.executable = loaded.raw;
        // SAFETY: the executable is alive; its devices live as long as the client; what describes it is handed over.
        unsafe {
            api.call(ffi::PJRT_LoadedExecutable_AddressableDevices, &mut addressable)?;
            let on = slice(addressable.addressable_devices, addressable.num_addressable_devices);
            let devices: Vec<Device> =
                on.iter().filter_map(|&device| client.device_from_raw(device)).collect();
            if devices.is_empty() || devices.len() != on.len() {
                return Err(Error::NoDevice {
                    platform: client.platform_name().to_owned(),
                    reason: format!(
                        "the program was compiled for {} devices of this process, not all of them known",
                        on.len()
                    ),
                });
            }
            api.call(ffi::PJRT_LoadedExecutable_GetExecutable, &mut get)?;
            let executable = Executable::from_raw(api, Some(client.clone()), get.executable, serialized)?;
            Ok(LoadedExecutable {
                inner: Arc::new(LoadedInner { executable, loaded, devices, parameters: OnceLock::new() }),
            })
        }
    }

    /// Says what each device takes, so that executions are checked: a plugin runs what is of another type or shape, as long as its
    /// bytes fit.
    pub(crate) fn expect_parameters(&self, parameters: Vec<ArraySpec>) {
        // Who says it first knows it as well as anybody later.
        let _ = self.inner.parameters.set(parameters);
    }

    /// What each device takes, where that is known.
    pub(super) fn parameters(&self) -> Option<&[ArraySpec]> {
        self.inner.parameters.get().map(Vec::as_slice)
    }

    pub(super) fn raw(&self) -> *mut ffi::PJRT_LoadedExecutable {
        self.inner.loaded.raw
    }

    /// What the executable is without its devices: its memory, its cost, its bytes.
    pub fn compiled(&self) -> &Executable {
        &self.inner.executable
    }

    /// The client that the executable belongs to.
    pub fn client(&self) -> &Client {
        &self.inner.loaded.client
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        self.compiled().name()
    }

    /// The types and shapes of the outputs on one device.
    pub fn outputs(&self) -> &[Arc<ArraySpec>] {
        self.compiled().outputs()
    }

    /// The devices of this process that the program runs on.
    pub fn devices(&self) -> &[Device] {
        &self.inner.devices
    }
}

impl fmt::Debug for LoadedExecutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoadedExecutable({}, {} outputs)", self.name(), self.outputs().len())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let mut loaded = ffi::PJRT_LoadedExecutable_Destroy_Args::new();
        loaded.executable = self.raw;
        // SAFETY: this is the last handle, and the client is still alive.
        unsafe { self.client.api().call_in_drop(ffi::PJRT_LoadedExecutable_Destroy, &mut loaded) };
    }
}
