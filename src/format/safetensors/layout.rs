//! Where each tensor goes in a file that is to be written: a pure computation.
//!
//! The data starts at a multiple of the alignment, and so does every tensor that can: the header is padded
//! with spaces, as the official writer does to 8 bytes, and tensors whose size is a multiple of the
//! alignment come first. The format forbids gaps between tensors, so those that are left follow with the
//! largest power of two in their size first, which keeps each at a multiple of its own element.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use super::header::{LENGTH_BYTES, MAX_HEADER_BYTES};
use crate::array::ArraySpec;
use crate::error::{Context, Error, Result};

/// The alignment of tensors in files that are written, in bytes: what XLA:CPU needs to use host memory in
/// place.
pub const DEFAULT_ALIGNMENT: usize = 64;

/// The largest alignment that can be asked for, in bytes: a page, as direct I/O wants it.
pub const MAX_ALIGNMENT: usize = 4096;

/// The plan of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// The file's beginning: the header's length, the header and its padding.
    pub head: Vec<u8>,
    /// The tensors in the order of their bytes.
    pub tensors: Vec<Placed>,
    /// The size of the file in bytes.
    pub file_bytes: usize,
    /// What tensors are aligned to, where they can be, in bytes.
    pub alignment: usize,
}

/// Where one tensor goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its position in the list that the plan was made from.
    pub index: usize,
    /// Its bytes, from the beginning of the file.
    pub range: Range<usize>,
}

/// Refuses an alignment that is not a power of two from 8 to 4096 bytes.
///
/// # Errors
/// [`Error::InvalidArgument`].
pub fn check_alignment(alignment: usize) -> Result<()> {
    if alignment.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&alignment) {
        return Ok(());
    }
    let problem = format!("an alignment of {alignment} is not a power of two from 8 to {MAX_ALIGNMENT}");
    Err(Error::InvalidArgument(problem))
}

impl Layout {
    /// Plans a file of these tensors and metadata.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] for a tensor of a type that the format does not have;
    /// [`Error::InvalidArgument`] for an alignment that is not a power of two from 8 to 4096, a name that
    /// stands twice or is `__metadata__`, or a header over 100 MB.
    pub fn new(
        tensors: &[(String, ArraySpec)],
        metadata: &BTreeMap<String, String>,
        alignment: usize,
    ) -> Result<Layout> {
        check_alignment(alignment)?;
        let sizes: Vec<usize> =
            tensors.iter().map(|(name, spec)| size_in_file(spec).for_tensor(name)).collect::<Result<_>>()?;
        let order = order_of(tensors, &sizes, alignment);
        let (entries, data_bytes) = entries_of(tensors, &sizes, &order)?;
        let mut head = header_json(metadata, &entries)?;
        head.resize((LENGTH_BYTES + head.len()).next_multiple_of(alignment) - LENGTH_BYTES, b' ');
        if head.len() > MAX_HEADER_BYTES {
            return Err(Error::InvalidArgument(format!(
                "the header would have {} bytes, over the format's limit of {MAX_HEADER_BYTES}; use shorter names, \
                 less metadata, or several files",
                head.len()
            )));
        }
        head.splice(0..0, (head.len() as u64).to_le_bytes());
        let start = head.len();
        let placed = entries.iter().zip(&order).map(|((_, entry), &index)| Placed {
            index,
            range: start + entry.data_offsets.0..start + entry.data_offsets.1,
        });
        Ok(Layout { tensors: placed.collect(), file_bytes: start + data_bytes, head, alignment })
    }

    /// The tensors that could not be aligned, by position in the list that the plan was made from.
    pub fn unaligned(&self) -> impl Iterator<Item = usize> + '_ {
        let is_off =
            |placed: &&Placed| !placed.range.is_empty() && !placed.range.start.is_multiple_of(self.alignment);
        self.tensors.iter().filter(is_off).map(|placed| placed.index)
    }
}

fn size_in_file(spec: &ArraySpec) -> Result<usize> {
    if spec.dtype.to_safetensors().is_none() {
        return Err(Error::UnsupportedDType { dtype: spec.dtype, context: "the safetensors format".into() });
    }
    spec.packed_bytes()
}

/// The tensors' positions in the order in which they are written.
fn order_of(tensors: &[(String, ArraySpec)], sizes: &[usize], alignment: usize) -> Vec<usize> {
    // An empty tensor is aligned wherever it is; first is a good place for it.
    let own_alignment =
        |size: usize| if size == 0 { alignment } else { (1 << size.trailing_zeros()).min(alignment) };
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| {
        own_alignment(sizes[b]).cmp(&own_alignment(sizes[a])).then_with(|| tensors[a].0.cmp(&tensors[b].0))
    });
    order
}

/// One tensor as the header describes it.
#[derive(Serialize)]
struct WrittenEntry<'a> {
    dtype: String,
    shape: &'a [usize],
    data_offsets: (usize, usize),
}

type WrittenEntries<'a> = Vec<(&'a str, WrittenEntry<'a>)>;

