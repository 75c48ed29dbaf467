//! What a load will do, tensor by tensor: a pure computation over the header.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::blocks::{self, Block};
use super::select::loaded_dtype;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::{Extent, Extents, Tensor};
use crate::printable::Name;
use crate::store::Io;

/// What the destination of a load can do, and what of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// What host memory must be aligned to for the device to use it in place, in bytes; `None` where it
    /// does not, or must not.
    pub alias_alignment: Option<usize>,
    /// Whether the file's memory map may be used in place.
    pub use_map: bool,
    /// Whether the device copies bytes during the call that passes them. They are best taken from the memory map then.
    pub copies_map: bool,
    /// Whether buffers can be filled piece by piece.
    pub has_pieces: bool,
    /// Whether buffers can share device memory that was filled before they were made.
    pub has_views: bool,
    /// The most bytes that are read at once; of a stream, the size of a staging chunk.
    pub block_bytes: usize,
}

/// How one tensor gets to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Route {
    /// It has no bytes.
    Empty,
    /// The device uses the file's memory map in place.
    Alias,
    /// It is read into aligned host memory, which the device uses in place.
    Arena,
    /// It goes through the staging ring, in one or more pieces.
    Stream,
    /// It goes through the staging ring together with other small ones, into device memory that they share.
    Packed,
    /// It is passed on whole, from the staging ring or from memory that it is in already: for devices, layouts and types
    /// without pieces.
    Whole,
}

/// What is done to a tensor's elements on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// Nothing.
    None,
    /// Sub-byte elements are unpacked to a byte each.
    Unpack,
    /// They are cast from this type.
    Cast {
        /// Their type in the file.
        from: DType,
    },
}

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Step {
    /// Its key in the file, where it is loaded by another name.
    #[serde(rename = "key", skip_serializing_if = "Option::is_none")]
    pub(crate) renamed_from: Option<String>,
    /// The name that it is loaded by, after renaming.
    pub name: String,
    /// Its type and shape on the device.
    pub spec: ArraySpec,
    /// Where its bytes are in the checkpoint's files, one after another.
    #[serde(serialize_with = "serialize_extents")]
    pub(crate) extents: Extents,
    /// Bytes of its elements before anything is done to them. In the file they can be others: compressed, or more than are
    /// used.
    pub bytes: usize,
    /// Whether any part of them can be read by itself.
    pub has_parts: bool,
    /// How they get to the device.
    pub route: Route,
    /// What is done to them on the way.
    pub change: Change,
    /// Bytes of its elements as they are passed to the device.
    pub device_bytes: usize,
    /// The device that it goes to, of those that a load has, and the others that get a copy.
    #[serde(skip)]
    pub(crate) place: usize,
    #[serde(skip)]
    pub(crate) copies: Vec<usize>,
    /// The arena or transfer that it belongs to.
    pub(crate) group: usize,
    /// Its position in that.
    pub(crate) slot: usize,
    /// Where it begins in memory that the group shares, in bytes.
    pub(crate) offset: usize,
}

impl Step {
    /// Its key in the file, before renaming. What the file records of it, it records by this.
    pub fn key(&self) -> &str {
        self.renamed_from.as_deref().unwrap_or(&self.name)
    }

    /// Where its bytes are in the checkpoint's files, one after another.
    pub fn extents(&self) -> &[Extent] {
        self.extents.as_slice()
    }

    /// Where its bytes begin: the file, and the place in it.
    fn start(&self) -> (usize, usize) {
        self.extents().first().map_or((0, 0), |extent| (extent.file, extent.range.start))
    }
}

/// What a load will do. Printed, it is a table with a row a tensor, in the order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct LoadPlan {
    /// The tensors, in the order of the tree's leaves.
    pub steps: Vec<Step>,
    /// The positions of the steps in the order of their bytes, in which they are carried out.
    pub order: Vec<usize>,
    /// How the bytes that are copied are read.
    pub io: Io,
    /// Whether those reads will wait for a disk or a network: most of the bytes are not in the page cache, or the reads go
    /// past it, or the file system is a remote one.
    pub is_waited_for: bool,
    /// What is read at once, in order.
    #[serde(skip)]
    pub(crate) blocks: Vec<Block>,
    /// The steps of each arena or transfer, in the order of their bytes.
    #[serde(skip)]
    pub(crate) groups: Vec<Vec<usize>>,
}

/// What an arena or transfer holds at most, in bytes, unless one tensor is larger: so that a buffer that
/// outlives the others keeps no more than this of their memory.
const GROUP_BYTES: usize = 256 << 20;

/// Tensors in one arena or transfer at most.
const GROUP_TENSORS: usize = 4096;

/// The largest tensor that shares device memory with others, in bytes. A transfer of its own costs a GPU some 30 µs,
/// in which a megabyte and a half get there.
const PACKED_BYTES: usize = 1 << 20;

/// What tensors share at most, in bytes: what a buffer that outlives the others keeps.
const PACKED_GROUP_BYTES: usize = 64 << 20;

