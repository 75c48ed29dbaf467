//! What an array is without a device: its type, its shape, and, on the host, its bytes.

use std::fmt;

use bytes::Bytes;

use crate::dtype::{DType, Element, element_count};
use crate::error::{Error, Result};

/// The element type and shape of an array, printed as JAX prints an aval: `float32[3,4]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub struct ArraySpec {
    /// The element type.
    pub dtype: DType,
    /// The dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl ArraySpec {
    /// A spec of this type and shape.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> ArraySpec {
        ArraySpec { dtype, shape: shape.into() }
    }

    /// The number of elements.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the product of the dimensions overflows.
    pub fn element_count(&self) -> Result<usize> {
        element_count(&self.shape).ok_or_else(|| self.overflow())
    }

    /// Bytes of the elements in a transfer to or from a device: sub-byte elements take one byte each.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when that overflows.
    pub fn host_bytes(&self) -> Result<usize> {
        self.dtype.host_bytes(self.element_count()?).ok_or_else(|| self.overflow())
    }

    /// Bytes of the elements in a safetensors file: sub-byte elements are packed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when that overflows, or when sub-byte elements do not fill whole bytes.
    pub fn packed_bytes(&self) -> Result<usize> {
        self.dtype.packed_bytes(self.element_count()?).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "{self} does not fill whole bytes, which the safetensors format requires"
            ))
        })
    }

    /// The dimensions as XLA takes them, of an array that fits into memory: over others, plugins throw exceptions
    /// that would end the process.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when it does not fit.
    pub(crate) fn xla_dims(&self) -> Result<Vec<i64>> {
        // Even an array without elements has dimensions whose product must be counted.
        let extent = self.shape.iter().try_fold(1i64, |extent, &dim| {
            i64::try_from(dim.max(1)).ok().and_then(|dim| extent.checked_mul(dim))
        });
        let bytes = extent.and_then(|extent| extent.checked_mul(self.dtype.bits().div_ceil(8) as i64));
        match bytes {
            Some(_) => Ok(self.shape.iter().map(|&dim| dim as i64).collect()),
            None => Err(Error::InvalidArgument(format!("{self} is larger than any memory"))),
        }
    }

    fn overflow(&self) -> Error {
        Error::InvalidArgument(format!("{self} has more elements than the address space"))
    }
}

impl fmt::Display for ArraySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(f, "{}[{}]", self.dtype, dims.join(","))
    }
}

/// An array on the host: row-major elements, sub-byte ones in a byte each.
#[derive(Clone, PartialEq, Eq)]
pub struct HostArray {
    spec: ArraySpec,
    data: Bytes,
}

impl HostArray {
    /// An array over bytes that are already in the right form.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the number of bytes is not the spec's [`ArraySpec::host_bytes`].
    pub fn from_bytes(spec: ArraySpec, data: impl Into<Bytes>) -> Result<HostArray> {
        let data = data.into();
        let expected = spec.host_bytes()?;
        if data.len() != expected {
            return Err(Error::InvalidArgument(format!(
                "{spec} takes {expected} bytes, but {} were given",
                data.len()
            )));
        }
        Ok(HostArray { spec, data })
    }

    /// An array of these elements, row-major.
    ///
    /// ```
    /// use safejax::HostArray;
    /// let identity = HostArray::from_slice(&[2, 2], &[1.0f32, 0.0, 0.0, 1.0])?;
    /// assert_eq!(identity.spec().to_string(), "float32[2,2]");
    /// # Ok::<(), safejax::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the shape does not have as many elements as the slice.
    pub fn from_slice<T: Element>(shape: &[usize], elements: &[T]) -> Result<HostArray> {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        HostArray::from_bytes(ArraySpec::new(T::DTYPE, shape), bytes.to_vec())
    }

    /// The type and shape.
    pub fn spec(&self) -> &ArraySpec {
        &self.spec
    }

    /// The elements' bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// A copy of the elements.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] when the array is not of type `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        check_element::<T>(self.spec.dtype)?;
        Ok(bytemuck::pod_collect_to_vec(&self.data))
    }

    /// The one element of an array that has one, as NumPy's `item()`.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] when the array is not of type `T`; [`Error::InvalidArgument`] when it has not one element.
    pub fn item<T: Element>(&self) -> Result<T> {
        match self.to_vec()?[..] {
            [element] => Ok(element),
            ref elements => Err(Error::InvalidArgument(format!(
                "{} has {} elements, and item() is for arrays of one",
                self.spec,
                elements.len()
            ))),
        }
    }
}

#[cfg(feature = "ndarray")]
impl HostArray {
    /// A copy of an array of the ndarray crate, whatever its layout.
    ///
    /// ```
    /// use ndarray::array;
    /// use safejax::HostArray;
    /// let host = HostArray::from_ndarray(&array![[1.0f32, 2.0], [3.0, 4.0]].reversed_axes())?;
    /// assert_eq!(host.to_vec::<f32>()?, [1.0, 3.0, 2.0, 4.0]);
    /// assert_eq!(host.to_ndarray::<f32>()?[[1, 0]], 2.0);
    /// # Ok::<(), safejax::Error>(())
    /// ```
    ///
    /// # Errors
    /// Never for an array that is in memory.
    pub fn from_ndarray<T: Element, S, D>(array: &ndarray::ArrayBase<S, D>) -> Result<HostArray>
    where
        S: ndarray::Data<Elem = T>,
        D: ndarray::Dimension,
    {
        let elements: Vec<T> = array.iter().copied().collect();
        HostArray::from_slice(array.shape(), &elements)
    }

    /// A copy of the elements as an array of the ndarray crate, row-major.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] when the array is not of type `T`.
    pub fn to_ndarray<T: Element>(&self) -> Result<ndarray::ArrayD<T>> {
        ndarray::ArrayD::from_shape_vec(self.spec.shape.clone(), self.to_vec()?).map_err(|error| {
            Error::InvalidArgument(format!("{} is no array of ndarray's: {error}", self.spec))
        })
    }
}

impl fmt::Debug for HostArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostArray({}, {} bytes)", self.spec, self.data.len())
    }
}

/// Fails unless an array of type `found` can be read as `T`.
pub(crate) fn check_element<T: Element>(found: DType) -> Result<()> {
    if T::DTYPE == found { Ok(()) } else { Err(Error::DTypeMismatch { expected: T::DTYPE, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_array_holds_exactly_its_bytes() {
        let array = HostArray::from_slice(&[2], &[1.5f32, -2.0]).unwrap();
        assert_eq!(array.to_vec::<f32>().unwrap(), [1.5, -2.0]);
        let error = array.to_vec::<i32>().unwrap_err();
        assert_eq!(error.to_string(), "the array is float32, but int32 was asked for");
        let error = HostArray::from_slice(&[3], &[1.5f32]).unwrap_err();
        assert_eq!(error.to_string(), "float32[3] takes 12 bytes, but 4 were given");
        assert!(HostArray::from_bytes(ArraySpec::new(DType::F32, [usize::MAX, 2]), vec![]).is_err());
        assert_eq!(HostArray::from_slice::<f32>(&[], &[1.0]).unwrap().spec().to_string(), "float32[]");
    }
}
