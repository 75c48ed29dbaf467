//! How arguments and outputs are laid over devices, as an artifact says it.
//!
//! New versions of jax write a mesh and a partition spec. Old ones write `xla.OpSharding`, whose tiles are read here.

use std::fmt;

use prost::Message;

use super::flatbuffer::{Problem, Table};
use super::hlo::OpSharding;

/// How one array is laid over the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sharding {
    /// Each dimension is split over axes of a mesh.
    Named {
        /// The mesh.
        mesh: Mesh,
        /// For each dimension the axes that it is split over; none for one that is whole. Dimensions after these are
        /// whole.
        spec: Vec<Vec<String>>,
        /// The axes that it is the same along, having been summed over them.
        reduced: Vec<String>,
        /// The axes along which it is still to be summed.
        unreduced: Vec<String>,
        /// The kind of memory, if the artifact names one.
        memory_kind: Option<String>,
    },
    /// Every device has all of it.
    Replicated,
    /// Each dimension is split into this many tiles; a last one more than the array has stands for copies.
    Tiled(Vec<usize>),
    /// One of the kinds that are not split by dimension, by its number in `xla.OpSharding.Type`.
    Other(i32),
}

/// The axes that devices are arranged along.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mesh {
    /// Name and number of devices of each axis.
    pub axes: Vec<(String, usize)>,
}

impl Sharding {
    /// How many different parts the array is split into; the devices beyond these have copies.
    pub fn part_count(&self) -> usize {
        match self {
            Sharding::Named { mesh, spec, .. } => {
                let size = |axis: &String| {
                    mesh.axes.iter().find(|(name, _)| name == axis).map_or(1, |(_, size)| *size)
                };
                spec.iter().flatten().map(size).fold(1, usize::saturating_mul).max(1)
            }
            Sharding::Tiled(tiles) => tiles.iter().copied().fold(1, usize::saturating_mul).max(1),
            Sharding::Replicated | Sharding::Other(_) => 1,
        }
    }
}

impl Sharding {
    /// Reads the older form.
    pub(super) fn of_op(proto: &OpSharding) -> Result<Sharding, Problem> {
        let tiles = proto.tile_assignment_dimensions.iter().map(|&tiles| usize::try_from(tiles));
        Ok(match proto.kind {
            kind::REPLICATED => Sharding::Replicated,
            kind::OTHER => Sharding::Tiled(
                tiles.collect::<Result<_, _>>().map_err(|error| format!("a sharding: {error}"))?,
            ),
            other => Sharding::Other(other),
        })
    }
}

impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dimension = |axes: &Vec<String>| match &axes[..] {
            [] => "None".to_owned(),
            [axis] => format!("'{axis}'"),
            axes => format!("('{}')", axes.join("', '")),
        };
        match self {
            Sharding::Named { mesh, spec, reduced, unreduced, memory_kind } => {
                let axes: Vec<String> =
                    mesh.axes.iter().map(|(name, size)| format!("{name}={size}")).collect();
                let spec: Vec<String> = spec.iter().map(dimension).collect();
                write!(f, "P({}) over {}", spec.join(", "), axes.join(", "))?;
                for (what, axes) in [("reduced", reduced), ("unreduced", unreduced)] {
                    if !axes.is_empty() {
                        write!(f, ", {what} over {}", axes.join(", "))?;
                    }
                }
                memory_kind.as_ref().map_or(Ok(()), |kind| write!(f, " in {kind}"))
            }
            Sharding::Replicated => write!(f, "on every device"),
            Sharding::Tiled(tiles) => write!(f, "in tiles {tiles:?}"),
            Sharding::Other(kind) => write!(f, "sharded by OpSharding of type {kind}"),
        }
    }
}

/// `xla.OpSharding.Type`.
mod kind {
    pub const REPLICATED: i32 = 0;
    pub const OTHER: i32 = 3;
}

/// `AxisType`: the last that is known, after missing, auto and explicit.
const MANUAL: u8 = 3;

/// Reads a table `AbstractMesh`.
pub(super) fn read_mesh(table: Table<'_>) -> Result<Mesh, Problem> {
    let sizes = table.u32s(0)?.unwrap_or_default();
    let names = table.strings(1)?;
    if sizes.len() != names.len() {
        return Err(format!("a mesh has {} axes, but {} names for them", sizes.len(), names.len()));
    }
    for axis_type in table.bytes(2)?.unwrap_or_default() {
        if *axis_type > MANUAL {
            return Err(format!("an axis of a mesh is of type {axis_type}, which is not known"));
        }
    }
    Ok(Mesh {
        axes: names.into_iter().map(str::to_owned).zip(sizes.into_iter().map(|size| size as usize)).collect(),
    })
}

/// Reads a table `NamedSharding`, whose mesh is one of `meshes`.
pub(super) fn read_named(table: Table<'_>, meshes: &[Mesh]) -> Result<Sharding, Problem> {
    let index = table.u32(3)?.unwrap_or(0) as usize;
    let memory_kind = table.string(2)?.filter(|kind| !kind.is_empty()).map(str::to_owned);
    // Before meshes were written once for all, each sharding had its own.
    let own = if meshes.is_empty() { table.table(0)?.map(read_mesh).transpose()? } else { None };
    let mesh = own.as_ref().or(meshes.get(index)).ok_or_else(|| format!("there is no mesh {index}"))?;
    table
        .budget()
        .charge(mesh.axes.iter().map(|(name, _)| size_of::<(String, usize)>() + name.len()).sum())?;
    let spec = table.table(1)?;
    let partitions = spec.map_or(Ok(Vec::new()), |spec| spec.tables(0))?;
    let names = |slot: usize| -> Result<Vec<String>, Problem> {
        Ok(spec.map_or(Ok(Vec::new()), |spec| spec.strings(slot))?.into_iter().map(str::to_owned).collect())
    };
    let axes = |dimension: Table<'_>| -> Result<Vec<String>, Problem> {
        Ok(dimension.strings(0)?.into_iter().map(str::to_owned).collect())
    };
    Ok(Sharding::Named {
        mesh: mesh.clone(),
        spec: partitions.into_iter().map(axes).collect::<Result<_, _>>()?,
        reduced: names(1)?,
        unreduced: names(2)?,
        memory_kind,
    })
}

/// Reads a table `Sharding`; `None` where it says nothing.
pub(super) fn read(table: Table<'_>, meshes: &[Mesh]) -> Result<Option<Sharding>, Problem> {
    if let Some(named) = table.table(2)? {
        return read_named(named, meshes).map(Some);
    }
    let Some(proto) = table.bytes(1)? else { return Ok(None) };
    let proto = OpSharding::decode(proto).map_err(|error| format!("a sharding cannot be read: {error}"))?;
    Sharding::of_op(&proto).map(Some)
}
