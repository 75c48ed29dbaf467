//! The feature `xla`, on the `xla` crate's own CPU client: the same files, plan, checks and errors as on safejax's.

mod common;

use std::error::Error as _;
use std::path::Path;
use std::sync::LazyLock;

use common::official_file;
use safejax::SaveOptions;
use safejax::load::{Staging, Verification};
use safejax::save::Digests;
use safejax::store::Io;
use safejax::xla_rs::{XlaBuffer, XlaParams, from_element_type, to_element_type};
use safejax::{
    Blame, CancelToken, Checkpoint, DType, DeviceArray, Error, Framework, LoadOptions, Monitor, Placement,
    Tree, TreeDef,
};
use xla::{ElementType, PjRtBuffer, PjRtClient, XlaBuilder};

fn client() -> &'static PjRtClient {
    static CLIENT: LazyLock<PjRtClient> = LazyLock::new(|| PjRtClient::cpu().unwrap());
    &CLIENT
}

/// The elements of a buffer, one byte or more each.
fn bytes(buffer: &PjRtBuffer) -> Vec<u8> {
    let literal = buffer.to_literal_sync().unwrap();
    let mut bytes = vec![0; literal.size_bytes()];
    literal.copy_untyped_to(&mut bytes).unwrap();
    bytes
}

/// A tensor of every type that both safetensors and the crate have, some without elements, and one that is larger than
/// the smallest staging chunk.
fn every_type() -> Vec<(String, DType, Vec<usize>)> {
    let has_both = |dtype: &DType| dtype.safetensors_name().is_some() && to_element_type(*dtype).is_ok();
    let mut tensors: Vec<_> = DType::all()
        .filter(has_both)
        .map(|dtype| (format!("types.{}", dtype.name()), dtype, vec![3, 4]))
        .collect();
    tensors.push(("empty".into(), DType::BF16, vec![0, 5]));
    tensors.push(("large".into(), DType::F32, vec![300, 401]));
    tensors.push(("scalar".into(), DType::F64, vec![]));
    // All of the crate's but complex128, which safetensors does not have.
    assert_eq!(tensors.len(), 18 + 3);
    tensors
}

fn file(directory: &Path, tensors: &[(String, DType, Vec<usize>)]) -> std::path::PathBuf {
    let path = directory.join("file.safetensors");
    let tensors: Vec<_> =
        tensors.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice())).collect();
    std::fs::write(&path, official_file(&tensors)).unwrap();
    path
}

#[test]
fn every_type_is_loaded_and_saved_bit_for_bit_by_every_way_of_reading() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), &every_type());
    let original = Checkpoint::open(&path).unwrap();
    for io in [Io::Auto, Io::Mapped, Io::Positional] {
        let options = LoadOptions::default().io(io).staging(Staging::new(2, 64 << 10)).threads(3);
        let (params, report) = XlaParams::load_with(client(), None, &path, &options).unwrap();
        assert_eq!((params.len(), report.aliased_tensors), (original.tensors().len(), 0));
        for (name, buffer) in params.iter() {
            let spec = buffer.spec();
            let stored = original.tensor(name).unwrap();
            assert_eq!(&stored.spec, spec);
            let found = bytes(buffer);
            if spec.dtype.is_sub_byte() {
                assert_eq!(found.len(), spec.element_count().unwrap());
            } else {
                assert_eq!(found, original.bytes(name).unwrap(), "{name}");
            }
        }
        let copy = directory.path().join("copy.safetensors");
        params.save(&copy).unwrap();
        let copy = Checkpoint::open(&copy).unwrap();
        assert_eq!(copy.tensors().len(), original.tensors().len());
        for tensor in original.tensors() {
            assert_eq!(copy.bytes(&tensor.name).unwrap(), original.bytes(&tensor.name).unwrap());
            assert_eq!(copy.tensor(&tensor.name).unwrap().spec, tensor.spec);
        }
        let again = Checkpoint::from_bytes(params.serialize().unwrap()).unwrap();
        assert_eq!(again.tensors(), copy.tensors());
    }
}

