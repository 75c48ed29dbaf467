//! What a load will do, tensor by tensor: a pure computation over the header.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::Selected;
use super::blocks::{self, Block};
use super::names::loaded_dtype;
use crate::array::ArraySpec;
use crate::checkpoint::Io;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::printable::Name;

/// What the destination of a load can do, and what of it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
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
pub struct Step {
    /// Its key in the file, before renaming. What the file records of it, it records by this.
    pub key: String,
    /// The name that it is loaded by, after renaming.
    pub name: String,
    /// Its type and shape on the device.
    pub spec: ArraySpec,
    /// Its bytes, from the beginning of the file.
    pub range: Range<usize>,
    /// How they get to the device.
    pub route: Route,
    /// What is done to them on the way.
    pub change: Change,
    /// Bytes of its elements as they are passed to the device.
    pub device_bytes: usize,
    /// The arena or transfer that it belongs to.
    pub(super) group: usize,
    /// Its position in that.
    pub(super) slot: usize,
    /// Where it begins in memory that the group shares, in bytes.
    pub(super) offset: usize,
}

/// What a load will do. Printed, it is a table with a row a tensor, in the order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
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
    pub(super) groups: Vec<Vec<usize>>,
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
pub(super) const PLACE_ALIGNMENT: usize = 256;

impl LoadPlan {
    /// Plans a load of these tensors from a file whose first byte is at `base_address` in memory.
    pub(crate) fn new<'a>(
        tensors: impl IntoIterator<Item = Selected<'a>>,
        base_address: usize,
        io: Io,
        target: Target,
        dtypes: &[(String, DType)],
    ) -> Result<LoadPlan> {
        let step = |(name, tensor): Selected<'a>| -> Result<Step> {
            let from = tensor.spec.dtype;
            let dtype = loaded_dtype(&tensor.name, from, dtypes).for_tensor(&tensor.name)?;
            let spec = ArraySpec::new(dtype, tensor.spec.shape.clone());
            let change = match dtype {
                _ if dtype != from => Change::Cast { from },
                _ if dtype.is_sub_byte() => Change::Unpack,
                _ => Change::None,
            };
            let device_bytes = spec.host_bytes().for_tensor(&tensor.name)?;
            if dtype.to_pjrt().is_none() {
                let unsupported = Error::UnsupportedDType { dtype, context: "PJRT".into() };
                return Err(unsupported).for_tensor(&tensor.name);
            }
            let address = base_address.wrapping_add(tensor.range.start);
            let route = route(&tensor.range, address, change, device_bytes, target);
            let (name, range) = (name.to_owned(), tensor.range.clone());
            let key = tensor.name.clone();
            Ok(Step { key, name, spec, range, route, change, device_bytes, group: 0, slot: 0, offset: 0 })
        };
        let mut steps = tensors.into_iter().map(step).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|&position| steps[position].range.start);
        let groups = group(&mut steps, &order);
        let blocks = blocks::cut(&steps, &order, target.block_bytes);
        Ok(LoadPlan { steps, order, io, is_waited_for: false, blocks, groups })
    }

    /// The positions of the steps on this route, in the order of their bytes.
    pub(super) fn on_route(&self, route: Route) -> impl Iterator<Item = usize> + '_ {
        self.order.iter().copied().filter(move |&position| self.steps[position].route == route)
    }

    /// What is read to be copied, in the order of the bytes.
    pub(super) fn copied_ranges(&self) -> Vec<Range<usize>> {
        let is_copied = |step: &&Step| !matches!(step.route, Route::Alias | Route::Empty);
        let steps = self.order.iter().map(|&position| &self.steps[position]);
        steps.filter(is_copied).map(|step| step.range.clone()).collect()
    }

    /// The steps whose elements are cast.
    pub(super) fn cast_steps(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| matches!(step.change, Change::Cast { .. }))
    }

    /// Tensors on this route, and their bytes in the file.
    pub fn sum(&self, route: Route) -> (usize, u64) {
        self.on_route(route).fold((0, 0), |(count, bytes), position| {
            (count + 1, bytes + self.steps[position].range.len() as u64)
        })
    }
}

