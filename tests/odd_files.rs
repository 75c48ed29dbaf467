//! What files of other libraries have beside arrays, or where nothing looks for them: it is told of, or the file is refused, and
//! nothing is lost without a word. The files are by `scripts/make_hdf5.py` and its like.

mod common;

use std::path::{Path, PathBuf};

use common::data;
use safejax::Checkpoint;
use safejax::load::Selection;

/// What is wrong with a file, read whole.
#[track_caller]
fn problem(path: &Path) -> String {
    problem_without(path, &[])
}

/// The same, without what has these names.
#[track_caller]
fn problem_without(path: &Path, excluded: &[&str]) -> String {
    let error = read_without(path, excluded).expect_err(&path.display().to_string());
    format!("{:#}", anyhow::Error::new(error))
}

/// The names of what is read without what has these names.
fn read_without(path: &Path, excluded: &[&str]) -> Result<Vec<String>, safejax::Error> {
    let options = excluded.iter().fold(Selection::default(), |options, name| options.exclude(*name));
    let source = safejax::convert::open(path, &options)?;
    source.to_host()?;
    Ok(source.keys().leaves().iter().map(|leaf| leaf.name.clone()).collect())
}

/// What of a file is left out with no more than a warning: the names, and why.
fn left_out(path: &Path) -> Vec<String> {
    let checkpoint = Checkpoint::open(path).unwrap();
    checkpoint.left_out().iter().map(|part| format!("{}: {}", part.name, part.why)).collect()
}

#[track_caller]
fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "`{part}` is not in: {text}");
}

/// A copy under another name, for formats that are told by it.
fn renamed(directory: &Path, from: &str, to: &str) -> PathBuf {
    let path = directory.join(to);
    std::fs::copy(data(from), &path).unwrap();
    path
}

#[test]
fn what_of_hdf5_is_no_array_or_elsewhere_is_told_of() {
    let path = data("hdf5/odd.hdf5");
    assert_contains(&problem(&path), "`packed`: it is compressed with lzf");
    assert_eq!(read_without(&path, &["packed"]).unwrap(), ["w"]);
    let told = left_out(&path).join("\n");
    assert_contains(&told, "empty: it is empty");
    assert_contains(&told, "twenty_bits: its elements are integers of 20 bits within 4 bytes");
    assert_contains(&problem(&data("hdf5/virtual.hdf5")), "child 'virtual' at 0x1078 is virtual");
    assert_contains(&problem(&data("hdf5/linked.hdf5")), "a link to the file `odd.hdf5`");
}

#[test]
fn what_of_onnx_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = renamed(directory.path(), "onnx/odd.bin", "odd.onnx");
    let refused = [
        ("other field", "its elements of type float32 are in field 5, which is of others"),
        ("too large", "it has an element 128, which is none of type int8"),
        ("neither", "it has an element 2, which is none of type bool"),
        ("sparse constant", "it is sparse"),
        ("sparse weight", "it is sparse"),
    ];
    for (name, why) in refused {
        let others: Vec<&str> =
            refused.iter().map(|(name, _)| *name).filter(|other| *other != name).collect();
        assert_contains(&problem_without(&path, &others), &format!("`{name}`: {why}"));
    }
    let names = refused.map(|(name, _)| name);
    assert_eq!(read_without(&path, &names).unwrap(), ["int4", "uint4"]);
    // Three elements in two bytes, and four in two.
    let checkpoint = Checkpoint::open(&path).unwrap();
    let elements = |name| checkpoint.array(name).unwrap().bytes().to_vec();
    let nibble = |value: i8| value as u8 & 0xf;
    assert_eq!(elements("int4").len(), 3);
    assert!(elements("int4").iter().all(|&element| nibble(element as i8) == element));
    assert_eq!(elements("uint4").len(), 4);
}

#[cfg(unix)]
#[test]
fn weights_in_a_linked_directory_are_outside_of_the_models() {
    let directory = tempfile::tempdir().unwrap();
    let (model, elsewhere) = (directory.path().join("model"), directory.path().join("elsewhere"));
    std::fs::create_dir(&model).unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::copy(data("onnx/beside.weights"), elsewhere.join("weights")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, model.join("beside")).unwrap();
    // A name of the same length, through the link.
    let mut content = std::fs::read(data("onnx/beside.onnx")).unwrap();
    while let Some(place) = content.windows(14).position(|text| text == b"beside.weights") {
        content[place..place + 14].copy_from_slice(b"beside/weights");
    }
    std::fs::write(model.join("model.onnx"), content).unwrap();
    assert_contains(&problem(&model.join("model.onnx")), "beside");
}

#[test]
fn attributes_and_modules_of_pytorch_are_told_of() {
    for name in ["attributes.pt", "legacy_attributes.pt"] {
        let path = data("pytorch").join(name);
        let why = "there are arrays among them, which are not read";
        assert_eq!(
            left_out(&path),
            ["parameter", "tensor"].map(|name| format!("the attributes of {name}: {why}")),
            "{name}"
        );
        assert_eq!(read_without(&path, &[]).unwrap(), ["parameter", "plain", "tensor"]);
    }
    let path = data("pytorch/legacy_module.pt");
    assert_eq!(read_without(&path, &[]).unwrap(), ["w"]);
    assert_contains(&left_out(&path)[0], "module: it is an object of make_pytorch.Gate");
    assert_contains(&left_out(&data("pytorch/frozen.jit"))[0], "2 constants of the program are not read");
}

#[test]
fn arrays_in_objects_of_pickles_are_refused_unless_they_are_left_out() {
    let refused = [("layers", "models.Layers"), ("masked", "numpy.ma"), ("objects", "Python objects")];
    for (name, class) in refused {
        let path = data("pickles").join(format!("{name}.refused"));
        let problem = problem(&path);
        assert_contains(&problem, &format!("['{name}'] is an object of"));
        assert_contains(&problem, class);
        assert_eq!(read_without(&path, &[name]).unwrap(), ["w"], "{name}");
    }
}

#[test]
fn what_follows_an_arrow_stream_or_is_missing_of_it_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stream.arrow");
    let stream = std::fs::read(data("arrow/stream.arrow")).unwrap();
    std::fs::write(&path, [&stream[..], &stream].concat()).unwrap();
    assert_contains(&left_out(&path).join("\n"), &format!("{} bytes follow the end", stream.len()));
    // Without its last eight bytes, the mark of the end.
    std::fs::write(&path, &stream[..stream.len() - 8]).unwrap();
    assert_contains(&left_out(&path).join("\n"), "no mark of its end");
    assert!(!left_out(&data("arrow/stream.arrow")).join("\n").contains("the rest of the file"));
    let tensors = Checkpoint::open(data("arrow/tensors.arrow")).unwrap();
    assert!(tensors.left_out().is_empty());
}

#[test]
fn batches_of_arrow_expand_within_one_bound() {
    assert_contains(&problem(&data("arrow/expanding.feather")), "it would expand from 26376 to");
}

#[test]
fn names_of_gguf_are_text() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let whole = std::fs::read(data("gguf/quantised.bin")).unwrap();
    let mut changed = whole.clone();
    let place = whole.windows(5).position(|text| text == b"blk.2").unwrap();
    changed[place] = 0xff;
    std::fs::write(&path, &changed).unwrap();
    assert_contains(&problem(&path), "its name is not UTF-8");
    let mut version = whole;
    version[4..8].fill(0);
    std::fs::write(&path, &version).unwrap();
    assert_contains(&problem(&path), "its version is 0");
}
