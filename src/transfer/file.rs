//! One file about to be written: its tensors, its metadata with the digests, its layout.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::options::Digests;
use super::supply::{PartMemory, Supply};
use crate::array::ArraySpec;
use crate::error::{Context, Result};
use crate::format::{CheckpointWriter, DIGEST_KEY, Layout, PART_BYTES};
use crate::monitor::Tracker;
use crate::store::{DigestState, WriteOptions, sha256};
use crate::workers;

/// A safetensors file that is about to be written.
pub struct FilePlan {
    specs: Vec<(String, ArraySpec)>,
    metadata: BTreeMap<String, String>,
    layout: Layout,
    alignment: usize,
    digests: Digests,
}

/// What was learned of the tensors as they were written.
#[derive(Debug, Default)]
pub struct Written {
    /// Finite elements that a cast made infinite, by tensor.
    pub overflows: BTreeMap<String, usize>,
    digests: BTreeMap<String, String>,
}

impl Written {
    /// What all threads learned.
    pub fn of_all(workers: Vec<(PartMemory, Written)>) -> Written {
        let mut all = Written::default();
        workers.into_iter().for_each(|(_, written)| all.add(written));
        all
    }

    /// Adds what a thread's casts of this tensor made infinite.
    pub fn count_overflows(&mut self, tensor: &str, memory: &mut PartMemory) {
        match std::mem::take(&mut memory.overflows) {
            0 => {}
            elements => *self.overflows.entry(tensor.to_owned()).or_default() += elements,
        }
    }

    /// Adds what was learned by another thread, or of another file.
    pub fn add(&mut self, other: Written) {
        self.digests.extend(other.digests);
        for (name, elements) in other.overflows {
            *self.overflows.entry(name).or_default() += elements;
        }
    }
}

/// The most threads that write: more only wait for each other in the file system.
pub const MAX_THREADS: usize = 4;

/// A part of a tensor.
struct Job {
    /// The tensor's position in the file.
    placed: usize,
    /// The part, of the tensor's bytes in the file.
    range: Range<usize>,
}

