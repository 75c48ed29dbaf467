//! Tile assignments: the device of each tile, one by one, as `xla.OpSharding` has them.

use crate::error::{Error, Result};

/// The most devices that a tile assignment is read for: more than any machine has.
const MAX_DEVICES: usize = 1 << 20;

/// An array cut into tiles, and the devices that have them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TileAssignment {
    /// Into how many tiles each dimension is cut.
    pub tiles: Vec<usize>,
    /// The devices, tile by tile, the last dimension fastest; of each tile as many as have copies.
    pub devices: Vec<usize>,
}

impl TileAssignment {
    /// Devices by a list, or by counting: `0, 1, …` in the shape `counted`, whose dimensions are permuted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when these are not every device once, and as many for each tile.
    pub fn new(tiles: Vec<usize>, devices: Devices) -> Result<TileAssignment> {
        let invalid = |what: String| Error::InvalidArgument(format!("a tile assignment {what}"));
        let tile_count =
            tiles.iter().try_fold(1usize, |all, &one| all.checked_mul(one)).filter(|&all| all > 0);
        let tile_count = tile_count.ok_or_else(|| invalid(format!("has tiles {tiles:?}")))?;
        let devices = match devices {
            Devices::Listed(devices) => devices,
            Devices::Counted { shape, permutation } => counted(&shape, &permutation).ok_or_else(|| {
                invalid(format!("counts devices in {shape:?}, permuted by {permutation:?}"))
            })?,
        };
        let mut seen = vec![false; devices.len()];
        for &device in &devices {
            match seen.get_mut(device) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(invalid(format!("does not have every device once: {devices:?}"))),
            }
        }
        if devices.is_empty() || devices.len() % tile_count != 0 {
            return Err(invalid(format!("has {} devices for {tile_count} tiles", devices.len())));
        }
        Ok(TileAssignment { tiles, devices })
    }
}

/// How a tile assignment says which devices there are.
#[derive(Debug, Clone)]
pub enum Devices {
    /// One by one.
    Listed(Vec<usize>),
    /// Counted in a shape whose dimensions are permuted then.
    Counted {
        /// The shape in which devices are counted, the last dimension fastest.
        shape: Vec<usize>,
        /// Which of these dimensions comes first, second, …
        permutation: Vec<usize>,
    },
}

/// `arange(n).reshape(shape).transpose(permutation)`, flat.
fn counted(shape: &[usize], permutation: &[usize]) -> Option<Vec<usize>> {
    let mut sorted = permutation.to_vec();
    sorted.sort_unstable();
    if sorted != (0..shape.len()).collect::<Vec<_>>() {
        return None;
    }
    let count =
        shape.iter().try_fold(1usize, |all, &one| all.checked_mul(one)).filter(|&all| all <= MAX_DEVICES)?;
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension];
    }
    let number = |mut place: usize| {
        permutation
            .iter()
            .rev()
            .map(|&dimension| {
                let along = place % shape[dimension];
                place /= shape[dimension];
                along * strides[dimension]
            })
            .sum()
    };
    Some((0..count).map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_as_xla_counts_them() {
        // `<=[2,2]T(1,0)`, and `<=[2,3,2]T(2,0,1)`, by numpy.
        assert_eq!(counted(&[2, 2], &[1, 0]).unwrap(), [0, 2, 1, 3]);
        assert_eq!(counted(&[2, 3, 2], &[2, 0, 1]).unwrap(), [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]);
        assert_eq!(counted(&[4], &[0]).unwrap(), [0, 1, 2, 3]);
        assert!(counted(&[4], &[]).is_none() && counted(&[2, 2], &[0, 0]).is_none());
        assert!(counted(&[usize::MAX, 2], &[0, 1]).is_none());
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        let listed = |tiles: &[usize], devices: &[usize]| {
            TileAssignment::new(tiles.to_vec(), Devices::Listed(devices.to_vec()))
        };
        listed(&[2, 1], &[1, 0]).unwrap();
        listed(&[2, 1], &[1, 0, 2, 3]).unwrap();
        for (tiles, devices) in
            [(&[2, 1][..], &[0][..]), (&[2], &[0, 0]), (&[2], &[1, 2]), (&[0], &[]), (&[1], &[])]
        {
            assert!(listed(tiles, devices).is_err(), "{tiles:?} {devices:?}");
        }
    }
}
