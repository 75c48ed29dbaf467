//! Executables: programs compiled for devices, loaded onto them or not.

use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;

use super::api::{Api, slice, string};
use super::buffer::spec_from_raw;
use super::client::Client;
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

    /// The C form of a program, which points into `code`: it must not be used after that is gone. Compilers only read it.
    pub(super) fn program(self, code: &[u8]) -> ffi::PJRT_Program {
        let mut program = ffi::PJRT_Program::new();
        program.code = code.as_ptr().cast_mut().cast();
        program.code_size = code.len();
        program.format = self.name().as_ptr().cast();
        program.format_size = self.name().len();
        program
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// The most that it takes at once, of all of these but the program; 0 where the compiler does not say.
    pub peak_bytes: i64,
    /// What it takes of the host's memory beside.
    pub host: HostMemoryStats,
}

impl CompiledMemoryStats {
    /// Arguments, outputs and intermediate results together.
    pub fn data_bytes(&self) -> i64 {
        self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes
    }
}

/// What an executable takes of the host's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct HostMemoryStats {
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

/// A program compiled for devices that need not be here. Cheap to clone.
#[derive(Clone)]
pub struct Executable {
    inner: Arc<ExecutableInner>,
}

struct ExecutableInner {
    raw: *mut ffi::PJRT_Executable,
    api: Api,
    name: String,
    /// For buffers to share.
    outputs: Vec<Arc<ArraySpec>>,
    /// What it was loaded from, if it was: the CPU plugin cannot write a loaded executable again as one that runs.
    serialized: Option<Box<[u8]>>,
    /// The client that it came from, if it did.
    _client: Option<Client>,
}

// SAFETY: the C API allows executables to be used from any thread; the rest is constant.
unsafe impl Send for ExecutableInner {}
// SAFETY: as above.
unsafe impl Sync for ExecutableInner {}

