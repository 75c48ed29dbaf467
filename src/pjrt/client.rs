//! Clients: a plugin at work on its devices, and the ways for host bytes to become buffers.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::api::{Api, slice, string};
use super::buffer::Buffer;
use super::compile_options::device_count;
use super::device::{Device, DeviceDescription, DeviceInfo};
use super::event::{Event, outside_callback, run_in_callback};
use super::ffi;
use super::host_memory::HostMemory;
use super::key_value::ClientStore;
use super::memory::{Memory, MemoryInfo};
use super::named_value::NamedValue;
use super::plugin::Plugin;
use crate::array::{ArraySpec, HostArray};
use crate::error::{Error, Result};
use crate::processes::Processes;

/// A client: the connection to the devices of one platform. Cheap to clone; the last clone, buffer or
/// executable to go destroys it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<ClientInner>,
}

struct ClientInner {
    plugin: Plugin,
    raw: *mut ffi::PJRT_Client,
    platform_name: String,
    platform_version: String,
    process_index: i32,
    devices: Vec<DeviceInfo>,
    memories: Vec<MemoryInfo>,
    /// What it was created with.
    options: Vec<(String, NamedValue)>,
    time_limit: Option<Duration>,
    /// The processes whose devices these are, where there are several.
    processes: Option<Processes>,
    /// What the plugin may ask for as long as the client lives.
    store: Option<Arc<ClientStore>>,
    /// Pieces of host memory that will not come back: see [`Client::lost_memory`].
    lost_memory: AtomicUsize,
}

// SAFETY: the C API allows a client, its devices and its memories to be used from any thread; the rest is
// read once and constant.
unsafe impl Send for ClientInner {}
// SAFETY: as above.
unsafe impl Sync for ClientInner {}

/// Where a buffer goes: a device's default memory, or a memory of one's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// The device's default memory.
    Device(Device),
    /// This memory.
    Memory(Memory),
}

impl From<&Device> for Placement {
    fn from(device: &Device) -> Placement {
        Placement::Device(device.clone())
    }
}

impl From<Device> for Placement {
    fn from(device: Device) -> Placement {
        Placement::from(&device)
    }
}

impl From<&Placement> for Placement {
    fn from(placement: &Placement) -> Placement {
        placement.clone()
    }
}

impl From<&Memory> for Placement {
    fn from(memory: &Memory) -> Placement {
        Placement::Memory(memory.clone())
    }
}

impl Placement {
    fn client(&self) -> &Client {
        match self {
            Placement::Device(device) => device.client(),
            Placement::Memory(memory) => memory.client(),
        }
    }

    /// The device and memory as the C API takes them, one of them null; an error for another client's.
    pub(super) fn raw(&self, client: &Client) -> Result<(*mut ffi::PJRT_Device, *mut ffi::PJRT_Memory)> {
        if !Arc::ptr_eq(&self.client().inner, &client.inner) {
            return Err(Error::InvalidArgument(format!("{self:?} belongs to another client")));
        }
        match self {
            Placement::Device(device) if !device.is_addressable() => {
                Err(Error::InvalidArgument(format!("{device:?} is attached to another process")))
            }
            Placement::Device(device) => Ok((device.raw(), std::ptr::null_mut())),
            Placement::Memory(memory) => Ok((std::ptr::null_mut(), memory.raw())),
        }
    }

    /// What the devices there say of their memory, for an allocation that failed.
    fn memory_report(&self) -> String {
        let devices = match self {
            Placement::Device(device) => vec![device.clone()],
            Placement::Memory(memory) => memory.devices(),
        };
        let reports = devices.iter().filter_map(|device| {
            let stats = device.memory_stats().ok()?;
            let limit = stats.limit_bytes.map_or("an unknown limit".into(), |limit| format!("{limit} bytes"));
            let free = stats.limit_bytes.map_or(String::new(), |limit| {
                format!(", {} free", limit.saturating_sub(stats.in_use_bytes))
            });
            Some(format!("; {device} has {} bytes in use of {limit}{free}", stats.in_use_bytes))
        });
        reports.collect()
    }
}

