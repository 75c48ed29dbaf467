//! Where the bytes of a file that is written come from.

use std::sync::OnceLock;

use bytes::Bytes;

use super::ring::Registration;
use crate::cast::cast_into;
use crate::device_array::Array;
use crate::dtype::DType;
use crate::error::{Error, ErrorCode, Result};
use crate::pjrt::{Buffer, Client, HostTransfer, StagingMemory};
use crate::sub_byte;

/// The tensors of a file that is about to be written, by position. Asked by several threads at once.
pub trait Supply: Sync {
    /// Where the bytes of the tensor at this position are.
    ///
    /// # Errors
    /// When they cannot be fetched or read.
    fn supply(&self, index: usize) -> Result<TensorBytes<'_>>;

    /// Whether asking for this tensor costs nothing, so that parts of it can be asked for one by one.
    fn is_divisible(&self, index: usize) -> bool;

    /// Whether memory that the device copies into is registered with it.
    fn registration(&self) -> Registration {
        Registration::Auto
    }
}

/// Where the bytes of a tensor are, and what is to be done to them.
pub struct TensorBytes<'a> {
    pub content: ByteSource<'a>,
    pub change: FileChange,
}

/// Where the bytes of a tensor are.
pub enum ByteSource<'a> {
    /// In memory that the host can read, row-major.
    Host(Bytes),
    /// On the device, which has them row-major, and copies any part of them.
    Device(Buffer),
    /// In a file, any part of which is read by its offset in the tensor.
    File(Box<ReadPart<'a>>),
}

/// Reads a part of a tensor: from an offset in its bytes on, as much as there is room for.
pub type ReadPart<'a> = dyn Fn(usize, &mut [u8]) -> Result<()> + 'a;

/// What is done to elements on their way to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileChange {
    /// Nothing.
    None,
    /// They are cast.
    Cast { from: DType, to: DType },
    /// Sub-byte elements are packed.
    Pack(DType),
}

impl FileChange {
    /// What makes elements as a device hands them out, of one type, elements in the file of another.
    pub fn to_file(from: DType, to: DType) -> FileChange {
        match FileChange::between(from, to) {
            FileChange::None if from.is_sub_byte() => FileChange::Pack(from),
            change => change,
        }
    }

    /// What makes elements in memory of one type elements in the file of another.
    pub fn between(from: DType, to: DType) -> FileChange {
        if from == to { FileChange::None } else { FileChange::Cast { from, to } }
    }

    /// Bytes that become so many in the file.
    fn source_bytes(self, file_bytes: usize) -> usize {
        match self {
            FileChange::None => file_bytes,
            FileChange::Cast { from, to } => file_bytes / (to.bits() / 8) * (from.bits() / 8),
            FileChange::Pack(dtype) => file_bytes * (8 / dtype.bits()),
        }
    }

    /// The bytes as they are in the file, in memory of that length; the number of finite elements that became
    /// infinite.
    fn apply(self, source: &[u8], target: &mut [u8]) -> Result<usize> {
        match self {
            FileChange::None => target.copy_from_slice(source),
            FileChange::Cast { from, to } => return cast_into(source, from, to, target),
            FileChange::Pack(dtype) => target.copy_from_slice(&sub_byte::pack(source, dtype)),
        }
        Ok(0)
    }
}

/// Memory of one thread for bytes that cannot be written from where they are.
#[derive(Default)]
pub struct PartMemory {
    fetched: Option<StagingMemory>,
    read: Vec<u8>,
    changed: Vec<u8>,
    /// Whether `fetched` is registered with the device.
    registration: Registration,
    /// Finite elements that a cast made infinite.
    pub overflows: usize,
}

impl PartMemory {
    /// Memory that is registered with the device or not.
    pub fn new(registration: Registration) -> PartMemory {
        PartMemory { registration, ..PartMemory::default() }
    }
}

