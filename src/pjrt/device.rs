//! Devices, what they are and how full they are.

use std::fmt;

use super::api::{Api, slice, string};
use super::client::Client;
use super::ffi;
use super::memory::Memory;
use super::named_value::NamedValue;
use crate::error::{Error, Result};

/// A device of a client: a CPU, a GPU, a TPU core.
#[derive(Clone)]
pub struct Device {
    client: Client,
    index: usize,
}

/// What a device is, whether it is here or not.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DeviceDescription {
    id: i32,
    kind: String,
    process_index: i32,
    text: String,
    attributes: Vec<(String, NamedValue)>,
}

/// Calls a getter on `$handle` and evaluates to its filled arguments.
macro_rules! read {
    ($api:ident, $function:ident, $args:ident, $field:ident: $handle:expr) => {{
        let mut args = ffi::$args::new();
        args.$field = $handle;
        $api.call(ffi::$function, &mut args)?;
        args
    }};
}

impl DeviceDescription {
    /// # Safety
    /// `raw` is the description of a device of a living client or topology of this plugin.
    pub(super) unsafe fn read(api: Api, raw: *mut ffi::PJRT_DeviceDescription) -> Result<DeviceDescription> {
        // SAFETY: the description is alive (the caller's promise); strings and arrays that are returned live as long as it
        // and are copied.
        unsafe {
            let id = read!(api, PJRT_DeviceDescription_Id, PJRT_DeviceDescription_Id_Args, device_description: raw);
            let process = read!(api, PJRT_DeviceDescription_ProcessIndex, PJRT_DeviceDescription_ProcessIndex_Args,
                device_description: raw);
            let kind = read!(api, PJRT_DeviceDescription_Kind, PJRT_DeviceDescription_Kind_Args,
                device_description: raw);
            let text = read!(api, PJRT_DeviceDescription_ToString, PJRT_DeviceDescription_ToString_Args,
                device_description: raw);
            let attributes = read!(api, PJRT_DeviceDescription_Attributes, PJRT_DeviceDescription_Attributes_Args,
                device_description: raw);
            Ok(DeviceDescription {
                id: id.id,
                kind: string(kind.device_kind, kind.device_kind_size),
                process_index: process.process_index,
                text: string(text.to_string, text.to_string_size),
                attributes: NamedValue::read_all(attributes.attributes, attributes.num_attributes),
            })
        }
    }

    /// The device's number, unique across all processes.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// The vendor's name of the kind of device, such as `cpu` or `NVIDIA H100 80GB HBM3`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The process that the device is attached to.
    pub fn process_index(&self) -> i32 {
        self.process_index
    }

    /// What else the plugin says of the device, such as `coords` or `compute_capability`.
    pub fn attributes(&self) -> &[(String, NamedValue)] {
        &self.attributes
    }
}

/// What is constant about a device, read once when the client is made.
pub(super) struct DeviceInfo {
    pub raw: *mut ffi::PJRT_Device,
    description: DeviceDescription,
    local_hardware_id: Option<i32>,
    is_addressable: bool,
    memories: Vec<*mut ffi::PJRT_Memory>,
    default_memory: Option<*mut ffi::PJRT_Memory>,
}

impl DeviceInfo {
    /// A device of another process that the plugin does not show.
    pub fn elsewhere(description: DeviceDescription) -> DeviceInfo {
        DeviceInfo {
            raw: std::ptr::null_mut(),
            description,
            local_hardware_id: None,
            is_addressable: false,
            memories: Vec::new(),
            default_memory: None,
        }
    }

    pub fn description(&self) -> &DeviceDescription {
        &self.description
    }

    pub fn is_addressable(&self) -> bool {
        self.is_addressable
    }

    /// # Safety
    /// `raw` is a device of a living client of this plugin.
    pub unsafe fn read(api: Api, raw: *mut ffi::PJRT_Device) -> Result<DeviceInfo> {
        // SAFETY: the device and its description are alive as long as the client (the caller's promise);
        // arrays that are returned live as long as the device and are copied.
        unsafe {
            let description =
                read!(api, PJRT_Device_GetDescription, PJRT_Device_GetDescription_Args, device: raw)
                    .device_description;
            let addressable =
                read!(api, PJRT_Device_IsAddressable, PJRT_Device_IsAddressable_Args, device: raw);
            let mut info = DeviceInfo {
                raw,
                description: DeviceDescription::read(api, description)?,
                local_hardware_id: None,
                is_addressable: addressable.is_addressable,
                memories: Vec::new(),
                default_memory: None,
            };
            if info.is_addressable {
                let hardware =
                    read!(api, PJRT_Device_LocalHardwareId, PJRT_Device_LocalHardwareId_Args, device: raw);
                info.local_hardware_id = Some(hardware.local_hardware_id);
                // Plugins without memory spaces report them as unimplemented; the device still works.
                let mut memories = ffi::PJRT_Device_AddressableMemories_Args::new();
                memories.device = raw;
                if api.call(ffi::PJRT_Device_AddressableMemories, &mut memories).is_ok() {
                    info.memories = slice(memories.memories, memories.num_memories).to_vec();
                }
                let mut default = ffi::PJRT_Device_DefaultMemory_Args::new();
                default.device = raw;
                if api.call(ffi::PJRT_Device_DefaultMemory, &mut default).is_ok() {
                    info.default_memory = Some(default.memory);
                }
            }
            Ok(info)
        }
    }
}

