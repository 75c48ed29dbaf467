//! Devices, what describes them, and their memories.

use std::ffi::{c_char, c_int};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::c_api as c;
use crate::calls::{Call, plugin};
use crate::config::Config;
use crate::failure::{Failure, Result};
use crate::lane::Lane;
use crate::memory::DeviceMemory;
use crate::objects::Object;

/// A device, and its lanes.
pub struct Device {
    pub index: usize,
    pub is_here: bool,
    pub to_device: Lane,
    pub from_device: Lane,
    pub executions: Lane,
    /// The device's own, then the host's.
    pub memories: Vec<Arc<Memory>>,
    pub handles: Handles,
}

/// What the caller knows things of a client by.
#[derive(Default)]
pub struct Handles {
    pub own: OnceLock<usize>,
    pub description: OnceLock<usize>,
    pub memories: OnceLock<Vec<usize>>,
}

/// What describes a device.
pub struct Description {
    id: c_int,
    process: c_int,
    text: String,
}

/// A memory of a device.
pub struct Memory {
    pub id: c_int,
    pub kind: &'static str,
    pub memory: Arc<DeviceMemory>,
    pub device: OnceLock<usize>,
    pub handle: OnceLock<usize>,
    pub device_index: usize,
}

impl Object for Device {
    type Raw = c::PJRT_Device;
    const NAME: &'static str = "device";
}

impl Object for Description {
    type Raw = c::PJRT_DeviceDescription;
    const NAME: &'static str = "device description";
}

impl Object for Memory {
    type Raw = c::PJRT_Memory;
    const NAME: &'static str = "memory";
}

/// What a device is called.
const KIND: &str = "Simulated accelerator";

/// A handle as the number that it is, for what is shared by threads.
fn number<T>(handle: *mut T) -> usize {
    handle.addr()
}

pub fn pointer<T>(handle: &OnceLock<usize>) -> *mut T {
    std::ptr::without_provenance_mut(handle.get().copied().unwrap_or(0))
}

impl Memory {
    pub fn is_host(&self) -> bool {
        self.memory.limit.is_none()
    }
}