/// What a transfer to the device may do with the host's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostSemantics {
    /// Copy them; they are held only until the transfer has completed.
    Copy,
    /// Use them in place for as long as the buffer lives, where the platform can (the CPU, for bytes at a
    /// multiple of 64); copy them otherwise. They are never written to.
    Alias,
}

impl Client {
    /// Takes ownership of a client and reads what is constant about it.
    ///
    /// # Safety
    /// `raw` is a client of `plugin` that nobody else will destroy.
    pub(super) unsafe fn from_raw(
        plugin: Plugin,
        raw: *mut ffi::PJRT_Client,
        options: Vec<(String, NamedValue)>,
        time_limit: Option<Duration>,
        store: Option<Arc<ClientStore>>,
    ) -> Result<Client> {
        let api = plugin.api();
        // From here on the client is destroyed if reading it fails.
        let mut inner = ClientInner {
            plugin,
            raw,
            platform_name: String::new(),
            platform_version: String::new(),
            process_index: 0,
            devices: Vec::new(),
            memories: Vec::new(),
            options,
            time_limit,
            processes: None,
            store,
            lost_memory: AtomicUsize::new(0),
        };
        let mut name = ffi::PJRT_Client_PlatformName_Args::new();
        name.client = raw;
        let mut version = ffi::PJRT_Client_PlatformVersion_Args::new();
        version.client = raw;
        let mut process = ffi::PJRT_Client_ProcessIndex_Args::new();
        process.client = raw;
        let mut devices = ffi::PJRT_Client_Devices_Args::new();
        devices.client = raw;
        let mut memories = ffi::PJRT_Client_AddressableMemories_Args::new();
        memories.client = raw;
        // SAFETY: the client is alive; what it returns lives as long as it and is copied.
        unsafe {
            api.call(ffi::PJRT_Client_PlatformName, &mut name)?;
            inner.platform_name = string(name.platform_name, name.platform_name_size);
            api.call(ffi::PJRT_Client_PlatformVersion, &mut version)?;
            inner.platform_version = string(version.platform_version, version.platform_version_size);
            api.call(ffi::PJRT_Client_ProcessIndex, &mut process)?;
            inner.process_index = process.process_index;
            api.call(ffi::PJRT_Client_Devices, &mut devices)?;
            for &device in slice(devices.devices, devices.num_devices) {
                inner.devices.push(DeviceInfo::read(api, device)?);
            }
            // A plugin without memory spaces reports them as unimplemented; devices are enough then.
            if api.call(ffi::PJRT_Client_AddressableMemories, &mut memories).is_ok() {
                for &memory in slice(memories.addressable_memories, memories.num_addressable_memories) {
                    inner.memories.push(MemoryInfo::read(api, memory)?);
                }
            }
        }
        Ok(Client { inner: Arc::new(inner) })
    }

    /// What the devices of this process are.
    pub(super) fn own_devices(&self) -> Vec<DeviceDescription> {
        let own = self.inner.devices.iter().filter(|info| info.is_addressable());
        own.map(|info| info.description().clone()).collect()
    }

    /// The client as one of several, with what the devices of each process are. Those that the plugin does not show are added.
    ///
    /// # Errors
    /// [`Error::Processes`] when two devices have one number.
    pub(super) fn one_of(
        mut self,
        processes: &Processes,
        devices: Vec<Vec<DeviceDescription>>,
    ) -> Result<Client> {
        let Some(inner) = Arc::get_mut(&mut self.inner) else {
            return Err(Error::InvalidArgument("a client that has clones cannot be one of several".into()));
        };
        inner.processes = Some(processes.clone());
        let shows_all = inner.devices.iter().any(|info| !info.is_addressable());
        if !shows_all {
            let others = devices.into_iter().enumerate().filter(|(process, _)| *process != processes.index());
            inner.devices.extend(others.flat_map(|(_, devices)| devices).map(DeviceInfo::elsewhere));
            inner.devices.sort_by_key(|info| info.description().id());
        }
        let ids = || inner.devices.iter().map(|info| info.description().id());
        if let Some((id, _)) = ids().zip(ids().skip(1)).find(|(one, next)| one == next) {
            return Err(Error::Processes(format!(
                "two processes have a device of the number {id}; the plugin {} cannot be one of several",
                inner.plugin.path().display()
            )));
        }
        Ok(self)
    }

