//! Files of other libraries, written by those (`scripts/make_equinox.py` and its like), beside what is in them: every tensor is
//! what Python saved, and damaged files are refused.

mod common;

use std::path::Path;

use common::{Only, client, data, digits, foreign, is_skipped};
use safejax::format::Format;
use safejax::{Checkpoint, LoadOptions, Params, Program};

#[test]
fn every_tensor_is_what_python_saved() {
    foreign::cases(&data("")).iter().for_each(foreign::Case::assert_is_as_saved);
}

#[test]
fn they_go_to_a_device_as_a_host_reads_them() {
    for foreign::Case { path, .. } in foreign::cases(&data("")) {
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
    check(&path)
}

#[test]
fn what_is_cut_off_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for foreign::Case { path, .. } in foreign::files(&data("")) {
        let whole = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        for end in (0..whole.len()).step_by(whole.len().div_ceil(100)) {
            // An Equinox file has no end but its own: one that ends between two arrays is whole.
            let _ = read(directory.path(), name, &whole[..end]);
        }
        // The writer of GGUF pads what follows the last tensor: a byte less is no loss.
        let missing = if name.ends_with(".gguf") { 256 } else { 1 };
        let error = read(directory.path(), name, &whole[..whole.len() - missing]).expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn what_is_damaged_is_refused_or_no_matter() {
    let directory = tempfile::tempdir().unwrap();
    for foreign::Case { path, .. } in foreign::files(&data("")) {
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

/// A copy of a case, to be damaged.
fn copy(case: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for path in common::files(&data(case).join("checkpoint")).into_keys() {
        std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    directory
}

/// Opens a path, and holds all of it against what the file records.
fn check(path: &Path) -> Result<(), safejax::Error> {
    let source = safejax::convert::open(path, &Default::default())?;
    source.to_host().map(drop)
}

/// What is said to be wrong with it.
fn problem(path: &Path) -> String {
    let error = check(path).expect_err(&path.display().to_string());
    format!("{:#}", anyhow::Error::new(error))
}

#[test]
fn checkpoints_of_tensorflow_are_found_by_any_of_their_files() {
    let origin = |path: &Path| Checkpoint::open(path).map(|found| found.origin().to_owned()).unwrap();
    let objects = data("tensorflow/objects").join("checkpoint");
    let newest = objects.join("ckpt-2.index").display().to_string();
    assert_eq!(origin(&objects), newest);
    assert_eq!(origin(&objects.join("checkpoint")), newest);
    for name in ["ckpt-2", "ckpt-2.index", "ckpt-2.data-00000-of-00001"] {
        assert_eq!(origin(&objects.join(name)), newest);
    }
    assert!(origin(&objects.join("ckpt-1")).ends_with("ckpt-1.index"));
    let model = data("tensorflow/saved_model").join("checkpoint");
    assert!(origin(&model.join("saved_model.pb")).ends_with("variables.index"));
    assert!(origin(&model.join("variables")).ends_with("variables.index"));
    let names = Checkpoint::open(&objects).unwrap();
    assert_eq!(names.metadata()["full_name.model.layers.11"], "dense_11/kernel");
    let copied = copy("tensorflow/objects");
    std::fs::remove_file(copied.path().join("checkpoint")).unwrap();
    let several = problem(copied.path());
    assert!(several.contains("ckpt-1, ckpt-2; give one of them"), "{several}");
}

#[test]
fn damaged_checkpoints_of_tensorflow_are_refused() {
    let damage = |change: &dyn Fn(&Path)| {
        let copied = copy("tensorflow/saver");
        change(copied.path());
        problem(&copied.path().join("model.ckpt-7.index"))
    };
    let index = |directory: &Path| directory.join("model.ckpt-7.index");
    let shard = |directory: &Path| directory.join("model.ckpt-7.data-00000-of-00001");
    let flip = |path: &Path, at: usize| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let missing = damage(&|directory| std::fs::remove_file(shard(directory)).unwrap());
    assert!(missing.contains("model.ckpt-7.data-00000-of-00001 is missing"), "{missing}");
    let cut = damage(&|directory| {
        let whole = std::fs::read(shard(directory)).unwrap();
        std::fs::write(shard(directory), &whole[..whole.len() - 1]).unwrap();
    });
    assert!(cut.contains("ends at byte 207"), "{cut}");
    let entry = damage(&|directory| flip(&index(directory), 10));
    assert!(entry.contains("checksum of its block at byte 0 differs"), "{entry}");
    let value = damage(&|directory| flip(&shard(directory), 100));
    assert!(value.contains("CRC-32C"), "{value}");
    let footer = damage(&|directory| {
        let whole = std::fs::read(index(directory)).unwrap();
        std::fs::write(index(directory), &whole[..whole.len() - 1]).unwrap();
    });
    assert!(footer.contains("missing beside it or damaged"), "{footer}");
    for at in 0..std::fs::read(index(&data("tensorflow/saver").join("checkpoint"))).unwrap().len() {
        let copied = copy("tensorflow/saver");
        flip(&index(copied.path()), at);
        // What is not used can be anything.
        let _ = check(&index(copied.path()));
    }
}

#[test]
fn quantised_tensors_are_refused_by_name_and_the_others_are_there() {
    let path = data("gguf").join("quantised.bin");
    let refused = problem(&path);
    assert!(refused.contains("`blk.2.ffn.weight`: it is quantised (Q8_0)"), "{refused}");
    let options = LoadOptions::default().exclude("blk.2.*");
    let (params, _) = Params::load_with(client(), &path, &options).unwrap();
    assert_eq!(params.len(), 10);
    let metadata = Checkpoint::open(&path).unwrap().metadata().clone();
    let found = ["general.name", "llama.block_count", "llama.negative", "llama.is_small", "llama.rope"]
        .map(|key| metadata[key].as_str());
    assert_eq!(found, ["a model", "2", "-7", "true", "0.5"]);
}

#[test]
fn weights_beside_a_model_are_within_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("model");
    std::fs::create_dir(&inner).unwrap();
    let (model, weights) = (inner.join("beside.onnx"), inner.join("beside.weights"));
    std::fs::copy(data("onnx").join("beside.weights"), &weights).unwrap();
    let content = std::fs::read(data("onnx").join("beside.onnx")).unwrap();
    std::fs::write(&model, &content).unwrap();
    check(&model).unwrap();
    // A name of the same length that leads out of the directory.
    let place = content.windows(14).position(|text| text == b"beside.weights").unwrap();
    let mut leading_out = content.clone();
    leading_out[place..place + 14].copy_from_slice(b"../out.weights");
    std::fs::copy(&weights, directory.path().join("out.weights")).unwrap();
    std::fs::write(&model, &leading_out).unwrap();
    let outside = problem(&model);
    assert!(outside.contains("which is not within its directory"), "{outside}");
    std::fs::write(&model, &content).unwrap();
    std::fs::remove_file(&weights).unwrap();
    let missing = problem(&model);
    assert!(missing.contains("beside.weights is missing"), "{missing}");
}

#[test]
fn columns_that_are_no_arrays_are_left_out_or_refused() {
    let table = Checkpoint::open(data("arrow").join("file.arrow")).unwrap();
    let left_out: Vec<&str> = table.left_out().iter().map(|part| part.name.as_str()).collect();
    assert_eq!(left_out, ["texts", "views", "words"]);
    assert_eq!(table.metadata()["author"], "nobody");
    let odd = data("arrow").join("odd.feather");
    assert!(problem(&odd).contains("`missing`: 1 of its values are missing"), "{}", problem(&odd));
    let options = LoadOptions::default().exclude("missing").exclude("ragged*");
    let (params, _) = Params::load_with(client(), &odd, &options).unwrap();
    assert_eq!(params.len(), 1);
}

#[test]
fn what_paddle_saved_is_a_pickle() {
    let (path, expected) = (data("paddle/layer.pdparams"), data("paddle/layer.safetensors"));
    foreign::Case { path, format: Format::Pickle, expected }.assert_is_as_saved();
}

/// Rows of the tables in docs/formats.md, each with tensors of a file of that format: all that match.
const ROWS: [(&str, &str, &str); 23] = [
    ("pickle (PyTorch's zip)", "pytorch/types.pt", "*"),
    ("H5 (Keras)", "hdf5/weights.weights.h5", "*"),
    ("SavedModel (TensorFlow)", "tensorflow/saved_model/checkpoint", "*"),
    ("MsgPack (Flax)", "written.msgpack", "*"),
    ("Protobuf (ONNX)", "onnx/inside.onnx", "*"),
    ("Arrow", "arrow/tensors.arrow", "*"),
    ("NumPy (npy, npz)", "written.npz", "*"),
    ("pdparams (Paddle)", "paddle/layer.pdparams", "*"),
    ("safetensors", "shared.safetensors", "*"),
    ("**safetensors as written here**", "written.safetensors", "*"),
    ("pickles (NumPy's, JAX's, joblib's)", "pickles/haiku.pkl", "*"),
    ("PyTorch's zip files, deflated", "pytorch/deflated.pt", "*"),
    ("PyTorch's files from before 1.6", "pytorch/legacy.pt", "*"),
    ("npz, deflated", "orders/deflated.npz", "*"),
    ("Orbax, uncompressed", "orbax/uncompressed/checkpoint", "*"),
    ("Orbax, compressed", "orbax/default/checkpoint", "*"),
    ("Equinox", "equinox/mlp.eqx", "*"),
    ("HDF5, in one piece", "hdf5/whole.h5", "*"),
    ("HDF5, in chunks", "hdf5/latest.h5", "*deflated"),
    ("Keras's `.keras`", "hdf5/archive.keras", "*"),
    ("ONNX, weights beside the model", "onnx/beside.onnx", "*"),
    ("GGUF, aligned to 64", "gguf/aligned.gguf", "*"),
    ("Arrow, compressed, which is expanded when it is opened", "arrow/zstd.arrow", "*"),
];

#[test]
fn each_format_gets_onto_the_device_as_the_documentation_says() {
    if is_skipped(Only::Cpu, "other devices copy everything") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = safejax::convert::open(digits("params.safetensors"), &Default::default()).unwrap();
    for name in ["written.safetensors", "written.msgpack", "written.npz"] {
        safejax::convert::convert(&source, &directory.path().join(name), &Default::default()).unwrap();
    }
    let mut wrong = Vec::new();
    let documentation = include_str!("../docs/formats.md");
    for (format, name, pattern) in ROWS {
        let row = format!("| {format} |");
        let row =
            documentation.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("{row}"));
        let says = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        let written = directory.path().join(name);
        let path = if written.exists() { written } else { data(name) };
        let options = LoadOptions::default().include(pattern);
        let (_, report) = Params::load_with(client(), &path, &options).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let is_plain = checkpoint.tensors().iter().any(|tensor| tensor.is_plain());
        let found = match (report.aliased_tensors, report.copied_tensors) {
            (_, 0) => "in place",
            (0, _) if pattern == "*" && is_plain => "one copy",
            (0, _) => "expanded",
            _ => "in place where aligned",
        };
        if found != says {
            wrong.push(format!("{format}: {found}, and not {says}: {report}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
