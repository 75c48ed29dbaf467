//! A checkpoint that several processes write, on a file system that all of them reach. Each file is one process's; the others write
//! what they have of its tensors into it. Process 0 gives the files their names, and the index last, when all is there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::path::Path;

use super::Digests;
use super::file::{FilePlan, MAX_THREADS, Written};
use super::offers::{self, Offer, Offers, Writers};
use super::shards::{Begun, CheckpointPlan, FileOptions};
use super::supply::{DeviceSupply, PartMemory, TensorBytes};
use crate::array::ArraySpec;
use crate::error::{Context, Error, Result};
use crate::format::{CheckpointWriter, PART_BYTES};
use crate::monitor::{Monitor, Tracker};
use crate::pjrt::Buffer;
use crate::processes::Processes;
use crate::sharding::Runs;
use crate::store::{DigestState, SharedFile, is_incoherent, remove_all};
use crate::workers;

/// What is saved by all processes together: the arrays of this one, and how all of them are in the files.
pub struct TogetherSave<'a> {
    pub processes: &'a Processes,
    pub supply: DeviceSupply<'a>,
    /// The names, types and shapes in the files.
    pub specs: Vec<(String, ArraySpec)>,
    pub strings: BTreeMap<String, String>,
    pub options: FileOptions,
    pub monitor: &'a Monitor,
}

/// A part of a tensor that this process writes.
struct Part<'a> {
    file: usize,
    /// The tensor's position in the file.
    placed: usize,
    buffer: &'a Buffer,
    /// Where its bytes are among the tensor's, in the file.
    runs: Runs,
}

/// A file that is being written: one's own, or another process's.
enum Open {
    Own(CheckpointWriter),
    Other(SharedFile),
}

