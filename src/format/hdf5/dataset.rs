//! A dataset: where its bytes are, in one piece or in chunks.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use hdf5_reader::btree_v1::{BTreeV1Key, collect_btree_v1_leaves_storage};
use hdf5_reader::chunk_index::{
    ChunkEntry, collect_implicit_chunk_entries, collect_v2_chunk_entries_storage, single_chunk_entry,
};
use hdf5_reader::extensible_array::collect_extensible_array_chunk_entries_storage;
use hdf5_reader::fixed_array::collect_fixed_array_chunk_entries_storage;
use hdf5_reader::messages::HdfMessage;
use hdf5_reader::messages::dataspace::DataspaceType;
use hdf5_reader::messages::filter_pipeline::{
    FILTER_DEFLATE, FILTER_FLETCHER32, FILTER_SHUFFLE, FilterDescription,
};
use hdf5_reader::messages::layout::{ChunkIndexing, DataLayout};
use hdf5_reader::{Dataset, Hdf5File};

use super::super::checkpoint::{Extent, Tensor};
use super::super::chunks::{Chunks, Codec};
use super::super::encoding::Encoding;
use super::super::pool::Pool;
use super::super::problem::Problem;
use super::element::Element;
use super::problem_of;
use super::storage::Window;
use crate::array::ArraySpec;
use crate::limits::{Limits, MAX_RANK};

/// A dataset whose elements are numbers.
pub struct Found {
    spec: ArraySpec,
    encoding: Encoding,
    stored: Stored,
}

/// Where the bytes of a dataset are, from the beginning of the HDF5 file.
enum Stored {
    /// In these places.
    There(Vec<Range<usize>>),
    /// In the header of the dataset.
    Here(Vec<u8>),
}

/// The attribute in which Keras names types that HDF5 does not know.
const DTYPE: &str = "dtype";

impl Found {
    /// Finds the bytes of a dataset; why it is no array of numbers that are known.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(
        file: &Hdf5File,
        dataset: &Dataset,
        window: &Window,
        limits: Limits,
    ) -> Result<Result<Found, String>, Problem> {
        let named = dataset.attribute(DTYPE).and_then(|attribute| attribute.read_string()).ok();
        let message = dataset.raw_datatype().map_err(problem_of)?;
        let element = match Element::parse(dataset.dtype(), &message, named.as_deref()) {
            Ok(element) => element,
            Err(why) => return Ok(Err(why)),
        };
        let shape = sizes(dataset.shape())?;
        if shape.len() > MAX_RANK {
            return Err(format!("it has {} dimensions, more than {MAX_RANK}", shape.len()).into());
        }
        let spec = ArraySpec::new(element.dtype, shape);
        let encoding = Encoding {
            is_unpacked: spec.dtype.is_sub_byte(),
            is_big_endian: element.is_big_endian,
            ..Encoding::default()
        };
        let header = file.get_or_parse_header(dataset.address()).map_err(problem_of)?;
        let (mut layout, mut filters) = (None, &[][..]);
        for message in &header.messages {
            match message {
                HdfMessage::DataLayout(found) => layout = Some(&found.layout),
                HdfMessage::FilterPipeline(found) => filters = &found.filters,
                HdfMessage::Dataspace(space) if space.dataspace_type == DataspaceType::Null => {
                    return Ok(Err("it is empty, and has no elements".into()));
                }
                HdfMessage::ExternalFiles(_) => {
                    return Err(
                        "its data is in other files, which are not read; copy it into one with `h5repack`"
                            .into(),
                    );
                }
                _ => {}
            }
        }
        let layout = layout.ok_or("it does not say where its data is")?;
        let place = Place { file, dataset, window, limits, spec: &spec, filters };
        let (stored, chunks) = place.find(layout)?;
        let encoding = Encoding { chunks, ..encoding };
        Ok(Ok(Found { spec, encoding, stored }))
    }

    /// The dataset as a tensor of this name; its HDF5 file begins there in the file that is the pool's first.
    pub fn into_tensor(self, name: String, start: usize, pool: &mut Pool<'_>) -> Tensor {
        let Found { spec, encoding, stored } = self;
        let extent = |range: Range<usize>| Extent { file: 0, range: start + range.start..start + range.end };
        let extents = match stored {
            Stored::There(ranges) => ranges.into_iter().map(extent).collect::<Vec<_>>().into(),
            Stored::Here(bytes) => pool.add(&Bytes::from(bytes)),
        };
        Tensor { name, spec, extents, encoding, checksum: None }
    }
}