/// The header's entries in the order of their bytes, and the size of the data.
fn entries_of<'a>(
    tensors: &'a [(String, ArraySpec)],
    sizes: &[usize],
    order: &[usize],
) -> Result<(WrittenEntries<'a>, usize)> {
    let mut offset = 0usize;
    let mut names = std::collections::HashSet::with_capacity(tensors.len());
    let mut entries = Vec::with_capacity(tensors.len());
    for &index in order {
        let (name, spec) = &tensors[index];
        if name == "__metadata__" || !names.insert(name.as_str()) {
            return Err(Error::InvalidArgument(format!(
                "the name `{name}` {}; rename the tensor",
                if name == "__metadata__" { "is reserved by the format" } else { "stands twice" }
            )));
        }
        let end = offset
            .checked_add(sizes[index])
            .ok_or_else(|| Error::InvalidArgument("the tensors are larger than the address space".into()))?;
        let dtype = spec.dtype.safetensors_name().unwrap_or_default();
        entries
            .push((name.as_str(), WrittenEntry { dtype, shape: &spec.shape, data_offsets: (offset, end) }));
        offset = end;
    }
    Ok((entries, offset))
}

/// The header as JSON, metadata first, without padding.
fn header_json(metadata: &BTreeMap<String, String>, entries: &WrittenEntries) -> Result<Vec<u8>> {
    use serde::ser::{SerializeMap, Serializer};
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut json);
    let mut write = || -> Result<(), serde_json::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !metadata.is_empty() {
            map.serialize_entry("__metadata__", metadata)?;
        }
        for (name, entry) in entries {
            map.serialize_entry(name, entry)?;
        }
        map.end()
    };
    write()
        .map_err(|error| Error::InvalidArgument(format!("the header cannot be written as JSON: {error}")))?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    fn tensor(name: &str, dtype: DType, shape: &[usize]) -> (String, ArraySpec) {
        (name.to_owned(), ArraySpec::new(dtype, shape))
    }

    #[test]
    fn large_tensors_are_aligned_and_the_small_odd_ones_come_last() {
        let tensors = [
            tensor("bias", DType::F32, &[3]),
            tensor("kernel", DType::F32, &[64, 64]),
            tensor("flag", DType::Bool, &[1]),
            tensor("scale", DType::BF16, &[32]),
        ];
        let layout = Layout::new(&tensors, &BTreeMap::new(), 64).unwrap();
        let order: Vec<usize> = layout.tensors.iter().map(|placed| placed.index).collect();
        assert_eq!(order, [1, 3, 0, 2]);
        assert_eq!(layout.head.len() % 64, 0);
        // `bias` happens to follow multiples of 64; only `flag` is off.
        assert_eq!(layout.unaligned().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused_with_the_tensors_name() {
        let error = Layout::new(&[tensor("w", DType::C128, &[1])], &BTreeMap::new(), 64).unwrap_err();
        assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "w"));
        let error = Layout::new(&[tensor("w", DType::F4E2M1FN, &[3])], &BTreeMap::new(), 64).unwrap_err();
        assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "w"));
        let twice = [tensor("w", DType::F32, &[1]), tensor("w", DType::F32, &[1])];
        assert!(Layout::new(&twice, &BTreeMap::new(), 64).unwrap_err().to_string().contains("stands twice"));
        let reserved = [tensor("__metadata__", DType::F32, &[1])];
        assert!(Layout::new(&reserved, &BTreeMap::new(), 64).unwrap_err().to_string().contains("reserved"));
        assert!(Layout::new(&[], &BTreeMap::new(), 48).is_err());
    }

    proptest! {
        #[test]
        fn the_official_parser_accepts_every_layout(
            tensors in proptest::collection::btree_map(
                "[a-z.\"\\\\é]{1,8}",
                (0usize..3, proptest::collection::vec(0usize..9, 0..4)),
                0..12,
            ),
            metadata in proptest::collection::btree_map(".{0,6}", ".{0,6}", 0..3),
            alignment in proptest::sample::select(vec![8usize, 64, 4096]),
        ) {
            const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::Bool];
            let tensors: Vec<(String, ArraySpec)> = tensors
                .into_iter()
                .map(|(name, (dtype, shape))| (name, ArraySpec::new(DTYPES[dtype], shape)))
                .collect();
            let layout = Layout::new(&tensors, &metadata, alignment).unwrap();
            let mut file = layout.head.clone();
            file.resize(layout.file_bytes, 0);
            let parsed = SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(parsed.len(), tensors.len());
            for placed in &layout.tensors {
                let (name, spec) = &tensors[placed.index];
                let view = parsed.tensor(name).unwrap();
                prop_assert_eq!(view.shape(), &spec.shape[..]);
                let is_whole = placed.range.len() % alignment == 0;
                prop_assert!(!is_whole || placed.range.start % alignment == 0, "{name}");
                prop_assert_eq!(placed.range.start % (spec.dtype.bits() / 8), 0, "{}", name);
            }
        }
    }
}