#[test]
fn what_the_crate_cannot_hold_is_an_error_that_names_the_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let tensors =
        [("w".to_owned(), DType::F32, vec![2]), ("odd".to_owned(), DType::F8E4M3FNUZ, vec![8, 1024])];
    let path = file(directory.path(), &tensors);
    let error = XlaParams::load(client(), &path).unwrap_err();
    assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor == "odd"), "{error}");
    assert_eq!(error.blame(), Blame::Caller);
    let source = error.source().unwrap().to_string();
    assert_eq!(source, "the xla crate cannot hold elements of type float8_e4m3fnuz");
    let only = LoadOptions::default().include("w");
    assert_eq!(XlaParams::load_with(client(), None, &path, &only).unwrap().0.len(), 1);

    let missing = XlaParams::load(client(), directory.path().join("none.safetensors")).unwrap_err();
    assert!(missing.to_string().contains("cannot open"), "{missing}");
    let cut = directory.path().join("cut.safetensors");
    std::fs::write(&cut, &std::fs::read(&path).unwrap()[..100]).unwrap();
    assert_eq!(XlaParams::load(client(), &cut).unwrap_err().blame(), Blame::File);
    // Nothing to read, and more than XLA can count.
    let huge = directory.path().join("huge.safetensors");
    let header = r#"{"w":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}}"#;
    std::fs::write(&huge, common::raw_file(header, &[])).unwrap();
    let error = XlaParams::load(client(), &huge).unwrap_err();
    assert!(error.source().unwrap().to_string().contains("is larger than any memory"), "{error}");
    let placed = LoadOptions::default().to(Placement::from(&common::client().device(0).unwrap()));
    let error = XlaParams::load_with(client(), None, &path, &placed).unwrap_err().to_string();
    assert!(error.contains("give the xla crate's device to XlaParams::load_with"), "{error}");
}

#[test]
fn casts_names_digests_and_monitors_work_as_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = [
        ("params.Dense_0.kernel".to_owned(), DType::F32, vec![64, 33]),
        ("params.Dense_0.bias".to_owned(), DType::F32, vec![33]),
        ("step".to_owned(), DType::I32, vec![]),
    ];
    let path = file(directory.path(), &tensors);
    let options = LoadOptions::default().dtype("*kernel", DType::BF16).rename("params.", "model.");
    let (params, report) = XlaParams::load_with(client(), None, &path, &options).unwrap();
    assert_eq!(report.cast_tensors, 1);
    let names: Vec<&str> = params.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["model.Dense_0.bias", "model.Dense_0.kernel", "step"]);
    assert_eq!(params.arrays()[1].spec().dtype, DType::BF16);
    assert_eq!(params.framework(), Framework::Flax);
    assert!(params.get("model.Dense_0").is_err());
    let error = params.in_order(["step", "model.Dense_0.kernal"]).err().unwrap().to_string();
    assert!(error.contains("did you mean `model.Dense_0.kernel`"), "{error}");
    assert_eq!(params.in_order(["step", "step"]).unwrap().len(), 2);

    // TreeToSave with digests and a cast back, then damaged.
    let saved = directory.path().join("saved.safetensors");
    params.save_with(&saved, &SaveOptions::default().digests(Digests::Sha256).dtype(DType::F32)).unwrap();
    let checks = LoadOptions::default().verification(Verification::Digests);
    let (again, _) = XlaParams::load_with(client(), None, &saved, &checks).unwrap();
    assert_eq!(again.arrays()[1].spec().dtype, DType::F32);
    let mut damaged = std::fs::read(&saved).unwrap();
    let start =
        Checkpoint::open(&saved).unwrap().tensor("model.Dense_0.kernel").unwrap().extents()[0].range.start;
    damaged[start] ^= 1;
    std::fs::write(&saved, damaged).unwrap();
    for io in [Io::Mapped, Io::Positional] {
        let error = XlaParams::load_with(client(), None, &saved, &checks.clone().io(io)).unwrap_err();
        assert!(
            matches!(&error, Error::Tensor { tensor, .. } if tensor == "model.Dense_0.kernel"),
            "{error}"
        );
    }
    let token = CancelToken::default();
    token.cancel();
    let cancelled = LoadOptions::default().monitor(Monitor::default().cancel(&token));
    let error = XlaParams::load_with(client(), None, &path, &cancelled).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}

