//! Meshes: devices arranged along named axes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The axes that devices are arranged along. Which device is at which place is said elsewhere: a list of devices is in the
/// mesh's order, the last axis fastest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Mesh {
    /// Name and number of devices of each axis.
    pub axes: Vec<(String, usize)>,
}

impl Mesh {
    /// A mesh of these axes: `Mesh::new([("data", 2), ("model", 4)])`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an axis without devices or a name, a name that is there twice, or more devices than can be
    /// counted.
    pub fn new<N: Into<String>>(axes: impl IntoIterator<Item = (N, usize)>) -> Result<Mesh> {
        let axes: Vec<(String, usize)> = axes.into_iter().map(|(name, size)| (name.into(), size)).collect();
        for (index, (name, size)) in axes.iter().enumerate() {
            if name.is_empty() || name.contains(['\'', '"', '(', ')', ',', '=']) || *size == 0 {
                return Err(Error::InvalidArgument(format!(
                    "axis {index} of a mesh is `{name}={size}`; it needs a plain name and at least one device"
                )));
            }
            if axes[..index].iter().any(|(other, _)| other == name) {
                return Err(Error::InvalidArgument(format!("a mesh has the axis `{name}` twice")));
            }
        }
        if axes.iter().try_fold(1usize, |all, (_, size)| all.checked_mul(*size)).is_none() {
            return Err(Error::InvalidArgument("a mesh has more devices than can be counted".into()));
        }
        Ok(Mesh { axes })
    }

    /// The number of devices.
    pub fn device_count(&self) -> usize {
        self.axes.iter().map(|(_, size)| *size).fold(1, usize::saturating_mul)
    }

    /// The number of devices along an axis; `None` for one that there is not.
    pub fn size(&self, axis: &str) -> Option<usize> {
        self.axes.iter().find(|(name, _)| name == axis).map(|(_, size)| *size)
    }

    /// Where a device of the mesh's order is: its place along each axis.
    pub(super) fn coordinates(&self, device: usize) -> Vec<usize> {
        let mut rest = device;
        let mut places: Vec<usize> = self
            .axes
            .iter()
            .rev()
            .map(|(_, size)| {
                let place = rest % size;
                rest /= size;
                place
            })
            .collect();
        places.reverse();
        places
    }
}

/// Reads `data=2,model=4`.
impl FromStr for Mesh {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mesh> {
        let axis = |part: &str| -> Option<(String, usize)> {
            let (name, size) = part.split_once('=')?;
            Some((name.trim().to_owned(), size.trim().parse().ok()?))
        };
        let axes = text.split(',').map(axis).collect::<Option<Vec<_>>>().ok_or_else(|| {
            Error::InvalidArgument(format!("`{text}` is no mesh; write its axes as data=2,model=4"))
        })?;
        Mesh::new(axes)
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes: Vec<String> = self.axes.iter().map(|(name, size)| format!("{name}={size}")).collect();
        f.write_str(&axes.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meshes_are_read_as_they_are_written_and_impossible_ones_are_refused() {
        let mesh: Mesh = "data=2, model=3".parse().unwrap();
        assert_eq!(mesh, Mesh::new([("data", 2), ("model", 3)]).unwrap());
        assert_eq!((mesh.to_string().as_str(), mesh.device_count()), ("data=2, model=3", 6));
        let places: Vec<Vec<usize>> = (0..6).map(|device| mesh.coordinates(device)).collect();
        assert_eq!(places, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]);
        for wrong in
            ["", "data", "data=", "data=0", "=2", "data=2,data=2", "data=-1", "a=9999999999,b=9999999999999"]
        {
            assert!(wrong.parse::<Mesh>().is_err(), "{wrong}");
        }
    }
}
