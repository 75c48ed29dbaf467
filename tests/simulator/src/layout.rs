//! Element types, and where elements lie: on the host, and on the device.

use crate::c_api as c;
use crate::config::DeviceLayout;
use crate::failure::{Failure, Result};

/// Bytes of an element on the host, where types of less than a byte take one.
pub fn element_bytes(element_type: c::PJRT_Buffer_Type) -> Result<usize> {
    Ok(match element_type {
        c::PJRT_Buffer_Type_S16
        | c::PJRT_Buffer_Type_U16
        | c::PJRT_Buffer_Type_F16
        | c::PJRT_Buffer_Type_BF16 => 2,
        c::PJRT_Buffer_Type_S32 | c::PJRT_Buffer_Type_U32 | c::PJRT_Buffer_Type_F32 => 4,
        c::PJRT_Buffer_Type_S64
        | c::PJRT_Buffer_Type_U64
        | c::PJRT_Buffer_Type_F64
        | c::PJRT_Buffer_Type_C64 => 8,
        c::PJRT_Buffer_Type_C128 => 16,
        c::PJRT_Buffer_Type_INVALID | c::PJRT_Buffer_Type_TOKEN => {
            return Err(Failure::invalid(format!("{element_type} is no type of an array")));
        }
        _ => 1,
    })
}

/// The type and shape of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub element_type: c::PJRT_Buffer_Type,
    pub dims: Vec<i64>,
}

impl Shape {
    /// Reads what the C API gives as a pointer and a length.
    ///
    /// # Safety
    /// `dims` points to so many numbers, if there are any.
    pub unsafe fn read(element_type: c::PJRT_Buffer_Type, dims: *const i64, rank: usize) -> Result<Shape> {
        // SAFETY: the caller vouches for the pointer.
        let dims =
            if rank == 0 { Vec::new() } else { unsafe { std::slice::from_raw_parts(dims, rank) }.to_vec() };
        element_bytes(element_type)?;
        if dims.iter().any(|dim| *dim < 0) {
            return Err(Failure::invalid(format!("{dims:?} are no dimensions")));
        }
        Ok(Shape { element_type, dims })
    }

    fn sizes(&self) -> Vec<usize> {
        self.dims.iter().map(|&dim| dim as usize).collect()
    }

    pub fn element_bytes(&self) -> usize {
        element_bytes(self.element_type).unwrap_or(1)
    }

    pub fn elements(&self) -> usize {
        self.sizes().iter().product()
    }

    pub fn host_bytes(&self) -> usize {
        self.elements() * self.element_bytes()
    }

    /// The layout that a device gives such an array.
    pub fn layout(&self, layout: DeviceLayout) -> DeviceLayout {
        if self.dims.len() < 2 || self.elements() == 0 { DeviceLayout::RowMajor } else { layout }
    }

    /// What the C API says of it: the dimensions from the innermost, and the sides of the tile.
    pub fn described(&self, layout: DeviceLayout) -> (Vec<i64>, Vec<i64>) {
        let rank = self.dims.len() as i64;
        match self.layout(layout) {
            DeviceLayout::ColumnMajor => ((0..rank).collect(), Vec::new()),
            DeviceLayout::RowMajor => ((0..rank).rev().collect(), Vec::new()),
            DeviceLayout::Tiled(rows, columns) => {
                ((0..rank).rev().collect(), vec![rows as i64, columns as i64])
            }
        }
    }

    pub fn device_bytes(&self, layout: DeviceLayout) -> usize {
        let DeviceLayout::Tiled(rows, columns) = self.layout(layout) else { return self.host_bytes() };
        let mut sizes = self.sizes();
        let rank = sizes.len();
        sizes[rank - 2] = sizes[rank - 2].next_multiple_of(rows);
        sizes[rank - 1] = sizes[rank - 1].next_multiple_of(columns);
        sizes.iter().product::<usize>() * self.element_bytes()
    }

