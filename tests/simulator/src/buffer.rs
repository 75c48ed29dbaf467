//! Buffers: arrays in a memory of a device, and the ways to them and back.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, Weak};

use crate::c_api as c;
use crate::calls::{Call, WorkFault, lock, plugin};
use crate::client::client;
use crate::config::DeviceLayout;
use crate::device::{Device, Memory, pointer};
use crate::dma::Direction;
use crate::event::Signal;
use crate::failure::{Failure, Result};
use crate::lane::Job;
use crate::layout::Shape;
use crate::memory::Allocation;
use crate::objects::Object;

pub struct Buffer {
    pub shape: Shape,
    pub memory: Arc<Memory>,
    pub device: Arc<Device>,
    /// Where it lies, until it is deleted or donated.
    hold: Mutex<Option<Arc<Hold>>>,
    /// Ends when its content is there.
    pub ready: Arc<Signal>,
    references: Mutex<Vec<Arc<Hold>>>,
    order: Vec<i64>,
    tile: Vec<i64>,
    tile_sides: usize,
}

impl Object for Buffer {
    type Raw = c::PJRT_Buffer;
    const NAME: &'static str = "buffer";
}

/// Memory that somebody uses. Whoever lent it is told when the last one has gone.
pub struct Hold {
    memory: HeldMemory,
    on_delete: Option<OnDelete>,
}

enum HeldMemory {
    Own(Arc<Allocation>),
    /// Of another buffer's, from an offset on.
    Lent(Weak<Allocation>, usize),
}

struct OnDelete {
    callback: unsafe extern "C" fn(*mut c_void, *mut c_void),
    pointer: usize,
    argument: usize,
}

impl Hold {
    pub fn own(allocation: Arc<Allocation>) -> Arc<Hold> {
        Arc::new(Hold { memory: HeldMemory::Own(allocation), on_delete: None })
    }

    fn is_own(&self) -> bool {
        matches!(self.memory, HeldMemory::Own(_))
    }

