//! Executables: programs compiled for devices, and their execution.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::api::{slice, string};
use super::buffer::{Buffer, spec_from_raw};
use super::client::Client;
use super::compile_options::CompileOptions;
use super::device::Device;
use super::event::Event;
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
    inner: Arc<ExecutableInner>,
}

struct ExecutableInner {
    loaded: *mut ffi::PJRT_LoadedExecutable,
    /// The part that describes the program; null until it was asked for.
    executable: *mut ffi::PJRT_Executable,
    name: String,
    outputs: Vec<ArraySpec>,
    /// The same, for buffers to share.
    output_specs: Vec<Arc<ArraySpec>>,
    devices: Vec<Device>,
    client: Client,
    /// Whether [`LoadedExecutable::delete`] was called: not every plugin refuses to run it then.
    is_deleted: AtomicBool,
    /// What it was loaded from, if it was: the CPU plugin cannot write a loaded executable again as one that runs.
    serialized: Option<Box<[u8]>>,
}

// SAFETY: the C API allows executables to be used from any thread; the rest is constant.
unsafe impl Send for ExecutableInner {}
// SAFETY: as above.
unsafe impl Sync for ExecutableInner {}

/// An argument of an execution.
#[derive(Debug)]
pub enum Input<'a> {
    /// Only read: the buffer is as good as before.
    Borrow(&'a Buffer),
    /// Given away: where the program says so, an output takes its memory, and using the buffer (or a clone
    /// of it) afterwards is an error.
    Donate(Buffer),
}

impl Input<'_> {
    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        match self {
            Input::Borrow(buffer) => buffer,
            Input::Donate(buffer) => buffer,
        }
    }
}