/// What tensors are aligned to in arenas, staging chunks and device memory that they share, in bytes: XLA's GPU
/// executables take no less (`kEntryParameterAlignBytes` in `xla/service/gpu/gpu_constants.h`).
pub(crate) const PLACE_ALIGNMENT: usize = 256;

/// A tensor that is to be loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The name that it is loaded by.
    pub name: &'a str,
    pub tensor: &'a Tensor,
    /// The address of its first byte, where it can be used in place.
    pub address: Option<usize>,
    /// The device that it goes to, of those that a load has, and the others that get a copy.
    pub place: usize,
    pub copies: &'a [usize],
}

impl LoadPlan {
    /// Plans a load of these tensors.
    ///
    /// # Errors
    /// An error naming the tensor whose type cannot be loaded or cast.
    pub(crate) fn new<'a>(
        tensors: impl IntoIterator<Item = Wanted<'a>>,
        io: Io,
        target: Abilities,
        dtypes: &[(String, DType)],
    ) -> Result<LoadPlan> {
        let step = |wanted: Wanted<'_>| step(wanted, target, dtypes).for_tensor(&wanted.tensor.name);
        let mut steps = tensors.into_iter().map(step).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_cached_key(|&position| steps[position].start());
        let groups = group(&mut steps, &order);
        let blocks = blocks::cut(&steps, &order, target.block_bytes);
        Ok(LoadPlan { steps, order, io, is_waited_for: false, blocks, groups })
    }

    /// The positions of the steps on this route, in the order of their bytes.
    pub(crate) fn on_route(&self, route: Route) -> impl Iterator<Item = usize> + '_ {
        self.order.iter().copied().filter(move |&position| self.steps[position].route == route)
    }

    /// What is read to be copied from this file, in the order of the bytes.
    pub(crate) fn copied_ranges(&self, file: usize) -> Vec<Range<usize>> {
        let is_copied = |step: &&Step| !matches!(step.route, Route::Alias | Route::Empty);
        let steps = self.order.iter().map(|&position| &self.steps[position]).filter(is_copied);
        let extents = steps.flat_map(|step| step.extents()).filter(|extent| extent.file == file);
        extents.map(|extent| extent.range.clone()).collect()
    }

    /// The steps whose elements are cast.
    pub(crate) fn cast_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| matches!(step.change, Change::Cast { .. }))
    }

    /// Tensors on this route, and the bytes of their elements before anything is done to them.
    pub fn sum(&self, route: Route) -> (usize, u64) {
        self.on_route(route)
            .fold((0, 0), |(count, bytes), position| (count + 1, bytes + self.steps[position].bytes as u64))
    }
}

/// What is done for one tensor.
fn step(wanted: Wanted<'_>, target: Abilities, dtypes: &[(String, DType)]) -> Result<Step> {
    let Wanted { name, tensor, address, place, copies } = wanted;
    let from = tensor.spec.dtype;
    let dtype = loaded_dtype(&tensor.name, from, dtypes)?;
    let spec = ArraySpec::new(dtype, tensor.spec.shape.clone());
    let change = match dtype {
        _ if dtype != from => Change::Cast { from },
        _ if dtype.is_sub_byte() && !tensor.encoding.is_unpacked => Change::Unpack,
        _ => Change::None,
    };
    let device_bytes = spec.host_bytes()?;
    if dtype.to_pjrt().is_none() {
        return Err(Error::UnsupportedDType { dtype, context: "PJRT".into() });
    }
    let mut step = Step {
        renamed_from: (tensor.name != name).then(|| tensor.name.clone()),
        name: name.to_owned(),
        spec,
        extents: tensor.extents.clone(),
        bytes: tensor.decoded_bytes()?,
        has_parts: tensor.is_plain(),
        route: Route::Empty,
        change,
        device_bytes,
        place,
        copies: copies.to_vec(),
        group: 0,
        slot: 0,
        offset: 0,
    };
    step.route = route(
        &step,
        address.filter(|_| change == Change::None && tensor.encoding.is_as_on_the_host()),
        target,
    );
    Ok(step)
}

fn route(step: &Step, address: Option<usize>, target: Abilities) -> Route {
    let is_small = step.device_bytes <= PACKED_BYTES.min(target.block_bytes / 2);
    // What a device holds of sub-byte elements is its own matter.
    let has_pieces = target.has_pieces && !step.spec.dtype.is_sub_byte();
    match target.alias_alignment {
        _ if step.bytes == 0 => Route::Empty,
        Some(alignment) if target.use_map && address.is_some_and(|at| at.is_multiple_of(alignment)) => {
            Route::Alias
        }
        Some(_) => Route::Arena,
        None if has_pieces && target.has_views && is_small => Route::Packed,
        None if has_pieces => Route::Stream,
        None => Route::Whole,
    }
}

