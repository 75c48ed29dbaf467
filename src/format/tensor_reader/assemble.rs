//! Tensors in chunks: each chunk is read, expanded, and put into its place, several at the same time where there are processors for it.

use std::io::{BufReader, Read};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use flate2::read::{MultiGzDecoder, ZlibDecoder};

use super::TensorReader;
use crate::error::Result;
use crate::format::checkpoint::{Extent, Tensor};
use crate::format::chunks::{Chunks, Codec, decode, inflate, zstd_stream};
use crate::store::{Reader, zeros};
use crate::workers;

/// Decoded bytes for which a further thread is worth starting.
const BYTES_PER_THREAD: usize = 8 << 20;

/// Threads that work at a tensor, at most.
const MAX_THREADS: usize = 16;

/// The most bytes that are read before they are expanded: of more, parts are read in turn.
const MAX_WHOLE_BYTES: usize = 1 << 20;

/// What is read at once of a stream, in bytes.
const WINDOW_BYTES: usize = 1 << 20;

/// A chunk whose elements lie together in the tensor, and the place for them. Each is taken once.
type Place<'a> = Mutex<&'a mut [u8]>;

impl TensorReader {
    /// Puts the tensor together of its chunks.
    pub(super) fn assemble(&self, tensor: &Tensor, chunks: &Chunks, target: &mut [u8]) -> Result<()> {
        let count = tensor.extents().len();
        chunks.fill(count, &tensor.spec.shape, target);
        let threads = self.threads_for(target.len()).min(count);
        if threads <= 1 {
            return (0..count).try_for_each(|index| self.put_chunk(tensor, chunks, index, target));
        }
        let jobs: Vec<usize> = (0..count).collect();
        let runs: Option<Vec<_>> =
            jobs.iter().map(|&index| chunks.run_of(index, &tensor.spec.shape)).collect();
        match runs.as_deref().and_then(|runs| split(target, runs)) {
            Some(places) => workers::run(
                threads,
                &jobs,
                || (),
                |(), &index| {
                    let mut place = places[index].lock().unwrap_or_else(PoisonError::into_inner);
                    self.expand_into(tensor, chunks, index, &mut place)
                },
            ),
            None => {
                // Expanding takes longer than putting rows into their places, which one thread does at a time.
                let target = Mutex::new(target);
                workers::run(
                    threads,
                    &jobs,
                    || (),
                    |(), &index| {
                        self.with_expanded(tensor, chunks, index, |chunk| {
                            let mut target = target.lock().unwrap_or_else(PoisonError::into_inner);
                            chunks.place(index, chunk, &tensor.spec.shape, &mut target);
                        })
                    },
                )
            }
        }
        .map(drop)
    }

    /// How many threads put a tensor of so many bytes together: its share of the processors.
    fn threads_for(&self, bytes: usize) -> usize {
        let worth = bytes.div_ceil(BYTES_PER_THREAD).min(MAX_THREADS);
        if worth <= 1 {
            return 1;
        }
        let processors = self.most_threads.unwrap_or_else(|| workers::count(MAX_THREADS));
        let share = match self.total {
            0 => processors,
            total => (processors as u128 * bytes as u128).div_ceil(total as u128) as usize,
        };
        share.min(processors).min(worth)
    }

    /// Puts a chunk into its place.
    fn put_chunk(&self, tensor: &Tensor, chunks: &Chunks, index: usize, target: &mut [u8]) -> Result<()> {
        match chunks.run_of(index, &tensor.spec.shape) {
            Some(run) => self.expand_into(tensor, chunks, index, &mut target[run]),
            None => self.with_expanded(tensor, chunks, index, |chunk| {
                chunks.place(index, chunk, &tensor.spec.shape, target);
            }),
        }
    }

