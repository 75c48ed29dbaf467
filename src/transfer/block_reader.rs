//! Reading a block: its bytes from the files, checked and changed on their way, into memory of the load's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::carry::TensorSource;
use crate::cast::cast_into;
use crate::error::{Context, Result};
use crate::format::{Tensor, TensorReader};
use crate::monitor::Tracker;
use crate::plan::{Block, Change, LoadPlan, Piece, Step};
use crate::store::{DigestCheck, zeros};
use crate::sub_byte;

/// Bytes of the file that are checked or changed at a time: few enough to be in the second level cache still.
const WINDOW: usize = 256 << 10;

/// What one thread of a load needs to read blocks, and what it counted.
pub struct BlockReader<'a> {
    plan: &'a LoadPlan,
    sources: &'a [TensorSource<'a>],
    reader: &'a TensorReader,
    tracker: &'a Tracker<'a>,
    /// The tensor that is being read and checked, so far.
    check: Option<DigestCheck<'a>>,
    window: Vec<u8>,
    pub stats: ReadStats,
}

/// What one thread, or all of them together, did.
#[derive(Debug, Default)]
pub struct ReadStats {
    pub spent: ThreadTimes,
    /// Finite elements that a cast made infinite, by step.
    pub overflows: BTreeMap<usize, usize>,
    /// Tensors that the plugin copied although it was told that it need not, and their bytes in the file.
    pub not_in_place: (usize, u64),
}

impl ReadStats {
    /// Adds what another thread did.
    pub fn add(&mut self, other: ReadStats) {
        self.spent.add(other.spent);
        self.not_in_place.0 += other.not_in_place.0;
        self.not_in_place.1 += other.not_in_place.1;
        for (step, elements) in other.overflows {
            *self.overflows.entry(step).or_default() += elements;
        }
    }

    /// Logs which tensors a cast made infinite.
    pub fn warn_of_overflows(&self, plan: &LoadPlan) {
        for (&step, elements) in &self.overflows {
            let tensor = &plan.steps[step].name;
            tracing::warn!(tensor, elements, "elements became infinite in a cast");
        }
    }
}

/// Time that one thread, or all of them together, spent on the parts of a load.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadTimes {
    /// Reading.
    pub read: Duration,
    /// Checking digests.
    pub check: Duration,
    /// Casting and unpacking.
    pub change: Duration,
    /// Passing bytes to the plugin.
    pub pass: Duration,
    /// Waiting for a staging chunk.
    pub wait: Duration,
}

impl ThreadTimes {
    /// Adds what another thread spent.
    pub fn add(&mut self, other: ThreadTimes) {
        self.read += other.read;
        self.check += other.check;
        self.change += other.change;
        self.pass += other.pass;
        self.wait += other.wait;
    }
}

/// Adds the time that something takes to a sum.
pub fn timed<T>(sum: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *sum += start.elapsed();
    result
}