/// How full a device's memory is, in bytes; `None` where the plugin does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Allocated now.
    pub in_use_bytes: i64,
    /// The most that was ever allocated.
    pub peak_in_use_bytes: Option<i64>,
    /// What the allocator may use.
    pub limit_bytes: Option<i64>,
    /// The largest single allocation so far.
    pub largest_allocation_bytes: Option<i64>,
    /// The largest block that is free now.
    pub largest_free_block_bytes: Option<i64>,
}

impl Device {
    pub(super) fn new(client: Client, index: usize) -> Device {
        Device { client, index }
    }

    fn info(&self) -> &DeviceInfo {
        &self.client.device_infos()[self.index]
    }

    pub(super) fn raw(&self) -> *mut ffi::PJRT_Device {
        self.info().raw
    }

    /// The client that the device belongs to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the device is.
    pub fn description(&self) -> &DeviceDescription {
        &self.info().description
    }

    /// The device's number, unique across all processes.
    pub fn id(&self) -> i32 {
        self.description().id
    }

    /// The vendor's name of the kind of device, such as `cpu` or `NVIDIA H100 80GB HBM3`.
    pub fn kind(&self) -> &str {
        self.description().kind()
    }

    /// The process that the device is attached to.
    pub fn process_index(&self) -> i32 {
        self.description().process_index
    }

    /// The number of the hardware on its host, for a device of this process.
    pub fn local_hardware_id(&self) -> Option<i32> {
        self.info().local_hardware_id
    }

    /// Whether this process can move data to and from the device.
    pub fn is_addressable(&self) -> bool {
        self.info().is_addressable
    }

    /// What else the plugin says of the device, such as `coords` or `compute_capability`.
    pub fn attributes(&self) -> &[(String, NamedValue)] {
        self.description().attributes()
    }

    /// The memories that the device reaches; empty where the plugin has no memory spaces.
    pub fn memories(&self) -> Vec<Memory> {
        self.info().memories.iter().filter_map(|&raw| self.client.memory_from_raw(raw)).collect()
    }

    /// The memory that buffers go to unless told otherwise.
    pub fn default_memory(&self) -> Option<Memory> {
        self.info().default_memory.and_then(|raw| self.client.memory_from_raw(raw))
    }

    /// The memory of this kind, such as `pinned_host`.
    pub fn memory(&self, kind: &str) -> Option<Memory> {
        self.memories().into_iter().find(|memory| memory.kind() == kind)
    }

    /// How full the device's memory is.
    ///
    /// # Errors
    /// `UNIMPLEMENTED` from plugins that do not count, such as the CPU's; [`Error::InvalidArgument`] of another process's.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        if !self.is_addressable() {
            return Err(Error::InvalidArgument(format!("{self} is attached to another process")));
        }
        let mut args = ffi::PJRT_Device_MemoryStats_Args::new();
        args.device = self.raw();
        // SAFETY: the device lives as long as its client, which `self` holds.
        unsafe { self.client.api().call(ffi::PJRT_Device_MemoryStats, &mut args) }?;
        Ok(MemoryStats {
            in_use_bytes: args.bytes_in_use,
            peak_in_use_bytes: args.peak_bytes_in_use_is_set.then_some(args.peak_bytes_in_use),
            limit_bytes: args.bytes_limit_is_set.then_some(args.bytes_limit),
            largest_allocation_bytes: args.largest_alloc_size_is_set.then_some(args.largest_alloc_size),
            largest_free_block_bytes: args
                .largest_free_block_bytes_is_set
                .then_some(args.largest_free_block_bytes),
        })
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.index == other.index && self.client == other.client
    }
}

impl Eq for Device {}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.client.platform_name(), self.id())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {})", self, self.description().text)
    }
}
