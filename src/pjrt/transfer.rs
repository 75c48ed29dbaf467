//! Asynchronous transfers into buffers that are made first and filled piece by piece.

use std::ffi::c_int;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::buffer::Buffer;
use super::client::{Client, Placement, with_memory_report};
use super::event::Event;
use super::ffi;
use super::memory::Memory;
use crate::array::ArraySpec;
use crate::error::{Error, Result};

/// A batch of buffers in one memory, filled by [`TransferManager::transfer`] in pieces.
pub struct TransferManager {
    raw: *mut ffi::PJRT_AsyncHostToDeviceTransferManager,
    specs: Vec<ArraySpec>,
    /// What has been done with each buffer. Plugins crash on doing it twice, so it is checked here; held
    /// across check and call.
    states: Mutex<Vec<State>>,
    client: Client,
}

/// What has been done with a buffer of a transfer.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    is_taken: bool,
    /// Its last piece has been passed on, or it was failed.
    is_ended: bool,
}

/// Whether more pieces of a buffer follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransferPart {
    /// More follow.
    Part,
    /// This completes the buffer.
    Last,
}

// SAFETY: the C API allows a transfer manager to be used from any thread.
unsafe impl Send for TransferManager {}
// SAFETY: as above.
unsafe impl Sync for TransferManager {}

impl Client {
    /// Whether the plugin can fill buffers piece by piece.
    pub fn has_transfer_manager(&self) -> bool {
        self.api().has(&ffi::PJRT_Client_CreateBuffersForAsyncHostToDevice)
    }

    /// Allocates buffers of these types and shapes in one memory, to be filled piece by piece.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where [`Client::has_transfer_manager`] is false; [`Error::Pjrt`] when the
    /// device is full.
    pub fn transfer_manager(&self, specs: &[ArraySpec], memory: &Memory) -> Result<TransferManager> {
        let dims: Vec<Vec<i64>> = specs.iter().map(ArraySpec::xla_dims).collect::<Result<_>>()?;
        let to = Placement::from(memory);
        let (_, raw_memory) = to.raw(self)?;
        let mut raw_specs = Vec::with_capacity(specs.len());
        for (spec, dims) in specs.iter().zip(&dims) {
            let mut raw = ffi::PJRT_ShapeSpec::new();
            raw.dims = dims.as_ptr();
            raw.num_dims = dims.len();
            raw.element_type = self.element_type(spec)?;
            raw_specs.push(raw);
        }
        let mut args = ffi::PJRT_Client_CreateBuffersForAsyncHostToDevice_Args::new();
        args.client = self.raw();
        args.shape_specs = raw_specs.as_mut_ptr();
        args.num_shape_specs = raw_specs.len();
        args.memory = raw_memory;
        // SAFETY: the client and memory are alive, and specs and dims outlive the call.
        unsafe { self.api().call(ffi::PJRT_Client_CreateBuffersForAsyncHostToDevice, &mut args) }.map_err(
            |error| {
                with_memory_report(error, &to, specs.iter().filter_map(|spec| spec.host_bytes().ok()).sum())
            },
        )?;
        Ok(TransferManager {
            raw: args.transfer_manager,
            specs: specs.to_vec(),
            states: Mutex::new(vec![State::default(); specs.len()]),
            client: self.clone(),
        })
    }
}