    /// The memory, and where in it the array begins.
    pub fn memory(&self) -> Result<(Arc<Allocation>, usize)> {
        match &self.memory {
            HeldMemory::Own(allocation) => Ok((Arc::clone(allocation), 0)),
            HeldMemory::Lent(allocation, offset) => {
                let allocation = allocation.upgrade().ok_or_else(|| {
                    plugin().violation("the memory that a view is of was freed");
                    Failure::invalid("the memory that a view is of was freed")
                })?;
                Ok((allocation, *offset))
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(on_delete) = self.on_delete.take() {
            let pointer = |number| std::ptr::with_exposed_provenance_mut(number);
            // SAFETY: the caller says that this may be called once, with these.
            unsafe { (on_delete.callback)(pointer(on_delete.pointer), pointer(on_delete.argument)) };
        }
    }
}

impl Buffer {
    pub fn new(
        shape: Shape,
        memory: Arc<Memory>,
        device: Arc<Device>,
        hold: Arc<Hold>,
        ready: Arc<Signal>,
    ) -> Buffer {
        let (order, tile) = shape.described(layout_in(&memory));
        let (hold, references) = (Mutex::new(Some(hold)), Mutex::default());
        Buffer { tile_sides: tile.len(), shape, memory, device, hold, ready, references, order, tile }
    }

    /// One with memory of its own, which nobody has written to.
    pub fn allocate(
        shape: Shape,
        memory: Arc<Memory>,
        device: Arc<Device>,
        ready: Arc<Signal>,
    ) -> Result<Buffer> {
        let allocation = memory.memory.allocate(shape.device_bytes(layout_in(&memory)))?;
        Ok(Buffer::new(shape, memory, device, Hold::own(allocation), ready))
    }

    pub fn layout(&self) -> DeviceLayout {
        layout_in(&self.memory)
    }

    pub fn device_bytes(&self) -> usize {
        self.shape.device_bytes(self.layout())
    }

    pub fn hold(&self) -> Result<Arc<Hold>> {
        lock(&self.hold).clone().ok_or_else(|| {
            plugin().violation("the buffer was deleted or donated");
            Failure::invalid("the buffer was deleted or donated")
        })
    }

    /// Takes its memory, for an output; `None` where somebody has a reference to it, or it is lent.
    pub fn donate(&self) -> Option<Arc<Hold>> {
        let mut hold = lock(&self.hold);
        let is_free = lock(&self.references).is_empty() && hold.as_ref().is_some_and(|hold| hold.is_own());
        if is_free { hold.take() } else { None }
    }

    /// The elements as the host has them.
    pub fn read(&self, hold: &Hold) -> Result<Vec<u8>> {
        let (allocation, offset) = hold.memory()?;
        let bytes = allocation.read(offset, self.device_bytes());
        let order: Vec<i64> = (0..self.shape.dims.len() as i64).rev().collect();
        Ok(self.shape.to_host(bytes, self.layout(), &order))
    }

    /// Takes the elements as the host has them.
    pub fn write(&self, hold: &Hold, bytes: Vec<u8>) -> Result<()> {
        let (allocation, offset) = hold.memory()?;
        allocation.write(offset, &self.shape.to_device(bytes, self.layout()));
        Ok(())
    }
}

/// The host's memory has no layouts of its own.
fn layout_in(memory: &Memory) -> DeviceLayout {
    if memory.is_host() { DeviceLayout::RowMajor } else { plugin().config().layout }
}

/// Bytes of the host's that a transfer reads when it ends.
pub struct HostRead {
    start: usize,
    bytes: usize,
    sum: Option<u64>,
    pub is_registered: bool,
}

impl HostRead {
    /// # Safety
    /// The bytes stay valid and unchanged until [`HostRead::finish`].
    pub unsafe fn begin(data: *const c_void, bytes: usize) -> HostRead {
        let start = address(data);
        let is_registered = plugin().host.begin(start..start + bytes, Direction::ToDevice);
        let sum = plugin().config().stores.then(|| sum(&bytes_at(start, bytes)));
        HostRead { start, bytes, sum, is_registered }
    }

    /// The bytes; none where they are not kept.
    pub fn finish(self) -> Vec<u8> {
        plugin().host.end(&(self.start..self.start + self.bytes));
        let Some(before) = self.sum else { return Vec::new() };
        let bytes = bytes_at(self.start, self.bytes);
        if sum(&bytes) != before {
            plugin().violation("memory was changed while a transfer to the device read it");
        }
        bytes
    }
}

/// Memory that the caller gave, as the number that it is.
fn address(memory: *const c_void) -> usize {
    memory.expose_provenance()
}

/// A copy of bytes of the caller's, which says that they may be read.
fn bytes_at(start: usize, bytes: usize) -> Vec<u8> {
    if bytes == 0 {
        return Vec::new();
    }
    // SAFETY: the caller of the C API says that they are valid; where they are not, that is what the tests are to find.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(start), bytes) }.to_vec()
}

/// A sum that tells changes.
pub fn sum(bytes: &[u8]) -> u64 {
    let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, add)
}

/// Starts moving bytes of the host's to a device, where `write` puts them.
///
/// # Safety
/// As for [`HostRead::begin`], until the signal has ended.
pub unsafe fn start_to_device(
    device: &Device,
    data: *const c_void,
    bytes: usize,
    fault: Option<WorkFault>,
    done: Arc<Signal>,
    write: impl FnOnce(Vec<u8>) -> Result<()> + Send + 'static,
) {
    // SAFETY: passed on to the caller.
    let read = unsafe { HostRead::begin(data, bytes) };
    let takes = Device::transfer_time(&plugin().config(), bytes, read.is_registered);
    let run = move |before: Result<()>| {
        let bytes = read.finish();
        before?;
        plugin().check_device()?;
        if plugin().config().stores { write(bytes) } else { Ok(()) }
    };
    device.to_device.submit(Vec::new(), Job { takes, run: Box::new(run), fault, done });
}

/// The device and memory that arguments name.
pub fn place(
    client_handle: *mut c::PJRT_Client,
    device: *mut c::PJRT_Device,
    memory: *mut c::PJRT_Memory,
) -> Result<(Arc<Device>, Arc<Memory>)> {
    let client = client(client_handle)?;
    let found = if !memory.is_null() {
        let memory = plugin().objects.get::<Memory>(memory)?;
        let device = client.devices.iter().find(|device| device.index == memory.device_index).cloned();
        device.map(|device| (device, memory))
    } else if !device.is_null() {
        let device = plugin().objects.get::<Device>(device)?;
        let memory = Arc::clone(&device.memories[0]);
        Some((device, memory))
    } else {
        client.devices.first().map(|device| (Arc::clone(device), Arc::clone(&device.memories[0])))
    };
    let (device, memory) = found.ok_or_else(|| Failure::invalid("the device is another client's"))?;
    if !device.is_here {
        return Err(Failure::invalid("the device is another process's"));
    }
    plugin().check_device()?;
    Ok((device, memory))
}

pub fn buffer(handle: *const c::PJRT_Buffer) -> Result<Arc<Buffer>> {
    plugin().objects.get::<Buffer>(handle)
}

pub fn from_host(args: &mut c::PJRT_Client_BufferFromHostBuffer_Args, call: &mut Call) -> Result<()> {
    let (device, memory) = place(args.client, args.device, args.memory)?;
    // SAFETY: the caller's dimensions.
    let shape = unsafe { Shape::read(args.type_, args.dims, args.num_dims) }?;
    if !args.device_layout.is_null() || args.num_byte_strides > 0 {
        return Err(Failure::unimplemented("layouts of the caller's and strides"));
    }
    let done = Arc::new(Signal::default());
    let buffer = Arc::new(Buffer::allocate(shape, memory, device, Arc::clone(&done))?);
    let (hold, target, bytes) = (buffer.hold()?, Arc::clone(&buffer), buffer.shape.host_bytes());
    let during_call = c::PJRT_HostBufferSemantics_kImmutableOnlyDuringCall;
    let objects = &plugin().objects;
    if args.host_buffer_semantics == during_call {
        // The copy is the plugin's, so that the caller's memory is done with.
        let copy = bytes_at(address(args.data), bytes);
        // SAFETY: the copy lives until the signal has ended, by the closure that has it.
        unsafe {
            let data = copy.as_ptr().cast();
            start_to_device(&buffer.device, data, bytes, call.work.take(), done, move |bytes| {
                drop(copy);
                target.write(&hold, bytes)
            });
        }
        args.done_with_host_buffer = objects.give::<Signal>(Signal::ended(Ok(())));
    } else {
        // SAFETY: the caller says so by the semantics.
        unsafe {
            let write = move |bytes| target.write(&hold, bytes);
            start_to_device(&buffer.device, args.data, bytes, call.work.take(), Arc::clone(&done), write);
        }
        args.done_with_host_buffer = objects.give::<Signal>(done);
    }
    args.buffer = objects.give::<Buffer>(buffer);
    Ok(())
}

pub fn uninitialized(args: &mut c::PJRT_Client_CreateUninitializedBuffer_Args, _: &mut Call) -> Result<()> {
    let (device, memory) = place(args.client, args.device, args.memory)?;
    // SAFETY: the caller's dimensions.
    let shape = unsafe { Shape::read(args.shape_element_type, args.shape_dims, args.shape_num_dims) }?;
    let buffer = Buffer::allocate(shape, memory, device, Signal::ended(Ok(())))?;
    args.buffer = plugin().objects.give::<Buffer>(buffer);
    Ok(())
}

pub fn view(args: &mut c::PJRT_Client_CreateViewOfDeviceBuffer_Args, _: &mut Call) -> Result<()> {
    let (device, memory) = place(args.client, args.device, args.memory)?;
    // SAFETY: the caller's dimensions.
    let shape = unsafe { Shape::read(args.element_type, args.dims, args.num_dims) }?;
    if !args.layout.is_null() && shape.layout(layout_in(&memory)) != DeviceLayout::RowMajor {
        return Err(Failure::unimplemented("layouts of the caller's"));
    }
    let bytes = shape.device_bytes(layout_in(&memory));
    let found = memory.memory.find(args.device_buffer_ptr.addr() as u64, bytes);
    let (allocation, offset) = found.ok_or_else(|| {
        plugin().violation("there is no memory of the device's where a view is asked for");
        Failure::invalid("there is no memory of the device's there")
    })?;
    let on_delete = args.on_delete_callback.map(|callback| OnDelete {
        callback,
        pointer: args.device_buffer_ptr.expose_provenance(),
        argument: args.on_delete_callback_arg.expose_provenance(),
    });
    let held = HeldMemory::Lent(Arc::downgrade(&allocation), offset);
    let hold = Arc::new(Hold { memory: held, on_delete });
    let buffer = Buffer::new(shape, memory, device, hold, Signal::ended(Ok(())));
    args.buffer = plugin().objects.give::<Buffer>(buffer);
    Ok(())
}

pub fn destroy(args: &mut c::PJRT_Buffer_Destroy_Args, _: &mut Call) -> Result<()> {
    plugin().objects.take::<Buffer>(args.buffer).map(drop)
}

pub fn element_type(args: &mut c::PJRT_Buffer_ElementType_Args, _: &mut Call) -> Result<()> {
    args.type_ = buffer(args.buffer)?.shape.element_type;
    Ok(())
}

pub fn dimensions(args: &mut c::PJRT_Buffer_Dimensions_Args, _: &mut Call) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    (args.dims, args.num_dims) = (buffer.shape.dims.as_ptr(), buffer.shape.dims.len());
    Ok(())
}

