//! How a load's bytes are divided among reads: a pure computation.
//!
//! Small tensors share a block, so that many of them cost few reads and transfers; a large one is cut into
//! blocks of its own, so that several threads read it and no more of it is staged than one chunk holds.

use std::ops::Range;

use super::steps::{Route, Step, place};

/// What one thread reads at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// How all of its pieces get to the device.
    pub route: Route,
    /// The pieces, in the order of their bytes in the file.
    pub pieces: Vec<Piece>,
    /// Bytes that they take, one after another, each aligned to `PLACE_ALIGNMENT`.
    pub bytes: usize,
}

/// A tensor, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's step.
    pub step: usize,
    /// Its part of the tensor's bytes, as they are before anything is done to them.
    pub source: Range<usize>,
    /// Where they go in the tensor as it is passed to the device.
    pub target: Range<usize>,
}

impl Piece {
    /// Bytes that the piece takes in a block.
    pub fn place(&self) -> usize {
        place(self.target.len())
    }
}

/// Parts of a tensor are multiples of this many bytes in the file, which whole elements of any type and the
/// blocks of direct reads fill.
const CUT: usize = 4096;

/// Blocks of at most `most` bytes, but for tensors that cannot be cut.
pub fn cut(steps: &[Step], order: &[usize], most: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    // The blocks that take more tensors: the last, if it does, and that of tensors that are packed, which others may lie
    // between.
    let (mut last, mut packed) = (None, None);
    for &position in order {
        let step = &steps[position];
        let parts = match step.route {
            Route::Empty => continue,
            Route::Alias | Route::Packed | Route::Whole => 1,
            Route::Arena | Route::Stream if !step.has_parts => 1,
            Route::Arena | Route::Stream => step.device_bytes.div_ceil(most.max(1)),
        };
        let whole = Piece { step: position, source: 0..step.bytes, target: 0..step.device_bytes };
        let open = if step.route == Route::Packed { &mut packed } else { &mut last };
        let takes =
            |block: &Block| parts == 1 && block.route == step.route && block.bytes + whole.place() <= most;
        match open.and_then(|index: usize| blocks.get_mut(index)).filter(|block| takes(block)) {
            Some(block) => {
                block.bytes += whole.place();
                block.pieces.push(whole);
            }
            None => {
                blocks.extend(divide(whole, parts).map(|piece| Block {
                    route: step.route,
                    bytes: piece.place(),
                    pieces: vec![piece],
                }));
                *open = (parts == 1).then_some(blocks.len() - 1);
                if step.route == Route::Packed {
                    // It is the last, and not for others.
                    last = None;
                }
            }
        }
    }
    blocks
}

/// A tensor in at least so many parts, all but the last equally long, and none longer than its share, which is a multiple
/// of [`CUT`], or than [`CUT`] itself.
fn divide(whole: Piece, parts: usize) -> impl Iterator<Item = Piece> {
    let (source, target) = (whole.source.len(), whole.target.len());
    let share = if parts == 1 { source } else { (source.div_ceil(parts) / CUT * CUT).max(CUT) };
    // A type's elements become longer or shorter by a whole factor.
    let scaled = move |bytes: usize| {
        if target >= source { bytes * (target / source) } else { bytes / (source / target) }
    };
    (0..source).step_by(share).map(move |start| {
        let end = (start + share).min(source);
        Piece {
            step: whole.step,
            source: whole.source.start + start..whole.source.start + end,
            target: scaled(start)..scaled(end),
        }
    })
}

/// Runs of blocks that one thread must take one after another: each block by itself, or, where every tensor's bytes
/// are wanted in order, all of a tensor that was cut.
pub fn jobs(blocks: &[Block], in_order: bool) -> Vec<Range<usize>> {
    let mut jobs: Vec<Range<usize>> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let continues = block.pieces.first().is_some_and(|piece| piece.target.start > 0);
        match jobs.last_mut() {
            Some(last) if in_order && continues => last.end = index + 1,
            _ => jobs.push(index..index + 1),
        }
    }
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::ArraySpec;
    use crate::dtype::DType;
    use crate::plan::Change;
    use proptest::prelude::*;

    fn step(bytes: usize, factor: (usize, usize), route: Route, has_parts: bool) -> Step {
        let device_bytes = bytes * factor.0 / factor.1;
        let (name, spec) = (String::new(), ArraySpec::new(DType::U8, [device_bytes]));
        Step {
            renamed_from: None,
            name,
            spec,
            extents: Vec::new().into(),
            bytes,
            has_parts,
            route,
            change: Change::None,
            device_bytes,
            place: 0,
            copies: Vec::new(),
            group: 0,
            slot: 0,
            offset: 0,
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_in_exactly_one_piece_and_no_block_is_too_large(
            sizes in proptest::collection::vec((0usize..5000, 0usize..5, 0usize..5, 0usize..4), 0..40),
            most in 4096usize..20_000,
        ) {
            const ROUTES: [Route; 5] =
                [Route::Alias, Route::Arena, Route::Stream, Route::Packed, Route::Whole];
            const FACTORS: [(usize, usize); 5] = [(1, 1), (2, 1), (1, 2), (4, 1), (1, 4)];
            let steps: Vec<Step> = sizes.iter().map(|&(units, route, factor, kind)| {
                let route = if units == 0 { Route::Empty } else { ROUTES[route] };
                step(units * 8, FACTORS[factor], route, kind > 0)
            }).collect();
            let order: Vec<usize> = (0..steps.len()).collect();
            let blocks = cut(&steps, &order, most);
            let mut next = vec![(0, 0); steps.len()];
            for block in &blocks {
                prop_assert_eq!(block.bytes, block.pieces.iter().map(Piece::place).sum::<usize>());
                for piece in &block.pieces {
                    let step = &steps[piece.step];
                    prop_assert_eq!(block.route, step.route);
                    prop_assert_eq!((piece.source.start, piece.target.start), next[piece.step]);
                    prop_assert_eq!(
                        piece.source.len() * step.device_bytes, piece.target.len() * step.bytes
                    );
                    next[piece.step] = (piece.source.end, piece.target.end);
                }
                let one = &block.pieces[0];
                let is_cut = one.target.len() < steps[one.step].device_bytes;
                prop_assert!(!is_cut || block.pieces.len() == 1);
                let can_be_cut = matches!(block.route, Route::Arena | Route::Stream)
                    && block.pieces.iter().all(|piece| steps[piece.step].has_parts);
                // At most the rounding of a place over the limit; a cut of four times as many bytes as in the
                // file is no finer.
                let longest = place(most.max(CUT * 4));
                prop_assert!(block.bytes <= longest || (!can_be_cut && block.pieces.len() == 1), "{:?}", block);
            }
            for (step, next) in steps.iter().zip(next) {
                let all = (step.bytes, step.device_bytes);
                prop_assert_eq!(next, all);
            }
            for in_order in [false, true] {
                let jobs = jobs(&blocks, in_order);
                let flat: Vec<usize> = jobs.iter().cloned().flatten().collect();
                prop_assert_eq!(flat, (0..blocks.len()).collect::<Vec<_>>());
            }
        }
    }
}