fn route(range: &Range<usize>, address: usize, change: Change, device_bytes: usize, target: Target) -> Route {
    let is_small = device_bytes <= PACKED_BYTES.min(target.block_bytes / 2);
    match target.alias_alignment {
        _ if range.is_empty() => Route::Empty,
        Some(alignment) if target.use_map && change == Change::None && address.is_multiple_of(alignment) => {
            Route::Alias
        }
        Some(_) => Route::Arena,
        // What a device holds of sub-byte elements is its own matter.
        None if target.has_pieces && target.has_views && is_small && change != Change::Unpack => {
            Route::Packed
        }
        None if target.has_pieces && change != Change::Unpack => Route::Stream,
        None => Route::Whole,
    }
}

/// Assigns the steps that share memory or a transfer to groups.
fn group(steps: &mut [Step], order: &[usize]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // The last group of each route, and its bytes.
    let mut open: BTreeMap<Route, (usize, usize)> = BTreeMap::new();
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
        match open.get_mut(&step.route).filter(fits) {
            Some((group, bytes)) => {
                (step.group, step.offset) = (*group, *bytes);
                *bytes += place;
            }
            None => {
                step.group = groups.len();
                open.insert(step.route, (step.group, place));
                groups.push(Vec::new());
            }
        }
        step.slot = groups[step.group].len();
        groups[step.group].push(position);
    }
    groups
}

/// What a tensor takes in memory that it shares, in bytes.
pub(super) fn place(bytes: usize) -> usize {
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

impl fmt::Display for LoadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.steps.iter().map(|step| step.range.end).max().unwrap_or(0).to_string().len();
        self.order.iter().map(|&position| &self.steps[position]).try_for_each(|step| {
            let Range { start, end } = step.range;
            let from = match step.change {
                Change::Cast { from } => format!(" from {from}"),
                _ => String::new(),
            };
            let name = Name(&step.name);
            writeln!(f, "{:6} {start:digits$}..{end:digits$}  {name}  {}{from}", step.route, step.spec)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorInfo;

    fn tensor(dtype: DType, range: Range<usize>) -> TensorInfo {
        TensorInfo { name: format!("{dtype}@{}", range.start), spec: ArraySpec::new(dtype, []), range }
    }

    const CPU: Target = Target {
        alias_alignment: Some(64),
        use_map: true,
        copies_map: false,
        has_pieces: true,
        has_views: false,
        block_bytes: 1 << 20,
    };

    fn plan(tensors: &[TensorInfo], base: usize, target: Target, dtypes: &[(String, DType)]) -> LoadPlan {
        let selected = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
        LoadPlan::new(selected, base, Io::Auto, target, dtypes).unwrap()
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
        alias  128..192  float32@128  float32[]
        arena  136..140  float32@136  float32[]
        empty  192..192  float32@192  float32[]
        arena  256..260  float4_e2m1fn@256  float4_e2m1fn[]
        arena  320..384  float64@320  bfloat16[] from float64
        ");
        let gpu = plan(&tensors, 4096, Target { alias_alignment: None, ..CPU }, &[]);
        insta::assert_snapshot!(gpu.to_string(), @r"
        stream 128..192  float32@128  float32[]
        stream 136..140  float32@136  float32[]
        empty  192..192  float32@192  float32[]
        whole  256..260  float4_e2m1fn@256  float4_e2m1fn[]
        stream 320..384  float64@320  float64[]
        ");
        let packing = Target { alias_alignment: None, has_views: true, ..CPU };
        let packed = plan(&tensors, 4096, packing, &[]);
        assert_eq!((packed.sum(Route::Packed).0, packed.sum(Route::Whole).0), (3, 1));
        assert_eq!(packed.groups, [[1, 2, 4]]);
        let tpu = Target { alias_alignment: None, has_pieces: false, ..CPU };
        assert!(plan(&tensors, 4096, tpu, &[]).on_route(Route::Stream).next().is_none());
        // Bytes in memory need not begin at a page.
        assert_eq!(plan(&tensors, 4096 + 8, CPU, &[]).steps[1].route, Route::Arena);
    }
}