impl Device {
    /// A device, known to the caller from now on.
    pub fn new(index: usize, process: usize, is_here: bool, config: &Config) -> Arc<Device> {
        let kinds = [("device", Some(config.memory_bytes)), ("pinned_host", None)];
        let memory = |(which, (kind, limit)): (usize, (&'static str, Option<u64>))| {
            Arc::new(Memory {
                id: (index * 2 + which) as c_int,
                kind,
                memory: Arc::new(DeviceMemory::new(index * 2 + which, limit)),
                device: OnceLock::new(),
                handle: OnceLock::new(),
                device_index: index,
            })
        };
        let device = Arc::new(Device {
            index,
            is_here,
            to_device: Lane::new("to device"),
            from_device: Lane::new("from device"),
            executions: Lane::new("executions"),
            memories: kinds.into_iter().enumerate().map(memory).collect(),
            handles: Handles::default(),
        });
        let objects = &plugin().objects;
        let own = number(objects.give::<Device>(Arc::clone(&device)));
        let description =
            Description { id: index as c_int, process: process as c_int, text: format!("{KIND} {index}") };
        let _ = device.handles.own.set(own);
        let _ = device.handles.description.set(number(objects.give::<Description>(description)));
        let memories = device.memories.iter().map(|memory| {
            let handle = number(objects.give::<Memory>(Arc::clone(memory)));
            let _ = (memory.device.set(own), memory.handle.set(handle));
            handle
        });
        let _ = device.handles.memories.set(memories.collect());
        device
    }

    /// What so many bytes take to the device or from it.
    pub fn transfer_time(config: &Config, bytes: usize, is_registered: bool) -> Duration {
        let rate = match config.unregistered_bytes_per_second {
            slow if !is_registered && slow > 0.0 => slow,
            _ => config.bytes_per_second,
        };
        let moving = if rate > 0.0 { Duration::from_secs_f64(bytes as f64 / rate) } else { Duration::ZERO };
        moving + Duration::from_micros(config.transfer_micros)
    }

    /// The caller's handles are of no use any more. Ends when the device has done what it was given.
    pub fn close(&self) {
        let lanes = [&self.to_device, &self.from_device, &self.executions];
        let closed = lanes.map(Lane::close);
        if closed.contains(&false) {
            plugin().violation(
                "the client was destroyed by one of its own threads, which cannot wait for itself",
            );
        }
        let objects = &plugin().objects;
        let _ = objects.take::<Device>(pointer(&self.handles.own));
        let _ = objects.take::<Description>(pointer(&self.handles.description));
        for memory in &self.memories {
            let _ = objects.take::<Memory>(pointer(&memory.handle));
        }
    }
}

fn device(handle: *mut c::PJRT_Device) -> Result<Arc<Device>> {
    plugin().objects.get::<Device>(handle)
}

fn description(handle: *mut c::PJRT_DeviceDescription) -> Result<Arc<Description>> {
    plugin().objects.get::<Description>(handle)
}

fn memory(handle: *mut c::PJRT_Memory) -> Result<Arc<Memory>> {
    plugin().objects.get::<Memory>(handle)
}

/// Text for the caller, which lives as long as what it belongs to.
pub fn text(text: &str) -> (*const c_char, usize) {
    (text.as_ptr().cast(), text.len())
}

pub fn get_description(args: &mut c::PJRT_Device_GetDescription_Args, _: &mut Call) -> Result<()> {
    args.device_description = pointer(&device(args.device)?.handles.description);
    Ok(())
}

pub fn is_addressable(args: &mut c::PJRT_Device_IsAddressable_Args, _: &mut Call) -> Result<()> {
    args.is_addressable = device(args.device)?.is_here;
    Ok(())
}

pub fn local_hardware_id(args: &mut c::PJRT_Device_LocalHardwareId_Args, _: &mut Call) -> Result<()> {
    args.local_hardware_id = device(args.device)?.index as c_int;
    Ok(())
}

pub fn addressable_memories(args: &mut c::PJRT_Device_AddressableMemories_Args, _: &mut Call) -> Result<()> {
    let device = device(args.device)?;
    let memories = device.handles.memories.get().map_or(&[][..], Vec::as_slice);
    (args.memories, args.num_memories) = (memories.as_ptr().cast(), memories.len());
    Ok(())
}

pub fn default_memory(args: &mut c::PJRT_Device_DefaultMemory_Args, _: &mut Call) -> Result<()> {
    args.memory = pointer(&device(args.device)?.memories[0].handle);
    Ok(())
}

pub fn memory_stats(args: &mut c::PJRT_Device_MemoryStats_Args, _: &mut Call) -> Result<()> {
    if !plugin().config().has_memory_stats {
        return Err(Failure::unimplemented("this device does not say how much memory is in use"));
    }
    let device = device(args.device)?;
    let memory = &device.memories[0].memory;
    let said = memory.statistics();
    args.bytes_in_use = said.in_use as i64;
    (args.peak_bytes_in_use, args.peak_bytes_in_use_is_set) = (said.peak as i64, true);
    (args.num_allocs, args.num_allocs_is_set) = (said.allocations as i64, true);
    (args.largest_alloc_size, args.largest_alloc_size_is_set) = (said.largest as i64, true);
    let limit = memory.limit.unwrap_or(u64::MAX) as i64;
    (args.bytes_limit, args.bytes_limit_is_set) = (limit, true);
    Ok(())
}

pub fn id(args: &mut c::PJRT_DeviceDescription_Id_Args, _: &mut Call) -> Result<()> {
    args.id = description(args.device_description)?.id;
    Ok(())
}

pub fn process_index(args: &mut c::PJRT_DeviceDescription_ProcessIndex_Args, _: &mut Call) -> Result<()> {
    args.process_index = description(args.device_description)?.process;
    Ok(())
}

pub fn attributes(args: &mut c::PJRT_DeviceDescription_Attributes_Args, _: &mut Call) -> Result<()> {
    description(args.device_description)?;
    (args.attributes, args.num_attributes) = (std::ptr::null(), 0);
    Ok(())
}

pub fn kind(args: &mut c::PJRT_DeviceDescription_Kind_Args, _: &mut Call) -> Result<()> {
    description(args.device_description)?;
    (args.device_kind, args.device_kind_size) = text(KIND);
    Ok(())
}

pub fn debug_string(args: &mut c::PJRT_DeviceDescription_DebugString_Args, _: &mut Call) -> Result<()> {
    let description = description(args.device_description)?;
    (args.debug_string, args.debug_string_size) = text(&description.text);
    Ok(())
}

pub fn to_string(args: &mut c::PJRT_DeviceDescription_ToString_Args, _: &mut Call) -> Result<()> {
    let description = description(args.device_description)?;
    (args.to_string, args.to_string_size) = text(&description.text);
    Ok(())
}

pub fn memory_id(args: &mut c::PJRT_Memory_Id_Args, _: &mut Call) -> Result<()> {
    args.id = memory(args.memory)?.id;
    Ok(())
}

pub fn memory_kind(args: &mut c::PJRT_Memory_Kind_Args, _: &mut Call) -> Result<()> {
    (args.kind, args.kind_size) = text(memory(args.memory)?.kind);
    Ok(())
}

pub fn memory_debug_string(args: &mut c::PJRT_Memory_DebugString_Args, _: &mut Call) -> Result<()> {
    (args.debug_string, args.debug_string_size) = text(memory(args.memory)?.kind);
    Ok(())
}

pub fn memory_to_string(args: &mut c::PJRT_Memory_ToString_Args, _: &mut Call) -> Result<()> {
    (args.to_string, args.to_string_size) = text(memory(args.memory)?.kind);
    Ok(())
}

pub fn memory_devices(args: &mut c::PJRT_Memory_AddressableByDevices_Args, _: &mut Call) -> Result<()> {
    let memory = memory(args.memory)?;
    let device = memory.device.get().map_or(&[][..], std::slice::from_ref);
    (args.devices, args.num_devices) = (device.as_ptr().cast(), device.len());
    Ok(())
}