pub fn memory_layout(args: &mut c::PJRT_Buffer_GetMemoryLayout_Args, _: &mut Call) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    args.layout.type_ = c::PJRT_Buffer_MemoryLayout_Type_Tiled;
    args.layout.__bindgen_anon_1.tiled = c::PJRT_Buffer_MemoryLayout_Tiled {
        struct_size: size_of::<c::PJRT_Buffer_MemoryLayout_Tiled>(),
        extension_start: std::ptr::null_mut(),
        minor_to_major: buffer.order.as_ptr(),
        minor_to_major_size: buffer.order.len(),
        tile_dims: buffer.tile.as_ptr(),
        tile_dim_sizes: &raw const buffer.tile_sides,
        num_tiles: usize::from(buffer.tile_sides > 0),
    };
    Ok(())
}

pub fn device_size(args: &mut c::PJRT_Buffer_OnDeviceSizeInBytes_Args, _: &mut Call) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    buffer.hold()?;
    args.on_device_size_in_bytes = buffer.device_bytes();
    Ok(())
}

pub fn device(args: &mut c::PJRT_Buffer_Device_Args, _: &mut Call) -> Result<()> {
    args.device = pointer(&buffer(args.buffer)?.device.handles.own);
    Ok(())
}

pub fn memory(args: &mut c::PJRT_Buffer_Memory_Args, _: &mut Call) -> Result<()> {
    args.memory = pointer(&buffer(args.buffer)?.memory.handle);
    Ok(())
}