    /// The processes whose devices these are, where there are several ([`super::ClientBuilder::processes`]).
    pub fn processes(&self) -> Option<&Processes> {
        self.inner.processes.as_ref()
    }

    pub(super) fn api(&self) -> Api {
        self.inner.plugin.api()
    }

    pub(super) fn raw(&self) -> *mut ffi::PJRT_Client {
        self.inner.raw
    }

    pub(super) fn device_infos(&self) -> &[DeviceInfo] {
        &self.inner.devices
    }

    pub(super) fn memory_infos(&self) -> &[MemoryInfo] {
        &self.inner.memories
    }

    pub(super) fn memory_from_raw(&self, raw: *mut ffi::PJRT_Memory) -> Option<Memory> {
        let index = self.inner.memories.iter().position(|info| info.raw == raw)?;
        Some(Memory::new(self.clone(), index))
    }

    pub(super) fn device_from_raw(&self, raw: *mut ffi::PJRT_Device) -> Option<Device> {
        let index = self.inner.devices.iter().position(|info| info.raw == raw)?;
        Some(Device::new(self.clone(), index))
    }

    /// The plugin that the client came from.
    pub fn plugin(&self) -> &Plugin {
        &self.inner.plugin
    }

    /// The options that the client was created with.
    pub fn options(&self) -> &[(String, NamedValue)] {
        &self.inner.options
    }

    /// How long anything waits for one piece of work of a device: [`super::ClientBuilder::time_limit`].
    pub fn time_limit(&self) -> Option<Duration> {
        self.inner.time_limit
    }

    /// How many pieces of host memory were given up, since the plugin does not say when its work on them ends. Nobody is to wait
    /// for such a piece.
    pub(crate) fn lost_memory(&self) -> usize {
        self.inner.lost_memory.load(Ordering::Relaxed)
    }

    /// Counts a piece that was given up.
    pub(super) fn count_lost_memory(&self) {
        self.inner.lost_memory.fetch_add(1, Ordering::Relaxed);
    }

    /// The platform, such as `cpu`, `cuda` or `tpu`.
    pub fn platform_name(&self) -> &str {
        &self.inner.platform_name
    }

    /// The platform's version, as the plugin words it.
    pub fn platform_version(&self) -> &str {
        &self.inner.platform_version
    }

    /// The number of this process among those that share the devices.
    pub fn process_index(&self) -> i32 {
        self.inner.process_index
    }

    /// Every device of the platform, those of other processes included.
    pub fn devices(&self) -> Vec<Device> {
        (0..self.inner.devices.len()).map(|index| Device::new(self.clone(), index)).collect()
    }

    /// The devices that this process can use.
    pub fn addressable_devices(&self) -> Vec<Device> {
        self.devices().into_iter().filter(Device::is_addressable).collect()
    }

    /// The addressable device at this position, counted from 0.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are not that many.
    pub fn device(&self, index: usize) -> Result<Device> {
        let devices = self.addressable_devices();
        devices.get(index).cloned().ok_or_else(|| {
            Error::InvalidArgument(format!(
                "there is no device {}:{index}; this client has {}{}",
                self.platform_name(),
                devices.len(),
                devices.len().checked_sub(1).map_or(String::new(), |last| format!(" (0 to {last})"))
            ))
        })
    }

    /// The memories that this process can use.
    pub fn memories(&self) -> Vec<Memory> {
        (0..self.inner.memories.len()).map(|index| Memory::new(self.clone(), index)).collect()
    }

