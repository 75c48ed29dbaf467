//! Files of other libraries, written by those (`scripts/make_equinox.py` and its like), beside what is in them: every tensor is
//! what Python saved, and damaged files are refused.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{client, data, read_tensors};
use safejax::format::{Format, sniff};
use safejax::{Checkpoint, LoadOptions, Params, Program};

/// The directories of files, with the format and the ending of those in it that are checkpoints.
const DIRECTORIES: [(&str, Format, &str); 1] = [("equinox", Format::Equinox, "eqx")];

/// The files, each beside what is in it.
fn files() -> Vec<(PathBuf, Format)> {
    let mut files = Vec::new();
    for (directory, format, ending) in DIRECTORIES {
        let before = files.len();
        let paths = common::files(&data(directory)).into_keys().map(|path| data(directory).join(path));
        files.extend(
            paths.filter(|path| path.extension().is_some_and(|end| end == ending)).map(|path| (path, format)),
        );
        assert!(files.len() > before, "{directory}");
    }
    files
}

/// What each tensor is.
fn contents(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let bytes = |name: &String| {
        checkpoint.array(name).unwrap_or_else(|error| panic!("{name}: {error}")).bytes().to_vec()
    };
    checkpoint.tensors().iter().map(|tensor| (tensor.name.clone(), bytes(&tensor.name))).collect()
}

#[test]
fn every_tensor_is_what_python_saved() {
    for (path, format) in files() {
        let what = path.display();
        assert_eq!(sniff(&path).unwrap(), Some(format), "{what}");
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(checkpoint.format(), format, "{what}");
        let expected = read_tensors(&std::fs::read(path.with_extension("safetensors")).unwrap());
        let found = contents(&checkpoint);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
        for (name, bytes) in found {
            assert_eq!(bytes, expected[&name], "{what}: {name}");
        }
    }
}

#[test]
fn they_go_to_a_device_as_a_host_reads_them() {
    for (path, _) in files() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (params, _) = Params::load_with(client(), &path, &LoadOptions::default()).unwrap();
        for (name, array) in params.iter() {
            assert_eq!(
                array.to_host().unwrap(),
                checkpoint.array(name).unwrap(),
                "{}: {name}",
                path.display()
            );
        }
        assert_eq!(params.len(), checkpoint.tensors().len());
    }
}

/// Opens bytes as a file of this name, and reads all of it.
fn read(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), safejax::Error> {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&path)?;
    checkpoint.tensors().iter().try_for_each(|tensor| checkpoint.read(&tensor.name).map(drop))
}

#[test]
fn what_is_cut_off_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (path, _) in files() {
        let whole = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        for end in (0..whole.len()).step_by(whole.len().div_ceil(100)) {
            // An Equinox file has no end but its own: one that ends between two arrays is whole.
            let _ = read(directory.path(), name, &whole[..end]);
        }
        let error = read(directory.path(), name, &whole[..whole.len() - 1]).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_is_damaged_is_refused_or_no_matter() {
    let directory = tempfile::tempdir().unwrap();
    for (path, _) in files() {
        let whole = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        for at in (0..whole.len()).step_by(whole.len().div_ceil(300)) {
            for value in [0, 0xff, whole[at] ^ 1, whole[at].wrapping_add(0x80)] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = read(directory.path(), name, &damaged);
            }
        }
    }
}

#[test]
fn leaves_without_names_are_loaded_for_a_function() {
    let at = |name: &str| data("equinox").join(name);
    let function = client().compile(&Program::open(at("mlp.jaxexport")).unwrap()).unwrap();
    let (params, _) = Params::load_for(&function, 0, at("mlp.eqx"), &LoadOptions::default()).unwrap();
    assert_eq!(params.iter().next().unwrap().0, "layer_0.a_weight");
}

#[test]
fn the_first_line_of_a_model_is_kept() {
    let checkpoint = Checkpoint::open(data("equinox").join("bfloat16.eqx")).unwrap();
    assert_eq!(checkpoint.metadata()["equinox.first_line"], r#"{"depth": 12, "dtype": "bfloat16"}"#);
    assert_eq!(checkpoint.tensor("0").unwrap().spec.to_string(), "bfloat16[8,4]");
}