impl Executable {
    /// Takes ownership of an executable and reads what is constant about it.
    ///
    /// # Safety
    /// `raw` is an executable of this plugin, and of this client if it came from one, that nobody else will destroy.
    pub(super) unsafe fn from_raw(
        api: Api,
        client: Option<Client>,
        raw: *mut ffi::PJRT_Executable,
        serialized: Option<Box<[u8]>>,
    ) -> Result<Executable> {
        // From here on it is destroyed if reading it fails.
        let mut inner = ExecutableInner {
            raw,
            api,
            name: String::new(),
            outputs: Vec::new(),
            serialized,
            _client: client,
        };
        let mut name = ffi::PJRT_Executable_Name_Args::new();
        let mut count = ffi::PJRT_Executable_NumOutputs_Args::new();
        let mut types = ffi::PJRT_Executable_OutputElementTypes_Args::new();
        let mut dims = ffi::PJRT_Executable_OutputDimensions_Args::new();
        (name.executable, count.executable, types.executable, dims.executable) = (raw, raw, raw, raw);
        // SAFETY: the executable is alive; what it returns lives as long as it and is copied.
        unsafe {
            api.call(ffi::PJRT_Executable_Name, &mut name)?;
            inner.name = string(name.executable_name, name.executable_name_size);
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
                inner.outputs.push(Arc::new(spec_from_raw(element_type, shape)?));
                rest = after;
            }
        }
        Ok(Executable { inner: Arc::new(inner) })
    }

    fn raw(&self) -> *mut ffi::PJRT_Executable {
        self.inner.raw
    }

    fn api(&self) -> Api {
        self.inner.api
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The types and shapes of the outputs on one device.
    pub fn outputs(&self) -> &[Arc<ArraySpec>] {
        &self.inner.outputs
    }

    /// Replicas and partitions that the program was compiled for.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn replicas_and_partitions(&self) -> Result<(usize, usize)> {
        let mut replicas = ffi::PJRT_Executable_NumReplicas_Args::new();
        replicas.executable = self.raw();
        let mut partitions = ffi::PJRT_Executable_NumPartitions_Args::new();
        partitions.executable = self.raw();
        // SAFETY: the executable is alive as long as `self`.
        unsafe {
            self.api().call(ffi::PJRT_Executable_NumReplicas, &mut replicas)?;
            self.api().call(ffi::PJRT_Executable_NumPartitions, &mut partitions)?;
        }
        Ok((replicas.num_replicas, partitions.num_partitions))
    }

    /// The memory kinds of the outputs, such as `device`.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn output_memory_kinds(&self) -> Result<Vec<String>> {
        let mut args = ffi::PJRT_Executable_OutputMemoryKinds_Args::new();
        args.executable = self.raw();
        // SAFETY: the executable is alive; the strings live as long as it and are copied.
        unsafe {
            self.api().call(ffi::PJRT_Executable_OutputMemoryKinds, &mut args)?;
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
        args.executable = self.raw();
        // SAFETY: the executable is alive as long as `self`.
        unsafe { self.api().call(ffi::PJRT_Executable_SizeOfGeneratedCodeInBytes, &mut args) }?;
        Ok(args.size_in_bytes)
    }

    /// What the program takes of a device's memory.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        let mut args = ffi::PJRT_Executable_GetCompiledMemoryStats_Args::new();
        args.executable = self.raw();
        // SAFETY: the executable is alive as long as `self`.
        unsafe { self.api().call(ffi::PJRT_Executable_GetCompiledMemoryStats, &mut args) }?;
        Ok(CompiledMemoryStats {
            generated_code_bytes: args.generated_code_size_in_bytes,
            argument_bytes: args.argument_size_in_bytes,
            output_bytes: args.output_size_in_bytes,
            alias_bytes: args.alias_size_in_bytes,
            temp_bytes: args.temp_size_in_bytes,
            peak_bytes: args.peak_memory_in_bytes,
            host: HostMemoryStats {
                generated_code_bytes: args.host_generated_code_size_in_bytes,
                argument_bytes: args.host_argument_size_in_bytes,
                output_bytes: args.host_output_size_in_bytes,
                alias_bytes: args.host_alias_size_in_bytes,
                temp_bytes: args.host_temp_size_in_bytes,
            },
        })
    }

    /// What the compiler thinks that the program costs, such as `flops` and `bytes accessed`.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn cost_analysis(&self) -> Result<Vec<(String, NamedValue)>> {
        let mut args = ffi::PJRT_Executable_GetCostAnalysis_Args::new();
        args.executable = self.raw();
        // SAFETY: the executable is alive; the properties live as long as it and are copied.
        unsafe {
            self.api().call(ffi::PJRT_Executable_GetCostAnalysis, &mut args)?;
            Ok(NamedValue::read_all(args.properties, args.num_properties))
        }
    }

    /// What identifies the compiled program, where the plugin has it.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn fingerprint(&self) -> Result<String> {
        let mut args = ffi::PJRT_Executable_Fingerprint_Args::new();
        args.executable = self.raw();
        // SAFETY: the executable is alive; the string lives as long as it and is copied.
        unsafe {
            self.api().call(ffi::PJRT_Executable_Fingerprint, &mut args)?;
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
        args.executable = self.raw();
        args.program = &mut program;
        // SAFETY: the first call asks for the size, the second fills the buffer of that size.
        unsafe {
            self.api().call(ffi::PJRT_Executable_OptimizedProgram, &mut args)?;
            let mut code = vec![0u8; program.code_size];
            program.code = code.as_mut_ptr().cast();
            args.program = &mut program;
            self.api().call(ffi::PJRT_Executable_OptimizedProgram, &mut args)?;
            code.truncate(program.code_size);
            Ok(OptimizedProgram { format: string(program.format, program.format_size), code })
        }
    }

    /// How the compiler laid the parameters over the devices: a serialised `xla.OpSharding` each. `None` where the plugin does not
    /// say, which takes an extension of the C API's.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn parameter_shardings(&self) -> Result<Option<Vec<Vec<u8>>>> {
        self.shardings("PJRT_Executable_ParameterShardings", |extension| extension.parameter_shardings)
    }

    /// The same of the outputs.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn output_shardings(&self) -> Result<Option<Vec<Vec<u8>>>> {
        self.shardings("PJRT_Executable_OutputShardings", |extension| extension.output_shardings)
    }

    fn shardings(
        &self,
        name: &'static str,
        function: impl Fn(&ffi::PJRT_Shardings_Extension) -> *const c_void,
    ) -> Result<Option<Vec<Vec<u8>>>> {
        let extension =
            self.api().extension::<ffi::PJRT_Shardings_Extension>(ffi::PJRT_Extension_Type_Shardings);
        let Some(function) = extension.map(function).filter(|function| !function.is_null()) else {
            return Ok(None);
        };
        let mut args = ffi::PJRT_Executable_Shardings_Args::new();
        args.executable = self.raw();
        // SAFETY: the function is the extension's, and the executable is alive.
        unsafe { self.api().call_extension(name, function, &mut args) }?;
        if args.shardings.is_null() || args.sharding_sizes.is_null() {
            return Ok(None);
        }
        // SAFETY: there are as many protos and sizes as is said; they live as long as the executable, and are copied.
        let copied = unsafe {
            let protos = slice(args.shardings, args.num_shardings);
            let sizes = slice(args.sharding_sizes, args.num_shardings);
            protos.iter().zip(sizes).map(|(&proto, &size)| slice(proto.cast::<u8>(), size).to_vec()).collect()
        };
        Ok(Some(copied))
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
        args.executable = self.raw();
        // SAFETY: the executable is alive; the bytes are copied before their owner is freed, once.
        unsafe {
            self.api().call(ffi::PJRT_Executable_Serialize, &mut args)?;
            let bytes = slice(args.serialized_bytes.cast::<u8>(), args.serialized_bytes_size).to_vec();
            if let Some(delete) = args.serialized_executable_deleter {
                delete(args.serialized_executable);
            }
            Ok(bytes)
        }
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Executable({}, {} outputs)", self.name(), self.outputs().len())
    }
}

impl Drop for ExecutableInner {
    fn drop(&mut self) {
        let mut executable = ffi::PJRT_Executable_Destroy_Args::new();
        executable.executable = self.raw;
        // SAFETY: this is the last handle, and the client that it came from, if it did, is still alive.
        unsafe { self.api.call_in_drop(ffi::PJRT_Executable_Destroy, &mut executable) };
    }
}