/// What says where the bytes of a dataset are.
struct Place<'a> {
    file: &'a Hdf5File,
    dataset: &'a Dataset,
    window: &'a Window,
    limits: Limits,
    spec: &'a ArraySpec,
    filters: &'a [FilterDescription],
}

type Chunked = (Stored, Option<Arc<Chunks>>);

impl Place<'_> {
    fn find(&self, layout: &DataLayout) -> Result<Chunked, Problem> {
        let bytes = self.spec.host_bytes()?;
        match layout {
            _ if bytes == 0 => Ok((Stored::Here(Vec::new()), None)),
            DataLayout::Compact { data } => match data.get(..bytes) {
                Some(data) => Ok((Stored::Here(data.to_vec()), None)),
                None => Err(format!("it takes {bytes} bytes, and has {}", data.len()).into()),
            },
            // It was never written.
            DataLayout::Contiguous { address, .. } if self.is_undefined(*address) => {
                self.chunked(self.spec.shape.clone(), Vec::new())
            }
            DataLayout::Contiguous { address, .. } => {
                Ok((Stored::There(vec![self.range(*address, bytes as u64)?]), None))
            }
            DataLayout::Chunked { address, chunk_indexing, .. } => {
                let shape = self.dataset.chunks().ok_or("it does not say how large its chunks are")?;
                let entries = match self.is_undefined(*address) {
                    true => Vec::new(),
                    false => self.entries(*address, &shape, chunk_indexing.as_ref()).map_err(problem_of)?,
                };
                self.chunked(shape.iter().map(|&size| size as usize).collect(), entries)
            }
        }
    }

    /// Whether an address stands for none: all of its bits are set.
    fn is_undefined(&self, address: u64) -> bool {
        let bits = 8 * u32::from(self.file.superblock().offset_size);
        address == u64::MAX >> 64u32.saturating_sub(bits)
    }

    /// The chunks that an index of the file lists.
    fn entries(
        &self,
        address: u64,
        shape: &[u32],
        indexing: Option<&ChunkIndexing>,
    ) -> hdf5_reader::error::Result<Vec<ChunkEntry>> {
        let (file, dims) = (self.file, self.dataset.shape());
        let (offsets, lengths) = (file.superblock().offset_size, file.superblock().length_size);
        let (storage, rank) = (file.storage(), dims.len());
        let width = self.spec.dtype.bits().div_ceil(8);
        match indexing {
            None => {
                let rank = Some(rank as u32);
                let leaves =
                    collect_btree_v1_leaves_storage(storage, address, offsets, lengths, rank, shape, None)?;
                Ok(leaves.into_iter().filter_map(entry_of_leaf).collect())
            }
            Some(ChunkIndexing::SingleChunk { filtered_size, filters }) => {
                Ok(vec![single_chunk_entry(address, *filtered_size, *filters, rank)])
            }
            Some(ChunkIndexing::BTreeV2) => {
                let rank = rank as u32;
                collect_v2_chunk_entries_storage(storage, address, offsets, lengths, rank, shape, None)
            }
            Some(ChunkIndexing::Implicit) => {
                let size = storage.len();
                collect_implicit_chunk_entries(address, dims, shape, width, None, size)
            }
            Some(ChunkIndexing::FixedArray { .. }) => collect_fixed_array_chunk_entries_storage(
                storage, address, offsets, lengths, dims, shape, None,
            ),
            Some(ChunkIndexing::ExtensibleArray { .. }) => {
                let most = self.dataset.max_dims();
                collect_extensible_array_chunk_entries_storage(
                    storage, address, offsets, lengths, dims, most, shape, None,
                )
            }
        }
    }

    /// The elements in chunks of this shape, of which those that are not there have the fill value.
    fn chunked(&self, shape: Vec<usize>, mut entries: Vec<ChunkEntry>) -> Result<Chunked, Problem> {
        let dims = self.dataset.shape();
        if shape.len() != dims.len() || shape.contains(&0) {
            return Err(format!("its chunks are of shape {shape:?}, and it is {}", self.spec).into());
        }
        // Chunks that are outside remain where a dataset was made smaller.
        entries.retain(|entry| entry.offsets.iter().zip(dims).all(|(offset, size)| offset < size));
        entries.sort_by(|a, b| a.offsets.cmp(&b.offsets));
        self.limits.check_nodes(entries.len())?;
        let width = self.spec.dtype.bits().div_ceil(8);
        let codecs = codecs_of(self.filters, width)?;
        let bytes = shape.iter().try_fold(width, |bytes, &size| bytes.checked_mul(size));
        let bytes = bytes.ok_or("its chunks are larger than memory")?;
        let (mut ranges, mut origins) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in &entries {
            if entry.filter_mask != 0 && !codecs.is_empty() {
                return Err("some of its chunks leave out some of its filters, which is not read".into());
            }
            let origin: Vec<usize> = entry.offsets.iter().map(|&offset| offset as usize).collect();
            if origin.len() != shape.len() || origin.iter().zip(&shape).any(|(at, size)| at % size != 0) {
                return Err(format!(
                    "one of its chunks is at {origin:?}, where none of shape {shape:?} begins"
                )
                .into());
            }
            origins.extend(origin);
            ranges
                .push(self.range(entry.address, if codecs.is_empty() { bytes as u64 } else { entry.size })?);
        }
        if entries.windows(2).any(|pair| pair[0].offsets == pair[1].offsets) {
            return Err("two of its chunks are in one place".into());
        }
        let stored: u64 = ranges.iter().map(|range| range.len() as u64).sum();
        self.limits.check_expansion(stored, (bytes as u64).saturating_mul(entries.len() as u64))?;
        if codecs.is_empty() && shape == self.spec.shape && !entries.is_empty() {
            return Ok((Stored::There(ranges), None));
        }
        let (start, fill) = (vec![0; shape.len()], self.fill(width)?);
        let chunks = Chunks { shape, order: None, codecs, origins, start, fill };
        Ok((Stored::There(ranges), Some(Arc::new(chunks))))
    }

    /// The element that stands where nothing was written, as the file has elements.
    fn fill(&self, width: usize) -> Result<Vec<u8>, Problem> {
        match self.dataset.fill_value().and_then(|fill| fill.value.as_ref()) {
            None => Ok(vec![0; width]),
            Some(value) if value.len() == width => Ok(value.clone()),
            Some(value) if value.is_empty() => Ok(vec![0; width]),
            Some(value) => {
                Err(format!("its fill value has {} bytes, and its elements have {width}", value.len()).into())
            }
        }
    }

    /// Bytes of the file from an address on.
    fn range(&self, address: u64, bytes: u64) -> Result<Range<usize>, Problem> {
        let size = self.window.size() as u64;
        let start = self.file.superblock().base_address.checked_add(address);
        let range = start.and_then(|start| Some((start, start.checked_add(bytes)?)));
        match range.filter(|(_, end)| *end <= size) {
            Some((start, end)) => Ok(start as usize..end as usize),
            None => Err(format!(
                "{bytes} bytes of it are from byte {address} on, and the file has {size}: it is cut off"
            )
            .into()),
        }
    }
}

