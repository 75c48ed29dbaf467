//! Transfer managers: buffers that are made first and filled piece by piece.

use std::ffi::c_int;
use std::sync::{Arc, Mutex};

use crate::buffer::{Buffer, Hold, place, start_to_device};
use crate::c_api as c;
use crate::calls::{Call, lock, plugin};
use crate::event::{Signal, when_all};
use crate::failure::{Failure, Result};
use crate::layout::Shape;
use crate::objects::Object;

pub struct Manager {
    slots: Vec<Slot>,
}

/// A buffer to be filled.
struct Slot {
    buffer: Arc<Buffer>,
    hold: Arc<Hold>,
    state: Mutex<Filling>,
}

#[derive(Default)]
struct Filling {
    is_taken: bool,
    has_last: bool,
    bytes: usize,
    transfers: Vec<Arc<Signal>>,
}

impl Object for Manager {
    type Raw = c::PJRT_AsyncHostToDeviceTransferManager;
    const NAME: &'static str = "transfer manager";
}

fn manager(handle: *mut c::PJRT_AsyncHostToDeviceTransferManager) -> Result<Arc<Manager>> {
    plugin().objects.get::<Manager>(handle)
}

impl Manager {
    fn slot(&self, index: c_int) -> Result<&Slot> {
        let slot = usize::try_from(index).ok().and_then(|index| self.slots.get(index));
        slot.ok_or_else(|| Failure::invalid(format!("there is no buffer {index}")))
    }
}

pub fn create(args: &mut c::PJRT_Client_CreateBuffersForAsyncHostToDevice_Args, _: &mut Call) -> Result<()> {
    let (device, memory) = place(args.client, std::ptr::null_mut(), args.memory)?;
    if args.num_device_layouts > 0 {
        return Err(Failure::unimplemented("layouts of the caller's"));
    }
    // SAFETY: the caller's specs.
    let specs = match args.num_shape_specs {
        0 => &[][..],
        count => unsafe { std::slice::from_raw_parts(args.shape_specs, count) },
    };
    let slot = |spec: &c::PJRT_ShapeSpec| {
        // SAFETY: the caller's dimensions.
        let shape = unsafe { Shape::read(spec.element_type, spec.dims, spec.num_dims) }?;
        let buffer = Buffer::allocate(shape, Arc::clone(&memory), Arc::clone(&device), Arc::default())?;
        Ok(Slot { hold: buffer.hold()?, buffer: Arc::new(buffer), state: Mutex::default() })
    };
    let slots = specs.iter().map(slot).collect::<Result<_>>()?;
    args.transfer_manager = plugin().objects.give::<Manager>(Manager { slots });
    Ok(())
}

pub fn destroy(args: &mut c::PJRT_AsyncHostToDeviceTransferManager_Destroy_Args, _: &mut Call) -> Result<()> {
    let manager = plugin().objects.take::<Manager>(args.transfer_manager)?;
    // As XLA does: who waits for such a buffer waits for ever.
    if manager.slots.iter().any(|slot| lock(&slot.state).is_taken && !lock(&slot.state).has_last) {
        plugin().violation(
            "the transfer manager goes before a buffer that was taken from it is filled or failed",
        );
    }
    Ok(())
}

pub fn transfer(
    args: &mut c::PJRT_AsyncHostToDeviceTransferManager_TransferData_Args,
    call: &mut Call,
) -> Result<()> {
    let manager = manager(args.transfer_manager)?;
    plugin().check_device()?;
    let slot = manager.slot(args.buffer_index)?;
    let (Ok(offset), Ok(bytes)) = (usize::try_from(args.offset), usize::try_from(args.transfer_size)) else {
        return Err(Failure::invalid("a negative offset or size"));
    };
    let mut state = lock(&slot.state);
    if state.has_last || offset + bytes > slot.buffer.device_bytes() {
        plugin().violation("bytes after the last ones, or outside of the buffer");
        return Err(Failure::invalid("bytes after the last ones, or outside of the buffer"));
    }
    let (done, hold) = (Arc::new(Signal::default()), Arc::clone(&slot.hold));
    // SAFETY: the caller says that the bytes are ours until the event.
    unsafe {
        start_to_device(
            &slot.buffer.device,
            args.data,
            bytes,
            call.work.take(),
            Arc::clone(&done),
            move |bytes| {
                let (allocation, start) = hold.memory()?;
                allocation.write(start + offset, &bytes);
                Ok(())
            },
        );
    }
    state.bytes += bytes;
    state.transfers.push(Arc::clone(&done));
    if args.is_last_transfer {
        state.has_last = true;
        let (has, wants) = (state.bytes, slot.buffer.device_bytes());
        let transfers = std::mem::take(&mut state.transfers);
        // What follows the end may call the plugin again.
        drop(state);
        if has != wants {
            plugin().violation(format!("the buffer of {wants} bytes was given {has}"));
        }
        let ready = Arc::clone(&slot.buffer.ready);
        when_all(transfers, move |outcome| ready.end(outcome));
    }
    args.done_with_h2d_transfer = plugin().objects.give::<Signal>(done);
    Ok(())
}

pub fn retrieve(
    args: &mut c::PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer_Args,
    _: &mut Call,
) -> Result<()> {
    let manager = manager(args.transfer_manager)?;
    let slot = manager.slot(args.buffer_index)?;
    if std::mem::replace(&mut lock(&slot.state).is_taken, true) {
        plugin().violation("the buffer was taken before");
        return Err(Failure::invalid("the buffer was taken before"));
    }
    args.buffer_out = plugin().objects.give::<Buffer>(Arc::clone(&slot.buffer));
    Ok(())
}

pub fn device(args: &mut c::PJRT_AsyncHostToDeviceTransferManager_Device_Args, _: &mut Call) -> Result<()> {
    let manager = manager(args.transfer_manager)?;
    let first = manager.slots.first().ok_or_else(|| Failure::invalid("there are no buffers"))?;
    args.device_out = crate::device::pointer(&first.buffer.device.handles.own);
    Ok(())
}

pub fn count(
    args: &mut c::PJRT_AsyncHostToDeviceTransferManager_BufferCount_Args,
    _: &mut Call,
) -> Result<()> {
    args.buffer_count = manager(args.transfer_manager)?.slots.len();
    Ok(())
}

pub fn size(args: &mut c::PJRT_AsyncHostToDeviceTransferManager_BufferSize_Args, _: &mut Call) -> Result<()> {
    args.buffer_size = manager(args.transfer_manager)?.slot(args.buffer_index)?.buffer.device_bytes();
    Ok(())
}

pub fn set_error(
    args: &mut c::PJRT_AsyncHostToDeviceTransferManager_SetBufferError_Args,
    _: &mut Call,
) -> Result<()> {
    let manager = manager(args.transfer_manager)?;
    let slot = manager.slot(args.buffer_index)?;
    // SAFETY: the caller's message.
    let message =
        unsafe { std::slice::from_raw_parts(args.error_message.cast::<u8>(), args.error_message_size) };
    let message = String::from_utf8_lossy(message).into_owned();
    lock(&slot.state).has_last = true;
    slot.buffer.ready.end(Err(Failure::new(args.error_code, message)));
    Ok(())
}