    /// The devices that a program of so many replicas and partitions runs on by default: one row a
    /// replica, one device id a partition.
    ///
    /// # Errors
    /// When the client does not have enough devices.
    pub fn default_device_assignment(&self, replicas: usize, partitions: usize) -> Result<Vec<Vec<i32>>> {
        let count = device_count(replicas, partitions, self.inner.devices.len(), "this client")?;
        let mut assignment = vec![c_int::default(); count];
        let mut args = ffi::PJRT_Client_DefaultDeviceAssignment_Args::new();
        args.client = self.raw();
        // Both are at most the number of devices, which is an int in the C API.
        args.num_replicas = replicas as c_int;
        args.num_partitions = partitions as c_int;
        args.default_assignment_size = count;
        args.default_assignment = assignment.as_mut_ptr();
        // SAFETY: the client is alive, and the array has the size that is passed with it.
        unsafe { self.api().call(ffi::PJRT_Client_DefaultDeviceAssignment, &mut args) }?;
        Ok(assignment.chunks(partitions.max(1)).map(<[i32]>::to_vec).collect())
    }

    /// Starts moving host bytes to a device: row-major elements, sub-byte ones in a byte each. Returns
    /// before the transfer ends; `data` is held for as long as the device uses it, which for
    /// [`HostSemantics::Alias`] can be as long as the buffer lives.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `data` is not as long as `spec` says; [`Error::UnsupportedDType`]
    /// or [`Error::Pjrt`] when the plugin refuses.
    pub fn buffer_from_host(
        &self,
        spec: &ArraySpec,
        data: Bytes,
        to: impl Into<Placement>,
        semantics: HostSemantics,
    ) -> Result<Buffer> {
        let raw_semantics = match semantics {
            HostSemantics::Copy => ffi::PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes,
            HostSemantics::Alias => ffi::PJRT_HostBufferSemantics_kImmutableZeroCopy,
        };
        // SAFETY: `data` is kept, by `hold_until_ready` below, until the plugin says that it is done with it.
        let (buffer, done) = unsafe { self.start_transfer(spec, &data, &to.into(), raw_semantics) }?;
        match done {
            // The transfer's own outcome reaches the caller through the buffer's ready event.
            Some(done) => done.hold_until_ready(data),
            // A plugin that gives no event is done when it returns, unless it aliases.
            None if semantics == HostSemantics::Alias => std::mem::forget(data),
            None => {}
        }
        Ok(buffer)
    }

    /// Copies an array to the first device; the transfer goes on after this returns.
    ///
    /// # Errors
    /// As for [`Client::buffer_from_host`].
    pub fn put(&self, array: &HostArray) -> Result<Buffer> {
        self.put_on(array, self.device(0)?)
    }

    /// Copies an array to a device or memory. As [`Client::put`].
    ///
    /// # Errors
    /// As for [`Client::buffer_from_host`].
    pub fn put_on(&self, array: &HostArray, to: impl Into<Placement>) -> Result<Buffer> {
        self.buffer_from_host(array.spec(), array.bytes().clone(), to, HostSemantics::Copy)
    }

    /// A buffer over host memory, where the platform can use it in place (the CPU, for memory at a multiple of
    /// 64 bytes); a copy elsewhere. The memory is the buffer's own: a program that the buffer is donated to
    /// writes its result there. It goes back to the system once the device is done with it.
    ///
    /// # Errors
    /// As for [`Client::buffer_from_host`].
    pub fn buffer_over(
        &self,
        spec: &ArraySpec,
        memory: HostMemory,
        to: impl Into<Placement>,
    ) -> Result<Buffer> {
        let semantics = ffi::PJRT_HostBufferSemantics_kMutableZeroCopy;
        // SAFETY: nobody else can reach `memory`, and it is kept, by `hold_until_ready` below, until the plugin
        // says that it is done with it.
        let (buffer, done) = unsafe { self.start_transfer(spec, &memory, &to.into(), semantics) }?;
        match done {
            Some(done) => done.hold_until_ready(memory),
            None => std::mem::forget(memory),
        }
        Ok(buffer)
    }

    /// Moves borrowed bytes to a device, as [`Client::buffer_from_host`] does, but copies them before it
    /// returns.
    ///
    /// # Errors
    /// As for [`Client::buffer_from_host`].
    pub fn buffer_from_slice(
        &self,
        spec: &ArraySpec,
        data: &[u8],
        to: impl Into<Placement>,
    ) -> Result<Buffer> {
        let semantics = ffi::PJRT_HostBufferSemantics_kImmutableOnlyDuringCall;
        // SAFETY: with these semantics the plugin holds `data` only during the call.
        let (buffer, _done) = unsafe { self.start_transfer(spec, data, &to.into(), semantics) }?;
        Ok(buffer)
    }

