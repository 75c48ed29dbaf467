//! Which slice of an array is on which device.

use std::ops::Range;

use super::mesh::Mesh;
use super::spec::PartitionSpec;
use super::tiles::TileAssignment;
use crate::error::{Error, Result};

/// An array cut evenly into parts, and the part that each device has. Two layouts are equal when every device has the same slice,
/// however that was said.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ShardLayout {
    shape: Vec<usize>,
    /// Into how many parts each dimension is cut.
    parts: Vec<usize>,
    /// The part of each device: its number, the last dimension fastest.
    part_of: Vec<usize>,
}

impl ShardLayout {
    /// Every device has all of it.
    pub fn replicated(shape: &[usize], devices: usize) -> ShardLayout {
        ShardLayout { shape: shape.to_vec(), parts: vec![1; shape.len()], part_of: vec![0; devices] }
    }

    pub(super) fn named(
        shape: &[usize],
        mesh: &Mesh,
        spec: &PartitionSpec,
        devices: usize,
    ) -> Result<ShardLayout> {
        if mesh.device_count() != devices {
            return Err(Error::InvalidArgument(format!(
                "the mesh {mesh} is of {} devices, and there are {devices}",
                mesh.device_count()
            )));
        }
        let parts = checked_parts(shape, spec.parts(mesh), spec)?;
        let axis = |name: &String| mesh.axes.iter().position(|(axis, _)| axis == name);
        let axes: Vec<Vec<usize>> =
            spec.0.iter().map(|axes| axes.iter().filter_map(axis).collect()).collect();
        let part_of = |device: usize| {
            let places = mesh.coordinates(device);
            let along = |axes: &Vec<usize>| {
                axes.iter().fold(0, |part, &axis| part * mesh.axes[axis].1 + places[axis])
            };
            axes.iter().map(along).zip(&parts).fold(0, |number, (part, parts)| number * parts + part)
        };
        // Dimensions after the spec are whole.
        let part_of = (0..devices).map(part_of).collect();
        Ok(ShardLayout { shape: shape.to_vec(), parts, part_of })
    }

    pub(super) fn tiled(shape: &[usize], assignment: &TileAssignment, devices: usize) -> Result<ShardLayout> {
        if assignment.devices.len() != devices {
            return Err(Error::InvalidArgument(format!(
                "a tile assignment is of {} devices, and there are {devices}",
                assignment.devices.len()
            )));
        }
        let parts =
            checked_parts(shape, assignment.tiles.clone(), &format_args!("in tiles {:?}", assignment.tiles))?;
        let count: usize = parts.iter().product();
        let mut part_of = vec![0; devices];
        let copies = devices / count;
        for (place, &device) in assignment.devices.iter().enumerate() {
            part_of[device] = place / copies;
        }
        Ok(ShardLayout { shape: shape.to_vec(), parts, part_of })
    }

    /// The shape of the whole.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The shape of every shard.
    pub fn shard_shape(&self) -> Vec<usize> {
        self.shape.iter().zip(&self.parts).map(|(size, parts)| size / parts).collect()
    }

    /// The number of devices.
    pub fn device_count(&self) -> usize {
        self.part_of.len()
    }

    /// The number of different parts.
    pub fn part_count(&self) -> usize {
        self.parts.iter().product()
    }

    /// Into how many parts each dimension is cut.
    pub fn parts(&self) -> &[usize] {
        &self.parts
    }

    /// The number of the part that a device has: the same for devices with copies.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn part(&self, device: usize) -> usize {
        self.part_of[device]
    }

    /// Whether every device has all of it.
    pub fn is_fully_replicated(&self) -> bool {
        self.part_count() == 1
    }

    /// The part that a device has: its range in each dimension.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn slice(&self, device: usize) -> Vec<Range<usize>> {
        self.slice_of_part(self.part_of[device])
    }

    /// A part by its number: its range in each dimension.
    pub fn slice_of_part(&self, part: usize) -> Vec<Range<usize>> {
        let mut rest = part;
        let range = |(size, parts): (&usize, &usize)| {
            let (share, place) = (size / parts, rest % parts);
            rest /= parts;
            place * share..(place + 1) * share
        };
        let mut slice: Vec<Range<usize>> = self.shape.iter().zip(&self.parts).rev().map(range).collect();
        slice.reverse();
        slice
    }
}

/// The parts of every dimension of this shape, which must divide it evenly, as JAX demands.
fn checked_parts(shape: &[usize], mut parts: Vec<usize>, how: &dyn std::fmt::Display) -> Result<Vec<usize>> {
    if parts.len() > shape.len() {
        return Err(Error::InvalidArgument(format!(
            "an array of {} dimensions cannot be sharded {how}, which is for {} or more",
            shape.len(),
            parts.len()
        )));
    }
    parts.resize(shape.len(), 1);
    for (dimension, (&size, &parts)) in shape.iter().zip(&parts).enumerate() {
        if parts == 0 || size % parts != 0 {
            return Err(Error::InvalidArgument(format!(
                "an array of shape {shape:?} cannot be sharded {how}: dimension {dimension} would be cut into {parts} parts, \
                 and its size {size} is no multiple of that"
            )));
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharding::{NamedSharding, Sharding};

    /// A case of `scripts/make_shardings.py`.
    #[derive(serde::Deserialize)]
    struct Case {
        axes: Vec<(String, usize)>,
        spec: String,
        shape: Vec<usize>,
        slices: Option<Vec<Vec<(usize, usize)>>>,
        refusal: Option<String>,
    }

    fn cases() -> Vec<Case> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/shardings.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    fn ranges(slices: &[(usize, usize)]) -> Vec<Range<usize>> {
        slices.iter().map(|&(start, end)| start..end).collect()
    }

    #[test]
    fn slices_and_refusals_are_those_of_jax() {
        let (mut laid, mut refused) = (0, 0);
        for Case { axes, spec, shape, slices, refusal } in cases() {
            let what = format!("{spec} over {axes:?} of {shape:?}");
            let mesh = Mesh::new(axes).unwrap();
            let devices = mesh.device_count();
            let named = NamedSharding::new(mesh, spec.parse().unwrap()).unwrap();
            let layout = Sharding::from(named).layout(&shape, devices);
            let Some(slices) = slices else {
                let error = layout.unwrap_err().to_string();
                let is_rank = refusal.unwrap().contains("is only valid for values of rank");
                assert_eq!(error.contains("or more"), is_rank, "{what}: {error}");
                refused += 1;
                continue;
            };
            let layout = layout.unwrap_or_else(|error| panic!("{what}: {error}"));
            for (device, slice) in slices.iter().enumerate() {
                assert_eq!(layout.slice(device), ranges(slice), "{what}, device {device}");
                let shard: Vec<usize> = slice.iter().map(|(start, end)| end - start).collect();
                assert_eq!(layout.shard_shape(), shard, "{what}");
            }
            laid += 1;
        }
        assert!(laid > 250 && refused > 50, "{laid} {refused}");
    }
}