    /// Expands a chunk into the place for all of its elements.
    fn expand_into(&self, tensor: &Tensor, chunks: &Chunks, index: usize, place: &mut [u8]) -> Result<()> {
        let stored = self.stored(tensor, index);
        let streamed = match chunks.codecs[..] {
            [] if stored.bytes() == place.len() => {
                return stored.reader.read(stored.range.start, &mut [place]);
            }
            [codec] => stored.stream_into(codec, place),
            _ => false,
        };
        if streamed {
            return Ok(());
        }
        // A stream that fails says less of what is wrong.
        let expanded = decode(&chunks.codecs, &stored.read()?, place);
        expanded.map_err(|problem| self.malformed(format!("chunk {index}: {problem}")))
    }

    /// Expands a chunk, and passes it on.
    fn with_expanded(
        &self,
        tensor: &Tensor,
        chunks: &Chunks,
        index: usize,
        take: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let stored = self.stored(tensor, index).read()?;
        let expanded = chunks.expand(&stored, tensor.spec.dtype);
        take(&expanded.map_err(|problem| self.malformed(format!("chunk {index}: {problem}")))?);
        Ok(())
    }

    fn stored<'a>(&'a self, tensor: &Tensor, index: usize) -> Stored<'a> {
        let Extent { file, range } = &tensor.extents()[index];
        Stored { reader: &self.readers[*file], range: range.clone() }
    }
}

/// Splits the elements of a tensor into these runs of bytes; `None` where two of them have some in common.
fn split<'a>(target: &'a mut [u8], runs: &[Range<usize>]) -> Option<Vec<Place<'a>>> {
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_unstable_by_key(|&index| runs[index].start);
    let mut places: Vec<Option<Place<'a>>> = runs.iter().map(|_| None).collect();
    let (mut rest, mut at) = (target, 0);
    for index in order {
        let Range { start, end } = runs[index];
        let (_, behind) = rest.split_at_mut(start.checked_sub(at)?);
        let (place, behind) = behind.split_at_mut(end - start);
        places[index] = Some(Mutex::new(place));
        (rest, at) = (behind, end);
    }
    places.into_iter().collect()
}

/// What is stored of a chunk.
struct Stored<'a> {
    reader: &'a Reader,
    range: Range<usize>,
}

impl Stored<'_> {
    fn bytes(&self) -> usize {
        self.range.len()
    }

    /// All of it.
    fn read(&self) -> Result<Bytes> {
        if let Some(bytes) = self.reader.in_memory(self.range.clone()) {
            return Ok(bytes);
        }
        let mut bytes = zeros(self.bytes())?;
        self.reader.read(self.range.start, &mut [&mut bytes])?;
        Ok(bytes.into())
    }

    /// Expands it part by part, if it is long and has to be read, and if this codec can. Whether that was done.
    fn stream_into(&self, codec: Codec, place: &mut [u8]) -> bool {
        if self.bytes() <= MAX_WHOLE_BYTES || self.reader.in_memory(self.range.clone()).is_some() {
            return false;
        }
        // Its parts are read from the disk while those before them are expanded.
        self.reader.will_need(self.range.clone());
        let mut stream = Stream { stored: self, at: 0 };
        match codec {
            Codec::Zstd => zstd_stream(&mut stream, WINDOW_BYTES, place).is_ok(),
            Codec::Gzip => {
                inflate(MultiGzDecoder::new(BufReader::with_capacity(WINDOW_BYTES, stream)), place).is_ok()
            }
            Codec::Zlib => {
                inflate(ZlibDecoder::new(BufReader::with_capacity(WINDOW_BYTES, stream)), place).is_ok()
            }
            Codec::Crc32c | Codec::Fletcher32 | Codec::Shuffle(_) => false,
        }
    }
}

/// What is stored of a chunk, from a place on.
struct Stream<'a> {
    stored: &'a Stored<'a>,
    at: usize,
}

impl Read for Stream<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(self.stored.bytes() - self.at);
        let read = self.stored.reader.read(self.stored.range.start + self.at, &mut [&mut bytes[..count]]);
        read.map_err(std::io::Error::other)?;
        self.at += count;
        Ok(count)
    }
}