impl TensorBytes<'_> {
    /// A part of the tensor, as it is in the file: `start` and `bytes` count the bytes there.
    pub fn part<'a>(&'a self, start: usize, bytes: usize, memory: &'a mut PartMemory) -> Result<&'a [u8]> {
        let (from, length) = (self.change.source_bytes(start), self.change.source_bytes(bytes));
        let source: &[u8] = match &self.content {
            ByteSource::Host(content) => &content[from..from + length],
            ByteSource::Device(buffer) => {
                let client = (memory.registration == Registration::Auto).then_some(buffer.client());
                let fetched = room(memory.fetched.take(), length, client)?;
                let fetched = buffer.read_raw_into_own(from, length, fetched)?;
                &memory.fetched.insert(fetched)[..length]
            }
            ByteSource::File(read) => {
                memory.read.resize(length, 0);
                read(from, &mut memory.read)?;
                &memory.read
            }
        };
        if self.change == FileChange::None {
            return Ok(source);
        }
        memory.changed.resize(bytes, 0);
        memory.overflows += self.change.apply(source, &mut memory.changed)?;
        Ok(&memory.changed)
    }
}

/// The least that is taken for what is fetched, in bytes.
const LEAST_FETCHED: usize = 1 << 20;

/// So many bytes for what is fetched, registered with the client's devices if one is given.
fn room(fetched: Option<StagingMemory>, bytes: usize, client: Option<&Client>) -> Result<StagingMemory> {
    match fetched {
        Some(memory) if memory.len() >= bytes => Ok(memory),
        small => {
            // A plugin that did not register it before does not do so now.
            let client = client.filter(|_| small.is_none_or(|memory| memory.is_registered()));
            // Rounded up, so that tensors that are ever larger do not each need their own.
            StagingMemory::allocate(bytes.max(LEAST_FETCHED).next_power_of_two(), client)
        }
    }
}

/// Arrays on devices, to be written in these types.
pub struct DeviceSupply<'a> {
    pub arrays: &'a [Array],
    pub dtypes: Vec<DType>,
    pub registration: Registration,
    copies_parts: OnceLock<bool>,
}

impl<'a> DeviceSupply<'a> {
    pub fn new(arrays: &'a [Array], dtypes: Vec<DType>, registration: Registration) -> DeviceSupply<'a> {
        DeviceSupply { arrays, dtypes, registration, copies_parts: OnceLock::new() }
    }

    /// Whether the plugin copies parts of buffers. Tried with a byte of this one: a plugin can have the function and not do it.
    fn copies_parts(&self, buffer: &Buffer) -> bool {
        *self.copies_parts.get_or_init(|| {
            let tried = buffer.start_raw_to_host(0, 1).and_then(HostTransfer::wait);
            let is_missing = |error: &Error| {
                matches!(error, Error::Unsupported { .. }) || error.code() == Some(ErrorCode::Unimplemented)
            };
            // What fails otherwise is told of where it is needed.
            !tried.is_err_and(|error| is_missing(&error))
        })
    }
}

/// Whether parts of the buffer are parts of what the host is to have.
fn has_parts(buffer: &Buffer) -> bool {
    buffer.spec().host_bytes().is_ok_and(|bytes| bytes > 0) && buffer.has_host_layout()
}

impl Supply for DeviceSupply<'_> {
    fn supply(&self, index: usize) -> Result<TensorBytes<'_>> {
        let array = &self.arrays[index];
        match array.one_with_all() {
            Some(buffer) => self.of_buffer(buffer, self.dtypes[index]),
            None => {
                let change = FileChange::to_file(array.dtype(), self.dtypes[index]);
                Ok(TensorBytes { content: ByteSource::Host(array.to_host()?.bytes().clone()), change })
            }
        }
    }

    fn is_divisible(&self, index: usize) -> bool {
        let Some(buffer) = self.arrays[index].one_with_all() else { return false };
        has_parts(buffer) && (buffer.is_on_cpu().unwrap_or(false) || self.copies_parts(buffer))
    }

    fn registration(&self) -> Registration {
        self.registration
    }
}

impl DeviceSupply<'_> {
    /// Where the bytes of a buffer are, which has the whole of an array, or a part.
    pub fn of_buffer(&self, buffer: &Buffer, dtype: DType) -> Result<TensorBytes<'static>> {
        let change = FileChange::to_file(buffer.dtype(), dtype);
        let whole =
            || Ok::<ByteSource<'static>, Error>(ByteSource::Host(buffer.start_to_host()?.wait()?.into()));
        let content = if has_parts(buffer) {
            buffer.wait()?;
            match buffer.host_view()? {
                Some(view) => ByteSource::Host(view),
                None if self.copies_parts(buffer) => ByteSource::Device(buffer.clone()),
                None => whole()?,
            }
        } else {
            whole()?
        };
        Ok(TensorBytes { content, change })
    }
}
