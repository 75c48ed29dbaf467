//! Tensors in chunks: boxes of a regular grid, each of which is stored by itself, and may be compressed.

use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::encoding::{gather, row_major};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::sharding::Runs;
use crate::store::zeros;

/// How a tensor lies in chunks. Each of its extents is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// The shape of every chunk, also of those that reach over the end of the array.
    pub shape: Vec<usize>,
    /// The dimensions in the order in which a chunk has them; `None` where that is row-major.
    pub order: Option<Vec<usize>>,
    /// What undoes what was done to a chunk's bytes, in this order.
    pub codecs: Vec<Codec>,
    /// Where each chunk begins in the array, chunk after chunk.
    pub origins: Vec<usize>,
    /// Where the tensor begins in the array, of which it can be a part.
    pub start: Vec<usize>,
    /// The element that stands where no chunk is.
    pub fill: Vec<u8>,
}

/// What was done to the bytes of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Zstd,
    Gzip,
    Zlib,
    /// A CRC-32C follows them.
    Crc32c,
    /// HDF5's Fletcher-32 follows them.
    Fletcher32,
    /// The first bytes of all elements come before all second ones, and so on, of elements of so many bytes.
    Shuffle(usize),
}

impl Codec {
    /// The bytes that it adds.
    fn added(self) -> usize {
        match self {
            Codec::Crc32c | Codec::Fletcher32 => CRC_BYTES,
            Codec::Zstd | Codec::Gzip | Codec::Zlib | Codec::Shuffle(_) => 0,
        }
    }
}

/// Bytes of a CRC-32C, and of a Fletcher-32.
pub(crate) const CRC_BYTES: usize = 4;

/// The bytes before the CRC-32C of them, which is at the end.
///
/// # Errors
/// That there is none, or another.
pub(crate) fn before_crc32c(data: &[u8]) -> Result<&[u8], &'static str> {
    let (content, crc) = data.split_last_chunk::<CRC_BYTES>().ok_or("it has no checksum")?;
    if crc32c::crc32c(content).to_le_bytes() == *crc {
        Ok(content)
    } else {
        Err("its checksum differs: it is damaged")
    }
}

/// A box of elements, by its range along each dimension.
type Region = Vec<Range<usize>>;

impl Chunks {
    /// Bytes of a chunk, of elements of so many.
    pub fn bytes(&self, width: usize) -> usize {
        self.shape.iter().product::<usize>() * width
    }

    fn origin(&self, index: usize) -> &[usize] {
        &self.origins[index * self.shape.len()..(index + 1) * self.shape.len()]
    }

    /// The part of the array that both a chunk and a box that begins there, of this shape, have, if there is one.
    fn common(&self, index: usize, start: &[usize], shape: &[usize]) -> Option<Region> {
        let dims = self.origin(index).iter().zip(&self.shape).zip(start.iter().zip(shape));
        dims.map(|((&origin, &chunk), (&start, &size))| {
            let both = origin.max(start)..(origin + chunk).min(start + size);
            (!both.is_empty()).then_some(both)
        })
        .collect()
    }

    /// The chunks, of so many, that a slice of the tensor has something of.
    pub fn of_slice(&self, slice: &[Range<usize>], count: usize) -> Vec<usize> {
        let start = self.start_of(slice);
        let shape: Vec<usize> = slice.iter().map(Range::len).collect();
        (0..count).filter(|&index| self.common(index, &start, &shape).is_some()).collect()
    }

    /// The same for a slice, with these of its chunks.
    pub fn slice(&self, slice: &[Range<usize>], chunks: &[usize]) -> Chunks {
        Chunks {
            origins: chunks.iter().flat_map(|&index| self.origin(index)).copied().collect(),
            start: self.start_of(slice),
            ..self.clone()
        }
    }

    /// Where a slice of the tensor begins in the array.
    fn start_of(&self, slice: &[Range<usize>]) -> Vec<usize> {
        self.start.iter().zip(slice).map(|(start, range)| start + range.start).collect()
    }

    /// Whether so many chunks are all that the tensor has something of.
    fn is_covered(&self, count: usize, shape: &[usize]) -> bool {
        let dims = self.shape.iter().zip(self.start.iter().zip(shape));
        let cells = dims.map(|(chunk, (start, size))| (start + size).div_ceil(*chunk) - start / chunk);
        cells.product::<usize>() <= count
    }