pub fn delete(args: &mut c::PJRT_Buffer_Delete_Args, _: &mut Call) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    let hold = lock(&buffer.hold).take();
    drop(hold);
    Ok(())
}

pub fn is_deleted(args: &mut c::PJRT_Buffer_IsDeleted_Args, _: &mut Call) -> Result<()> {
    args.is_deleted = lock(&buffer(args.buffer)?.hold).is_none();
    Ok(())
}

pub fn is_on_cpu(args: &mut c::PJRT_Buffer_IsOnCpu_Args, _: &mut Call) -> Result<()> {
    args.is_on_cpu = buffer(args.buffer)?.memory.is_host();
    Ok(())
}

pub fn ready_event(args: &mut c::PJRT_Buffer_ReadyEvent_Args, call: &mut Call) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    buffer.hold()?;
    let signal = match call.work.take() {
        None => Arc::clone(&buffer.ready),
        Some(fault) => {
            // The event alone goes wrong.
            let done = Arc::new(Signal::default());
            let job = Job {
                takes: Default::default(),
                run: Box::new(|before| before),
                fault: Some(fault),
                done: Arc::clone(&done),
            };
            buffer.device.from_device.submit(vec![Arc::clone(&buffer.ready)], job);
            done
        }
    };
    args.event = plugin().objects.give::<Signal>(signal);
    Ok(())
}

