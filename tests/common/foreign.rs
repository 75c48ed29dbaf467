//! Checkpoints of other libraries beside what is in them, as scripts/make_equinox.py and its like write both, each in a directory
//! of its own below one root.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safejax::Checkpoint;
use safejax::format::{Format, sniff};

/// The directories of files, with the format and the ending of those in it that are checkpoints.
const DIRECTORIES: [(&str, Format, &str); 6] = [
    ("equinox", Format::Equinox, "eqx"),
    ("hdf5", Format::Hdf5, "h5"),
    ("hdf5", Format::Keras, "keras"),
    ("onnx", Format::Onnx, "onnx"),
    ("gguf", Format::Gguf, "gguf"),
    ("arrow", Format::Arrow, "arrow"),
];

/// Checkpoints that are several files, each as `CASE/checkpoint` beside `CASE/expected.safetensors`.
const TENSORFLOW: [&str; 3] = ["tensorflow/objects", "tensorflow/saved_model", "tensorflow/saver"];

/// A checkpoint, and what is in it.
pub struct Case {
    pub path: PathBuf,
    pub format: Format,
    pub expected: PathBuf,
}

/// All checkpoints of these libraries.
pub fn cases(root: &Path) -> Vec<Case> {
    let mut cases = files(root);
    cases.extend(tensorflow(root));
    cases
}

/// Those that are one file.
pub fn files(root: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    for (directory, format, ending) in DIRECTORIES {
        let before = cases.len();
        let directory = root.join(directory);
        let paths = super::files(&directory).into_keys().map(|path| directory.join(path));
        let paths = paths.filter(|path| path.extension().is_some_and(|found| found == ending));
        cases.extend(paths.map(|path| Case { expected: path.with_extension("safetensors"), path, format }));
        assert!(cases.len() > before, "{}", directory.display());
    }
    cases
}

/// Those of TensorFlow.
pub fn tensorflow(root: &Path) -> Vec<Case> {
    let case = |name: &str| {
        let (path, expected) =
            (root.join(name).join("checkpoint"), root.join(name).join("expected.safetensors"));
        Case { path, format: Format::TensorFlow, expected }
    };
    TENSORFLOW.map(case).into()
}

impl Case {
    /// Compares every tensor with what its library saved.
    #[track_caller]
    pub fn assert_is_as_saved(&self) {
        let what = self.path.display();
        assert_eq!(sniff(&self.path).unwrap(), Some(self.format), "{what}");
        let checkpoint = Checkpoint::open(&self.path).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(checkpoint.format(), self.format, "{what}");
        let expected = super::read_tensors(&std::fs::read(&self.expected).unwrap());
        let found = contents(&checkpoint);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
        for (name, bytes) in found {
            assert_eq!(bytes, expected[&name], "{what}: {name}");
        }
    }
}

/// What each tensor is.
fn contents(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let bytes = |name: &String| {
        checkpoint.array(name).unwrap_or_else(|error| panic!("{name}: {error}")).bytes().to_vec()
    };
    checkpoint.tensors().iter().map(|tensor| (tensor.name.clone(), bytes(&tensor.name))).collect()
}