impl TogetherSave<'_> {
    /// Saves, in every process; all of them end well or none does. Returns the elements that a cast of this process's made
    /// infinite, by tensor.
    ///
    /// # Errors
    /// [`Error::Processes`] when the processes do not save the same, or another one fails; what fails here.
    pub fn write(mut self, target: &Path) -> Result<BTreeMap<String, usize>> {
        let offers = self.offers(target).and_then(|offers| offers.to_bytes());
        let (_, said) = self.processes.agree("what is saved", offers, Clone::clone)?;
        let offers: Vec<Offers> = said.iter().map(|said| Offers::from_bytes(said)).collect::<Result<_>>()?;
        let writers = offers::assign(&offers)?;
        let (plan, owners) = self.plan(&writers)?;

        let own = self.own_files(&plan, &owners, target);
        let names = |own: &BTreeMap<usize, CheckpointWriter>| {
            let names: BTreeMap<usize, String> =
                own.iter().map(|(&file, writer)| (file, writer.temporary_name())).collect();
            serde_json::to_vec(&names).unwrap_or_default()
        };
        let (own, said) = self.processes.agree("the files of a save", own, names)?;

        let begun = all_names(&said).and_then(|names| plan.beside(target, &names));
        let written = begun.and_then(|begun| {
            let (own, overflows) = self.write_parts(&plan, &writers, own, &begun)?;
            Ok((begun, own, overflows))
        });
        let (written, _) = self.processes.agree("the parts of a save", written, |_| Vec::new())?;
        let (begun, own, overflows) = written;

        let finished = self.finish_own(&plan, own);
        let (own, _) = self.processes.agree("the ends of files of a save", finished, |_| Vec::new())?;

        // Nothing is named as long as somebody may have given up waiting.
        self.processes.agree("the names of a save", Ok(()), |()| Vec::new())?;
        // Here they are nobody's for a moment, in which process 0 takes them.
        let named = if self.processes.index() == 0 {
            adopt(&plan, own, &begun).and_then(|writers| plan.put_in_place(target, writers))
        } else {
            own.into_values().try_for_each(CheckpointWriter::leave)
        };
        self.processes.agree("the end of a save", named, |()| Vec::new())?;
        Ok(overflows)
    }

    /// What this process has.
    fn offers(&self, target: &Path) -> Result<Offers> {
        let tensors = self.supply.arrays.iter().zip(&self.specs).map(|(array, (name, spec))| {
            let layout = array.layout();
            let mut parts: Vec<usize> =
                array.addressable_shards().map(|shard| layout.part(shard.place)).collect();
            parts.sort_unstable();
            parts.dedup();
            let part = ArraySpec::new(array.dtype(), layout.shard_shape());
            let part_bytes = part.host_bytes().for_tensor(name)? as u64;
            Ok(Offer {
                name: name.clone(),
                spec: spec.to_string(),
                cuts: layout.parts().to_vec(),
                part_bytes,
                parts,
            })
        });
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let FileOptions { alignment, digests, max_shard_bytes, write } = self.options;
        let terms = [
            ("the file", name.into_owned()),
            ("alignment", alignment.to_string()),
            ("digests", format!("{digests:?}")),
            ("max_shard_bytes", format!("{max_shard_bytes:?}")),
            ("sync", write.sync.to_string()),
        ];
        let strings = self.strings.iter().map(|(key, value)| (format!("the string `{key}`"), value.clone()));
        Ok(Offers {
            terms: terms.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(strings).collect(),
            tensors: tensors.collect::<Result<_>>()?,
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
            is_incoherent: is_incoherent(target),
        })
    }

    /// The files, and whose they are. One file is process 0's.
    fn plan(&mut self, writers: &Writers) -> Result<(CheckpointPlan, Vec<usize>)> {
        let count = self.processes.count();
        let owners = match self.options.max_shard_bytes {
            Some(_) => offers::owners(writers, count),
            None => vec![0; writers.len()],
        };
        let (specs, strings) = (std::mem::take(&mut self.specs), std::mem::take(&mut self.strings));
        let plan = CheckpointPlan::of_owners(specs, strings, self.options, &owners)?;
        let of_file = |positions: &[usize]| positions.first().map_or(0, |&position| owners[position]);
        let of_files = plan.files().iter().map(|(_, positions)| of_file(positions)).collect();
        Ok((plan, of_files))
    }

    /// Begins the files of this process, under temporary names: the others look for them.
    fn own_files(
        &self,
        plan: &CheckpointPlan,
        owners: &[usize],
        target: &Path,
    ) -> Result<BTreeMap<usize, CheckpointWriter>> {
        let index = self.processes.index();
        let (paths, model) = plan.check(target)?;
        let own = owners.iter().enumerate().filter(|(_, owner)| **owner == index);
        own.map(|(file, _)| {
            let layout = plan.files()[file].0.layout().clone();
            let writer =
                CheckpointWriter::create_named(&paths[file], model.as_deref(), layout, plan.write_options())?;
            Ok((file, writer))
        })
        .collect()
    }

    /// Writes what this process has to.
    fn write_parts(
        &self,
        plan: &CheckpointPlan,
        writers: &Writers,
        own: BTreeMap<usize, CheckpointWriter>,
        begun: &[Begun],
    ) -> Result<(BTreeMap<usize, CheckpointWriter>, BTreeMap<String, usize>)> {
        let parts = self.parts(plan, writers)?;
        let mut files: BTreeMap<usize, Open> =
            own.into_iter().map(|(file, writer)| (file, Open::Own(writer))).collect();
        for file in parts.iter().map(|part| part.file) {
            if let Entry::Vacant(entry) = files.entry(file) {
                entry.insert(Open::Other(SharedFile::open(&begun[file].temporary)?));
            }
        }
        let total = parts.iter().map(|part| (part.runs.count() * part.runs.run_bytes()) as u64).sum();
        let tracker = Tracker::new(self.monitor, total);
        let workers = workers::run(
            workers::count(MAX_THREADS.min(parts.len())),
            &parts,
            || (PartMemory::new(self.supply.registration), Written::default()),
            |(memory, written), part| {
                let (plan, _) = &plan.files()[part.file];
                let name = plan.name(part.placed);
                let bytes =
                    self.supply.of_buffer(part.buffer, plan.spec(part.placed).dtype).for_tensor(name)?;
                part.write(&bytes, plan, &files, memory, &tracker).for_tensor(name)?;
                written.count_overflows(name, memory);
                Ok(())
            },
        )?;
        let written = Written::of_all(workers);
        let mut own = BTreeMap::new();
        for (file, open) in files {
            match open {
                Open::Own(writer) => drop(own.insert(file, writer)),
                // Each machine has the disk's word for what it wrote.
                Open::Other(shared) if self.options.write.sync => shared.sync()?,
                Open::Other(_) => {}
            }
        }
        Ok((own, written.overflows))
    }

    /// The parts that this process writes, in the order of the files.
    fn parts(&self, plan: &CheckpointPlan, writers: &Writers) -> Result<Vec<Part<'_>>> {
        let index = self.processes.index();
        let mut parts = Vec::new();
        for (file, (file_plan, positions)) in plan.files().iter().enumerate() {
            for (placed, tensor) in file_plan.layout().tensors.iter().enumerate() {
                let position = positions[tensor.index];
                let array = &self.supply.arrays[position];
                let layout = array.layout();
                for (part, _) in writers[position].iter().enumerate().filter(|(_, writer)| **writer == index)
                {
                    let mut shards = array.addressable_shards();
                    let name = file_plan.name(placed);
                    let shard = shards.find(|shard| layout.part(shard.place) == part);
                    let shard = shard.ok_or(Error::Undelivered).for_tensor(name)?;
                    let spec = file_plan.spec(placed);
                    let runs = runs_in_file(spec, &layout.slice_of_part(part)).for_tensor(name)?;
                    parts.push(Part { file, placed, buffer: shard.buffer, runs });
                }
            }
        }
        Ok(parts)
    }

    /// Ends the files of this process, of which others have written parts: their digests, and the disk's word.
    fn finish_own(
        &self,
        plan: &CheckpointPlan,
        own: BTreeMap<usize, CheckpointWriter>,
    ) -> Result<BTreeMap<usize, CheckpointWriter>> {
        for (&file, writer) in &own {
            let (file_plan, _) = &plan.files()[file];
            writer.is_written_by_all();
            if self.options.digests == Digests::Sha256 {
                let digests = digests_of(file_plan, writer)?;
                writer.replace_head(&file_plan.head_with_digests(&digests)?)?;
            }
            writer.set_final_mode()?;
            writer.sync()?;
        }
        Ok(own)
    }
}

