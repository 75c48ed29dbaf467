//! Memory spaces of devices.

use std::fmt;

use super::api::{slice, string};
use super::client::Client;
use super::device::Device;
use super::ffi;
use crate::error::Result;

/// A memory space that buffers live in: a device's own, or host memory that it reaches.
#[derive(Clone)]
pub struct Memory {
    client: Client,
    index: usize,
}

/// What is constant about a memory, read once when the client is made.
pub(super) struct MemoryInfo {
    pub raw: *mut ffi::PJRT_Memory,
    id: i32,
    kind: String,
    debug: String,
    devices: Vec<*mut ffi::PJRT_Device>,
}

impl MemoryInfo {
    /// # Safety
    /// `raw` is a memory of a living client of this plugin.
    pub unsafe fn read(api: super::api::Api, raw: *mut ffi::PJRT_Memory) -> Result<MemoryInfo> {
        let mut id = ffi::PJRT_Memory_Id_Args::new();
        id.memory = raw;
        let mut kind = ffi::PJRT_Memory_Kind_Args::new();
        kind.memory = raw;
        let mut debug = ffi::PJRT_Memory_DebugString_Args::new();
        debug.memory = raw;
        let mut devices = ffi::PJRT_Memory_AddressableByDevices_Args::new();
        devices.memory = raw;
        // SAFETY: the memory is alive (the caller's promise), and what is returned lives as long as it.
        unsafe {
            api.call(ffi::PJRT_Memory_Id, &mut id)?;
            api.call(ffi::PJRT_Memory_Kind, &mut kind)?;
            api.call(ffi::PJRT_Memory_DebugString, &mut debug)?;
            api.call(ffi::PJRT_Memory_AddressableByDevices, &mut devices)?;
            Ok(MemoryInfo {
                raw,
                id: id.id,
                kind: string(kind.kind, kind.kind_size),
                debug: string(debug.debug_string, debug.debug_string_size),
                devices: slice(devices.devices, devices.num_devices).to_vec(),
            })
        }
    }
}

impl Memory {
    pub(super) fn new(client: Client, index: usize) -> Memory {
        Memory { client, index }
    }

    fn info(&self) -> &MemoryInfo {
        &self.client.memory_infos()[self.index]
    }

    pub(super) fn raw(&self) -> *mut ffi::PJRT_Memory {
        self.info().raw
    }

    /// The client that the memory belongs to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The memory's number, unique within its client.
    pub fn id(&self) -> i32 {
        self.info().id
    }

    /// The kind, such as `device`, `pinned_host` or `unpinned_host`.
    pub fn kind(&self) -> &str {
        &self.info().kind
    }

    /// The devices that reach this memory.
    pub fn devices(&self) -> Vec<Device> {
        self.client
            .devices()
            .into_iter()
            .filter(|device| self.info().devices.contains(&device.raw()))
            .collect()
    }
}

impl PartialEq for Memory {
    fn eq(&self, other: &Memory) -> bool {
        self.raw() == other.raw()
    }
}

impl Eq for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({})", self.info().debug)
    }
}