fn entry_of_leaf((key, address): (BTreeV1Key, u64)) -> Option<ChunkEntry> {
    let BTreeV1Key::RawData { chunk_size, filter_mask, mut offsets } = key else { return None };
    // The last one is within an element.
    offsets.pop();
    Some(ChunkEntry { address, size: u64::from(chunk_size), filter_mask, offsets })
}

/// What undoes the filters of chunks, of elements of so many bytes.
fn codecs_of(filters: &[FilterDescription], width: usize) -> Result<Vec<Codec>, String> {
    let codec = |filter: &FilterDescription| match filter.id {
        FILTER_DEFLATE => Ok(Codec::Zlib),
        FILTER_FLETCHER32 => Ok(Codec::Fletcher32),
        FILTER_SHUFFLE => Ok(Codec::Shuffle(width)),
        id => {
            let known = [
                (4, "szip"),
                (5, "nbit"),
                (6, "scaleoffset"),
                (307, "bzip2"),
                (32000, "lzf"),
                (32001, "blosc"),
            ];
            let known =
                known.iter().chain(&[(32004, "lz4"), (32015, "zstd")]).find(|(known, _)| *known == id);
            let name = filter.name.clone().or_else(|| known.map(|(_, name)| (*name).to_owned()));
            let name = name.unwrap_or_else(|| "a filter without a name".into());
            Err(format!(
                "it is compressed with {name} ({id}), which is not read; write it again with gzip, or without \
                 compression, such as by `h5repack -f NONE`"
            ))
        }
    };
    filters.iter().rev().map(codec).collect()
}

fn sizes(shape: &[u64]) -> Result<Vec<usize>, String> {
    shape.iter().map(|&size| usize::try_from(size).map_err(|_| format!("a dimension is {size}"))).collect()
}