    /// The place of an element on the device, in elements.
    fn place(&self, index: &[usize], layout: DeviceLayout) -> usize {
        let sizes = self.sizes();
        let rank = sizes.len();
        match self.layout(layout) {
            DeviceLayout::RowMajor => place_in_order(index, &sizes, (0..rank).rev()),
            DeviceLayout::ColumnMajor => place_in_order(index, &sizes, 0..rank),
            DeviceLayout::Tiled(rows, columns) => {
                let outer = place_in_order(&index[..rank - 2], &sizes[..rank - 2], (0..rank - 2).rev());
                let (row, column) = (index[rank - 2], index[rank - 1]);
                let tiles = (sizes[rank - 2].div_ceil(rows), sizes[rank - 1].div_ceil(columns));
                let tile = (outer * tiles.0 + row / rows) * tiles.1 + column / columns;
                tile * rows * columns + row % rows * columns + column % columns
            }
        }
    }

    /// What the host has row-major, as the device has it; what pads it is not zero.
    pub fn to_device(&self, bytes: Vec<u8>, layout: DeviceLayout) -> Vec<u8> {
        if self.layout(layout) == DeviceLayout::RowMajor {
            return bytes;
        }
        let mut placed = vec![0xAB; self.device_bytes(layout)];
        self.for_each(|index, element| {
            let place = self.place(index, layout);
            copy_element(&mut placed, place, &bytes, element, self.element_bytes());
        });
        placed
    }

    /// What the device has, as the host wants it: with the dimensions in this order, the innermost first.
    pub fn to_host(&self, bytes: Vec<u8>, layout: DeviceLayout, minor_to_major: &[i64]) -> Vec<u8> {
        let row_major = (0..self.dims.len() as i64).rev();
        if self.layout(layout) == DeviceLayout::RowMajor && minor_to_major.iter().copied().eq(row_major) {
            return bytes;
        }
        let mut placed = vec![0; self.host_bytes()];
        let sizes = self.sizes();
        self.for_each(|index, _| {
            let order = minor_to_major.iter().map(|&dimension| dimension as usize);
            let (to, from) = (place_in_order(index, &sizes, order), self.place(index, layout));
            copy_element(&mut placed, to, &bytes, from, self.element_bytes());
        });
        placed
    }

    /// Every index, in row-major order, with its number.
    fn for_each(&self, mut visit: impl FnMut(&[usize], usize)) {
        let sizes = self.sizes();
        let mut index = vec![0; sizes.len()];
        for element in 0..self.elements() {
            visit(&index, element);
            for dimension in (0..sizes.len()).rev() {
                index[dimension] += 1;
                if index[dimension] < sizes[dimension] {
                    break;
                }
                index[dimension] = 0;
            }
        }
    }
}

/// The place of an element where the dimensions lie in this order, the innermost first.
fn place_in_order(index: &[usize], sizes: &[usize], minor_to_major: impl Iterator<Item = usize>) -> usize {
    let mut stride = 1;
    let mut place = 0;
    for dimension in minor_to_major {
        place += index[dimension] * stride;
        stride *= sizes[dimension];
    }
    place
}

fn copy_element(to: &mut [u8], to_element: usize, from: &[u8], from_element: usize, bytes: usize) {
    let (to_start, from_start) = (to_element * bytes, from_element * bytes);
    to[to_start..to_start + bytes].copy_from_slice(&from[from_start..from_start + bytes]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_lie_where_the_layouts_say_and_come_back() {
        let shape = Shape { element_type: c::PJRT_Buffer_Type_U8, dims: vec![2, 3] };
        let host: Vec<u8> = (1..=6).collect();
        assert_eq!(shape.to_device(host.clone(), DeviceLayout::ColumnMajor), [1, 4, 2, 5, 3, 6]);
        let tiled = DeviceLayout::Tiled(2, 2);
        assert_eq!(shape.to_device(host.clone(), tiled), [1, 2, 4, 5, 3, 0xAB, 6, 0xAB]);
        for layout in [DeviceLayout::RowMajor, DeviceLayout::ColumnMajor, tiled, DeviceLayout::Tiled(8, 128)]
        {
            let device = shape.to_device(host.clone(), layout);
            assert_eq!(device.len(), shape.device_bytes(layout));
            assert_eq!(shape.to_host(device.clone(), layout, &[1, 0]), host);
            assert_eq!(shape.to_host(device, layout, &[0, 1]), [1, 4, 2, 5, 3, 6]);
        }
    }
}