    /// Puts the fill value everywhere, unless so many chunks cover the tensor.
    pub fn fill(&self, count: usize, shape: &[usize], target: &mut [u8]) {
        if self.is_covered(count, shape) {
            return;
        }
        if self.fill.iter().all(|byte| *byte == 0) {
            target.fill(0);
        } else {
            target.chunks_exact_mut(self.fill.len()).for_each(|element| element.copy_from_slice(&self.fill));
        }
    }

    /// Where all elements of a chunk are among the tensor's, in bytes, if they are there one after another, as in the chunk.
    pub fn run_of(&self, index: usize, shape: &[usize]) -> Option<Range<usize>> {
        let origin = self.origin(index);
        let dims = || origin.iter().zip(&self.start).zip(self.shape.iter().zip(shape));
        let is_within = dims().all(|((origin, start), (chunk, size))| {
            origin.checked_sub(*start).is_some_and(|place| place + chunk <= *size)
        });
        // Behind the first dimension along which a chunk has several elements, it has all of them.
        let mut behind = dims().skip_while(|(_, (chunk, _))| **chunk == 1).skip(1);
        if self.order.is_some() || !is_within || !behind.all(|(_, (chunk, size))| chunk == size) {
            return None;
        }
        let places = dims().map(|((origin, start), _)| origin - start);
        let width = self.fill.len();
        let first: usize = places.zip(row_major(shape)).map(|(place, stride)| place * stride * width).sum();
        Some(first..first + self.bytes(width))
    }

    /// A chunk's elements, row-major, of what is stored of it.
    ///
    /// # Errors
    /// What is wrong with the chunk.
    pub fn expand<'s>(&self, stored: &'s [u8], dtype: DType) -> Result<Cow<'s, [u8]>, String> {
        let bytes = self.bytes(self.fill.len());
        let memory = || zeros(bytes).map_err(|error| error.to_string());
        let mut chunk = match self.codecs.is_empty() {
            true if stored.len() != bytes => return Err(wrong_length(stored.len(), bytes)),
            true => Cow::Borrowed(stored),
            false => {
                let mut expanded = memory()?;
                decode(&self.codecs, stored, &mut expanded)?;
                Cow::Owned(expanded)
            }
        };
        if let Some(order) = &self.order {
            let mut turned = memory()?;
            let spec = ArraySpec::new(dtype, self.shape.clone());
            gather(&chunk, &spec, &self.strides(order), &mut turned);
            chunk = Cow::Owned(turned);
        }
        Ok(chunk)
    }

    /// Puts what a chunk has of a tensor of this shape into its place among the tensor's elements.
    pub fn place(&self, index: usize, chunk: &[u8], shape: &[usize], target: &mut [u8]) {
        let Some(common) = self.common(index, &self.start, shape) else { return };
        let within = |start: &[usize]| -> Region {
            common.iter().zip(start).map(|(range, start)| range.start - start..range.end - start).collect()
        };
        let width = self.fill.len();
        let from = Runs::new(&self.shape, &within(self.origin(index)), width);
        let to = Runs::new(shape, &within(&self.start), width);
        copy(chunk, &from, target, &to);
    }

    /// How far apart elements lie in a chunk along each dimension.
    fn strides(&self, order: &[usize]) -> Vec<usize> {
        let stored: Vec<usize> = order.iter().map(|&dim| self.shape[dim]).collect();
        let mut strides = vec![0; order.len()];
        order.iter().zip(row_major(&stored)).for_each(|(&dim, stride)| strides[dim] = stride);
        strides
    }
}

/// Copies runs of some bytes to runs of others, which are as many bytes together.
fn copy(source: &[u8], from: &Runs, target: &mut [u8], to: &Runs) {
    let (read, write) = (from.run_bytes(), to.run_bytes());
    let total = from.count() * read;
    let mut at = 0;
    while at < total {
        let bytes = (read - at % read).min(write - at % write);
        let (start, place) = (from.get(at / read).start + at % read, to.get(at / write).start + at % write);
        target[place..place + bytes].copy_from_slice(&source[start..start + bytes]);
        at += bytes;
    }
}

