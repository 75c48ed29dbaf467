//! Arrays on the host made larger by zeros at the end of their dimensions, and cut back.

use crate::array::{ArraySpec, HostArray};
use crate::error::{Error, Result};

/// The array with zeros after the end of each dimension, up to this shape.
pub fn pad(array: &HostArray, shape: &[usize]) -> Result<HostArray> {
    resize(array, shape, |own, wanted| own <= wanted)
}

/// The beginning of each dimension of the array, up to this shape.
pub fn cut(array: &HostArray, shape: &[usize]) -> Result<HostArray> {
    resize(array, shape, |own, wanted| own >= wanted)
}

fn resize(array: &HostArray, shape: &[usize], fits: impl Fn(usize, usize) -> bool) -> Result<HostArray> {
    let own = &array.spec().shape;
    if own == shape {
        return Ok(array.clone());
    }
    let spec = ArraySpec::new(array.spec().dtype, shape);
    if own.len() != shape.len() || !own.iter().zip(shape).all(|(&own, &wanted)| fits(own, wanted)) {
        return Err(Error::InvalidArgument(format!("{} cannot be made {spec}", array.spec())));
    }
    let element_bytes = spec.dtype.host_bytes(1).unwrap_or(1);
    let mut bytes = Vec::new();
    let size = spec.host_bytes()?;
    bytes.try_reserve_exact(size).map_err(|_| {
        Error::InvalidArgument(format!("there is no memory for {spec}, which takes {size} bytes"))
    })?;
    bytes.resize(size, 0);
    let common: Vec<usize> = own.iter().zip(shape).map(|(&own, &wanted)| own.min(wanted)).collect();
    if !common.contains(&0) {
        copy_rows(array.bytes(), own, &mut bytes, shape, &common, element_bytes);
    }
    HostArray::from_bytes(spec, bytes)
}

/// Copies the elements that two row-major arrays have in common, row by row.
fn copy_rows(
    source: &[u8],
    source_shape: &[usize],
    target: &mut [u8],
    target_shape: &[usize],
    common: &[usize],
    element_bytes: usize,
) {
    let [count, inner @ ..] = common else {
        return target[..element_bytes].copy_from_slice(&source[..element_bytes]);
    };
    if inner.is_empty() {
        let bytes = count * element_bytes;
        return target[..bytes].copy_from_slice(&source[..bytes]);
    }
    let stride = |shape: &[usize]| shape[1..].iter().product::<usize>() * element_bytes;
    let (from, to) = (stride(source_shape), stride(target_shape));
    for row in 0..*count {
        let (source, target) = (&source[row * from..], &mut target[row * to..]);
        copy_rows(source, &source_shape[1..], target, &target_shape[1..], inner, element_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_added_at_the_end_of_each_dimension_and_taken_away_again() {
        let array = HostArray::from_slice(&[2, 1, 2], &[1i32, 2, 3, 4]).unwrap();
        let padded = pad(&array, &[3, 2, 3]).unwrap();
        assert_eq!(padded.to_vec::<i32>().unwrap(), [1, 2, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cut(&padded, &[2, 1, 2]).unwrap(), array);
        assert_eq!(cut(&padded, &[0, 2, 3]).unwrap().bytes().len(), 0);
        let scalar = HostArray::from_slice(&[], &[7u8]).unwrap();
        assert_eq!(pad(&scalar, &[]).unwrap(), scalar);
        assert!(
            pad(&array, &[1, 1, 2]).is_err()
                && cut(&array, &[2, 2, 2]).is_err()
                && pad(&array, &[4]).is_err()
        );
        let empty = HostArray::from_slice::<f32>(&[0, 2], &[]).unwrap();
        assert_eq!(pad(&empty, &[1, 2]).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.0]);
    }
}
