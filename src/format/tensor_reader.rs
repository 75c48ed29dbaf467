//! Reading a checkpoint's tensors: from the files that hold them, and out of their encoding.

mod assemble;

use std::io::Read;

use bytes::Bytes;
use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::checkpoint::{Checkpoint, Extent, Tensor};
use super::encoding::{Deflated, gather};
use super::problem::Problem;
use crate::array::HostArray;
use crate::error::{Error, Result};
use crate::store::{DigestCheck, Io, Reader, zeros};
use crate::sub_byte;

/// The tensors of a checkpoint, read in one way. From several threads at once.
pub(crate) struct TensorReader {
    origin: String,
    readers: Vec<Reader>,
    /// How many threads may work at a tensor; as many as there are processors if `None`.
    most_threads: Option<usize>,
    /// Decoded bytes of all tensors that are read at the same time, each of which gets its share of the processors; 0 where
    /// one is read after another.
    total: usize,
}

impl Tensor {
    /// The bytes of its elements, out of their encoding but for sub-byte ones, which stay packed or unpacked.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a shape that does not fit into memory.
    pub(crate) fn decoded_bytes(&self) -> Result<usize> {
        if self.spec.dtype.is_sub_byte() && !self.encoding.is_unpacked {
            self.spec.packed_bytes()
        } else {
            self.spec.host_bytes()
        }
    }

    /// Whether any part of its elements, sub-byte ones packed, can be read by itself.
    pub(crate) fn has_parts(&self) -> bool {
        self.encoding.is_plain() && !(self.encoding.is_unpacked && self.spec.dtype.is_sub_byte())
    }
}

impl TensorReader {
    /// Reads files by position.
    ///
    /// # Errors
    /// Never for files that are open.
    pub fn new(checkpoint: &Checkpoint) -> Result<TensorReader> {
        TensorReader::by(checkpoint, Io::Positional)
    }

    /// Reads files in this way.
    ///
    /// # Errors
    /// [`Error::Io`] where the file system has no direct reads.
    pub fn by(checkpoint: &Checkpoint, io: Io) -> Result<TensorReader> {
        let readers = checkpoint.blobs.iter().map(|blob| Reader::new(blob, io)).collect::<Result<_>>()?;
        Ok(TensorReader { origin: checkpoint.origin().to_owned(), readers, most_threads: None, total: 0 })
    }

    /// For several threads, each with a tensor of its own, of so many decoded bytes together.
    pub fn sharing(self, total: usize) -> TensorReader {
        TensorReader { total, ..self }
    }

    /// Has no more than so many threads work at a tensor.
    pub fn with_threads(self, most_threads: Option<usize>) -> TensorReader {
        TensorReader { most_threads, ..self }
    }

    /// Fills the parts, one after another, with what the files hold of the tensor from `start` on, as they hold it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when a file has become shorter.
    pub fn read_stored(&self, tensor: &Tensor, start: usize, parts: &mut [&mut [u8]]) -> Result<()> {
        if let [extent] = tensor.extents() {
            return self.readers[extent.file].read(extent.range.start + start, parts);
        }
        let mut at = start;
        for part in parts {
            self.read_across(tensor.extents(), at, part)?;
            at += part.len();
        }
        Ok(())
    }

    /// Fills a part from several extents.
    fn read_across(&self, extents: &[Extent], start: usize, mut part: &mut [u8]) -> Result<()> {
        let mut skip = start;
        for Extent { file, range } in extents {
            if skip >= range.len() {
                skip -= range.len();
                continue;
            }
            let here = part.len().min(range.len() - skip);
            let (now, rest) = std::mem::take(&mut part).split_at_mut(here);
            self.readers[*file].read(range.start + skip, &mut [now])?;
            (part, skip) = (rest, 0);
            if part.is_empty() {
                break;
            }
        }
        if part.is_empty() {
            Ok(())
        } else {
            Err(self.malformed(format!("{} bytes of a tensor are missing", part.len())))
        }
    }

    /// What the file holds of the tensor, where it need not be read.
    pub fn in_memory(&self, tensor: &Tensor, range: std::ops::Range<usize>) -> Option<Bytes> {
        let [extent] = tensor.extents() else { return None };
        let start = extent.range.start;
        self.readers[extent.file].in_memory(start + range.start..start + range.end)
    }

    /// Fills a part with elements from `start` of their bytes on, of a tensor that has parts. What the file holds of them
    /// goes through the check, if there is one.
    ///
    /// # Errors
    /// As for [`TensorReader::read_stored`].
    pub fn read_part(
        &self,
        tensor: &Tensor,
        start: usize,
        part: &mut [u8],
        check: Option<&mut DigestCheck<'_>>,
    ) -> Result<()> {
        self.read_stored(tensor, start, &mut [&mut *part])?;
        if let Some(check) = check {
            check.update(part);
        }
        tensor.encoding.make_little_endian(tensor.spec.dtype, part);
        Ok(())
    }

    /// All elements of a tensor, sub-byte ones packed.
    ///
    /// # Errors
    /// As for [`TensorReader::decode`].
    pub fn read(&self, tensor: &Tensor) -> Result<Bytes> {
        self.read_with(tensor, None)
    }