impl TransferManager {
    fn index(&self, index: usize) -> Result<c_int> {
        if index >= self.specs.len() {
            return Err(Error::InvalidArgument(format!(
                "there is no buffer {index} in a transfer of {}",
                self.specs.len()
            )));
        }
        c_int::try_from(index).map_err(|_| Error::InvalidArgument(format!("buffer {index} is too many")))
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(index: usize) -> Error {
        Error::InvalidArgument(format!("buffer {index} of the transfer was completed or failed before"))
    }

    /// Bytes that buffer `index` takes on the device, and so in all of its transfers together.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no such buffer.
    pub fn buffer_bytes(&self, index: usize) -> Result<usize> {
        let mut args = ffi::PJRT_AsyncHostToDeviceTransferManager_BufferSize_Args::new();
        args.transfer_manager = self.raw;
        args.buffer_index = self.index(index)?;
        // SAFETY: the manager is alive as long as `self`.
        unsafe { self.client.api().call(ffi::PJRT_AsyncHostToDeviceTransferManager_BufferSize, &mut args) }?;
        Ok(args.buffer_size)
    }

    /// Takes buffer `index` out; its content is there once the last transfer into it has ended. Does not
    /// block.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no such buffer, or it was taken before.
    pub fn take_buffer(&self, index: usize) -> Result<Buffer> {
        let mut states = self.states();
        if states.get(index).is_some_and(|state| state.is_taken) {
            return Err(Error::InvalidArgument(format!("buffer {index} of the transfer was taken before")));
        }
        let mut args = ffi::PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer_Args::new();
        args.transfer_manager = self.raw;
        args.buffer_index = self.index(index)?;
        // SAFETY: the manager is alive, and the buffer is handed over to us.
        unsafe {
            self.client.api().call(ffi::PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer, &mut args)?;
            states[index].is_taken = true;
            Ok(Buffer::from_raw(&self.client, args.buffer_out, self.specs[index].clone()))
        }
    }

    /// Starts moving `data` to `offset` of buffer `index`. Does not block; `data` is held until the transfer
    /// has ended.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the bytes do not lie within the buffer, or it was completed or failed
    /// before; [`Error::Pjrt`] when the plugin refuses.
    pub fn transfer(
        &self,
        index: usize,
        offset: usize,
        data: Bytes,
        piece: TransferPart,
    ) -> Result<Transfer> {
        const FUNCTION: &str = "PJRT_AsyncHostToDeviceTransferManager_TransferData";
        let size = self.buffer_bytes(index)?;
        if offset.checked_add(data.len()).is_none_or(|end| end > size) {
            return Err(Error::InvalidArgument(format!(
                "{} bytes at {offset} are not within the {size} of buffer {index}",
                data.len()
            )));
        }
        let mut states = self.states();
        if states[index].is_ended {
            return Err(TransferManager::ended(index));
        }
        let mut args = ffi::PJRT_AsyncHostToDeviceTransferManager_TransferData_Args::new();
        args.transfer_manager = self.raw;
        args.buffer_index = self.index(index)?;
        args.data = data.as_ptr().cast();
        args.offset = offset as i64;
        args.transfer_size = data.len() as i64;
        args.is_last_transfer = piece == TransferPart::Last;
        // SAFETY: the manager is alive, and `Transfer` holds the data until the event is over.
        let event = unsafe {
            self.client.api().call(ffi::PJRT_AsyncHostToDeviceTransferManager_TransferData, &mut args)?;
            Event::from_raw(&self.client, args.done_with_h2d_transfer, FUNCTION)
        };
        states[index].is_ended = piece == TransferPart::Last;
        Ok(Transfer { event: Some(event), data })
    }

    /// Fails buffer `index`: whoever waits for it gets this message. For a transfer that cannot be
    /// completed, so that nobody waits for ever.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no such buffer, or it was completed or failed before.
    pub fn fail_buffer(&self, index: usize, message: &str) -> Result<()> {
        /// `PJRT_Error_Code_ABORTED`.
        const ABORTED: ffi::PJRT_Error_Code = 10;
        let mut args = ffi::PJRT_AsyncHostToDeviceTransferManager_SetBufferError_Args::new();
        args.transfer_manager = self.raw;
        args.buffer_index = self.index(index)?;
        let mut states = self.states();
        if states[index].is_ended {
            return Err(TransferManager::ended(index));
        }
        args.error_code = ABORTED;
        args.error_message = message.as_ptr().cast();
        args.error_message_size = message.len();
        // SAFETY: the manager is alive, and the message outlives the call.
        unsafe {
            self.client.api().call(ffi::PJRT_AsyncHostToDeviceTransferManager_SetBufferError, &mut args)
        }?;
        states[index].is_ended = true;
        Ok(())
    }
}

impl Drop for TransferManager {
    fn drop(&mut self) {
        let states = self.states().clone();
        let unfilled = states.iter().enumerate().filter(|(_, state)| state.is_taken && !state.is_ended);
        for (index, _) in unfilled {
            // Nobody is to wait for ever for a buffer that nothing will fill.
            if let Err(error) = self.fail_buffer(index, "the transfer was given up") {
                tracing::debug!(%error, "a buffer that was not filled could not be failed");
            }
        }
        let mut args = ffi::PJRT_AsyncHostToDeviceTransferManager_Destroy_Args::new();
        args.transfer_manager = self.raw;
        // SAFETY: the manager is ours and is not used after this.
        unsafe {
            self.client.api().call_in_drop(ffi::PJRT_AsyncHostToDeviceTransferManager_Destroy, &mut args);
        }
    }
}

/// One piece on its way to the device, and the host bytes that it still needs.
pub struct Transfer {
    event: Option<Event>,
    data: Bytes,
}

impl Transfer {
    /// Blocks until the device is done with the bytes.
    ///
    /// # Errors
    /// The error of the transfer.
    pub fn wait(mut self) -> Result<()> {
        let data = std::mem::take(&mut self.data);
        self.event.take().map_or(Ok(()), |event| event.end_with(data).map(drop))
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transfer({} bytes)", self.data.len())
    }
}

impl fmt::Debug for TransferManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransferManager({} buffers)", self.specs.len())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            event.hold_until_ready(std::mem::take(&mut self.data));
        }
    }
}