/// Undoes what was done to bytes, which then are exactly as many as there is room for.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn decode(codecs: &[Codec], data: &[u8], target: &mut [u8]) -> Result<(), String> {
    let Some((first, rest)) = codecs.split_first() else {
        if data.len() != target.len() {
            return Err(wrong_length(data.len(), target.len()));
        }
        target.copy_from_slice(data);
        return Ok(());
    };
    match first {
        Codec::Crc32c => return decode(rest, before_crc32c(data)?, target),
        Codec::Fletcher32 => return decode(rest, before_fletcher32(data)?, target),
        _ => {}
    }
    if rest.is_empty() {
        return expand(*first, data, target);
    }
    // Nothing that compresses comes after.
    let added: usize = rest.iter().map(|codec| codec.added()).sum();
    let mut content = zeros(target.len() + added).map_err(|error| error.to_string())?;
    expand(*first, data, &mut content)?;
    decode(rest, &content, target)
}

fn wrong_length(found: usize, wanted: usize) -> String {
    format!("it has {found} bytes, and a chunk has {wanted}")
}

fn expand(codec: Codec, data: &[u8], target: &mut [u8]) -> Result<(), String> {
    match codec {
        Codec::Zstd => zstd_into(data, target),
        Codec::Gzip => inflate(MultiGzDecoder::new(data), target),
        Codec::Zlib => inflate(ZlibDecoder::new(data), target),
        Codec::Shuffle(width) => unshuffle(width, data, target),
        Codec::Crc32c | Codec::Fletcher32 => decode(&[codec], data, target),
    }
}

/// Puts the bytes of each element together again. What is left after the last whole element stays at the end.
fn unshuffle(width: usize, data: &[u8], target: &mut [u8]) -> Result<(), String> {
    if data.len() != target.len() {
        return Err(wrong_length(data.len(), target.len()));
    }
    let count = data.len() / width;
    for (place, bytes) in data[..count * width].chunks_exact(count.max(1)).enumerate() {
        target[place..].iter_mut().step_by(width).zip(bytes).for_each(|(target, byte)| *target = *byte);
    }
    target[count * width..].copy_from_slice(&data[count * width..]);
    Ok(())
}

/// The bytes before the Fletcher-32 of them, which is at the end.
///
/// # Errors
/// That there is none, or another.
fn before_fletcher32(data: &[u8]) -> Result<&[u8], &'static str> {
    let (content, sum) = data.split_last_chunk::<CRC_BYTES>().ok_or("it has no checksum")?;
    if hdf5_reader::checksum::fletcher32(content).to_le_bytes() == *sum {
        Ok(content)
    } else {
        Err("its checksum differs: it is damaged")
    }
}

/// Reads what is compressed in a stream, to exactly as many bytes as there is room for.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn inflate(mut content: impl Read, target: &mut [u8]) -> Result<(), String> {
    let failed = |error| format!("what is compressed in it is damaged: {error}");
    content.read_exact(target).map_err(failed)?;
    match content.read(&mut [0]).map_err(failed)? {
        0 => Ok(()),
        _ => Err(too_long(target.len())),
    }
}

fn too_long(bytes: usize) -> String {
    format!("what is compressed in it has more than its {bytes} bytes")
}

/// Expands what Zstandard compressed to exactly as many bytes as there is room for.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn zstd_into(data: &[u8], target: &mut [u8]) -> Result<(), String> {
    let wanted = target.len();
    let mut expander = zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?;
    match expander.decompress_to_buffer(data, target) {
        Ok(bytes) if bytes == wanted => Ok(()),
        Ok(bytes) => Err(format!("what is compressed in it has {bytes} bytes, and not {wanted}")),
        Err(error) => {
            Err(format!("what is compressed in it is damaged, or longer than its {wanted} bytes: {error}"))
        }
    }
}

/// Expands what Zstandard compressed in a stream, of which so many bytes are read at once, to exactly as many as there is room for.
///
/// # Errors
/// What is wrong with it; frames that need a larger window than [`MAX_WINDOW_LOG`] says are refused here, too.
pub(crate) fn zstd_stream(
    mut content: impl Read,
    window_bytes: usize,
    target: &mut [u8],
) -> std::io::Result<()> {
    let mut expander = Decoder::new()?;
    expander.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
    let (mut window, mut is_whole) = (vec![0; window_bytes], false);
    let mut expanded = OutBuffer::around(target);
    loop {
        let bytes = content.read(&mut window)?;
        if bytes == 0 {
            break;
        }
        let mut stored = InBuffer::around(&window[..bytes]);
        while stored.pos() < bytes {
            let before = (stored.pos(), expanded.pos());
            is_whole = expander.run(&mut stored, &mut expanded)? == 0;
            if before == (stored.pos(), expanded.pos()) {
                return Err(std::io::Error::other(too_long(expanded.capacity())));
            }
        }
    }
    match is_whole && expanded.pos() == expanded.capacity() {
        true => Ok(()),
        false => Err(std::io::Error::other("what is compressed in it is cut off, or of another length")),
    }
}