    /// # Safety
    /// `data` stays valid and unchanged for as long as `semantics` lets the plugin use it.
    unsafe fn start_transfer(
        &self,
        spec: &ArraySpec,
        data: &[u8],
        to: &Placement,
        semantics: ffi::PJRT_HostBufferSemantics,
    ) -> Result<(Buffer, Option<Event>)> {
        const FUNCTION: &str = "PJRT_Client_BufferFromHostBuffer";
        let element_type = self.element_type(spec)?;
        let expected = spec.host_bytes()?;
        if data.len() != expected {
            return Err(Error::InvalidArgument(format!(
                "{spec} takes {expected} bytes, but {} were given",
                data.len()
            )));
        }
        let dims = spec.xla_dims()?;
        let mut args = ffi::PJRT_Client_BufferFromHostBuffer_Args::new();
        args.client = self.raw();
        args.data = data.as_ptr().cast();
        args.type_ = element_type;
        args.dims = dims.as_ptr();
        args.num_dims = dims.len();
        args.host_buffer_semantics = semantics;
        (args.device, args.memory) = to.raw(self)?;
        // SAFETY: the client and the placement are alive, `dims` outlives the call, and the caller vouches
        // for `data`, which is as long as the shape says.
        unsafe { self.api().call(ffi::PJRT_Client_BufferFromHostBuffer, &mut args) }
            .map_err(|error| with_memory_report(error, to, expected))?;
        // SAFETY: the buffer and the event are handed over to us.
        unsafe {
            let done = (!args.done_with_host_buffer.is_null())
                .then(|| Event::from_raw(self, args.done_with_host_buffer, FUNCTION));
            Ok((Buffer::from_raw(self, args.buffer, spec.clone()), done))
        }
    }

    /// A buffer whose content is not yet anything in particular.
    ///
    /// # Errors
    /// [`Error::Unsupported`] from old plugins; [`Error::Pjrt`] when the device is full.
    pub fn uninitialized_buffer(&self, spec: &ArraySpec, to: impl Into<Placement>) -> Result<Buffer> {
        let to = to.into();
        let dims = spec.xla_dims()?;
        let mut args = ffi::PJRT_Client_CreateUninitializedBuffer_Args::new();
        args.client = self.raw();
        args.shape_dims = dims.as_ptr();
        args.shape_num_dims = dims.len();
        args.shape_element_type = self.element_type(spec)?;
        (args.device, args.memory) = to.raw(self)?;
        // SAFETY: the client and the placement are alive, and `dims` outlives the call.
        unsafe { self.api().call(ffi::PJRT_Client_CreateUninitializedBuffer, &mut args) }
            .map_err(|error| with_memory_report(error, &to, spec.host_bytes().unwrap_or(0)))?;
        // SAFETY: the buffer is handed over to us.
        Ok(unsafe { Buffer::from_raw(self, args.buffer, spec.clone()) })
    }

