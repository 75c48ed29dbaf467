//! The bytes of a slice of an array: runs that lie side by side in the whole.

use std::ops::Range;

/// The runs of a slice of a row-major array, one after another: where each begins in the whole, in bytes. All are equally long.
#[derive(Debug, Clone)]
pub struct Runs {
    /// Bytes of each run.
    run: usize,
    /// The dimensions that runs differ in: how many, and how far apart in the whole, the outermost first.
    outer: Vec<(usize, usize)>,
    /// Where the first run begins.
    first: usize,
    count: usize,
}

impl Runs {
    /// The runs of this slice of an array of this shape, with elements of so many bytes.
    pub fn new(shape: &[usize], slice: &[Range<usize>], element: usize) -> Runs {
        let (mut run, mut stride, mut first) = (element, element, 0);
        let mut outer = Vec::new();
        for (&size, range) in shape.iter().zip(slice).rev() {
            first += range.start * stride;
            // As long as all that is inside lies side by side, this dimension makes the run longer.
            if outer.is_empty() && run == stride {
                run *= range.len();
            } else {
                outer.push((range.len(), stride));
            }
            stride *= size;
        }
        outer.retain(|&(count, _)| count != 1);
        outer.reverse();
        let count = if run == 0 { 0 } else { outer.iter().map(|(count, _)| count).product() };
        Runs { run, outer, first, count }
    }

    /// All of so many bytes.
    pub fn whole(bytes: usize) -> Runs {
        Runs { run: bytes, outer: Vec::new(), first: 0, count: usize::from(bytes > 0) }
    }

    /// The same in units of so many bytes; `None` where one begins or ends within a unit.
    pub fn in_units_of(&self, unit: usize) -> Option<Runs> {
        let divided = |bytes: usize| bytes.is_multiple_of(unit).then(|| bytes / unit);
        let outer = self.outer.iter().map(|&(count, stride)| Some((count, divided(stride)?)));
        Some(Runs {
            run: divided(self.run)?,
            outer: outer.collect::<Option<_>>()?,
            first: divided(self.first)?,
            count: self.count,
        })
    }

    /// Bytes of each run.
    pub fn run_bytes(&self) -> usize {
        self.run
    }

    /// How many runs there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The whole's bytes of the run of this number.
    pub fn get(&self, number: usize) -> Range<usize> {
        let (mut rest, mut start) = (number, self.first);
        for &(count, stride) in self.outer.iter().rev() {
            start += rest % count * stride;
            rest /= count;
        }
        start..start + self.run
    }

    /// Every run, in the order of the slice's own bytes, which is also that of the whole's.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.count).map(|number| self.get(number))
    }

    /// The slice's bytes, out of the whole's.
    pub fn gather(&self, whole: &[u8], slice: &mut [u8]) {
        if self.run > 0 {
            self.iter()
                .zip(slice.chunks_exact_mut(self.run))
                .for_each(|(run, to)| to.copy_from_slice(&whole[run]));
        }
    }

    /// The slice's bytes, into the whole's.
    pub fn scatter(&self, slice: &[u8], whole: &mut [u8]) {
        if self.run > 0 {
            self.iter()
                .zip(slice.chunks_exact(self.run))
                .for_each(|(run, from)| whole[run].copy_from_slice(from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_in_larger_units_are_those_that_begin_and_end_with_one() {
        let halves = |shape: &[usize], slice: &[Range<usize>]| {
            let runs = Runs::new(shape, slice, 1).in_units_of(2)?;
            Some(runs.iter().collect::<Vec<_>>())
        };
        assert_eq!(halves(&[4, 3], &[2..4, 0..3]).unwrap().first(), Some(&(3..6)));
        assert_eq!(halves(&[4, 3], &[1..2, 0..3]), None);
        assert_eq!(halves(&[2, 8], &[0..2, 4..8]), Some(vec![2..4, 6..8]));
        assert_eq!(halves(&[2, 6], &[0..2, 3..6]), None);
    }

    #[test]
    fn leading_slices_are_one_run_and_inner_ones_several() {
        let runs = |shape: &[usize], slice: &[Range<usize>]| {
            let runs = Runs::new(shape, slice, 4);
            runs.iter().collect::<Vec<_>>()
        };
        assert_eq!(runs(&[4, 6], &[1..3, 0..6]).first(), Some(&(24..72)));
        assert_eq!(runs(&[4, 6], &[1..3, 2..4]), [32..40, 56..64]);
        assert_eq!(runs(&[2, 3, 4], &[0..2, 1..2, 0..4]), [16..32, 64..80]);
        assert_eq!(runs(&[], &[]).first(), Some(&(0..4)));
        assert!(runs(&[3, 0], &[0..3, 0..0]).is_empty());
        assert!(runs(&[0, 3], &[0..0, 0..3]).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_gathered_is_the_slice_and_scatters_back(
            dimensions in proptest::collection::vec((1usize..5, 0usize..5, 0usize..5), 0..4),
            element in 1usize..5,
        ) {
            let shape: Vec<usize> = dimensions.iter().map(|(size, ..)| *size).collect();
            let slice: Vec<Range<usize>> = dimensions.iter().map(|&(size, a, b)| {
                let (a, b) = (a.min(size), b.min(size));
                a.min(b)..a.max(b)
            }).collect();
            let bytes = shape.iter().product::<usize>() * element;
            let whole: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
            let mut expected = vec![];
            // Every element of the whole, one by one.
            for place in 0..shape.iter().product::<usize>() {
                let mut rest = place;
                let mut is_in = true;
                for (size, range) in shape.iter().zip(&slice).rev() {
                    is_in &= range.contains(&(rest % size));
                    rest /= size;
                }
                if is_in {
                    expected.extend_from_slice(&whole[place * element..(place + 1) * element]);
                }
            }
            let runs = Runs::new(&shape, &slice, element);
            let mut found = vec![0; expected.len()];
            runs.gather(&whole, &mut found);
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(runs.count() * runs.run_bytes(), expected.len());
            let mut back = vec![0; whole.len()];
            runs.scatter(&found, &mut back);
            for (old, new) in whole.iter().zip(&back) {
                prop_assert!(new == old || *new == 0);
            }
            let mut again = vec![0; expected.len()];
            runs.gather(&back, &mut again);
            prop_assert_eq!(again, expected);
        }
    }
}
