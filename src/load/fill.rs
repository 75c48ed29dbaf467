//! Reading a block: its bytes from the file, checked and changed on their way, into memory of the load's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::blocks::{Block, Piece};
use super::plan::{Change, LoadPlan};
use crate::cast::cast_into;
use crate::checkpoint::{DigestState, Reader, check_digest};
use crate::error::{Context, Result};
use crate::monitor::Tracker;
use crate::sub_byte;

/// Bytes of the file that are checked or changed at a time: few enough to be in the second level cache still.
const WINDOW: usize = 256 << 10;

/// What one thread of a load needs to read blocks, and what it counted.
pub struct Filler<'a> {
    plan: &'a LoadPlan,
    reader: &'a Reader,
    digests: &'a BTreeMap<String, String>,
    tracker: &'a Tracker<'a>,
    /// The digest of the tensor that is being read, so far.
    digest: DigestState,
    window: Vec<u8>,
    /// What it took.
    pub spent: Spent,
    /// Finite elements that a cast made infinite, by step.
    pub overflows: BTreeMap<usize, usize>,
    /// Tensors that the plugin copied although it was told that it need not, and their bytes in the file.
    pub not_in_place: (usize, u64),
}

/// Time that one thread, or all of them together, spent on the parts of a load.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
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

impl Spent {
    /// Adds what another thread spent.
    pub fn add(&mut self, other: Spent) {
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

impl<'a> Filler<'a> {
    pub fn new(
        plan: &'a LoadPlan,
        reader: &'a Reader,
        digests: &'a BTreeMap<String, String>,
        tracker: &'a Tracker<'a>,
    ) -> Filler<'a> {
        let (digest, window) = (DigestState::default(), Vec::new());
        let (spent, overflows) = (Spent::default(), BTreeMap::new());
        Filler { plan, reader, digests, tracker, digest, window, spent, overflows, not_in_place: (0, 0) }
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
            let mut end = first + 1;
            if self.is_plain(piece) {
                // What follows in the file and needs no more than reading is read by one call.
                let is_next =
                    |pair: &[Piece]| pair[0].source.end == pair[1].source.start && self.is_plain(&pair[1]);
                end += block.pieces[first..].windows(2).take_while(|pair| is_next(pair)).count();
                let parts = &mut memory[first..end];
                let read = timed(&mut self.spent.read, || self.reader.read(piece.source.start, parts));
                if end - first == 1 { read.for_tensor(&self.plan.steps[piece.step].name) } else { read }?;
            } else {
                self.fill_by_windows(piece, memory[first]).for_tensor(&self.plan.steps[piece.step].name)?;
            }
            first = end;
        }
        Ok(())
    }

    /// The bytes of these pieces, checked, if all of them are in memory as the device wants them. The caller copies them
    /// before the load ends.
    ///
    /// # Errors
    /// As for [`Filler::check_in_place`].
    #[cfg(feature = "xla")]
    pub fn in_memory(&mut self, pieces: &[Piece]) -> Result<Option<Vec<bytes::Bytes>>> {
        let reader = self.reader;
        let is_unchanged = |piece: &Piece| self.plan.steps[piece.step].change == Change::None;
        if !pieces.iter().all(is_unchanged) {
            return Ok(None);
        }
        let bytes = pieces.iter().map(|piece| reader.in_memory(piece.source.clone()));
        let Some(bytes) = bytes.collect::<Option<Vec<_>>>() else { return Ok(None) };
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
        let step = &self.plan.steps[piece.step];
        if !self.digests.contains_key(&step.key) {
            return Ok(());
        }
        for window in bytes.chunks(WINDOW) {
            self.tracker.check()?;
            timed(&mut self.spent.check, || self.digest.update(window));
        }
        self.compare(piece).for_tensor(&step.name)
    }

    fn is_plain(&self, piece: &Piece) -> bool {
        let step = &self.plan.steps[piece.step];
        step.change == Change::None && !self.digests.contains_key(&step.key)
    }

    fn fill_by_windows(&mut self, piece: &Piece, mut target: &mut [u8]) -> Result<()> {
        let step = &self.plan.steps[piece.step];
        let is_checked = self.digests.contains_key(&step.key);
        let mut at = piece.source.start;
        while at < piece.source.end {
            self.tracker.check()?;
            let end = (at + WINDOW).min(piece.source.end);
            // Both are whole factors of each other, see `blocks::divide`.
            let changed = (end - at) * piece.target.len() / piece.source.len();
            let (here, rest) = std::mem::take(&mut target).split_at_mut(changed);
            match step.change {
                Change::None => {
                    timed(&mut self.spent.read, || self.reader.read(at, &mut [&mut *here]))?;
                    if is_checked {
                        timed(&mut self.spent.check, || self.digest.update(here));
                    }
                }
                change => self.fill_changed(piece.step, at..end, change, is_checked, here)?,
            }
            (target, at) = (rest, end);
        }
        if is_checked { self.compare(piece) } else { Ok(()) }
    }

    /// Reads a window's bytes aside, and puts what they become into the target.
    fn fill_changed(
        &mut self,
        step: usize,
        source: Range<usize>,
        change: Change,
        is_checked: bool,
        target: &mut [u8],
    ) -> Result<()> {
        let in_memory = self.reader.in_memory(source.clone());
        let bytes: &[u8] = match &in_memory {
            Some(bytes) => bytes,
            None => {
                self.window.resize(WINDOW, 0);
                let window = &mut self.window[..source.len()];
                timed(&mut self.spent.read, || self.reader.read(source.start, &mut [&mut *window]))?;
                window
            }
        };
        if is_checked {
            timed(&mut self.spent.check, || self.digest.update(bytes));
        }
        let to = self.plan.steps[step].spec.dtype;
        let overflows = timed(&mut self.spent.change, || match change {
            Change::Cast { from } => cast_into(bytes, from, to, target),
            _ => {
                sub_byte::unpack_into(bytes, to, target);
                Ok(0)
            }
        })?;
        if overflows > 0 {
            *self.overflows.entry(step).or_default() += overflows;
        }
        Ok(())
    }

    /// Compares the digest of a tensor whose last piece has been read.
    fn compare(&mut self, piece: &Piece) -> Result<()> {
        let step = &self.plan.steps[piece.step];
        if piece.source.end < step.range.end {
            return Ok(());
        }
        let found = std::mem::take(&mut self.digest).finish();
        self.digests.get(&step.key).map_or(Ok(()), |recorded| check_digest(&found, recorded))
    }
}
