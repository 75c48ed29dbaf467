//! Buffers: arrays in device memory, and the ways back to the host.

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::api::slice;
use super::client::{Client, Placement, RowMajor};
use super::device::Device;
use super::dma::StagingMemory;
use super::event::Event;
use super::ffi;
use super::host_transfer::HostTransfer;
use super::lifecycle::{Lifecycle, State};
use super::memory::Memory;
use crate::array::{ArraySpec, HostArray, check_element};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};

/// An array in device memory. Cheap to clone: clones are the same array, freed with the last of them.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<BufferInner>,
}

struct BufferInner {
    raw: *mut ffi::PJRT_Buffer,
    spec: Arc<ArraySpec>,
    client: Client,
    device: OnceLock<Device>,
    /// Held while external references are counted up or down: plugins keep them in a list that they do not guard
    /// against several threads (`PJRT_Buffer::external_references` in `pjrt_c_api_wrapper_impl.h`).
    references: Mutex<()>,
    /// Whether the memory is a part of another buffer's, which no output of a call may take.
    is_view: bool,
    lifecycle: Lifecycle,
}

// SAFETY: the C API allows a buffer to be used from any thread; the rest is constant.
unsafe impl Send for BufferInner {}
// SAFETY: as above.
unsafe impl Sync for BufferInner {}

impl Buffer {
    /// Takes ownership of a buffer whose type and shape are known.
    ///
    /// # Safety
    /// `raw` is a buffer of `client`, of that spec, that nobody else will destroy.
    pub(super) unsafe fn from_raw(
        client: &Client,
        raw: *mut ffi::PJRT_Buffer,
        spec: impl Into<Arc<ArraySpec>>,
    ) -> Buffer {
        // SAFETY: passed on to the caller.
        unsafe { Buffer::make(client, raw, spec.into(), false) }
    }

    /// # Safety
    /// As for [`Buffer::from_raw`].
    unsafe fn make(
        client: &Client,
        raw: *mut ffi::PJRT_Buffer,
        spec: Arc<ArraySpec>,
        is_view: bool,
    ) -> Buffer {
        Buffer {
            inner: Arc::new(BufferInner {
                raw,
                spec,
                client: client.clone(),
                device: OnceLock::new(),
                references: Mutex::new(()),
                is_view,
                lifecycle: Lifecycle::new(),
            }),
        }
    }

    /// Takes ownership of a buffer over memory that is not its own.
    ///
    /// # Safety
    /// As for [`Buffer::from_raw`].
    pub(super) unsafe fn view_from_raw(
        client: &Client,
        raw: *mut ffi::PJRT_Buffer,
        spec: &ArraySpec,
    ) -> Buffer {
        // SAFETY: passed on to the caller.
        unsafe { Buffer::make(client, raw, Arc::new(spec.clone()), true) }
    }

    pub(super) fn raw(&self) -> *mut ffi::PJRT_Buffer {
        self.inner.raw
    }

    /// Whether the buffer's memory belongs to another: a call that it is given to copies it instead.
    pub(super) fn is_view(&self) -> bool {
        self.inner.is_view
    }

    /// The client that the buffer belongs to.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The element type and shape.
    pub fn spec(&self) -> &ArraySpec {
        &self.inner.spec
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.inner.spec.dtype
    }