pub fn increase_references(
    args: &mut c::PJRT_Buffer_IncreaseExternalReferenceCount_Args,
    _: &mut Call,
) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    let hold = buffer.hold()?;
    lock(&buffer.references).push(hold);
    Ok(())
}

pub fn decrease_references(
    args: &mut c::PJRT_Buffer_DecreaseExternalReferenceCount_Args,
    _: &mut Call,
) -> Result<()> {
    let hold = lock(&buffer(args.buffer)?.references).pop();
    hold.map(drop).ok_or_else(|| Failure::invalid("the buffer has no external references"))
}

pub fn opaque_pointer(
    args: &mut c::PJRT_Buffer_OpaqueDeviceMemoryDataPointer_Args,
    _: &mut Call,
) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    let (allocation, offset) = buffer.hold()?.memory()?;
    let start = if buffer.memory.is_host() { allocation.host_address() } else { allocation.address };
    args.device_memory_ptr = std::ptr::without_provenance_mut(start as usize + offset);
    Ok(())
}

/// The order of the dimensions that a layout of the caller's says, the innermost first.
///
/// # Safety
/// `layout` is null or points to a layout.
unsafe fn order_of(layout: *const c::PJRT_Buffer_MemoryLayout, buffer: &Buffer) -> Result<Vec<i64>> {
    // SAFETY: the caller vouches for the layout and what it points to.
    let Some(layout) = (unsafe { layout.as_ref() }) else { return Ok(buffer.order.clone()) };
    if layout.type_ != c::PJRT_Buffer_MemoryLayout_Type_Tiled {
        return Err(Failure::unimplemented("layouts by strides"));
    }
    // SAFETY: as above.
    unsafe {
        let tiled = layout.__bindgen_anon_1.tiled;
        if tiled.num_tiles > 0 || tiled.minor_to_major_size != buffer.shape.dims.len() {
            return Err(Failure::invalid("the host's layout has tiles or another rank"));
        }
        if tiled.minor_to_major_size == 0 {
            return Ok(Vec::new());
        }
        Ok(std::slice::from_raw_parts(tiled.minor_to_major, tiled.minor_to_major_size).to_vec())
    }
}

/// What nobody may read: a copy to the host that has not ended.
const POISON: u8 = 0xEE;

/// Starts moving what `read` gives to the host.
///
/// # Safety
/// So many bytes at `to` are the device's until the signal has ended.
unsafe fn start_to_host(
    buffer: &Buffer,
    to: *mut c_void,
    bytes: usize,
    fault: Option<WorkFault>,
    read: impl FnOnce() -> Result<Vec<u8>> + Send + 'static,
) -> Arc<Signal> {
    let start = to.expose_provenance();
    let is_registered = plugin().host.begin(start..start + bytes, Direction::FromDevice);
    // SAFETY: the caller vouches for the memory. Only here: when the work ends, it is written whole, or not at all.
    let target = move || unsafe {
        let start = if bytes == 0 {
            std::ptr::dangling_mut()
        } else {
            std::ptr::with_exposed_provenance_mut::<u8>(start)
        };
        std::slice::from_raw_parts_mut(start, bytes)
    };
    let stores = plugin().config().stores;
    if stores {
        target().fill(POISON);
    }
    let takes = Device::transfer_time(&plugin().config(), bytes, is_registered);
    let run = move |before: Result<()>| {
        plugin().host.end(&(start..start + bytes));
        before?;
        plugin().check_device()?;
        if stores {
            if target().iter().any(|byte| *byte != POISON) {
                plugin().violation("memory was changed while a transfer from the device wrote to it");
            }
            target().copy_from_slice(&read()?);
        }
        Ok(())
    };
    let done = Arc::new(Signal::default());
    let job = Job { takes, run: Box::new(run), fault, done: Arc::clone(&done) };
    buffer.device.from_device.submit(vec![Arc::clone(&buffer.ready)], job);
    done
}