    /// A buffer over device memory that somebody else owns; `on_delete` runs when the buffer is done with it. Donating
    /// it to a call lends it, since the memory is not the call's to take.
    ///
    /// # Errors
    /// [`Error::Pjrt`] from platforms that cannot.
    ///
    /// # Safety
    /// `pointer` is device memory of `device`, holds the elements of `spec` row-major, and stays valid, and
    /// unchanged by others, until `on_delete` is called.
    pub unsafe fn view_of_device_memory(
        &self,
        spec: &ArraySpec,
        pointer: *mut c_void,
        device: &Device,
        on_delete: impl FnOnce() + Send + 'static,
    ) -> Result<Buffer> {
        type OnDelete = Box<dyn FnOnce() + Send>;
        unsafe extern "C" fn deleted(_pointer: *mut c_void, user_arg: *mut c_void) {
            // SAFETY: `user_arg` is the box made below, handed over once.
            let run = unsafe { Box::from_raw(user_arg.cast::<OnDelete>()) };
            run_in_callback(*run);
        }
        let dims = spec.xla_dims()?;
        let layout = RowMajor::new(dims.len());
        let mut raw_layout = layout.raw();
        let mut args = ffi::PJRT_Client_CreateViewOfDeviceBuffer_Args::new();
        args.client = self.raw();
        args.device_buffer_ptr = pointer;
        args.dims = dims.as_ptr();
        args.num_dims = dims.len();
        args.element_type = self.element_type(spec)?;
        args.layout = &mut raw_layout;
        (args.device, _) = Placement::from(device).raw(self)?;
        args.on_delete_callback = Some(deleted);
        let user_arg = Box::into_raw(Box::new(Box::new(on_delete) as OnDelete));
        args.on_delete_callback_arg = user_arg.cast();
        // SAFETY: the handles are alive, dims and layout outlive the call, and the caller vouches for the
        // memory.
        if let Err(error) = unsafe { self.api().call(ffi::PJRT_Client_CreateViewOfDeviceBuffer, &mut args) } {
            // SAFETY: no buffer was made, so the callback will not run and the box is still ours.
            drop(unsafe { Box::from_raw(user_arg) });
            return Err(error);
        }
        // SAFETY: the buffer is handed over to us.
        Ok(unsafe { Buffer::view_from_raw(self, args.buffer, spec) })
    }

    /// The C API's number for the element type.
    pub(super) fn element_type(&self, spec: &ArraySpec) -> Result<ffi::PJRT_Buffer_Type> {
        spec.dtype
            .to_pjrt()
            .ok_or_else(|| Error::UnsupportedDType { dtype: spec.dtype, context: "PJRT".into() })
    }
}

impl PartialEq for Client {
    fn eq(&self, other: &Client) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for Client {}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Client({}, {} devices, {:?})",
            self.platform_name(),
            self.inner.devices.len(),
            self.plugin()
        )
    }
}

impl Drop for ClientInner {
    fn drop(&mut self) {
        let api = self.plugin.api();
        let raw = SendPtr(self.raw);
        // It goes after the client, and stays where the client does.
        let store = ManuallyDrop::new(self.store.take());
        let destroy = move || {
            let (SendPtr(client), store) = ({ raw }, ManuallyDrop::into_inner(store));
            let mut args = ffi::PJRT_Client_Destroy_Args::new();
            args.client = client;
            // SAFETY: this is the last handle; buffers, events and executables hold one each.
            unsafe { api.call_in_drop(ffi::PJRT_Client_Destroy, &mut args) };
            drop(store);
        };
        // Destroying a client waits for its threads, and this may be one of them.
        outside_callback(destroy);
    }
}

#[derive(Clone, Copy)]
struct SendPtr(*mut ffi::PJRT_Client);

// SAFETY: the C API allows a client to be destroyed from any thread.
unsafe impl Send for SendPtr {}

/// The layout of row-major elements, which must outlive the raw form that points into it.
pub(super) struct RowMajor {
    pub minor_to_major: Vec<i64>,
}

impl RowMajor {
    pub fn new(rank: usize) -> RowMajor {
        RowMajor { minor_to_major: (0..rank as i64).rev().collect() }
    }

    pub fn raw(&self) -> ffi::PJRT_Buffer_MemoryLayout {
        let mut tiled = ffi::PJRT_Buffer_MemoryLayout_Tiled::new();
        tiled.minor_to_major = self.minor_to_major.as_ptr();
        tiled.minor_to_major_size = self.minor_to_major.len();
        let mut layout = ffi::PJRT_Buffer_MemoryLayout::new();
        layout.type_ = ffi::PJRT_Buffer_MemoryLayout_Type_Tiled;
        layout.layout = ffi::PJRT_Buffer_MemoryLayout_Union { tiled };
        layout
    }
}

/// Adds what was asked for, and the memory statistics of the devices, to an allocation failure.
pub(super) fn with_memory_report(error: Error, to: &Placement, bytes: usize) -> Error {
    error.with_memory_note(|| format!("; {bytes} bytes were asked for{}", to.memory_report()))
}