    /// The dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.inner.spec.shape
    }

    /// Whether this and `other` are clones of one buffer.
    pub fn is_same(&self, other: &Buffer) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Calls a function of the C API that takes only the buffer and fills in a result.
    fn query<Args>(
        &self,
        function: ffi::Function<Args>,
        mut args: Args,
        set: impl FnOnce(&mut Args, *mut ffi::PJRT_Buffer),
    ) -> Result<Args> {
        set(&mut args, self.raw());
        // SAFETY: the buffer is alive as long as `self`, and the functions called through here take
        // nothing else.
        unsafe { self.client().api().call(function, &mut args) }?;
        Ok(args)
    }

    /// The device that the buffer is on.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn device(&self) -> Result<Device> {
        if let Some(device) = self.inner.device.get() {
            return Ok(device.clone());
        }
        let args =
            self.query(ffi::PJRT_Buffer_Device, ffi::PJRT_Buffer_Device_Args::new(), |a, b| a.buffer = b)?;
        let device = self.client().device_from_raw(args.device).ok_or_else(|| Error::NoDevice {
            platform: self.client().platform_name().to_owned(),
            reason: "a buffer is on a device that its client does not list".into(),
        })?;
        Ok(self.inner.device.get_or_init(|| device).clone())
    }

    /// Whether the buffer is on this device; also if the plugin cannot say where it is.
    pub(crate) fn is_on(&self, device: &Device) -> bool {
        if self.inner.device.get().is_none() && self.device().is_err() {
            return true;
        }
        self.inner.device.get().is_none_or(|own| own == device)
    }

    /// The memory that the buffer is in; `None` on a plugin without memory spaces.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn memory(&self) -> Result<Option<Memory>> {
        let args =
            self.query(ffi::PJRT_Buffer_Memory, ffi::PJRT_Buffer_Memory_Args::new(), |a, b| a.buffer = b)?;
        Ok(self.client().memory_from_raw(args.memory))
    }

    /// Bytes that the buffer takes on the device, padding of its layout included.
    ///
    /// # Errors
    /// When the plugin cannot say, or the buffer was donated or deleted.
    pub fn on_device_bytes(&self) -> Result<usize> {
        let args = ffi::PJRT_Buffer_OnDeviceSizeInBytes_Args::new();
        let args = self.query(ffi::PJRT_Buffer_OnDeviceSizeInBytes, args, |a, b| a.buffer = b)?;
        Ok(args.on_device_size_in_bytes)
    }

    /// Whether the buffer is in memory that the host can read.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_on_cpu(&self) -> Result<bool> {
        let args = ffi::PJRT_Buffer_IsOnCpu_Args::new();
        Ok(self.query(ffi::PJRT_Buffer_IsOnCpu, args, |a, b| a.buffer = b)?.is_on_cpu)
    }

    /// The order of the dimensions in device memory, the fastest first; `None` where the plugin lays the
    /// elements out by strides.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn minor_to_major(&self) -> Result<Option<Vec<i64>>> {
        Ok(self.tiled_layout()?.map(|(order, _)| order))
    }

    /// Whether the elements lie in device memory as they do on the host: row-major, without tiles.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_row_major(&self) -> Result<bool> {
        let is_plain = |(order, tiles): (Vec<i64>, usize)| {
            tiles == 0 && order == RowMajor::new(order.len()).minor_to_major
        };
        Ok(self.tiled_layout()?.is_some_and(is_plain))
    }

    /// The order of the dimensions, the fastest first, and the number of tiles; `None` for a layout by strides.
    fn tiled_layout(&self) -> Result<Option<(Vec<i64>, usize)>> {
        let args = ffi::PJRT_Buffer_GetMemoryLayout_Args::new();
        let layout = self.query(ffi::PJRT_Buffer_GetMemoryLayout, args, |a, b| a.buffer = b)?.layout;
        if layout.type_ != ffi::PJRT_Buffer_MemoryLayout_Type_Tiled {
            return Ok(None);
        }
        // SAFETY: the type says that `tiled` is the active field; what it points to lives as long as the
        // buffer and is copied.
        let (order, tiles) = unsafe {
            let tiled = layout.layout.tiled;
            (slice(tiled.minor_to_major, tiled.minor_to_major_size), tiled.num_tiles)
        };
        Ok(Some((order.to_vec(), tiles)))
    }

    /// The event of the buffer's content being there. Does not block.
    ///
    /// # Errors
    /// When the buffer was donated or deleted.
    pub fn ready(&self) -> Result<Event> {
        self.check_alive()?;
        let args = ffi::PJRT_Buffer_ReadyEvent_Args::new();
        let args = self.query(ffi::PJRT_Buffer_ReadyEvent, args, |a, b| a.buffer = b)?;
        // SAFETY: the event is handed over to us.
        Ok(unsafe { Event::from_raw(self.client(), args.event, "the work that fills the buffer") })
    }

    /// Blocks until the buffer's content is there.
    ///
    /// # Errors
    /// The error of the transfer or computation that fills it; [`Error::TimeLimit`] if the client has one.
    pub fn wait(&self) -> Result<()> {
        self.ready()?.wait()
    }

    /// As [`Buffer::wait`], for so long at most.
    ///
    /// # Errors
    /// As for [`Buffer::wait`]; [`Error::TimeLimit`].
    pub fn wait_for(&self, limit: Duration) -> Result<()> {
        self.ready()?.wait_for(limit)
    }

    /// Whether the buffer was deleted, or donated to a call and used up.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_deleted(&self) -> Result<bool> {
        let args = ffi::PJRT_Buffer_IsDeleted_Args::new();
        Ok(self.query(ffi::PJRT_Buffer_IsDeleted, args, |a, b| a.buffer = b)?.is_deleted)
    }

    /// Frees the device memory now, whoever else holds a clone; using one afterwards is an error. Memory that the buffer
    /// shares with others (small tensors of one load) is freed with the last of them.
    ///
    /// # Errors
    /// When the plugin cannot.
    pub fn delete(&self) -> Result<()> {
        self.query(ffi::PJRT_Buffer_Delete, ffi::PJRT_Buffer_Delete_Args::new(), |a, b| a.buffer = b)?;
        self.inner.lifecycle.delete();
        Ok(())
    }

    /// Takes the buffer for a call that may use it up: of several calls at once, one gets it. Some plugins abort the
    /// process where two do.
    ///
    /// # Errors
    /// As for [`Buffer::check_alive`].
    pub(super) fn claim(&self) -> Result<DonationClaim<'_>> {
        if self.inner.lifecycle.claim() {
            return Ok(DonationClaim(self));
        }
        self.check_alive().and_then(|()| Err(self.given_away()))
    }

    fn given_away(&self) -> Error {
        Error::InvalidArgument(format!(
            "the buffer {} was donated to another call, which has not ended; use that call's outputs instead, or pass \
             the buffer without donating it",
            self.spec()
        ))
    }

    /// Refuses a buffer that was deleted or used up by a call.
    pub(crate) fn check_alive(&self) -> Result<()> {
        match self.inner.lifecycle.state() {
            State::Alive => Ok(()),
            State::Claimed => Err(self.given_away()),
            State::Deleted => {
                Err(Error::InvalidArgument(format!("the buffer {} was deleted by delete()", self.spec())))
            }
            State::Donated => Err(Error::InvalidArgument(format!(
                "the buffer {} was donated to an earlier call, which used up its memory; use that call's outputs \
                 instead, or pass the buffer without donating it",
                self.spec()
            ))),
        }
    }

    /// Starts copying the elements to the host, row-major. Does not block.
    ///
    /// # Errors
    /// When the buffer was donated or deleted, or the plugin cannot.
    pub fn start_to_host(&self) -> Result<HostTransfer> {
        let mut data = vec![0u8; self.spec().host_bytes()?];
        // SAFETY: `HostTransfer` keeps `data` until the event is over.
        let event = unsafe { self.copy_into(&mut data) }?;
        Ok(HostTransfer::new(data, event))
    }

    /// Copies the elements to the host, row-major, and blocks until they are there.
    ///
    /// # Errors
    /// The error of the work that fills the buffer, or of the copy.
    pub fn to_host(&self) -> Result<HostArray> {
        HostArray::from_bytes(self.spec().clone(), self.start_to_host()?.wait()?)
    }

    /// Copies the elements to the host as a vector, and blocks until they are there.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] when the buffer is not of type `T`; else as for [`Buffer::to_host`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        check_element::<T>(self.dtype())?;
        let mut elements: Vec<T> = bytemuck::zeroed_vec(self.spec().element_count()?);
        // SAFETY: `end_with` keeps `elements` until the event is over.
        let event = unsafe { self.copy_into(bytemuck::cast_slice_mut(&mut elements)) }?;
        event.end_with(elements)
    }

    /// The one element of an array that has one, copied to the host; blocks until it is there.
    ///
    /// # Errors
    /// As for [`HostArray::item`] and [`Buffer::to_host`].
    pub fn item<T: Element>(&self) -> Result<T> {
        if self.spec().element_count()? != 1 {
            let spec = self.spec();
            return Err(Error::InvalidArgument(format!(
                "item() is for arrays of one element, and this is {spec}"
            )));
        }
        self.to_host()?.item()
    }

    /// Copies the elements into `destination`, row-major, and blocks until they are there: for as long as it takes, since
    /// borrowed memory cannot be given up. [`Buffer::start_to_host`] has a time limit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `destination` is not exactly [`ArraySpec::host_bytes`] long; else as
    /// for [`Buffer::to_host`].
    pub fn read_into(&self, destination: &mut [u8]) -> Result<()> {
        let expected = self.spec().host_bytes()?;
        if destination.len() != expected {
            return Err(Error::InvalidArgument(format!(
                "{} takes {expected} bytes, but there is room for {}",
                self.spec(),
                destination.len()
            )));
        }
        // SAFETY: `destination` is borrowed until the event is over.
        unsafe { self.copy_into(destination) }?.wait_for_good()
    }

    /// Starts copying the elements into `destination`.
    ///
    /// # Safety
    /// `destination` is as long as the elements, and stays valid and unused until the event is over.
    unsafe fn copy_into(&self, destination: &mut [u8]) -> Result<Event> {
        const FUNCTION: &str = "PJRT_Buffer_ToHostBuffer";
        self.check_alive()?;
        // Without a layout the plugin would use the device's, which need not be row-major.
        let layout = RowMajor::new(self.shape().len());
        let mut raw_layout = layout.raw();
        let mut args = ffi::PJRT_Buffer_ToHostBuffer_Args::new();
        args.src = self.raw();
        args.host_layout = &mut raw_layout;
        args.dst = destination.as_mut_ptr().cast();
        args.dst_size = destination.len();
        // SAFETY: the buffer is alive, the layout outlives the call, and the caller vouches for the rest.
        unsafe {
            self.client().api().call(ffi::PJRT_Buffer_ToHostBuffer, &mut args)?;
            Ok(Event::from_raw(self.client(), args.event, FUNCTION))
        }
    }

    /// Starts copying bytes as they lie on the device, in the device's layout. Does not block.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the range is not within [`Buffer::on_device_bytes`]; when the plugin
    /// cannot.
    pub fn start_raw_to_host(&self, offset: usize, length: usize) -> Result<HostTransfer> {
        let mut data = vec![0u8; length];
        // SAFETY: `HostTransfer` keeps `data` until the event is over.
        let event = unsafe { self.copy_raw_into(offset, &mut data) }?;
        Ok(HostTransfer::new(data, event))
    }

    /// Starts copying bytes as they lie on the device, from `offset` on, into `destination`.
    ///
    /// # Safety
    /// `destination` stays valid and unused until the event is over.
    unsafe fn copy_raw_into(&self, offset: usize, destination: &mut [u8]) -> Result<Event> {
        const FUNCTION: &str = "PJRT_Buffer_CopyRawToHost";
        self.check_alive()?;
        let (size, length) = (self.on_device_bytes()?, destination.len());
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::InvalidArgument(format!(
                "bytes {offset} to {offset} + {length} are not within the buffer's {size}"
            )));
        }
        let mut args = ffi::PJRT_Buffer_CopyRawToHost_Args::new();
        args.buffer = self.raw();
        args.dst = destination.as_mut_ptr().cast();
        args.offset = offset as i64;
        args.transfer_size = length as i64;
        // SAFETY: the buffer is alive, and the caller vouches for the destination, which is as long as is said.
        unsafe {
            self.client().api().call(ffi::PJRT_Buffer_CopyRawToHost, &mut args)?;
            Ok(Event::from_raw(self.client(), args.event, FUNCTION))
        }
    }

    /// Copies bytes as they lie on the device, from `offset` on, into `destination`, and blocks until they are there. As
    /// [`Buffer::read_into`].
    ///
    /// # Errors
    /// As for [`Buffer::start_raw_to_host`]; the error of the work that fills the buffer.
    pub fn read_raw_into(&self, offset: usize, destination: &mut [u8]) -> Result<()> {
        // SAFETY: `destination` is borrowed until the event is over.
        unsafe { self.copy_raw_into(offset, destination) }?.wait_for_good()
    }

    /// As [`Buffer::read_raw_into`], into the beginning of memory that is given up where the device does not end.
    ///
    /// # Errors
    /// As for [`Buffer::read_raw_into`]; [`Error::TimeLimit`].
    pub(crate) fn read_raw_into_own(
        &self,
        offset: usize,
        bytes: usize,
        mut memory: StagingMemory,
    ) -> Result<StagingMemory> {
        // SAFETY: `end_with` keeps `memory` until the event is over.
        let event = unsafe { self.copy_raw_into(offset, &mut memory[..bytes]) }?;
        event.end_with(memory)
    }

    /// Whether the elements lie in device memory exactly as in a host transfer, so that any part of the one is that
    /// part of the other. False where the plugin cannot say.
    pub(crate) fn has_host_layout(&self) -> bool {
        let sizes = || Ok::<bool, Error>(self.on_device_bytes()? == self.spec().host_bytes()?);
        !self.dtype().is_sub_byte() && sizes().unwrap_or(false) && self.is_row_major().unwrap_or(false)
    }

    /// The elements where they are, for a buffer whose content is there ([`Buffer::wait`]), and that has the host's
    /// layout in memory that the host can read; `None` for others. Keeps the buffer from being freed or donated.
    pub(crate) fn host_view(&self) -> Result<Option<Bytes>> {
        let bytes = self.spec().host_bytes()?;
        if bytes == 0 || !self.has_host_layout() || !self.is_on_cpu().unwrap_or(false) {
            return Ok(None);
        }
        let reference = self.external_reference()?;
        if reference.as_ptr().is_null() {
            return Ok(None);
        }
        Ok(Some(Bytes::from_owner(HostView { reference, bytes })))
    }

    /// Starts copying the buffer to another device or memory of the same client. Does not block.
    ///
    /// # Errors
    /// When the buffer was donated or deleted, or the plugin cannot.
    pub fn copy_to(&self, to: impl Into<Placement>) -> Result<Buffer> {
        self.check_alive()?;
        let to = to.into();
        let (device, memory) = to.raw(self.client())?;
        let api = self.client().api();
        // SAFETY: the handles are alive, and the new buffer is handed over to us.
        unsafe {
            let copy = if memory.is_null() {
                let mut args = ffi::PJRT_Buffer_CopyToDevice_Args::new();
                args.buffer = self.raw();
                args.dst_device = device;
                api.call(ffi::PJRT_Buffer_CopyToDevice, &mut args)?;
                args.dst_buffer
            } else {
                let mut args = ffi::PJRT_Buffer_CopyToMemory_Args::new();
                args.buffer = self.raw();
                args.dst_memory = memory;
                api.call(ffi::PJRT_Buffer_CopyToMemory, &mut args)?;
                args.dst_buffer
            };
            Ok(Buffer::from_raw(self.client(), copy, self.spec().clone()))
        }
    }

    /// Buffers over parts of this one's memory, each from its offset in bytes on, row-major. Blocks until the content is
    /// there. The memory is freed with the last of them, and donating one lends it.
    ///
    /// # Errors
    /// When the buffer has clones; the error of the work that fills it; of a part, when it does not lie within it, or the
    /// plugin refuses.
    pub(crate) fn into_views<'a>(
        self,
        parts: impl IntoIterator<Item = (usize, &'a ArraySpec)>,
    ) -> Result<Vec<Result<Buffer>>> {
        if Arc::strong_count(&self.inner) > 1 {
            return Err(Error::InvalidArgument("a buffer that has clones cannot be divided".into()));
        }
        self.wait()?;
        let (device, size) = (self.device()?, self.on_device_bytes()?);
        if self.memory()? != device.default_memory() {
            return Err(Error::InvalidArgument(
                "views can be made of the device's default memory only".into(),
            ));
        }
        let reference = Arc::new(self.external_reference()?);
        let view = |(offset, spec): (usize, &ArraySpec)| {
            let bytes = spec.host_bytes()?;
            if offset.checked_add(bytes).is_none_or(|end| end > size) {
                return Err(Error::InvalidArgument(format!(
                    "{spec} at {offset} does not lie within {size} bytes"
                )));
            }
            let pointer = reference.as_ptr().wrapping_byte_add(offset);
            let held = Arc::clone(&reference);
            // SAFETY: the memory is the device's, lies within the buffer, which is there, and stays until every view has
            // dropped its share of the reference. Nothing writes to it: the buffer has no clones (checked above) and is
            // ours to drop, one with an external reference cannot be donated, and neither can a view.
            unsafe { self.client().view_of_device_memory(spec, pointer, &device, move || drop(held)) }
        };
        Ok(parts.into_iter().map(view).collect())
    }

    fn counting(&self) -> MutexGuard<'_, ()> {
        self.inner.references.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the elements lie in device memory, held in place until the reference is dropped.
    ///
    /// # Errors
    /// When the buffer was donated or deleted, or the plugin cannot.
    pub fn external_reference(&self) -> Result<ExternalReference> {
        self.check_alive()?;
        let counting = self.counting();
        let args = ffi::PJRT_Buffer_IncreaseExternalReferenceCount_Args::new();
        self.query(ffi::PJRT_Buffer_IncreaseExternalReferenceCount, args, |a, b| a.buffer = b)?;
        drop(counting);
        // Made before the pointer is asked for, so that the count goes down if that fails.
        let mut reference = ExternalReference { buffer: self.clone(), pointer: std::ptr::null_mut() };
        reference.pointer = self.data_pointer()?;
        Ok(reference)
    }

    /// Whether the device uses these bytes of the host's in place.
    pub(crate) fn is_over(&self, bytes: &[u8]) -> bool {
        // The address is compared and not used, so that no reference need be counted.
        self.data_pointer().is_ok_and(|pointer| pointer.cast_const() == bytes.as_ptr().cast())
    }

    /// Where the elements lie now. Only a reference keeps them there.
    fn data_pointer(&self) -> Result<*mut c_void> {
        let args = ffi::PJRT_Buffer_OpaqueDeviceMemoryDataPointer_Args::new();
        let args = self.query(ffi::PJRT_Buffer_OpaqueDeviceMemoryDataPointer, args, |a, b| a.buffer = b)?;
        Ok(args.device_memory_ptr)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} on {})", self.spec(), self.client().platform_name())
    }
}