impl<'a> BlockReader<'a> {
    /// The tensor that a piece is of.
    pub fn name_of(&self, piece: &Piece) -> &'a str {
        &self.plan.steps[piece.step].name
    }

    pub fn new(
        plan: &'a LoadPlan,
        sources: &'a [TensorSource<'a>],
        reader: &'a TensorReader,
        tracker: &'a Tracker<'a>,
    ) -> BlockReader<'a> {
        let stats = ReadStats::default();
        BlockReader { plan, sources, reader, tracker, check: None, window: Vec::new(), stats }
    }

    /// Reads the pieces of a block into memory of their length, one each.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for a digest that differs, naming the tensor; [`Error::Cancelled`].
    pub fn fill(&mut self, block: &Block, memory: &mut [&mut [u8]]) -> Result<()> {
        let mut first = 0;
        while first < block.pieces.len() {
            self.tracker.check()?;
            let piece = &block.pieces[first];
            let (step, tensor) = self.step(piece);
            let mut end = first + 1;
            if let Some(mut place) = self.plain_place(piece) {
                // What follows in the file and needs no more than reading is read by one call.
                while let Some(next) = block.pieces.get(end).and_then(|next| self.plain_place(next))
                    && (next.0, next.1.start) == (place.0, place.1.end)
                {
                    (place, end) = (next, end + 1);
                }
                let parts = &mut memory[first..end];
                let read = timed(&mut self.stats.spent.read, || {
                    self.reader.read_stored(tensor, piece.source.start, parts)
                });
                if let Err(error) = read {
                    self.name_tensor(&block.pieces[first..end], parts)?;
                    return Err(error);
                }
            } else if step.has_parts {
                self.fill_by_windows(piece, memory[first]).for_tensor(&step.name)?;
            } else {
                self.fill_whole(piece, memory[first]).for_tensor(&step.name)?;
            }
            first = end;
        }
        Ok(())
    }

    fn step(&self, piece: &Piece) -> (&'a Step, &'a Tensor) {
        (&self.plan.steps[piece.step], &*self.sources[piece.step].tensor)
    }

    /// Reads pieces one by one that cannot be read by one call, to say of which tensor that is true.
    ///
    /// # Errors
    /// That of the first which cannot be read.
    fn name_tensor(&self, pieces: &[Piece], parts: &mut [&mut [u8]]) -> Result<()> {
        pieces.iter().zip(parts).try_for_each(|(piece, part)| {
            let (step, tensor) = self.step(piece);
            let read = self.reader.read_stored(tensor, piece.source.start, &mut [&mut **part]);
            read.for_tensor(&step.name)
        })
    }

    /// Where a piece is that needs no more than reading: the file, and its bytes there.
    fn plain_place(&self, piece: &Piece) -> Option<(usize, Range<usize>)> {
        let (step, tensor) = self.step(piece);
        let [extent] = tensor.extents() else { return None };
        let is_plain = step.change == Change::None
            && tensor.encoding.is_as_on_the_host()
            && self.sources[piece.step].digest.is_none();
        let start = extent.range.start;
        is_plain.then(|| (extent.file, start + piece.source.start..start + piece.source.end))
    }

    /// The bytes of these pieces, checked, if all of them are in memory as the device wants them. The caller copies them
    /// before the load ends.
    ///
    /// # Errors
    /// As for [`BlockReader::check_in_place`].
    #[cfg(feature = "xla")]
    pub fn in_memory(&mut self, pieces: &[Piece]) -> Result<Option<Vec<bytes::Bytes>>> {
        let in_memory = |piece: &Piece| {
            let (step, tensor) = self.step(piece);
            let is_unchanged = step.change == Change::None && tensor.encoding.is_as_on_the_host();
            is_unchanged.then(|| self.reader.in_memory(tensor, piece.source.clone())).flatten()
        };
        let Some(bytes) = pieces.iter().map(in_memory).collect::<Option<Vec<_>>>() else { return Ok(None) };
        for (piece, bytes) in pieces.iter().zip(&bytes) {
            self.check_in_place(piece, bytes)?;
        }
        Ok(Some(bytes))
    }

    /// Checks the digest of a piece that is used where it is, if one is recorded.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a digest that differs, naming the tensor; [`Error::Cancelled`].
    pub fn check_in_place(&mut self, piece: &Piece, bytes: &[u8]) -> Result<()> {
        if self.sources[piece.step].digest.is_none() {
            return Ok(());
        }
        for window in bytes.chunks(WINDOW) {
            self.tracker.check()?;
            self.check(piece, window);
        }
        self.end_check(piece).for_tensor(&self.step(piece).0.name)
    }

    /// Holds bytes that come next against the tensor's digest, if one is recorded.
    fn check(&mut self, piece: &Piece, bytes: &[u8]) {
        if let Some(digest) = &self.sources[piece.step].digest {
            let check = self.check.get_or_insert_with(|| digest.begin());
            timed(&mut self.stats.spent.check, || check.update(bytes));
        }
    }

    /// Says whether the digest of a tensor was right whose last piece has been read.
    fn end_check(&mut self, piece: &Piece) -> Result<()> {
        if piece.source.end < self.step(piece).0.bytes {
            return Ok(());
        }
        self.check.take().map_or(Ok(()), DigestCheck::finish)
    }

    /// Reads a tensor that has no parts.
    fn fill_whole(&mut self, piece: &Piece, target: &mut [u8]) -> Result<()> {
        let (step, tensor) = self.step(piece);
        let mut check = self.sources[piece.step].digest.as_ref().map(|digest| digest.begin());
        if step.change == Change::None {
            timed(&mut self.stats.spent.read, || self.reader.decode(tensor, check.as_mut(), target))?;
        } else {
            let mut decoded = zeros(step.bytes)?;
            timed(&mut self.stats.spent.read, || self.reader.decode(tensor, check.as_mut(), &mut decoded))?;
            self.apply_change(piece.step, &decoded, target)?;
        }
        check.map_or(Ok(()), DigestCheck::finish)
    }

    fn fill_by_windows(&mut self, piece: &Piece, mut target: &mut [u8]) -> Result<()> {
        let (step, tensor) = self.step(piece);
        let mut at = piece.source.start;
        while at < piece.source.end {
            self.tracker.check()?;
            let end = (at + WINDOW).min(piece.source.end);
            // Both are whole factors of each other, see `blocks::divide`.
            let changed = (end - at) * piece.target.len() / piece.source.len();
            let (here, rest) = std::mem::take(&mut target).split_at_mut(changed);
            if step.change == Change::None {
                timed(&mut self.stats.spent.read, || self.reader.read_stored(tensor, at, &mut [&mut *here]))?;
                self.check(piece, here);
                tensor.encoding.make_little_endian(tensor.spec.dtype, here);
            } else {
                self.fill_changed(piece, at..end, here)?;
            }
            (target, at) = (rest, end);
        }
        self.end_check(piece)
    }

    /// Reads a window's bytes aside, and puts what they become into the target.
    fn fill_changed(&mut self, piece: &Piece, source: Range<usize>, target: &mut [u8]) -> Result<()> {
        let (_, tensor) = self.step(piece);
        if tensor.encoding.is_as_on_the_host()
            && let Some(bytes) = self.reader.in_memory(tensor, source.clone())
        {
            self.check(piece, &bytes);
            return self.apply_change(piece.step, &bytes, target);
        }
        let mut window = std::mem::take(&mut self.window);
        window.resize(source.len(), 0);
        timed(&mut self.stats.spent.read, || {
            self.reader.read_stored(tensor, source.start, &mut [&mut window[..]])
        })?;
        self.check(piece, &window);
        tensor.encoding.make_little_endian(tensor.spec.dtype, &mut window);
        self.apply_change(piece.step, &window, target)?;
        self.window = window;
        Ok(())
    }

    /// Puts what elements become into the target.
    fn apply_change(&mut self, step: usize, elements: &[u8], target: &mut [u8]) -> Result<()> {
        let Step { spec, change, .. } = &self.plan.steps[step];
        let overflows = timed(&mut self.stats.spent.change, || match *change {
            Change::Cast { from } => cast_into(elements, from, spec.dtype, target),
            Change::Unpack => {
                sub_byte::unpack_into(elements, spec.dtype, target);
                Ok(0)
            }
            Change::None => {
                target.copy_from_slice(elements);
                Ok(0)
            }
        })?;
        if overflows > 0 {
            *self.stats.overflows.entry(step).or_default() += overflows;
        }
        Ok(())
    }
}