/// Assigns the steps that share memory or a transfer to groups.
fn group(steps: &mut [Step], order: &[usize]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // The last group of each route to each device, and its bytes.
    let mut open: BTreeMap<(Route, usize), (usize, usize)> = BTreeMap::new();
    for &position in order {
        let step = &mut steps[position];
        let most = match step.route {
            Route::Arena | Route::Stream => GROUP_BYTES,
            Route::Packed => PACKED_GROUP_BYTES,
            _ => continue,
        };
        let place = place(step.device_bytes);
        let fits = |&&mut (group, bytes): &&mut (usize, usize)| {
            bytes + place <= most && groups[group].len() < GROUP_TENSORS
        };
        match open.get_mut(&(step.route, step.place)).filter(fits) {
            Some((group, bytes)) => {
                (step.group, step.offset) = (*group, *bytes);
                *bytes += place;
            }
            None => {
                step.group = groups.len();
                open.insert((step.route, step.place), (step.group, place));
                groups.push(Vec::new());
            }
        }
        step.slot = groups[step.group].len();
        groups[step.group].push(position);
    }
    groups
}

/// What a tensor takes in memory that it shares, in bytes.
pub(crate) fn place(bytes: usize) -> usize {
    bytes.next_multiple_of(PLACE_ALIGNMENT)
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Route::Empty => "empty",
            Route::Alias => "alias",
            Route::Arena => "arena",
            Route::Stream => "stream",
            Route::Packed => "packed",
            Route::Whole => "whole",
        })
    }
}

/// Extents as a file and a range each.
fn serialize_extents<S: serde::Serializer>(
    extents: &Extents,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    let extents = extents.as_slice().iter();
    serializer.collect_seq(extents.map(|extent| (extent.file, extent.range.start, extent.range.end)))
}

impl fmt::Display for LoadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extents = || self.steps.iter().flat_map(|step| step.extents());
        let digits = extents().map(|extent| extent.range.end).max().unwrap_or(0).to_string().len();
        let has_several_files = extents().any(|extent| extent.file > 0);
        self.order.iter().map(|&position| &self.steps[position]).try_for_each(|step| {
            let (file, start) = step.start();
            let end = step
                .extents()
                .iter()
                .rfind(|extent| extent.file == file)
                .map_or(start, |extent| extent.range.end);
            let file = if has_several_files { format!("{file}: ") } else { String::new() };
            let from = match step.change {
                Change::Cast { from } => format!(" from {from}"),
                _ => String::new(),
            };
            let name = Name(&step.name);
            writeln!(f, "{:6} {file}{start:digits$}..{end:digits$}  {name}  {}{from}", step.route, step.spec)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vector of as many elements as the bytes are.
    fn tensor(dtype: DType, range: Range<usize>) -> Tensor {
        let spec = ArraySpec::new(dtype, [range.len() * 8 / dtype.bits()]);
        Tensor::plain(format!("{dtype}@{}", range.start), spec, 0, range)
    }

    const CPU: Abilities = Abilities {
        alias_alignment: Some(64),
        use_map: true,
        copies_map: false,
        has_pieces: true,
        has_views: false,
        block_bytes: 1 << 20,
    };

    fn plan(tensors: &[Tensor], base: usize, target: Abilities, dtypes: &[(String, DType)]) -> LoadPlan {
        let wanted = tensors.iter().map(|tensor| Wanted {
            name: &tensor.name,
            tensor,
            address: Some(base + tensor.extents()[0].range.start),
            place: 0,
            copies: &[],
        });
        LoadPlan::new(wanted, Io::Auto, target, dtypes).unwrap()
    }

    #[test]
    fn only_aligned_tensors_are_used_in_place_and_only_where_the_device_can() {
        let tensors = [
            tensor(DType::F4E2M1FN, 256..260),
            tensor(DType::F32, 128..192),
            tensor(DType::F32, 136..140),
            tensor(DType::F32, 192..192),
            tensor(DType::F64, 320..384),
        ];
        let cpu = plan(&tensors, 4096, CPU, &[("float64*".into(), DType::BF16)]);
        insta::assert_snapshot!(cpu.to_string(), @r"
        alias  128..192  float32@128  float32[16]
        arena  136..140  float32@136  float32[1]
        empty  192..192  float32@192  float32[0]
        arena  256..260  float4_e2m1fn@256  float4_e2m1fn[8]
        arena  320..384  float64@320  bfloat16[8] from float64
        ");
        let gpu = plan(&tensors, 4096, Abilities { alias_alignment: None, ..CPU }, &[]);
        insta::assert_snapshot!(gpu.to_string(), @r"
        stream 128..192  float32@128  float32[16]
        stream 136..140  float32@136  float32[1]
        empty  192..192  float32@192  float32[0]
        whole  256..260  float4_e2m1fn@256  float4_e2m1fn[8]
        stream 320..384  float64@320  float64[8]
        ");
        let packing = Abilities { alias_alignment: None, has_views: true, ..CPU };
        let packed = plan(&tensors, 4096, packing, &[]);
        assert_eq!((packed.sum(Route::Packed).0, packed.sum(Route::Whole).0), (3, 1));
        assert_eq!(packed.groups, [[1, 2, 4]]);
        let tpu = Abilities { alias_alignment: None, has_pieces: false, ..CPU };
        assert!(plan(&tensors, 4096, tpu, &[]).on_route(Route::Stream).next().is_none());
        // Bytes in memory need not begin at a page.
        assert_eq!(plan(&tensors, 4096 + 8, CPU, &[]).steps[1].route, Route::Arena);
    }
}
