//! Checkpoints to a real device and back: every dtype, both ways in, the layout on the way out.

mod common;

use std::collections::BTreeMap;

use common::{Only, client, digits, is_cpu, is_skipped, official_file};
use safejax::load::Sharing;
use safejax::{ArraySpec, Checkpoint, DType, LoadOptions, Params};

/// The types that safetensors and PJRT both have.
fn shared_dtypes() -> impl Iterator<Item = DType> {
    DType::all().filter(|dtype| dtype.safetensors_name().is_some() && dtype.to_pjrt().is_some())
}

fn write(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn every_shared_dtype_goes_to_the_device_and_back_bit_for_bit() {
    let shapes: [&[usize]; 4] = [&[2], &[3, 4], &[0, 5], &[4, 1, 2]];
    for dtype in shared_dtypes() {
        let names: Vec<String> = (0..shapes.len()).map(|index| format!("t{index}")).collect();
        let tensors: Vec<(&str, DType, &[usize])> =
            names.iter().zip(shapes).map(|(name, shape)| (name.as_str(), dtype, shape)).collect();
        let file = write(&official_file(&tensors));
        let params = Params::load(client(), file.path()).unwrap();
        params.wait().unwrap_or_else(|error| panic!("{dtype}: {error}"));
        let copy = safejax::serialize(&params).unwrap();
        let (before, after) = (Checkpoint::open(file.path()).unwrap(), Checkpoint::from_bytes(copy).unwrap());
        for (name, _, shape) in tensors {
            let (old, new) = (before.tensor(name).unwrap(), after.tensor(name).unwrap());
            assert_eq!(new.spec, ArraySpec::new(dtype, shape));
            assert_eq!(
                before.bytes(&old.name).unwrap(),
                after.bytes(&new.name).unwrap(),
                "{dtype} {shape:?}"
            );
        }
    }
}

#[test]
fn scalars_keep_their_shape() {
    let file = write(&official_file(&[("step", DType::I64, &[]), ("scale", DType::BF16, &[])]));
    let params = Params::load(client(), file.path()).unwrap();
    assert_eq!(params.get("step").unwrap().spec().to_string(), "int64[]");
    let bytes = safejax::serialize(&params).unwrap();
    let again = safejax::deserialize(client(), &bytes).unwrap();
    assert_eq!(again.get("scale").unwrap().to_vec::<half::bf16>().unwrap().len(), 1);
}

#[test]
fn a_dtype_that_pjrt_does_not_have_is_an_error_with_the_tensors_name() {
    let file = write(&official_file(&[("mx.weight", DType::F6E2M3FN, &[4])]));
    let error = Params::load(client(), file.path()).unwrap_err();
    assert_eq!(error.to_string(), "tensor `mx.weight`");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "PJRT cannot hold elements of type float6_e2m3fn");
}

#[test]
fn what_we_write_is_used_in_place_when_it_is_loaded_again() {
    if is_skipped(Only::Cpu, "only the CPU uses files in place") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let ours = directory.path().join("ours.safetensors");
    let options = LoadOptions::default();
    let (params, report) = Params::load_with(client(), digits("params.safetensors"), &options).unwrap();
    assert!(report.copied_tensors > 0, "the official writer does not align: {report:?}");
    params.save(&ours).unwrap();
    let (again, report) = Params::load_with(client(), &ours, &options).unwrap();
    // All but the last, whose 40 bytes follow others of no multiple of 64.
    assert!(report.copied_tensors <= 1, "{report:?}");
    assert!(report.aliased_bytes * 100 > report.bytes * 99, "{report:?}");
    for ((name, a), (_, b)) in params.iter().zip(again.iter()) {
        assert_eq!(a.to_host().unwrap(), b.to_host().unwrap(), "{name}");
    }
    let (_, report) =
        Params::load_with(client(), &ours, &LoadOptions::default().sharing(Sharing::Never)).unwrap();
    assert_eq!(report.aliased_tensors, 0);
}

