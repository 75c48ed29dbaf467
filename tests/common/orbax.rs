//! A checkpoint of Orbax beside what is in it, as scripts/make_orbax.py writes both.

use std::path::Path;

use safejax::format::{Format, sniff};
use safejax::{Checkpoint, DType};

fn bytes_of(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let bytes = checkpoint.read(name).unwrap();
    match checkpoint.tensor(name).unwrap().spec.dtype {
        DType::I4 => bytes.iter().flat_map(|pair| [pair & 15, pair >> 4]).collect(),
        _ => bytes.to_vec(),
    }
}

/// Compares the checkpoint in a case's directory with the arrays beside it.
#[track_caller]
pub fn assert_is_as_saved(case: &Path) {
    let (path, what) = (case.join("checkpoint"), case.display());
    let expected = super::read_tensors(&std::fs::read(case.join("expected.safetensors")).unwrap());
    assert_eq!(sniff(&path).unwrap(), Some(Format::Orbax), "{what}");
    let checkpoint = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(checkpoint.format(), Format::Orbax);
    assert!(checkpoint.left_out().is_empty(), "{what}: {:?}", checkpoint.left_out());
    let mut found: Vec<&String> = checkpoint.tensors().iter().map(|tensor| &tensor.name).collect();
    found.sort();
    assert_eq!(found, expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in &expected {
        assert_eq!(&bytes_of(&checkpoint, name), bytes, "{what}: {name}");
    }
}