/// A started execution.
#[derive(Debug)]
pub struct Execution {
    /// The outputs, one list a device. Their content is there when they are ready.
    pub outputs: Vec<Vec<Buffer>>,
    /// The end of the execution, one event a device.
    pub done: Vec<Event>,
}

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
            is_deleted: AtomicBool::new(false),
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

    /// Starts the program with one list of arguments a device of [`LoadedExecutable::devices`]. Does not
    /// wait for it to end.
    ///
    /// The arguments are taken as they are: that their types and shapes fit is for the caller (or
    /// [`crate::Function`]) to check first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the lists do not fit the devices, a buffer is another client's or was
    /// donated before; [`Error::Pjrt`] when the plugin refuses.
    pub fn execute(&self, arguments: &[Vec<Input<'_>>]) -> Result<Execution> {
        self.check_arguments(arguments)?;
        let raw = |input: &Input<'_>| input.buffer().raw();
        let lists: Vec<Vec<_>> = arguments.iter().map(|list| list.iter().map(raw).collect()).collect();
        // The plugin may use the memory of any argument whose position is not listed here.
        let is_kept =
            |position: &usize| arguments.iter().any(|list| matches!(list[*position], Input::Borrow(_)));
        let kept: Vec<i64> =
            (0..arguments[0].len()).filter(is_kept).map(|position| position as i64).collect();
        let mut events = vec![std::ptr::null_mut(); arguments.len()];
        // SAFETY: the lists hold one buffer of this client a parameter that the caller keeps alive, for each device
        // (checked above); there is one event a device.
        let outputs = unsafe { self.start(&lists, &kept, &mut events) }?;
        arguments.iter().try_for_each(|list| note_donations(list))?;
        // SAFETY: the execution's events are handed over to us.
        let done = events
            .into_iter()
            .map(|event| unsafe { Event::from_raw(self.client(), event, "the execution") })
            .collect();
        Ok(Execution { outputs, done })
    }

    /// Starts the program on its only device, and leaves it to the outputs to say when it has ended: what
    /// [`LoadedExecutable::execute`] does, with less to do.
    ///
    /// # Errors
    /// As for [`LoadedExecutable::execute`].
    pub(crate) fn execute_on_one(&self, arguments: Vec<Input<'_>>) -> Result<Vec<Buffer>> {
        let arguments = [arguments];
        self.check_arguments(&arguments)?;
        let [arguments] = arguments;
        let mut list = Vec::with_capacity(arguments.len());
        let mut kept = Vec::with_capacity(arguments.len());
        for (position, input) in arguments.iter().enumerate() {
            list.push(input.buffer().raw());
            if matches!(input, Input::Borrow(_)) {
                kept.push(position as i64);
            }
        }
        // SAFETY: as in `execute`; no events are asked for.
        let outputs = unsafe { self.start(&[list], &kept, &mut []) }?;
        note_donations(&arguments)?;
        Ok(outputs.into_iter().next().unwrap_or_default())
    }

    /// Calls `PJRT_LoadedExecutable_Execute`, and takes ownership of the outputs.
    ///
    /// # Safety
    /// `lists` has one equally long list of living buffers of this client for each device; `events` has one place
    /// for each device, to be owned by the caller, or none.
    unsafe fn start(
        &self,
        lists: &[Vec<*mut ffi::PJRT_Buffer>],
        kept: &[i64],
        events: &mut [*mut ffi::PJRT_Event],
    ) -> Result<Vec<Vec<Buffer>>> {
        let mut options = ffi::PJRT_ExecuteOptions::new();
        options.non_donatable_input_indices = kept.as_ptr();
        options.num_non_donatable_input_indices = kept.len();
        let argument_lists: Vec<*const *mut ffi::PJRT_Buffer> =
            lists.iter().map(|list| list.as_ptr()).collect();
        let mut raw_outputs = vec![vec![std::ptr::null_mut(); self.outputs().len()]; lists.len()];
        let output_lists: Vec<*mut *mut ffi::PJRT_Buffer> =
            raw_outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut args = ffi::PJRT_LoadedExecutable_Execute_Args::new();
        args.executable = self.inner.loaded;
        args.options = &mut options;
        args.argument_lists = argument_lists.as_ptr();
        args.num_devices = lists.len();
        args.num_args = lists[0].len();
        args.output_lists = output_lists.as_ptr();
        if !events.is_empty() {
            args.device_complete_events = events.as_mut_ptr();
        }
        // SAFETY: executable and buffers are alive; every list has the length that is passed with it and outlives
        // the call; the outputs are handed over to us.
        unsafe {
            self.client().api().call(ffi::PJRT_LoadedExecutable_Execute, &mut args)?;
            let own = |(raw, spec): (*mut ffi::PJRT_Buffer, &Arc<ArraySpec>)| {
                Buffer::from_raw(self.client(), raw, spec.clone())
            };
            let own_list =
                |list: Vec<_>| list.into_iter().zip(&self.inner.output_specs).map(own).collect::<Vec<_>>();
            Ok(raw_outputs.into_iter().map(own_list).collect())
        }
    }

    fn check_loaded(&self) -> Result<()> {
        if self.inner.is_deleted.load(Ordering::Acquire) {
            return Err(Error::InvalidArgument(format!("`{}` was unloaded by delete()", self.name())));
        }
        Ok(())
    }

    fn wrong_lists(&self, counts: &[usize]) -> Error {
        Error::InvalidArgument(format!(
            "`{}` runs on {} devices and takes one equally long list of arguments for each, but was given lists of \
             {counts:?}",
            self.name(),
            self.devices().len()
        ))
    }

    fn check_argument(&self, device: usize, position: usize, buffer: &Buffer) -> Result<()> {
        let refuse = |why: String| {
            Error::InvalidArgument(format!(
                "argument {position} of `{}` on device {device}: {why}",
                self.name()
            ))
        };
        if buffer.client() != self.client() {
            return Err(refuse("the buffer belongs to another client".into()));
        }
        buffer.check_alive().map_err(|error| refuse(error.to_string()))
    }

    fn check_arguments(&self, arguments: &[Vec<Input<'_>>]) -> Result<()> {
        self.check_loaded()?;
        if arguments.len() != self.devices().len()
            || arguments.iter().any(|list| list.len() != arguments[0].len())
        {
            return Err(self.wrong_lists(&arguments.iter().map(Vec::len).collect::<Vec<_>>()));
        }
        // A buffer that is donated must not be in the list a second time.
        let mut donated: HashSet<*mut ffi::PJRT_Buffer> = HashSet::new();
        for (device, list) in arguments.iter().enumerate() {
            for (position, input) in list.iter().enumerate() {
                self.check_argument(device, position, input.buffer())?;
                if matches!(input, Input::Donate(_)) && !donated.insert(input.buffer().raw()) {
                    return Err(self.donated_twice(position));
                }
            }
        }
        if !donated.is_empty() {
            for (position, input) in arguments.iter().flat_map(|list| list.iter().enumerate()) {
                if matches!(input, Input::Borrow(_)) && donated.contains(&input.buffer().raw()) {
                    return Err(self.donated_twice(position));
                }
            }
        }
        Ok(())
    }

    fn donated_twice(&self, position: usize) -> Error {
        Error::InvalidArgument(format!(
            "argument {position} of `{}` is a buffer that is donated, and is an argument of this call twice; copy it \
             (copy_to), or do not donate it",
            self.name()
        ))
    }

    /// Unloads the program now, whoever else holds a clone; executing it afterwards is an error.
    ///
    /// # Errors
    /// When the plugin cannot.
    pub fn delete(&self) -> Result<()> {
        let mut args = ffi::PJRT_LoadedExecutable_Delete_Args::new();
        args.executable = self.inner.loaded;
        // SAFETY: the executable is alive as long as `self`.
        unsafe { self.client().api().call(ffi::PJRT_LoadedExecutable_Delete, &mut args) }?;
        self.inner.is_deleted.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether the program was unloaded.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_deleted(&self) -> Result<bool> {
        let mut args = ffi::PJRT_LoadedExecutable_IsDeleted_Args::new();
        args.executable = self.inner.loaded;
        // SAFETY: the executable is alive as long as `self`.
        unsafe { self.client().api().call(ffi::PJRT_LoadedExecutable_IsDeleted, &mut args) }?;
        Ok(args.is_deleted)
    }
}

/// Remembers which buffers the program has used up.
fn note_donations(arguments: &[Input<'_>]) -> Result<()> {
    arguments.iter().try_for_each(|input| match input {
        Input::Donate(buffer) => buffer.note_donation(),
        Input::Borrow(_) => Ok(()),
    })
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
