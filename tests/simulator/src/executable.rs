//! Executables, and what they compute.

use std::ffi::c_char;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::Message;

use crate::buffer::{Buffer, Hold};
use crate::c_api as c;
use crate::calls::{Call, plugin};
use crate::client::{Client, client};
use crate::device::{Device, text};
use crate::event::Signal;
use crate::failure::{Failure, Result};
use crate::lane::Job;
use crate::layout::Shape;
use crate::objects::Object;
use crate::program::Program;

/// A compiled program.
pub struct Executable {
    program: Program,
    code: Vec<u8>,
    types: Vec<c::PJRT_Buffer_Type>,
    dims: Vec<i64>,
    ranks: Vec<usize>,
    kinds: Vec<usize>,
    kind_sizes: Vec<usize>,
    replicas: usize,
    partitions: usize,
    optimized: Vec<u8>,
}

/// One that runs on devices.
pub struct Loaded {
    executable: Arc<Executable>,
    devices: Vec<Arc<Device>>,
    handles: Vec<usize>,
    is_deleted: AtomicBool,
}

/// The bytes of an executable, for as long as the caller reads them.
struct Serialized(Vec<u8>);

impl Object for Executable {
    type Raw = c::PJRT_Executable;
    const NAME: &'static str = "executable";
}

impl Object for Loaded {
    type Raw = c::PJRT_LoadedExecutable;
    const NAME: &'static str = "loaded executable";
}

impl Object for Serialized {
    type Raw = c::PJRT_SerializedExecutable;
    const NAME: &'static str = "serialized executable";
}