    /// As [`TensorReader::read`]. What the file holds of the elements goes through the check, if there is one.
    ///
    /// # Errors
    /// As for [`TensorReader::decode`].
    pub fn read_with(&self, tensor: &Tensor, check: Option<&mut DigestCheck<'_>>) -> Result<Bytes> {
        let mut bytes = zeros(tensor.decoded_bytes()?)?;
        self.decode(tensor, check, &mut bytes)?;
        let dtype = tensor.spec.dtype;
        let is_unpacked = tensor.encoding.is_unpacked && dtype.is_sub_byte();
        Ok(if is_unpacked { sub_byte::pack(&bytes, dtype).into() } else { bytes.into() })
    }

    /// All elements of a tensor as a host has them: sub-byte ones take a byte each.
    ///
    /// # Errors
    /// As for [`TensorReader::decode`].
    pub fn read_array(&self, tensor: &Tensor) -> Result<HostArray> {
        let Tensor { spec, encoding, .. } = tensor;
        let mut bytes = zeros(tensor.decoded_bytes()?)?;
        self.decode(tensor, None, &mut bytes)?;
        if spec.dtype.is_sub_byte() && !encoding.is_unpacked {
            bytes = sub_byte::unpack(&bytes, spec.dtype, spec.host_bytes()?);
        }
        HostArray::from_bytes(spec.clone(), bytes)
    }

    /// Fills memory of [`Tensor::decoded_bytes`] with the elements of a tensor. What the file holds of them goes through
    /// the check, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] when a file has become shorter, or what is compressed in it is damaged.
    pub fn decode(
        &self,
        tensor: &Tensor,
        check: Option<&mut DigestCheck<'_>>,
        target: &mut [u8],
    ) -> Result<()> {
        let Tensor { spec, encoding, .. } = tensor;
        match &encoding.strides {
            Some(strides) => {
                let mut stored = zeros(self.stored_bytes(tensor))?;
                self.read_expanded(tensor, check, &mut stored)?;
                gather(&stored, spec, strides, target);
            }
            None => self.read_expanded(tensor, check, target)?,
        }
        encoding.make_little_endian(spec.dtype, target);
        Ok(())
    }

    fn stored_bytes(&self, tensor: &Tensor) -> usize {
        tensor.encoding.deflated.as_ref().map_or(tensor.bytes(), |deflated| deflated.bytes)
    }

    /// Reads what a tensor is made of, expanded.
    fn read_expanded(
        &self,
        tensor: &Tensor,
        check: Option<&mut DigestCheck<'_>>,
        target: &mut [u8],
    ) -> Result<()> {
        match (&tensor.encoding.deflated, &tensor.encoding.chunks) {
            (Some(deflated), _) => self.inflate(tensor, deflated, target)?,
            (None, Some(chunks)) => self.assemble(tensor, chunks, target)?,
            (None, None) => self.read_stored(tensor, 0, &mut [&mut *target])?,
        }
        if let Some(check) = check {
            check.update(target);
        }
        Ok(())
    }

    fn inflate(&self, tensor: &Tensor, deflated: &Deflated, target: &mut [u8]) -> Result<()> {
        let stored = Stored { reader: self, tensor, position: 0 };
        let mut content = DeflateDecoder::new(std::io::BufReader::with_capacity(INFLATE_BYTES, stored));
        let mut crc = Crc::new();
        let failed = |error| {
            let problem = Problem::of_stream(error, "what is compressed in it is damaged");
            problem.into_error(&self.origin, "checkpoint")
        };
        skip(&mut content, deflated.skip, &mut crc).map_err(failed)?;
        for window in target.chunks_mut(INFLATE_BYTES) {
            content.read_exact(window).map_err(failed)?;
            crc.update(window);
        }
        let (bytes, sum) = deflated.content;
        let rest = bytes.saturating_sub(deflated.skip + target.len());
        skip(&mut content, rest, &mut crc).map_err(failed)?;
        if crc.sum() == sum {
            Ok(())
        } else {
            Err(self.malformed("its checksum differs: it is damaged".into()))
        }
    }

    fn malformed(&self, problem: String) -> Error {
        Error::Malformed { origin: self.origin.clone(), format: "checkpoint", problem }
    }
}

/// What is inflated at once, in bytes.
const INFLATE_BYTES: usize = 256 << 10;

/// Reads on over so many bytes.
fn skip(content: &mut impl Read, bytes: usize, crc: &mut Crc) -> std::io::Result<()> {
    let mut window = vec![0; bytes.min(INFLATE_BYTES)];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(window.len());
        content.read_exact(&mut window[..now])?;
        crc.update(&window[..now]);
        left -= now;
    }
    Ok(())
}

/// What the files hold of a tensor, as a stream.
struct Stored<'a> {
    reader: &'a TensorReader,
    tensor: &'a Tensor,
    position: usize,
}

impl Read for Stored<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(self.tensor.bytes() - self.position);
        let read = self.reader.read_stored(self.tensor, self.position, &mut [&mut bytes[..count]]);
        read.map_err(std::io::Error::other)?;
        self.position += count;
        Ok(count)
    }
}