/// The largest window of a frame that is expanded as a stream: 8 MiB, as much as the usual levels take.
const MAX_WINDOW_LOG: u32 = 23;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use proptest::prelude::*;

    fn encode(codecs: &[Codec], data: &[u8]) -> Vec<u8> {
        // What is undone last was done first.
        codecs.iter().rev().fold(data.to_vec(), |data, codec| match codec {
            Codec::Zstd => zstd::bulk::compress(&data, 1).unwrap(),
            Codec::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(&data).unwrap();
                writer.finish().unwrap()
            }
            Codec::Zlib => {
                let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(&data).unwrap();
                writer.finish().unwrap()
            }
            Codec::Crc32c => [&data[..], &crc32c::crc32c(&data).to_le_bytes()].concat(),
            Codec::Fletcher32 => {
                [&data[..], &hdf5_reader::checksum::fletcher32(&data).to_le_bytes()].concat()
            }
            Codec::Shuffle(width) => {
                let whole = data.len() / width * width;
                let bytes = |place| data[..whole].iter().skip(place).step_by(*width);
                (0..*width).flat_map(bytes).chain(&data[whole..]).copied().collect()
            }
        })
    }

    const CHAINS: [&[Codec]; 9] = [
        &[],
        &[Codec::Zstd],
        &[Codec::Gzip],
        &[Codec::Zlib],
        &[Codec::Crc32c],
        &[Codec::Crc32c, Codec::Zstd],
        &[Codec::Zstd, Codec::Crc32c],
        &[Codec::Fletcher32, Codec::Zlib, Codec::Shuffle(3)],
        &[Codec::Zlib, Codec::Fletcher32, Codec::Shuffle(2)],
    ];

    #[test]
    fn what_is_too_short_too_long_or_damaged_is_an_error() {
        let data: Vec<u8> = (0..200).map(|byte| byte % 7).collect();
        for codecs in CHAINS {
            let stored = encode(codecs, &data);
            let room = |bytes: usize, stored: &[u8]| {
                let mut target = vec![0; bytes];
                decode(codecs, stored, &mut target).map(|()| target)
            };
            assert_eq!(room(200, &stored).unwrap(), data);
            assert!(room(199, &stored).is_err() && room(201, &stored).is_err(), "{codecs:?}");
            assert!(room(200, &stored[..stored.len() - 1]).is_err() && room(200, &[]).is_err(), "{codecs:?}");
        }
    }

    /// Expands a stream of which each read gives so many bytes.
    fn streamed(stored: &[u8], part: usize, room: usize) -> std::io::Result<Vec<u8>> {
        let mut target = vec![0; room];
        zstd_stream(stored, part, &mut target)?;
        Ok(target)
    }

    #[test]
    fn a_stream_is_expanded_as_the_whole_is() {
        let data: Vec<u8> = (0..400_000u32).flat_map(|n| (n.wrapping_mul(n) >> 7).to_le_bytes()).collect();
        let mut stored = zstd::bulk::compress(&data, 3).unwrap();
        for part in [1 << 20, 4096, 7] {
            assert!(streamed(&stored, part, data.len()).unwrap() == data);
            assert!(streamed(&stored, part, data.len() - 1).is_err());
            assert!(streamed(&stored, part, data.len() + 1).is_err());
            assert!(streamed(&stored[..stored.len() - 1], part, data.len()).is_err());
        }
        assert!(streamed(&[], 10, 10).is_err());
        // Two frames, one after another, are one stream.
        stored.extend(zstd::bulk::compress(&data, 1).unwrap());
        assert!(streamed(&stored, 4096, 2 * data.len()).unwrap() == [&data[..], &data].concat());
        let wide = {
            let mut writer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            writer.window_log(MAX_WINDOW_LOG + 1).unwrap();
            writer.write_all(&data).unwrap();
            writer.finish().unwrap()
        };
        assert!(streamed(&wide, 4096, data.len()).is_err());
        let mut target = vec![0; data.len()];
        zstd_into(&wide, &mut target).unwrap();
        assert!(target == data);
    }

    proptest! {
        #[test]
        fn a_slice_of_chunks_is_the_slice_of_the_array(
            dims in proptest::collection::vec((1usize..7, 1usize..5, 0usize..7, 0usize..7), 0..4),
            chain in 0usize..9,
            turned: bool,
            missing in 0usize..40,
        ) {
            let shape: Vec<usize> = dims.iter().map(|(size, ..)| *size).collect();
            let chunk: Vec<usize> = dims.iter().map(|(_, chunk, ..)| *chunk).collect();
            let slice: Vec<Range<usize>> = dims.iter().map(|&(size, _, a, b)| {
                let (a, b) = (a % size, b % size);
                a.min(b)..a.max(b) + 1
            }).collect();
            let whole: Vec<u16> = (0..shape.iter().product::<usize>() as u16).map(|n| n * 3 + 1).collect();
            let at = |index: &[usize]| -> Option<u16> {
                let place = index.iter().zip(&shape).try_fold(0, |sum, (&i, &size)| (i < size).then(|| sum * size + i))?;
                Some(whole[place])
            };
            // Every index of a box, the last dimension fastest.
            let indices = |of: &[usize]| -> Vec<Vec<usize>> {
                of.iter().fold(vec![vec![]], |all, &size| {
                    all.iter().flat_map(|index| (0..size).map(move |i| [&index[..], &[i]].concat())).collect()
                })
            };
            let order: Option<Vec<usize>> = turned.then(|| (0..shape.len()).rev().collect());
            let stored_shape: Vec<usize> =
                order.as_ref().map_or(chunk.clone(), |order| order.iter().map(|&dim| chunk[dim]).collect());
            let grid: Vec<usize> = shape.iter().zip(&chunk).map(|(size, chunk)| size.div_ceil(*chunk)).collect();
            let mut chunks = Chunks {
                shape: chunk.clone(), order: order.clone(), codecs: CHAINS[chain].to_vec(),
                origins: vec![], start: vec![0; shape.len()], fill: vec![9, 0],
            };
            let mut stored = Vec::new();
            let mut gone: Option<Vec<usize>> = None;
            for (number, cell) in indices(&grid).into_iter().enumerate() {
                let origin: Vec<usize> = cell.iter().zip(&chunk).map(|(i, chunk)| i * chunk).collect();
                if number == missing {
                    gone = Some(origin);
                    continue;
                }
                let mut bytes = Vec::new();
                for index in indices(&stored_shape) {
                    let mut place = index.clone();
                    if let Some(order) = &order {
                        order.iter().zip(&index).for_each(|(&dim, &i)| place[dim] = i);
                    }
                    let place: Vec<usize> = place.iter().zip(&origin).map(|(i, origin)| i + origin).collect();
                    bytes.extend(at(&place).unwrap_or(77).to_le_bytes());
                }
                chunks.origins.extend(&origin);
                stored.push(encode(CHAINS[chain], &bytes));
            }
            let wanted = chunks.of_slice(&slice, stored.len());
            let part = chunks.slice(&slice, &wanted);
            let part_shape: Vec<usize> = slice.iter().map(Range::len).collect();
            let spec = ArraySpec::new(DType::U16, part_shape.clone());
            let mut found = vec![0xee; spec.host_bytes().unwrap()];
            part.fill(wanted.len(), &part_shape, &mut found);
            for (place, &index) in wanted.iter().enumerate() {
                let chunk = part.expand(&stored[index], DType::U16).unwrap();
                if let Some(run) = part.run_of(place, &part_shape) {
                    let mut other = found.clone();
                    other[run].copy_from_slice(&chunk);
                    part.place(place, &chunk, &part_shape, &mut found);
                    prop_assert_eq!(&other, &found);
                }
                part.place(place, &chunk, &part_shape, &mut found);
            }
            let is_gone = |index: &[usize]| gone.as_ref().is_some_and(|gone| {
                gone.iter().zip(&chunk).zip(index).all(|((origin, chunk), i)| (*origin..origin + chunk).contains(i))
            });
            let expected: Vec<u8> = indices(&part_shape).into_iter().flat_map(|index| {
                let index: Vec<usize> = index.iter().zip(&slice).map(|(i, range)| i + range.start).collect();
                if is_gone(&index) { 9 } else { at(&index).unwrap() }.to_le_bytes()
            }).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