/// `xla.CompileOptionsProto`, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
struct CompileOptions {
    #[prost(message, optional, tag = "3")]
    build: Option<BuildOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct BuildOptions {
    #[prost(int64, tag = "4")]
    replicas: i64,
    #[prost(int64, tag = "5")]
    partitions: i64,
    #[prost(message, optional, tag = "9")]
    assignment: Option<Assignment>,
}

#[derive(Clone, PartialEq, Message)]
struct Assignment {
    #[prost(message, repeated, tag = "3")]
    partitions: Vec<Replicas>,
}

#[derive(Clone, PartialEq, Message)]
struct Replicas {
    #[prost(int64, repeated, tag = "1")]
    devices: Vec<i64>,
}

/// `xla.HloModuleProto`, as far as callers read it.
#[derive(Clone, PartialEq, Message)]
struct HloModule {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    entry: String,
    #[prost(message, optional, tag = "4")]
    shape: Option<ProgramShape>,
    #[prost(message, optional, tag = "8")]
    aliases: Option<Aliases>,
}

#[derive(Clone, PartialEq, Message)]
struct HloModuleWithConfig {
    #[prost(message, optional, tag = "1")]
    module: Option<HloModule>,
}

#[derive(Clone, PartialEq, Message)]
struct ProgramShape {
    #[prost(message, repeated, tag = "1")]
    parameters: Vec<HloShape>,
    #[prost(message, optional, tag = "2")]
    result: Option<HloShape>,
}

#[derive(Clone, PartialEq, Message)]
struct HloShape {
    #[prost(int32, tag = "2")]
    element_type: i32,
    #[prost(int64, repeated, tag = "3")]
    dims: Vec<i64>,
    #[prost(message, repeated, tag = "4")]
    tuple: Vec<HloShape>,
}

#[derive(Clone, PartialEq, Message)]
struct Aliases {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Alias>,
}

#[derive(Clone, PartialEq, Message)]
struct Alias {
    #[prost(int64, repeated, tag = "1")]
    output: Vec<i64>,
    #[prost(int64, tag = "2")]
    parameter: i64,
}

/// `xla.PrimitiveType.TUPLE`.
const TUPLE: i32 = 13;

/// The C API's types and XLA's have other numbers.
fn hlo_type(element_type: c::PJRT_Buffer_Type) -> i32 {
    match element_type {
        c::PJRT_Buffer_Type_PRED => 1,
        c::PJRT_Buffer_Type_S8 => 2,
        c::PJRT_Buffer_Type_S16 => 3,
        c::PJRT_Buffer_Type_S32 => 4,
        c::PJRT_Buffer_Type_S64 => 5,
        c::PJRT_Buffer_Type_U8 => 6,
        c::PJRT_Buffer_Type_U16 => 7,
        c::PJRT_Buffer_Type_U32 => 8,
        c::PJRT_Buffer_Type_U64 => 9,
        c::PJRT_Buffer_Type_F16 => 10,
        c::PJRT_Buffer_Type_F32 => 11,
        c::PJRT_Buffer_Type_F64 => 12,
        c::PJRT_Buffer_Type_C64 => 15,
        c::PJRT_Buffer_Type_BF16 => 16,
        c::PJRT_Buffer_Type_C128 => 18,
        _ => 0,
    }
}

fn optimized(program: &Program) -> Vec<u8> {
    let shape = |shape: &Shape| HloShape {
        element_type: hlo_type(shape.element_type),
        dims: shape.dims.clone(),
        tuple: Vec::new(),
    };
    let outputs: Vec<HloShape> = program.outputs.iter().map(shape).collect();
    let alias = |&(parameter, output): &(usize, usize)| Alias {
        output: if outputs.len() == 1 { Vec::new() } else { vec![output as i64] },
        parameter: parameter as i64,
    };
    let module = HloModule {
        name: program.name.clone(),
        entry: "main".into(),
        shape: Some(ProgramShape {
            parameters: program.parameters.iter().map(shape).collect(),
            result: match &outputs[..] {
                [one] => Some(one.clone()),
                _ => Some(HloShape { element_type: TUPLE, dims: Vec::new(), tuple: outputs.clone() }),
            },
        }),
        aliases: Some(Aliases { entries: program.aliases.iter().map(alias).collect() }),
    };
    HloModuleWithConfig { module: Some(module) }.encode_to_vec()
}

/// The kind of memory that outputs are in.
const KIND: &str = "device";

impl Executable {
    fn new(program: Program, code: &[u8], replicas: usize, partitions: usize) -> Executable {
        Executable {
            types: program.outputs.iter().map(|shape| shape.element_type).collect(),
            dims: program.outputs.iter().flat_map(|shape| shape.dims.clone()).collect(),
            ranks: program.outputs.iter().map(|shape| shape.dims.len()).collect(),
            kinds: program.outputs.iter().map(|_| KIND.as_ptr().expose_provenance()).collect(),
            kind_sizes: program.outputs.iter().map(|_| KIND.len()).collect(),
            optimized: optimized(&program),
            code: code.to_vec(),
            replicas,
            partitions,
            program,
        }
    }
}

/// Bytes of the caller's.
///
/// # Safety
/// `bytes` points to so many, if there are any.
unsafe fn read(bytes: *const c_char, count: usize) -> Vec<u8> {
    // SAFETY: passed on to the caller.
    if count == 0 { Vec::new() } else { unsafe { std::slice::from_raw_parts(bytes.cast(), count) }.to_vec() }
}

/// Loads a program onto devices.
fn load(client: &Client, code: &[u8], options: &BuildOptions) -> Result<*mut c::PJRT_LoadedExecutable> {
    let count = |number: i64| usize::try_from(number.max(1)).unwrap_or(1);
    let (replicas, partitions) = (count(options.replicas), count(options.partitions));
    let executable = Arc::new(Executable::new(Program::parse(code)?, code, replicas, partitions));
    let assigned: Vec<i64> = match &options.assignment {
        Some(assignment) => assignment.partitions.iter().flat_map(|part| part.devices.clone()).collect(),
        None => (0..(replicas * partitions) as i64).collect(),
    };
    let devices = assigned.iter().map(|id| {
        let found = client.devices.iter().find(|device| device.index as i64 == *id);
        found.cloned().ok_or_else(|| Failure::invalid(format!("there is no device {id}")))
    });
    let devices: Vec<Arc<Device>> =
        devices.collect::<Result<Vec<_>>>()?.into_iter().filter(|device| device.is_here).collect();
    let handles = devices.iter().filter_map(|device| device.handles.own.get().copied()).collect();
    let loaded = Loaded { executable, devices, handles, is_deleted: AtomicBool::new(false) };
    Ok(plugin().objects.give::<Loaded>(loaded))
}

pub fn compile(args: &mut c::PJRT_Client_Compile_Args, _: &mut Call) -> Result<()> {
    let client = client(args.client)?;
    plugin().check_device()?;
    // SAFETY: the caller's program and options.
    let (code, options) = unsafe {
        let program = &*args.program;
        (read(program.code, program.code_size), read(args.compile_options, args.compile_options_size))
    };
    let options = CompileOptions::decode(&*options).map_err(|error| Failure::invalid(error.to_string()))?;
    args.executable = load(&client, &code, &options.build.unwrap_or_default())?;
    Ok(())
}

/// What serialised executables begin with.
const MAGIC: &[u8] = b"simulated executable\n";

pub fn deserialize(args: &mut c::PJRT_Executable_DeserializeAndLoad_Args, _: &mut Call) -> Result<()> {
    let client = client(args.client)?;
    plugin().check_device()?;
    // SAFETY: the caller's bytes.
    let bytes = unsafe { read(args.serialized_executable, args.serialized_executable_size) };
    let code = bytes.strip_prefix(MAGIC).ok_or_else(|| Failure::invalid("these bytes are no executable"))?;
    args.loaded_executable = load(&client, code, &BuildOptions::default())?;
    Ok(())
}

pub fn serialize(args: &mut c::PJRT_Executable_Serialize_Args, _: &mut Call) -> Result<()> {
    let serialized = Arc::new(Serialized([MAGIC, &executable(args.executable)?.code].concat()));
    args.serialized_bytes = serialized.0.as_ptr().cast();
    args.serialized_bytes_size = serialized.0.len();
    args.serialized_executable = plugin().objects.give::<Serialized>(serialized);
    args.serialized_executable_deleter = Some(delete_serialized);
    Ok(())
}

unsafe extern "C" fn delete_serialized(serialized: *mut c::PJRT_SerializedExecutable) {
    let _ = plugin().objects.take::<Serialized>(serialized);
}

fn executable(handle: *const c::PJRT_Executable) -> Result<Arc<Executable>> {
    plugin().objects.get::<Executable>(handle)
}

fn loaded(handle: *const c::PJRT_LoadedExecutable) -> Result<Arc<Loaded>> {
    plugin().objects.get::<Loaded>(handle)
}

pub fn destroy(args: &mut c::PJRT_Executable_Destroy_Args, _: &mut Call) -> Result<()> {
    plugin().objects.take::<Executable>(args.executable).map(drop)
}

pub fn name(args: &mut c::PJRT_Executable_Name_Args, _: &mut Call) -> Result<()> {
    (args.executable_name, args.executable_name_size) = text(&executable(args.executable)?.program.name);
    Ok(())
}

pub fn replicas(args: &mut c::PJRT_Executable_NumReplicas_Args, _: &mut Call) -> Result<()> {
    args.num_replicas = executable(args.executable)?.replicas;
    Ok(())
}

pub fn partitions(args: &mut c::PJRT_Executable_NumPartitions_Args, _: &mut Call) -> Result<()> {
    args.num_partitions = executable(args.executable)?.partitions;
    Ok(())
}

pub fn output_count(args: &mut c::PJRT_Executable_NumOutputs_Args, _: &mut Call) -> Result<()> {
    args.num_outputs = executable(args.executable)?.program.outputs.len();
    Ok(())
}

pub fn output_types(args: &mut c::PJRT_Executable_OutputElementTypes_Args, _: &mut Call) -> Result<()> {
    let executable = executable(args.executable)?;
    (args.output_types, args.num_output_types) =
        (executable.types.as_ptr().cast_mut(), executable.types.len());
    Ok(())
}

pub fn output_dims(args: &mut c::PJRT_Executable_OutputDimensions_Args, _: &mut Call) -> Result<()> {
    let executable = executable(args.executable)?;
    args.num_outputs = executable.ranks.len();
    (args.dims, args.dim_sizes) = (executable.dims.as_ptr(), executable.ranks.as_ptr());
    Ok(())
}

pub fn output_memory_kinds(args: &mut c::PJRT_Executable_OutputMemoryKinds_Args, _: &mut Call) -> Result<()> {
    let executable = executable(args.executable)?;
    args.num_outputs = executable.kinds.len();
    args.memory_kinds = executable.kinds.as_ptr().cast();
    args.memory_kind_sizes = executable.kind_sizes.as_ptr();
    Ok(())
}

pub fn code_size(args: &mut c::PJRT_Executable_SizeOfGeneratedCodeInBytes_Args, _: &mut Call) -> Result<()> {
    args.size_in_bytes = executable(args.executable)?.code.len() as i64;
    Ok(())
}

pub fn cost(args: &mut c::PJRT_Executable_GetCostAnalysis_Args, _: &mut Call) -> Result<()> {
    executable(args.executable)?;
    (args.properties, args.num_properties) = (std::ptr::null(), 0);
    Ok(())
}

pub fn memory_stats(args: &mut c::PJRT_Executable_GetCompiledMemoryStats_Args, _: &mut Call) -> Result<()> {
    let executable = executable(args.executable)?;
    let bytes = |shapes: &[Shape]| shapes.iter().map(Shape::host_bytes).sum::<usize>() as i64;
    args.argument_size_in_bytes = bytes(&executable.program.parameters);
    args.output_size_in_bytes = bytes(&executable.program.outputs);
    Ok(())
}

pub fn fingerprint(args: &mut c::PJRT_Executable_Fingerprint_Args, _: &mut Call) -> Result<()> {
    (args.executable_fingerprint, args.executable_fingerprint_size) =
        text(&executable(args.executable)?.program.name);
    Ok(())
}

pub fn optimized_program(args: &mut c::PJRT_Executable_OptimizedProgram_Args, _: &mut Call) -> Result<()> {
    let executable = executable(args.executable)?;
    // SAFETY: the caller's struct; its memory, if it gives some, has the size that it was told.
    unsafe {
        let program = &mut *args.program;
        let format = "hlo_with_config";
        (program.format, program.format_size) = text(format);
        if !program.code.is_null() {
            if program.code_size < executable.optimized.len() {
                return Err(Failure::invalid("the program needs more room"));
            }
            let target = program.code.cast::<u8>();
            std::ptr::copy_nonoverlapping(executable.optimized.as_ptr(), target, executable.optimized.len());
        }
        program.code_size = executable.optimized.len();
    }
    Ok(())
}

pub fn loaded_destroy(args: &mut c::PJRT_LoadedExecutable_Destroy_Args, _: &mut Call) -> Result<()> {
    plugin().objects.take::<Loaded>(args.executable).map(drop)
}

pub fn get_executable(args: &mut c::PJRT_LoadedExecutable_GetExecutable_Args, _: &mut Call) -> Result<()> {
    let executable = Arc::clone(&loaded(args.loaded_executable)?.executable);
    args.executable = plugin().objects.give::<Executable>(executable);
    Ok(())
}

pub fn loaded_devices(
    args: &mut c::PJRT_LoadedExecutable_AddressableDevices_Args,
    _: &mut Call,
) -> Result<()> {
    let loaded = loaded(args.executable)?;
    (args.addressable_devices, args.num_addressable_devices) =
        (loaded.handles.as_ptr().cast(), loaded.handles.len());
    Ok(())
}

pub fn loaded_delete(args: &mut c::PJRT_LoadedExecutable_Delete_Args, _: &mut Call) -> Result<()> {
    loaded(args.executable)?.is_deleted.store(true, Ordering::SeqCst);
    Ok(())
}

pub fn loaded_is_deleted(args: &mut c::PJRT_LoadedExecutable_IsDeleted_Args, _: &mut Call) -> Result<()> {
    args.is_deleted = loaded(args.executable)?.is_deleted.load(Ordering::SeqCst);
    Ok(())
}

/// What an execution on one device gives the caller.
struct Started {
    outputs: Vec<Arc<Buffer>>,
    done: Arc<Signal>,
}

pub fn execute(args: &mut c::PJRT_LoadedExecutable_Execute_Args, call: &mut Call) -> Result<()> {
    let loaded = loaded(args.executable)?;
    plugin().check_device()?;
    if args.num_devices != loaded.devices.len() || loaded.is_deleted.load(Ordering::SeqCst) {
        return Err(Failure::invalid("the executable is deleted, or is for another number of devices"));
    }
    // SAFETY: the caller's options and lists.
    let (kept, lists) = unsafe {
        let options = &*args.options;
        let count = options.num_non_donatable_input_indices;
        let kept: &[i64] = match count {
            0 => &[],
            _ => std::slice::from_raw_parts(options.non_donatable_input_indices, count),
        };
        (kept.to_vec(), std::slice::from_raw_parts(args.argument_lists, args.num_devices))
    };
    let mut started = Vec::new();
    for (device, &list) in loaded.devices.iter().zip(lists) {
        // SAFETY: the caller's list.
        let list = if args.num_args == 0 {
            &[][..]
        } else {
            unsafe { std::slice::from_raw_parts(list, args.num_args) }
        };
        let arguments =
            list.iter().map(|&handle| crate::buffer::buffer(handle)).collect::<Result<Vec<_>>>()?;
        started.push(loaded.executable.start(device, &arguments, &kept, call)?);
    }
    for (index, started) in started.into_iter().enumerate() {
        // SAFETY: the caller's lists have room for the outputs, and one event a device if it wants them.
        unsafe {
            let list = *args.output_lists.add(index);
            for (position, output) in started.outputs.into_iter().enumerate() {
                *list.add(position) = plugin().objects.give::<Buffer>(output);
            }
            if !args.device_complete_events.is_null() {
                *args.device_complete_events.add(index) = plugin().objects.give::<Signal>(started.done);
            }
        }
    }
    Ok(())
}

impl Executable {
    fn start(
        &self,
        device: &Arc<Device>,
        arguments: &[Arc<Buffer>],
        kept: &[i64],
        call: &mut Call,
    ) -> Result<Started> {
        let shapes: Vec<&Shape> = arguments.iter().map(|argument| &argument.shape).collect();
        if shapes != self.program.parameters.iter().collect::<Vec<_>>() {
            return Err(Failure::invalid(format!(
                "`{}` takes other arguments than {shapes:?}",
                self.program.name
            )));
        }
        if arguments.iter().any(|argument| !Arc::ptr_eq(&argument.device, device)) {
            return Err(Failure::invalid("an argument is on another device"));
        }
        let holds = arguments.iter().map(|argument| argument.hold()).collect::<Result<Vec<_>>>()?;
        let done = Arc::new(Signal::default());
        let outputs = self.outputs(device, arguments, kept, &done)?;
        let after = arguments.iter().map(|argument| Arc::clone(&argument.ready)).collect();
        let (program, inputs, targets) = (self.program.clone(), arguments.to_vec(), outputs.clone());
        let output_holds = outputs.iter().map(|output| output.hold()).collect::<Result<Vec<_>>>()?;
        let run = move |before: Result<()>| {
            before?;
            plugin().check_device()?;
            let read = inputs.iter().zip(&holds).map(|(input, hold)| input.read(hold));
            let results = program.run(read.collect::<Result<_>>()?);
            let targets = targets.iter().zip(&output_holds).zip(results);
            targets.into_iter().try_for_each(|((target, hold), bytes)| target.write(hold, bytes))
        };
        let takes = Duration::from_micros(plugin().config().execute_micros);
        let job = Job { takes, run: Box::new(run), fault: call.work.take(), done: Arc::clone(&done) };
        device.executions.submit(after, job);
        Ok(Started { outputs, done })
    }