#[test]
fn buffers_outlive_the_file_and_the_checkpoint_that_they_came_from() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let params = Params::load(client(), digits("params.safetensors")).unwrap();
    params.save(&path).unwrap();
    let (loaded, report) = Params::load_with(client(), &path, &LoadOptions::default()).unwrap();
    assert_eq!(report.aliased_tensors > 0, is_cpu());
    // Saving over the file that is mapped replaces it, and leaves the mapped one whole.
    let zeros = Params::from_arrays([("x".into(), loaded.arrays()[0].clone())]).unwrap();
    zeros.save(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let kernel = loaded.get("params.Dense_0.kernel").unwrap().clone();
    let expected = kernel.to_host().unwrap();
    drop(loaded);
    assert_eq!(kernel.to_host().unwrap(), expected);
    assert_eq!(expected, params.get("params.Dense_0.kernel").unwrap().to_host().unwrap());
}

#[test]
fn params_go_to_the_device_and_memory_that_are_asked_for() {
    let last = client().addressable_devices().pop().unwrap();
    let options = LoadOptions::default().to(&last);
    let (params, _) = Params::load_with(client(), digits("params.safetensors"), &options).unwrap();
    assert!(params.arrays().iter().all(|buffer| buffer.device().unwrap() == last));
    let pinned = last.memory("pinned_host").unwrap();
    let moved = params.copy_to(&pinned).unwrap();
    moved.wait().unwrap();
    for (a, b) in params.arrays().iter().zip(moved.arrays()) {
        assert_eq!(b.buffer().unwrap().memory().unwrap().as_ref(), Some(&pinned));
        assert_eq!(a.to_host().unwrap(), b.to_host().unwrap());
    }
}

#[test]
fn metadata_survives_and_names_that_clash_do_not() {
    let header = r#"{"__metadata__":{"format":"flax"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let params = safejax::deserialize(client(), &common::raw_file(header, &[7])).unwrap();
    assert_eq!(params.metadata(), &BTreeMap::from([("format".to_owned(), "flax".to_owned())]));
    let copy = Checkpoint::from_bytes(safejax::serialize(&params).unwrap()).unwrap();
    assert_eq!(copy.metadata()["format"], "flax");

    let clash = official_file(&[("a", DType::U8, &[1]), ("a.b", DType::U8, &[1])]);
    let clash = Checkpoint::from_bytes(clash).unwrap();
    let plain = LoadOptions::default().framework(safejax::Framework::Plain);
    let error = Params::load_checkpoint(client(), &clash, &plain).unwrap_err().to_string();
    assert!(error.contains("`a` is a leaf, and also a node on the way to `a.b`"), "{error}");
}

#[test]
fn a_subtree_is_a_view_of_the_same_buffers() {
    let params = Params::load(client(), digits("params.safetensors")).unwrap();
    let dense = params.subtree("params.Dense_0").unwrap();
    let names: Vec<&str> = dense.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["bias", "kernel"]);
    assert!(dense.get("bias").unwrap().is_same(params.get("params.Dense_0.bias").unwrap()));
    let error = params.get("params.Dense_0.kernal").unwrap_err().to_string();
    assert_eq!(error, "there is no leaf `params.Dense_0.kernal`; did you mean `params.Dense_0.kernel`?");
}

#[test]
fn the_files_that_we_write_are_read_by_the_official_crate() {
    let params = Params::load(client(), digits("params.safetensors")).unwrap();
    let bytes = safejax::serialize(&params).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let original = std::fs::read(digits("params.safetensors")).unwrap();
    let original = safetensors::SafeTensors::deserialize(&original).unwrap();
    assert_eq!(theirs.len(), original.len());
    for (name, view) in original.tensors() {
        assert_eq!(theirs.tensor(&name).unwrap(), view);
    }
}

#[test]
fn four_bit_floats_are_packed_in_the_file_and_single_on_the_device() {
    let header = r#"{"w":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}"#;
    let params = safejax::deserialize(client(), &common::raw_file(header, &[0x21, 0x43])).unwrap();
    let host = params.get("w").unwrap().to_host().unwrap();
    let elements: Vec<u8> = host.bytes().iter().map(|byte| byte & 0xf).collect();
    assert_eq!(elements, [1, 2, 3, 4]);
    let copy = Checkpoint::from_bytes(safejax::serialize(&params).unwrap()).unwrap();
    assert_eq!(&copy.bytes("w").unwrap()[..], [0x21, 0x43]);
}

#[test]
fn an_empty_checkpoint_is_a_checkpoint() {
    let params = safejax::deserialize(client(), &common::raw_file("{}", &[])).unwrap();
    assert!(params.is_empty());
    let again = safejax::deserialize(client(), &safejax::serialize(&params).unwrap()).unwrap();
    assert_eq!(again.len(), 0);
}