pub fn to_host(args: &mut c::PJRT_Buffer_ToHostBuffer_Args, call: &mut Call) -> Result<()> {
    let buffer = buffer(args.src)?;
    plugin().check_device()?;
    let bytes = buffer.shape.host_bytes();
    if args.dst.is_null() {
        args.dst_size = bytes;
        return Ok(());
    }
    if args.dst_size < bytes {
        return Err(Failure::invalid(format!("{} bytes are too few for {bytes}", args.dst_size)));
    }
    // SAFETY: the caller's layout.
    let order = unsafe { order_of(args.host_layout, &buffer) }?;
    let (hold, of) = (buffer.hold()?, Arc::clone(&buffer));
    let read = move || {
        let (allocation, offset) = hold.memory()?;
        let bytes = allocation.read(offset, of.device_bytes());
        Ok(of.shape.to_host(bytes, of.layout(), &order))
    };
    // SAFETY: the caller says that its memory is ours until the event.
    let done = unsafe { start_to_host(&buffer, args.dst, bytes, call.work.take(), read) };
    args.event = plugin().objects.give::<Signal>(done);
    Ok(())
}

pub fn raw_to_host(args: &mut c::PJRT_Buffer_CopyRawToHost_Args, call: &mut Call) -> Result<()> {
    let buffer = buffer(args.buffer)?;
    plugin().check_device()?;
    let (start, bytes) = (args.offset as usize, args.transfer_size as usize);
    if start + bytes > buffer.device_bytes() {
        return Err(Failure::invalid("the bytes are not the buffer's"));
    }
    let hold = buffer.hold()?;
    let read = move || {
        let (allocation, offset) = hold.memory()?;
        Ok(allocation.read(offset + start, bytes))
    };
    // SAFETY: the caller says that its memory is ours until the event.
    let done = unsafe { start_to_host(&buffer, args.dst, bytes, call.work.take(), read) };
    args.event = plugin().objects.give::<Signal>(done);
    Ok(())
}

/// Starts copying a buffer to a memory.
fn copy(
    from: &Arc<Buffer>,
    device: Arc<Device>,
    memory: Arc<Memory>,
    call: &mut Call,
) -> Result<*mut c::PJRT_Buffer> {
    let done = Arc::new(Signal::default());
    let copy =
        Arc::new(Buffer::allocate(from.shape.clone(), memory, Arc::clone(&device), Arc::clone(&done))?);
    let (source, from_hold, target, to_hold) =
        (Arc::clone(from), from.hold()?, Arc::clone(&copy), copy.hold()?);
    let run = move |before: Result<()>| {
        before?;
        plugin().check_device()?;
        target.write(&to_hold, source.read(&from_hold)?)
    };
    let takes = Device::transfer_time(&plugin().config(), from.device_bytes(), true);
    let job = Job { takes, run: Box::new(run), fault: call.work.take(), done };
    device.to_device.submit(vec![Arc::clone(&from.ready)], job);
    Ok(plugin().objects.give::<Buffer>(copy))
}

pub fn copy_to_device(args: &mut c::PJRT_Buffer_CopyToDevice_Args, call: &mut Call) -> Result<()> {
    let from = buffer(args.buffer)?;
    plugin().check_device()?;
    let device = plugin().objects.get::<Device>(args.dst_device)?;
    let memory = Arc::clone(&device.memories[0]);
    args.dst_buffer = copy(&from, device, memory, call)?;
    Ok(())
}

pub fn copy_to_memory(args: &mut c::PJRT_Buffer_CopyToMemory_Args, call: &mut Call) -> Result<()> {
    let from = buffer(args.buffer)?;
    plugin().check_device()?;
    let memory = plugin().objects.get::<Memory>(args.dst_memory)?;
    let device = std::ptr::without_provenance_mut(memory.device.get().copied().unwrap_or(0));
    args.dst_buffer = copy(&from, plugin().objects.get::<Device>(device)?, memory, call)?;
    Ok(())
}
