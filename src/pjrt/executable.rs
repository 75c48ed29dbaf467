//! Executables: programs compiled for devices.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::api::{slice, string};
use super::buffer::spec_from_raw;
use super::client::Client;
use super::compile_options::CompileOptions;
use super::device::Device;
use super::ffi;
use super::named_value::NamedValue;
use crate::array::ArraySpec;
use crate::error::{Error, Result};

/// The format of a program's bytes, as the C API names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[non_exhaustive]
pub enum ProgramFormat {
    /// MLIR of the StableHLO dialect: text, bytecode or a portable artifact.
    Mlir,
    /// A serialised `xla.HloModuleProto`.
    Hlo,
    /// A serialised `xla.HloModuleProtoWithConfig`.
    HloWithConfig,
}

impl ProgramFormat {
    /// The C API's name of the format.
    pub fn name(self) -> &'static str {
        match self {
            ProgramFormat::Mlir => "mlir",
            ProgramFormat::Hlo => "hlo",
            ProgramFormat::HloWithConfig => "hlo_with_config",
        }
    }
}

/// What the compiler made of a program, as a plugin returns it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OptimizedProgram {
    /// The format, such as `hlo_with_config`.
    pub format: String,
    /// The program's bytes.
    pub code: Vec<u8>,
}

/// What an executable takes of a device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CompiledMemoryStats {
    /// The program itself.
    pub generated_code_bytes: i64,
    /// Its arguments.
    pub argument_bytes: i64,
    /// Its outputs.
    pub output_bytes: i64,
    /// Of those, what arguments and outputs share.
    pub alias_bytes: i64,
    /// Intermediate results.
    pub temp_bytes: i64,
}

/// A program compiled and loaded onto devices. Cheap to clone.
#[derive(Clone)]
pub struct LoadedExecutable {
    pub(super) inner: Arc<ExecutableInner>,
}

pub(super) struct ExecutableInner {
    pub(super) loaded: *mut ffi::PJRT_LoadedExecutable,
    /// The part that describes the program; null until it was asked for.
    executable: *mut ffi::PJRT_Executable,
    name: String,
    outputs: Vec<ArraySpec>,
    /// The same, for buffers to share.
    pub(super) output_specs: Vec<Arc<ArraySpec>>,
    devices: Vec<Device>,
    client: Client,
    /// What it was loaded from, if it was: the CPU plugin cannot write a loaded executable again as one that runs.
    serialized: Option<Box<[u8]>>,
}