impl Drop for BufferInner {
    fn drop(&mut self) {
        let mut args = ffi::PJRT_Buffer_Destroy_Args::new();
        args.buffer = self.raw;
        // SAFETY: this is the last handle, and the client is still alive.
        unsafe { self.client.api().call_in_drop(ffi::PJRT_Buffer_Destroy, &mut args) };
    }
}

/// A hold on a buffer's device memory: it is neither freed nor donated while this lives.
pub struct ExternalReference {
    buffer: Buffer,
    pointer: *mut c_void,
}

// SAFETY: the pointer is only a number here; using it is unsafe by itself.
unsafe impl Send for ExternalReference {}
// SAFETY: as above.
unsafe impl Sync for ExternalReference {}

impl ExternalReference {
    /// The address of the first element. It is device memory: whether the host can read it is for
    /// [`Buffer::is_on_cpu`] to say, and its content is there once [`Buffer::wait`] returns.
    pub fn as_ptr(&self) -> *mut c_void {
        self.pointer
    }
}

/// The bytes of a buffer, where they are.
struct HostView {
    reference: ExternalReference,
    bytes: usize,
}

impl AsRef<[u8]> for HostView {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Buffer::host_view` made sure that the memory is the host's and holds so many bytes; while the
        // reference is held, the buffer is neither freed nor donated, and nothing else writes to it.
        unsafe { std::slice::from_raw_parts(self.reference.as_ptr().cast(), self.bytes) }
    }
}

impl Drop for ExternalReference {
    fn drop(&mut self) {
        let _counting = self.buffer.counting();
        let args = ffi::PJRT_Buffer_DecreaseExternalReferenceCount_Args::new();
        if let Err(error) =
            self.buffer.query(ffi::PJRT_Buffer_DecreaseExternalReferenceCount, args, |a, b| a.buffer = b)
        {
            tracing::warn!(%error, "an external reference to a buffer could not be given back");
        }
    }
}

/// A buffer that a call may use up. When it is dropped, the buffer is used up or free again, as the plugin says.
pub(super) struct DonationClaim<'a>(&'a Buffer);

impl Drop for DonationClaim<'_> {
    fn drop(&mut self) {
        // One of which the plugin cannot say is not used again.
        let is_used_up = self.0.is_deleted().unwrap_or(true);
        self.0.inner.lifecycle.release(is_used_up);
    }
}

/// The spec behind the C API's element type and dimensions.
pub(super) fn spec_from_raw(element_type: ffi::PJRT_Buffer_Type, dims: &[i64]) -> Result<ArraySpec> {
    let unusable = |what: String| Error::InvalidArgument(format!("the plugin made a buffer {what}"));
    let dtype = DType::from_pjrt(element_type)
        .ok_or_else(|| unusable(format!("of element type {element_type}, which is not an array's")))?;
    let dim = |&dim: &i64| usize::try_from(dim).map_err(|_| unusable(format!("with a dimension of {dim}")));
    Ok(ArraySpec::new(dtype, dims.iter().map(dim).collect::<Result<Vec<_>>>()?))
}