/// All files, of which those of the others are taken over.
fn adopt(
    plan: &CheckpointPlan,
    mut own: BTreeMap<usize, CheckpointWriter>,
    begun: &[Begun],
) -> Result<Vec<CheckpointWriter>> {
    let adopt = |(file, Begun { path, temporary }): (usize, &Begun)| match own.remove(&file) {
        Some(writer) => Ok(writer),
        None => {
            let layout = plan.files()[file].0.layout().clone();
            CheckpointWriter::adopt(temporary, path, layout, plan.write_options())
        }
    };
    let adopted: Result<Vec<_>> = begun.iter().enumerate().map(adopt).collect();
    adopted.inspect_err(|_| {
        // The error of the first is what is told.
        let _ = remove_all(begun.iter().map(|begun| begun.temporary.as_path()));
    })
}

impl Part<'_> {
    /// Writes it, piece by piece, to where its bytes are in the file.
    fn write(
        &self,
        bytes: &TensorBytes<'_>,
        plan: &FilePlan,
        files: &BTreeMap<usize, Open>,
        memory: &mut PartMemory,
        tracker: &Tracker<'_>,
    ) -> Result<()> {
        let (run, total) = (self.runs.run_bytes(), self.runs.count() * self.runs.run_bytes());
        for start in (0..total).step_by(PART_BYTES) {
            tracker.check()?;
            let end = total.min(start + PART_BYTES);
            let piece = bytes.part(start, end - start, memory)?;
            // The runs that the piece ends in can be others' too.
            let mut at = start;
            while at < end {
                let until = ((at / run + 1) * run).min(end);
                let to = self.runs.get(at / run).start + at % run;
                match &files[&self.file] {
                    Open::Own(writer) => {
                        writer.write_at(self.placed, to, &piece[at - start..until - start])?
                    }
                    Open::Other(file) => {
                        let offset = plan.layout().tensors[self.placed].range.start + to;
                        file.write_at(offset, &piece[at - start..until - start])?;
                    }
                }
                at = until;
            }
            tracker.progressed(plan.name(self.placed), (end - start) as u64);
        }
        Ok(())
    }
}

/// Where the bytes of a part are among those of a tensor in a file, which has several elements in a byte where they are smaller.
fn runs_in_file(spec: &ArraySpec, slice: &[Range<usize>]) -> Result<Runs> {
    let whole = slice.iter().zip(&spec.shape).all(|(range, &size)| range.len() == size);
    if whole {
        return Ok(Runs::whole(spec.packed_bytes()?));
    }
    let bits = spec.dtype.bits();
    if bits >= 8 {
        return Ok(Runs::new(&spec.shape, slice, bits / 8));
    }
    Runs::new(&spec.shape, slice, 1).in_units_of(8 / bits).ok_or_else(|| {
        Error::InvalidArgument(format!(
            "parts of {spec} that do not begin and end with a byte of the file cannot be written by several processes; \
             lay it out whole, or in other parts"
        ))
    })
}

/// The temporary name of each file, from what the processes said of theirs.
fn all_names(said: &[Vec<u8>]) -> Result<BTreeMap<usize, String>> {
    let mut all = BTreeMap::new();
    for (process, said) in said.iter().enumerate() {
        let names: BTreeMap<usize, String> = serde_json::from_slice(said).map_err(|error| {
            Error::Processes(format!("the files of process {process} cannot be read: {error}"))
        })?;
        all.extend(names);
    }
    Ok(all)
}

/// The digest of each tensor of a file, by name.
fn digests_of(plan: &FilePlan, writer: &CheckpointWriter) -> Result<BTreeMap<String, String>> {
    let mut memory = vec![0; PART_BYTES];
    let mut digests = BTreeMap::new();
    for (placed, tensor) in plan.layout().tensors.iter().enumerate() {
        let mut digest = DigestState::default();
        for start in tensor.range.clone().step_by(PART_BYTES) {
            let piece = &mut memory[..PART_BYTES.min(tensor.range.end - start)];
            writer.read_back(start, piece)?;
            digest.update(piece);
        }
        digests.insert(plan.name(placed).to_owned(), digest.finish());
    }
    Ok(digests)
}