// SAFETY: the C API allows executables to be used from any thread; the rest is constant.
unsafe impl Send for ExecutableInner {}
// SAFETY: as above.
unsafe impl Sync for ExecutableInner {}

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
        self.check_compile_options(options)?;
        let options = options.to_bytes()?;
        let mut program = ffi::PJRT_Program::new();
        program.code = code.as_ptr().cast_mut().cast(); // The compiler only reads it.
        program.code_size = code.len();
        program.format = format.name().as_ptr().cast();
        program.format_size = format.name().len();
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

    /// Refuses options over which plugins abort the process or never return.
    fn check_compile_options(&self, options: &CompileOptions) -> Result<()> {
        self.check_device_count(options.replicas, options.partitions)?;
        let devices = self.devices();
        let mut seen = HashSet::new();
        for &id in options.device_assignment.iter().flatten().flatten() {
            if !devices.iter().any(|device| device.id() == id) {
                return Err(Error::InvalidArgument(format!(
                    "the device assignment has a device {id}, which is not there"
                )));
            }
            if !seen.insert(id) {
                return Err(Error::InvalidArgument(format!("the device assignment has device {id} twice")));
            }
        }
        Ok(())
    }

    /// Loads an executable that [`LoadedExecutable::serialize`] wrote with the same plugin on the same kind
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
        let mut inner = ExecutableInner {
            loaded,
            executable: std::ptr::null_mut(),
            name: String::new(),
            outputs: Vec::new(),
            output_specs: Vec::new(),
            devices: Vec::new(),
            client: client.clone(),
            serialized,
        };
        let mut get = ffi::PJRT_LoadedExecutable_GetExecutable_Args::new();
        get.loaded_executable = loaded;
        let mut devices = ffi::PJRT_LoadedExecutable_AddressableDevices_Args::new();
        devices.executable = loaded;
        let mut name = ffi::PJRT_Executable_Name_Args::new();
        let mut count = ffi::PJRT_Executable_NumOutputs_Args::new();
        let mut types = ffi::PJRT_Executable_OutputElementTypes_Args::new();
        let mut dims = ffi::PJRT_Executable_OutputDimensions_Args::new();
        // SAFETY: the executable is alive; what it returns lives as long as it and is copied.
        unsafe {
            api.call(ffi::PJRT_LoadedExecutable_GetExecutable, &mut get)?;
            inner.executable = get.executable;
            (name.executable, count.executable) = (inner.executable, inner.executable);
            (types.executable, dims.executable) = (inner.executable, inner.executable);
            api.call(ffi::PJRT_Executable_Name, &mut name)?;
            inner.name = string(name.executable_name, name.executable_name_size);
            api.call(ffi::PJRT_LoadedExecutable_AddressableDevices, &mut devices)?;
            let on = slice(devices.addressable_devices, devices.num_addressable_devices);
            inner.devices = on.iter().filter_map(|&device| client.device_from_raw(device)).collect();
            if inner.devices.is_empty() || inner.devices.len() != on.len() {
                return Err(Error::NoDevice {
                    platform: client.platform_name().to_owned(),
                    reason: format!(
                        "the program was compiled for {} devices of this process, not all of them known",
                        on.len()
                    ),
                });
            }
            api.call(ffi::PJRT_Executable_NumOutputs, &mut count)?;
            api.call(ffi::PJRT_Executable_OutputElementTypes, &mut types)?;
            api.call(ffi::PJRT_Executable_OutputDimensions, &mut dims)?;
            let types = slice(types.output_types, types.num_output_types);
            let ranks = slice(dims.dim_sizes, dims.num_outputs);
            if types.len() != count.num_outputs || ranks.len() != count.num_outputs {
                return Err(Error::Pjrt {
                    function: "PJRT_Executable_OutputDimensions",
                    code: crate::error::ErrorCode::Internal,
                    message: format!(
                        "{} outputs, but {} types and {} shapes",
                        count.num_outputs,
                        types.len(),
                        ranks.len()
                    ),
                });
            }
            let mut rest = slice(dims.dims, ranks.iter().sum());
            for (&element_type, &rank) in types.iter().zip(ranks) {
                let (shape, after) = rest.split_at(rank);
                inner.outputs.push(spec_from_raw(element_type, shape)?);
                rest = after;
            }
        }
        inner.output_specs = inner.outputs.iter().cloned().map(Arc::new).collect();
        Ok(LoadedExecutable { inner: Arc::new(inner) })
    }

    fn raw_executable(&self) -> *mut ffi::PJRT_Executable {
        self.inner.executable
    }

    /// The client that the executable belongs to.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The types and shapes of the outputs on one device.
    pub fn outputs(&self) -> &[ArraySpec] {
        &self.inner.outputs
    }

    /// The devices of this process that the program runs on.
    pub fn devices(&self) -> &[Device] {
        &self.inner.devices
    }

    /// Replicas and partitions that the program was compiled for.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn replicas_and_partitions(&self) -> Result<(usize, usize)> {
        let mut replicas = ffi::PJRT_Executable_NumReplicas_Args::new();
        replicas.executable = self.raw_executable();
        let mut partitions = ffi::PJRT_Executable_NumPartitions_Args::new();
        partitions.executable = self.raw_executable();
        // SAFETY: the executable is alive as long as `self`.
        unsafe {
            self.client().api().call(ffi::PJRT_Executable_NumReplicas, &mut replicas)?;
            self.client().api().call(ffi::PJRT_Executable_NumPartitions, &mut partitions)?;
        }
        Ok((replicas.num_replicas, partitions.num_partitions))
    }

    /// The memory kinds of the outputs, such as `device`.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn output_memory_kinds(&self) -> Result<Vec<String>> {
        let mut args = ffi::PJRT_Executable_OutputMemoryKinds_Args::new();
        args.executable = self.raw_executable();
        // SAFETY: the executable is alive; the strings live as long as it and are copied.
        unsafe {
            self.client().api().call(ffi::PJRT_Executable_OutputMemoryKinds, &mut args)?;
            let kinds = slice(args.memory_kinds, args.num_outputs);
            let sizes = slice(args.memory_kind_sizes, args.num_outputs);
            Ok(kinds.iter().zip(sizes).map(|(&kind, &size)| string(kind, size)).collect())
        }
    }

    /// The size of the compiled program in bytes, where the plugin knows it.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn generated_code_bytes(&self) -> Result<i64> {
        let mut args = ffi::PJRT_Executable_SizeOfGeneratedCodeInBytes_Args::new();
        args.executable = self.raw_executable();
        // SAFETY: the executable is alive as long as `self`.
        unsafe { self.client().api().call(ffi::PJRT_Executable_SizeOfGeneratedCodeInBytes, &mut args) }?;
        Ok(args.size_in_bytes)
    }

    /// What the program takes of a device's memory.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        let mut args = ffi::PJRT_Executable_GetCompiledMemoryStats_Args::new();
        args.executable = self.raw_executable();
        // SAFETY: the executable is alive as long as `self`.
        unsafe { self.client().api().call(ffi::PJRT_Executable_GetCompiledMemoryStats, &mut args) }?;
        Ok(CompiledMemoryStats {
            generated_code_bytes: args.generated_code_size_in_bytes,
            argument_bytes: args.argument_size_in_bytes,
            output_bytes: args.output_size_in_bytes,
            alias_bytes: args.alias_size_in_bytes,
            temp_bytes: args.temp_size_in_bytes,
        })
    }

    /// What the compiler thinks that the program costs, such as `flops` and `bytes accessed`.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn cost_analysis(&self) -> Result<Vec<(String, NamedValue)>> {
        let mut args = ffi::PJRT_Executable_GetCostAnalysis_Args::new();
        args.executable = self.raw_executable();
        // SAFETY: the executable is alive; the properties live as long as it and are copied.
        unsafe {
            self.client().api().call(ffi::PJRT_Executable_GetCostAnalysis, &mut args)?;
            Ok(NamedValue::read_all(args.properties, args.num_properties))
        }
    }

    /// What identifies the compiled program, where the plugin has it.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn fingerprint(&self) -> Result<String> {
        let mut args = ffi::PJRT_Executable_Fingerprint_Args::new();
        args.executable = self.raw_executable();
        // SAFETY: the executable is alive; the string lives as long as it and is copied.
        unsafe {
            self.client().api().call(ffi::PJRT_Executable_Fingerprint, &mut args)?;
            Ok(string(args.executable_fingerprint, args.executable_fingerprint_size))
        }
    }

    /// The program after the compiler's optimisations.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn optimized_program(&self) -> Result<OptimizedProgram> {
        let mut program = ffi::PJRT_Program::new();
        let mut args = ffi::PJRT_Executable_OptimizedProgram_Args::new();
        args.executable = self.raw_executable();
        args.program = &mut program;
        // SAFETY: the first call asks for the size, the second fills the buffer of that size.
        unsafe {
            self.client().api().call(ffi::PJRT_Executable_OptimizedProgram, &mut args)?;
            let mut code = vec![0u8; program.code_size];
            program.code = code.as_mut_ptr().cast();
            self.client().api().call(ffi::PJRT_Executable_OptimizedProgram, &mut args)?;
            code.truncate(program.code_size);
            Ok(OptimizedProgram { format: string(program.format, program.format_size), code })
        }
    }

    /// The executable as bytes for [`Client::load_serialized`].
    ///
    /// # Errors
    /// When the plugin cannot serialise.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        if let Some(bytes) = &self.inner.serialized {
            return Ok(bytes.to_vec());
        }
        let mut args = ffi::PJRT_Executable_Serialize_Args::new();
        args.executable = self.raw_executable();
        // SAFETY: the executable is alive; the bytes are copied before their owner is freed, once.
        unsafe {
            self.client().api().call(ffi::PJRT_Executable_Serialize, &mut args)?;
            let bytes = slice(args.serialized_bytes.cast::<u8>(), args.serialized_bytes_size).to_vec();
            if let Some(delete) = args.serialized_executable_deleter {
                delete(args.serialized_executable);
            }
            Ok(bytes)
        }
    }
}

impl fmt::Debug for LoadedExecutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoadedExecutable({}, {} outputs)", self.name(), self.outputs().len())
    }
}

impl Drop for ExecutableInner {
    fn drop(&mut self) {
        let mut executable = ffi::PJRT_Executable_Destroy_Args::new();
        executable.executable = self.executable;
        let mut loaded = ffi::PJRT_LoadedExecutable_Destroy_Args::new();
        loaded.executable = self.loaded;
        // SAFETY: this is the last handle, and the client is still alive.
        unsafe {
            if !self.executable.is_null() {
                self.client.api().call_in_drop(ffi::PJRT_Executable_Destroy, &mut executable);
            }
            self.client.api().call_in_drop(ffi::PJRT_LoadedExecutable_Destroy, &mut loaded);
        }
    }
}
