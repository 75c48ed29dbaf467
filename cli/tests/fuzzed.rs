//! What the fuzz targets in `fuzz/` do, in short and the same every time: real files with changed bytes, of every format.
//! They may be refused; they may not panic, and what is read of them must survive being written.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::{data, digits, safejax, succeeds};
use safejax::convert::Source;
use safejax::convert::{ConvertOptions, convert, open};
use safejax::load::Selection;
use safejax::{Checkpoint, Program};

/// Xorshift: the same changes every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }

    /// Some bytes changed, a part cut out, doubled, or repeated until there is nearly a megabyte.
    fn change(&mut self, file: &[u8]) -> Vec<u8> {
        let mut changed = file.to_vec();
        match self.below(12) {
            0 => changed.truncate(self.below(file.len())),
            1 => {
                let (start, end) = (self.below(file.len()), self.below(file.len()));
                changed.drain(start.min(end)..start.max(end));
            }
            2 => {
                let start = self.below(file.len());
                let part = file[start..(start + 1 + self.below(64)).min(file.len())].to_vec();
                let times = if self.below(8) == 0 { 1_000_000 / part.len() } else { 1 + self.below(8) };
                changed.splice(start..start, part.repeat(times));
            }
            _ => {
                for _ in 0..=self.below(4) {
                    // The beginning is where the structure is.
                    let position = self.below(changed.len().min(600));
                    changed[position] = self.below(256) as u8;
                }
            }
        }
        changed
    }
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}

#[test]
fn changed_files_of_every_format_are_read_and_written_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut seeds = files_in(&data("pickles"));
    seeds.extend(files_in(&data("pytorch")).into_iter().chain(files_in(&data("orders"))));
    seeds.push(digits("labels.npy"));
    for (directory, ending) in [
        ("equinox", "eqx"),
        ("hdf5", "h5"),
        ("hdf5", "keras"),
        ("onnx", "onnx"),
        ("gguf", "gguf"),
        ("arrow", "arrow"),
    ] {
        let is_one = |path: &PathBuf| path.extension().is_some_and(|found| found == ending);
        seeds.extend(files_in(&data(directory)).into_iter().filter(is_one));
    }
    for name in ["a.safetensors", "a.msgpack", "a.npz"] {
        let mut command = safejax();
        command.arg("convert").arg(digits("params.safetensors")).arg(at(name));
        succeeds(command.args(["--include", "*Conv_0*"]));
        seeds.push(at(name));
    }
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (options, mut write) = (Selection::default(), ConvertOptions::default());
    write.write.sync = false;
    let mut read = 0;
    for seed in seeds {
        let whole = std::fs::read(&seed).unwrap();
        // Some formats are told by the name.
        let path = at("changed").with_extension(seed.extension().unwrap_or_default());
        for round in 0..150 {
            let changed = random.change(&whole);
            std::fs::write(&path, &changed).unwrap();
            let Ok(source) = open(&path, &options) else { continue };
            let Ok(arrays) = source.to_host() else { continue };
            read += 1;
            let copy = at("copy.safetensors");
            if convert(&source, &copy, &write).is_ok() {
                let again = open(&copy, &options).unwrap().to_host().unwrap();
                assert_eq!(again, arrays, "{} {round}", seed.display());
            }
        }
    }
    // Most changes of an array's bytes make another valid file.
    assert!(read > 100, "{read}");
}

#[test]
fn changed_headers_and_programs_are_read_or_refused() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let seeds = [files_in(&data("exports")), vec![data("affine.stablehlo"), data("affine.hlo.pb")]].concat();
    for seed in seeds {
        let whole = std::fs::read(&seed).unwrap();
        for _ in 0..60 {
            let changed = random.change(&whole);
            if let Ok(checkpoint) = Checkpoint::from_bytes(changed.clone()) {
                let _ = Source::new(checkpoint, &Selection::default());
            }
            if let Ok(program) = Program::from_bytes(changed) {
                let _ = (program.signature_text(), program.stablehlo_version());
            }
        }
    }
}
