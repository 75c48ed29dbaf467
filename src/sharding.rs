//! How arrays are laid over several devices: meshes with named axes, partition specs, and which slice of an array is on which
//! device. As JAX has it. Pure: knows no device and no file.

mod layout;
mod mesh;
mod runs;
mod spec;
mod tiles;

pub use layout::ShardLayout;
pub use mesh::Mesh;
pub use runs::Runs;
pub use spec::PartitionSpec;
pub use tiles::{Devices, TileAssignment};

use std::fmt;

use crate::error::{Error, Result};

/// How one array is laid over devices. The devices are in an order of their own: that of a mesh, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sharding {
    /// Each dimension is split over axes of a mesh.
    Named(NamedSharding),
    /// Every device has all of it.
    Replicated,
    /// Tiles for the devices one by one, as older artifacts and compilers have it.
    Tiled(TileAssignment),
    /// One of the kinds that are not split by dimension, by its number in `xla.OpSharding.Type`.
    Other(i32),
}

/// A partition spec over a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedSharding {
    /// The mesh.
    pub mesh: Mesh,
    /// Which axes each dimension is split over.
    pub spec: PartitionSpec,
    /// The axes that it is the same along, having been summed over them.
    pub reduced: Vec<String>,
    /// The axes along which it is still to be summed.
    pub unreduced: Vec<String>,
    /// The kind of memory, if one is named.
    pub memory_kind: Option<String>,
}

impl NamedSharding {
    /// A spec over a mesh, in the devices' default memory.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an axis that the mesh has not, or that is named twice.
    pub fn new(mesh: Mesh, spec: PartitionSpec) -> Result<NamedSharding> {
        spec.check(&mesh)?;
        Ok(NamedSharding { mesh, spec, reduced: Vec::new(), unreduced: Vec::new(), memory_kind: None })
    }
}

impl From<NamedSharding> for Sharding {
    fn from(named: NamedSharding) -> Sharding {
        Sharding::Named(named)
    }
}

impl Sharding {
    /// Which slice of an array of this shape is on which of so many devices.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a dimension does not divide evenly, there are more entries than dimensions, the devices are
    /// not as many as the mesh has, or the kind is none that is split by dimension.
    pub fn layout(&self, shape: &[usize], devices: usize) -> Result<ShardLayout> {
        match self {
            Sharding::Named(named) if !named.unreduced.is_empty() => Err(Error::InvalidArgument(format!(
                "an array that is still to be summed over {} has no slices",
                named.unreduced.join(", ")
            ))),
            Sharding::Named(named) => {
                named.spec.check(&named.mesh)?;
                ShardLayout::named(shape, &named.mesh, &named.spec, devices)
            }
            Sharding::Replicated => Ok(ShardLayout::replicated(shape, devices)),
            Sharding::Tiled(tiles) => ShardLayout::tiled(shape, tiles, devices),
            Sharding::Other(kind) => Err(Error::InvalidArgument(format!(
                "an OpSharding of type {kind} does not say which slice of an array is where"
            ))),
        }
    }

    /// How many different parts the array is split into; the devices beyond these have copies.
    pub fn part_count(&self) -> usize {
        let parts = match self {
            Sharding::Named(named) => named.spec.parts(&named.mesh),
            Sharding::Tiled(tiles) => tiles.tiles.clone(),
            Sharding::Replicated | Sharding::Other(_) => Vec::new(),
        };
        parts.into_iter().fold(1, usize::saturating_mul).max(1)
    }
}

impl fmt::Display for NamedSharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {}", self.spec, self.mesh)?;
        for (what, axes) in [("reduced", &self.reduced), ("unreduced", &self.unreduced)] {
            if !axes.is_empty() {
                write!(f, ", {what} over {}", axes.join(", "))?;
            }
        }
        // A device's own memory is what everybody expects.
        let kind = self.memory_kind.as_deref().filter(|kind| *kind != "device");
        kind.map_or(Ok(()), |kind| write!(f, " in {kind}"))
    }
}

impl fmt::Display for Sharding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sharding::Named(named) => named.fmt(f),
            Sharding::Replicated => write!(f, "on every device"),
            Sharding::Tiled(tiles) => write!(f, "in tiles {:?}", tiles.tiles),
            Sharding::Other(kind) => write!(f, "sharded by OpSharding of type {kind}"),
        }
    }
}