    /// The outputs, in the memory of the arguments that are donated, or in their own. What fails leaves the arguments as they
    /// are.
    fn outputs(
        &self,
        device: &Arc<Device>,
        arguments: &[Arc<Buffer>],
        kept: &[i64],
        done: &Arc<Signal>,
    ) -> Result<Vec<Arc<Buffer>>> {
        let memory = &device.memories[0];
        let fresh = |shape: &Shape| {
            Buffer::allocate(shape.clone(), Arc::clone(memory), Arc::clone(device), Arc::clone(done))
                .map(Arc::new)
        };
        let shapes = self.program.outputs.iter().enumerate();
        let allocated = shapes.clone().map(|(output, shape)| match self.donor(output, kept) {
            Some(_) => Ok(None),
            None => fresh(shape).map(Some),
        });
        let allocated = allocated.collect::<Result<Vec<_>>>()?;
        let output = |((output, shape), allocated): ((usize, &Shape), Option<Arc<Buffer>>)| {
            let donated = || self.donor(output, kept).and_then(|donor| arguments[donor].donate());
            match allocated {
                Some(buffer) => Ok(buffer),
                None => donated().map_or_else(
                    // The donor cannot be had after all.
                    || fresh(shape),
                    |hold: Arc<Hold>| {
                        let (memory, device) = (Arc::clone(memory), Arc::clone(device));
                        Ok(Arc::new(Buffer::new(shape.clone(), memory, device, hold, Arc::clone(done))))
                    },
                ),
            }
        };
        shapes.zip(allocated).map(output).collect()
    }

    /// The argument whose memory an output takes, if the caller lets it.
    fn donor(&self, output: usize, kept: &[i64]) -> Option<usize> {
        let alias = self.program.aliases.iter().find(|(_, taken)| *taken == output);
        alias.map(|(parameter, _)| *parameter).filter(|parameter| !kept.contains(&(*parameter as i64)))
    }
}

pub fn loaded_fingerprint(args: &mut c::PJRT_LoadedExecutable_Fingerprint_Args, _: &mut Call) -> Result<()> {
    let loaded = loaded(args.executable)?;
    (args.executable_fingerprint, args.executable_fingerprint_size) = text(&loaded.executable.program.name);
    Ok(())
}