impl FilePlan {
    /// Plans a file of these tensors and metadata.
    pub fn new(
        specs: Vec<(String, ArraySpec)>,
        mut metadata: BTreeMap<String, String>,
        alignment: usize,
        digests: Digests,
    ) -> Result<FilePlan> {
        if digests == Digests::Sha256 {
            // As long as the digests will be, so that the header keeps its size when they are known.
            let blank = "0".repeat(sha256(&[]).len());
            let blanks: BTreeMap<&String, &String> = specs.iter().map(|(name, _)| (name, &blank)).collect();
            metadata.insert(DIGEST_KEY.into(), serde_json::json!(blanks).to_string());
        }
        let layout = Layout::new(&specs, &metadata, alignment)?;
        Ok(FilePlan { specs, metadata, layout, alignment, digests })
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The tensor at this place in the file.
    pub fn name(&self, placed: usize) -> &str {
        &self.specs[self.layout.tensors[placed].index].0
    }

    /// The type and shape in the file of the tensor at this place.
    pub fn spec(&self, placed: usize) -> &ArraySpec {
        &self.specs[self.layout.tensors[placed].index].1
    }

    /// Writes the file from several threads. It has no name until it is finished. Where no file has the target's name yet, it takes
    /// its owner and mode from the model, if there is one.
    ///
    /// # Errors
    /// The first failure of any thread.
    pub fn write_unnamed(
        &self,
        target: &Path,
        model: Option<&Path>,
        options: WriteOptions,
        supply: &dyn Supply,
        tracker: &Tracker<'_>,
    ) -> Result<(CheckpointWriter, Written)> {
        let writer = CheckpointWriter::create_like(target, model, self.layout.clone(), options)?;
        let sink = |placed: usize, start: usize, bytes: &[u8]| writer.write_at(placed, start, bytes);
        let written = self.run(supply, tracker, MAX_THREADS, &sink)?;
        if let Some(head) = self.head_with(&written)? {
            writer.replace_head(&head)?;
        }
        Ok((writer, written))
    }

    /// The file in memory.
    ///
    /// # Errors
    /// As for [`FilePlan::write_unnamed`].
    pub fn to_bytes(&self, supply: &dyn Supply, tracker: &Tracker<'_>) -> Result<Vec<u8>> {
        let mut file = Vec::with_capacity(self.layout.file_bytes);
        file.extend_from_slice(&self.layout.head);
        let file = Mutex::new(file);
        // By one thread, parts come in the order of the file.
        let written = self.run(supply, tracker, 1, &|_, _, bytes: &[u8]| {
            file.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(())
        })?;
        let mut file = file.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(head) = self.head_with(&written)? {
            file[..head.len()].copy_from_slice(&head);
        }
        Ok(file)
    }

    fn head_with(&self, written: &Written) -> Result<Option<Vec<u8>>> {
        match self.digests {
            Digests::None => Ok(None),
            Digests::Sha256 => self.head_with_digests(&written.digests).map(Some),
        }
    }

    /// The file's beginning, with these digests.
    pub fn head_with_digests(&self, digests: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let mut metadata = self.metadata.clone();
        metadata.insert(DIGEST_KEY.into(), serde_json::json!(digests).to_string());
        Ok(Layout::new(&self.specs, &metadata, self.alignment)?.head)
    }

    /// The parts of the file, in its order.
    fn jobs(&self, supply: &dyn Supply) -> Vec<Job> {
        let mut jobs = Vec::with_capacity(self.layout.tensors.len());
        for (placed, tensor) in self.layout.tensors.iter().enumerate() {
            let bytes = tensor.range.len();
            // The digest of a tensor needs its bytes in order.
            let is_cut = self.digests == Digests::None && supply.is_divisible(tensor.index);
            let share = if is_cut { PART_BYTES } else { bytes.max(1) };
            let starts = (0..bytes.max(1)).step_by(share);
            jobs.extend(starts.map(|start| Job { placed, range: start..(start + share).min(bytes) }));
        }
        jobs
    }

    fn run<S>(
        &self,
        supply: &dyn Supply,
        tracker: &Tracker<'_>,
        most_threads: usize,
        sink: &S,
    ) -> Result<Written>
    where
        S: Fn(usize, usize, &[u8]) -> Result<()> + Sync,
    {
        let total: u64 = self.layout.tensors.iter().map(|tensor| tensor.range.len() as u64).sum();
        let jobs = self.jobs(supply);
        let worth = usize::try_from(total).unwrap_or(usize::MAX).div_ceil(PART_BYTES);
        let workers = workers::run(
            workers::count(most_threads.min(worth)),
            &jobs,
            || (PartMemory::new(supply.registration()), Written::default()),
            |(memory, written), job| {
                let name = &self.specs[self.layout.tensors[job.placed].index].0;
                let digest = self.carry(job, supply, tracker, memory, sink).for_tensor(name)?;
                written.digests.extend(digest.map(|digest| (name.clone(), digest)));
                written.count_overflows(name, memory);
                Ok(())
            },
        )?;
        Ok(Written::of_all(workers))
    }

    /// Passes a part on to the sink, piece by piece; returns the tensor's digest, if they are recorded.
    fn carry(
        &self,
        job: &Job,
        supply: &dyn Supply,
        tracker: &Tracker<'_>,
        memory: &mut PartMemory,
        sink: &impl Fn(usize, usize, &[u8]) -> Result<()>,
    ) -> Result<Option<String>> {
        let (name, _) = &self.specs[self.layout.tensors[job.placed].index];
        let supplied = supply.supply(self.layout.tensors[job.placed].index)?;
        let mut digest = (self.digests == Digests::Sha256).then(DigestState::default);
        for start in job.range.clone().step_by(PART_BYTES) {
            tracker.check()?;
            let length = PART_BYTES.min(job.range.end - start);
            let bytes = supplied.part(start, length, memory)?;
            if let Some(digest) = &mut digest {
                digest.update(bytes);
            }
            sink(job.placed, start, bytes)?;
            tracker.progressed(name, length as u64);
        }
        Ok(digest.map(DigestState::finish))
    }
}
