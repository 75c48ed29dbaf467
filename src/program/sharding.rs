//! How arguments and outputs are laid over devices, as an artifact says it.
//!
//! New versions of jax write a mesh and a partition spec. Old ones write `xla.OpSharding`.

use prost::Message;

use super::hlo::OpSharding;
use crate::flatbuffer::{Problem, Table};
use crate::sharding::{Devices, Mesh, NamedSharding, PartitionSpec, Sharding, TileAssignment};

/// `xla.OpSharding.Type`.
mod kind {
    pub const REPLICATED: i32 = 0;
    pub const OTHER: i32 = 3;
}

/// Reads the older form: `xla.OpSharding`.
pub(super) fn of_op(proto: &OpSharding) -> Result<Sharding, Problem> {
    let numbers = |numbers: &[i64]| -> Result<Vec<usize>, Problem> {
        let numbers = numbers.iter().map(|&number| usize::try_from(number));
        numbers.collect::<Result<_, _>>().map_err(|error| format!("a sharding: {error}"))
    };
    match proto.kind {
        kind::REPLICATED => return Ok(Sharding::Replicated),
        kind::OTHER => {}
        other => return Ok(Sharding::Other(other)),
    }
    // Dimensions after the array's are of devices with copies, or of devices that the program itself tells apart.
    if let Some(&other) = proto.last_tile_dims.iter().find(|&&kind| kind != kind::REPLICATED) {
        return Ok(Sharding::Other(other));
    }
    let mut tiles = numbers(&proto.tile_assignment_dimensions)?;
    let extra = usize::from(proto.replicate_on_last_tile_dim).max(proto.last_tile_dims.len());
    tiles.truncate(tiles.len().saturating_sub(extra));
    let devices = match (&proto.tile_assignment_devices[..], &proto.iota_reshape_dims[..]) {
        // All on one device, or on all of them.
        ([], []) if tiles.iter().all(|&tiles| tiles == 1) => return Ok(Sharding::Replicated),
        ([], shape) => Devices::Counted {
            shape: numbers(shape)?,
            permutation: numbers(
                &proto.iota_transpose_perm.iter().map(|&one| one.into()).collect::<Vec<_>>(),
            )?,
        },
        (listed, _) => Devices::Listed(numbers(listed)?),
    };
    TileAssignment::new(tiles, devices).map(Sharding::Tiled).map_err(|error| error.to_string())
}

/// Reads a serialised `xla.OpSharding`.
pub(super) fn of_op_bytes(bytes: &[u8]) -> Result<Sharding, Problem> {
    let proto = OpSharding::decode(bytes).map_err(|error| format!("a sharding cannot be read: {error}"))?;
    of_op(&proto)
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
    Mesh::new(names.into_iter().zip(sizes.into_iter().map(|size| size as usize)))
        .map_err(|error| error.to_string())
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
    let spec = PartitionSpec(partitions.into_iter().map(axes).collect::<Result<_, _>>()?);
    let mut sharding = NamedSharding::new(mesh.clone(), spec).map_err(|error| error.to_string())?;
    (sharding.reduced, sharding.unreduced, sharding.memory_kind) = (names(1)?, names(2)?, memory_kind);
    Ok(Sharding::Named(sharding))
}

/// Reads a table `Sharding`; `None` where it says nothing.
pub(super) fn read(table: Table<'_>, meshes: &[Mesh]) -> Result<Option<Sharding>, Problem> {
    if let Some(named) = table.table(2)? {
        return read_named(named, meshes).map(Some);
    }
    let Some(proto) = table.bytes(1)? else { return Ok(None) };
    of_op_bytes(proto).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_gives_the_slices_that_jax_has() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/shardings.json");
        let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let mut checked = 0;
        for case in cases.as_array().unwrap() {
            let Some(op) = case["op"].as_str() else { continue };
            let bytes: Vec<u8> =
                (0..op.len()).step_by(2).map(|at| u8::from_str_radix(&op[at..at + 2], 16).unwrap()).collect();
            let shape: Vec<usize> = serde_json::from_value(case["shape"].clone()).unwrap();
            let slices: Vec<Vec<(usize, usize)>> = serde_json::from_value(case["slices"].clone()).unwrap();
            let layout = of_op_bytes(&bytes).unwrap().layout(&shape, slices.len()).unwrap();
            for (device, slice) in slices.iter().enumerate() {
                let ranges: Vec<_> = slice.iter().map(|&(start, end)| start..end).collect();
                assert_eq!(layout.slice(device), ranges, "{case}");
            }
            checked += 1;
        }
        assert!(checked > 250);
    }
}