#[test]
fn trees_keep_their_structure_and_computations_take_their_leaves() {
    let upload = |values: &[f32], dims: &[usize]| {
        XlaBuffer::new(client().buffer_from_host_buffer(values, dims, None).unwrap()).unwrap()
    };
    let layer = || TreeDef::dict([("w".into(), TreeDef::LEAF), ("b".into(), TreeDef::LEAF)]).unwrap();
    let def = TreeDef::Tuple(vec![TreeDef::List(vec![layer()]), TreeDef::None]);
    let tree = Tree::unflatten(def.clone(), [upload(&[0.5, -1.0], &[2]), upload(&[1., 2., 3., 4.], &[2, 2])]);
    let params = XlaParams::from_tree(tree.unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tree.safetensors");
    params.save(&path).unwrap();
    let params = XlaParams::load(client(), &path).unwrap();
    assert_eq!(params.keys().def(), &def);

    let builder = XlaBuilder::new("layer");
    let x = builder.parameter(0, ElementType::F32, &[1, 2], "x").unwrap();
    let leaves = params.declare(&builder, 1).unwrap();
    let bias = leaves["0.0.b"].broadcast_in_dim(&[1, 2], &[1]).unwrap();
    let y = (x.matmul(&leaves["0.0.w"]).unwrap() + bias).unwrap();
    let executable = client().compile(&y.build().unwrap()).unwrap();
    let x = upload(&[1.0, 10.0], &[1, 2]);
    let arguments: Vec<&XlaBuffer> = [&x].into_iter().chain(params.arrays()).collect();
    let outputs = executable.execute_b(&arguments).unwrap().remove(0);
    let named = outputs.into_iter().map(|buffer| ("y".to_owned(), XlaBuffer::new(buffer).unwrap()));
    let outputs = XlaParams::from_arrays(named).unwrap();
    let y: Vec<f32> = outputs.get("y").unwrap().to_literal_sync().unwrap().to_vec().unwrap();
    assert_eq!(y, [31.5, 41.0]);
    let odd = ("a\0b".to_owned(), upload(&[1.0], &[1]));
    let error = XlaParams::from_arrays([odd]).unwrap().declare(&builder, 0).err().unwrap();
    assert!(error.source().unwrap().to_string().contains("cannot hold a NUL byte"), "{error}");
    let layer = params.subtree("0.0").unwrap();
    let (left, taken) = layer.partition(|name, _| name.ends_with('w')).unwrap();
    assert_eq!((left.len(), taken.len(), left.merge(&taken).unwrap().len()), (1, 1, 2));
}

#[test]
fn a_load_goes_to_the_device_that_was_asked_for() {
    const CHILD: &str = "SAFEJAX_TEST_XLA_DEVICES";
    let name = "a_load_goes_to_the_device_that_was_asked_for";
    if std::env::var_os(CHILD).is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name]).env(CHILD, "1");
        common::succeeds(command.env("XLA_FLAGS", "--xla_force_host_platform_device_count=3"));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), &every_type());
    let devices = client().addressable_devices();
    assert_eq!(devices.len(), 3);
    let builder = XlaBuilder::new("identity");
    let x = builder.parameter(0, ElementType::F32, &[300, 401], "x").unwrap();
    // Compiled for the first device.
    let identity = client().compile(&x.build().unwrap()).unwrap();
    for (position, device) in devices.iter().enumerate() {
        let (params, _) =
            XlaParams::load_with(client(), Some(device), &path, &LoadOptions::default()).unwrap();
        let run = identity.execute_b(&[params.get("large").unwrap()]);
        assert_eq!(run.is_ok(), position == 0, "on device {position}");
        assert_eq!(bytes(params.get("large").unwrap()), common::counting(300 * 401 * 4));
    }
    assert_eq!(from_element_type(ElementType::Bf16), DType::BF16);
}
