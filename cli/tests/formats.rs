//! Checkpoints of every format, straight to a device, and those in several files.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::{client, data, digits, fails, safejax, succeeds};
use safejax::load::{Delivery, Verification};
use safejax::{Checkpoint, HostArray, LoadOptions, Params};

/// The arrays of a checkpoint after they were on a device, by their names: type, shape and bytes.
fn through_a_device(path: &Path, options: &LoadOptions) -> Vec<(String, String, Vec<u8>)> {
    let (params, report) = Params::load_with(client(), path, options).unwrap();
    assert_eq!(report.tensors, params.len());
    let array = |(name, buffer): (&str, &safejax::Array)| {
        let array = buffer.to_host().unwrap();
        (name.to_owned(), array.spec().to_string(), array.bytes().to_vec())
    };
    let mut arrays: Vec<_> = params.iter().map(array).collect();
    arrays.sort();
    arrays
}

/// The ways in which bytes get to a device.
fn deliveries() -> [LoadOptions; 4] {
    let options = LoadOptions::default;
    [
        options(),
        options().sharing(safejax::load::Sharing::Never),
        options().delivery(Delivery::Stream),
        options().delivery(Delivery::Whole).threads(2),
    ]
}

#[test]
fn every_format_goes_to_a_device_in_every_way() {
    let directory = tempfile::tempdir().unwrap();
    let original = digits("params.safetensors");
    let expected = through_a_device(&original, &LoadOptions::default());
    for ending in ["msgpack", "npz"] {
        let path = directory.path().join(format!("params.{ending}"));
        succeeds(safejax().arg("convert").args([&original, &path]));
        for options in deliveries() {
            assert_eq!(through_a_device(&path, &options), expected, "{ending} {options:?}");
        }
    }
    for entry in std::fs::read_dir(data("pickles")).unwrap() {
        let path = entry.unwrap().path();
        let twin = path.with_extension("safetensors");
        if path.extension().is_some_and(|ending| ending == "pkl") && twin.exists() {
            // What is left out of the pickle, and what has no place on a device, is for other tests.
            let Ok(params) = Params::load(client(), &path) else { continue };
            params.wait().unwrap();
            for options in deliveries() {
                let host = safejax::convert::open(&path, &Default::default()).unwrap().to_host().unwrap();
                let (loaded, _) = Params::load_with(client(), &path, &options).unwrap();
                assert_eq!(loaded.to_host().unwrap(), host, "{}", path.display());
            }
        }
    }
}

#[test]
fn checkpoints_of_pytorch_are_what_pytorch_reads() {
    for (name, twin) in [
        ("state_dict", "state_dict"),
        ("views", "views"),
        ("deflated", "views"),
        ("types", "types"),
        ("legacy", "legacy"),
    ] {
        let file = |name: &str, ending: &str| data(&format!("pytorch/{name}.{ending}"));
        let expected = through_a_device(&file(twin, "safetensors"), &LoadOptions::default());
        for options in deliveries() {
            assert_eq!(through_a_device(&file(name, "pt"), &options), expected, "{name}");
        }
        let checkpoint = Checkpoint::open(file(name, "pt")).unwrap();
        let original = Checkpoint::open(file(twin, "safetensors")).unwrap();
        for tensor in original.tensors() {
            assert_eq!(checkpoint.read(&tensor.name).unwrap(), original.bytes(&tensor.name).unwrap());
            assert_eq!(checkpoint.bytes(&tensor.name).unwrap(), original.bytes(&tensor.name).unwrap());
        }
    }
}

#[test]
fn what_of_pytorch_is_no_tensor_is_kept_or_refused_by_name() {
    let training = safejax::convert::open(data("pytorch/training.pt"), &Default::default()).unwrap();
    let tree = "{'array': *, 'epoch': *, 'lr': *, 'model': {'layer.weight': *}, 'name': \"run\"}";
    assert_eq!(training.keys().def().to_string(), tree);
    let odd = data("pytorch/odd.pt");
    let error = fails(safejax().arg("inspect").arg(&odd));
    assert!(error.contains("['sparse'] is an object of torch"), "{error}");
    let only = LoadOptions::default().include("weight");
    assert_eq!(Params::load_with(client(), &odd, &only).unwrap().0.len(), 1);
    // What has no arrays in it is no loss.
    let config = through_a_device(&data("pytorch/config.pt"), &LoadOptions::default());
    assert_eq!(config.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["weight"]);
    let checkpoint = Checkpoint::open(data("pytorch/config.pt")).unwrap();
    let left_out = &checkpoint.left_out()[0];
    assert_eq!(left_out.name, "config");
    assert!(left_out.why.contains("argparse.Namespace, and has no arrays in it"), "{}", left_out.why);
}

#[test]
fn the_module_of_a_script_is_its_state() {
    let script = Checkpoint::open(data("pytorch/script.jit")).unwrap();
    let expected = Checkpoint::open(data("pytorch/script.safetensors")).unwrap();
    for tensor in expected.tensors() {
        assert_eq!(
            script.read(&tensor.name).unwrap(),
            expected.bytes(&tensor.name).unwrap(),
            "{}",
            tensor.name
        );
    }
    // What is not in a state_dict is no tensor of ours either.
    let names: Vec<&str> = script.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names.len(), expected.tensors().len(), "{names:?}");
}

#[test]
fn damaged_files_from_before_pytorch_1_6_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("legacy.pt");
    let whole = std::fs::read(data("pytorch/legacy.pt")).unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Checkpoint::open(&path)
            .map(|checkpoint| checkpoint.tensors().iter().map(|tensor| tensor.bytes()).sum::<usize>())
    };
    for end in 16..whole.len() {
        let error = open(&whole[..end]).expect_err(&end.to_string()).to_string();
        assert!(error.contains("legacy.pt"), "{error}");
    }
    for at in 0..whole.len() {
        for value in [0, 0xff, whole[at] ^ 1] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            let _ = open(&damaged);
        }
    }
}

#[test]
fn damage_to_what_is_compressed_or_has_a_checksum_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("damaged.pt");
    for name in ["state_dict", "deflated"] {
        let whole = std::fs::read(data(&format!("pytorch/{name}.pt"))).unwrap();
        let checkpoint = Checkpoint::open(data(&format!("pytorch/{name}.pt"))).unwrap();
        let longest = checkpoint.tensors().iter().max_by_key(|tensor| tensor.bytes()).unwrap();
        let range = longest.extents()[0].range.clone();
        let mut damaged = whole.clone();
        damaged[(range.start + range.end) / 2] ^= 0x10;
        std::fs::write(&path, damaged).unwrap();
        let output = safejax().arg("verify").arg(&path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success() && text.contains(&longest.name), "{name}: {text}");
        for length in (0..whole.len()).step_by(97) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Checkpoint::open(&path).is_err(), "{name} {length}");
        }
    }
    // Stored entries of an npz.
    let npz = directory.path().join("a.npz");
    succeeds(safejax().arg("convert").arg(digits("params.safetensors")).arg(&npz));
    let options = LoadOptions::default().verification(Verification::Digests);
    assert!(Params::load_with(client(), &npz, &options).unwrap().1.checked_tensors > 0);
    let first = Checkpoint::open(&npz).unwrap().tensors()[0].clone();
    let range = first.extents()[0].range.clone();
    let mut damaged = std::fs::read(&npz).unwrap();
    damaged[range.start] ^= 1;
    std::fs::write(&npz, damaged).unwrap();
    let error = Params::load_with(client(), &npz, &options).unwrap_err();
    assert!(error.to_string().contains(&first.name), "{error}");
}

/// The digits' parameters in two files with an index; the index's path.
fn sharded(directory: &Path) -> PathBuf {
    let mut map = serde_json::Map::new();
    for (number, pattern) in [(1, "*Conv*"), (2, "*Dense*")] {
        let name = format!("model-{number:05}-of-00002.safetensors");
        let shard = directory.join(&name);
        let mut command = safejax();
        command.arg("convert").arg(digits("params.safetensors")).arg(&shard);
        succeeds(command.args(["--include", pattern, "--digests"]));
        for tensor in Checkpoint::open(&shard).unwrap().tensors() {
            map.insert(tensor.name.clone(), name.clone().into());
        }
    }
    let index = directory.join("model.safetensors.index.json");
    let document = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(&index, document.to_string()).unwrap();
    index
}

#[test]
fn a_checkpoint_in_several_files_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let index = sharded(directory.path());
    let expected = through_a_device(&digits("params.safetensors"), &LoadOptions::default());
    let shard = directory.path().join("model-00002-of-00002.safetensors");
    for path in [&index, directory.path(), &shard] {
        for options in deliveries() {
            assert_eq!(through_a_device(path, &options.verification(Verification::Digests)), expected);
        }
        succeeds(safejax().arg("verify").arg(path));
    }
    let (_, report) = Params::load_with(client(), &index, &LoadOptions::default()).unwrap();
    assert_eq!(report.copied_tensors, report.tensors - report.aliased_tensors);
    let text = succeeds(safejax().arg("inspect").arg(directory.path()));
    assert!(text.contains("in 2 files"), "{text}");
}

#[test]
fn an_index_that_is_wrong_is_an_error_that_names_the_tensor() {
    let directory = tempfile::tempdir().unwrap();
    let index = sharded(directory.path());
    let text = std::fs::read_to_string(&index).unwrap();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let error_of = |text: String| {
        std::fs::write(&index, text).unwrap();
        Checkpoint::open(&index).unwrap_err().to_string()
    };
    let name = "params.Dense_0.bias";
    let elsewhere =
        error_of(text.replace(&format!("\"{name}\":\"{second}\""), &format!("\"{name}\":\"{first}\"")));
    assert!(
        elsewhere.contains(name) && elsewhere.contains(&format!("not in {first} but in {second}")),
        "{elsewhere}"
    );
    let nowhere = error_of(text.replace(name, "params.Dense_0.bais"));
    assert!(nowhere.contains("params.Dense_0.bais"), "{nowhere}");
    let missing = error_of(text.replace(second, "model-00003-of-00002.safetensors"));
    assert!(missing.contains("model-00003-of-00002.safetensors"), "{missing}");
    let outside = error_of(text.replace(second, "../x.safetensors"));
    assert!(outside.contains("not the name of a file beside it"), "{outside}");
    std::fs::copy(directory.path().join(first), directory.path().join(second)).unwrap();
    let twice = error_of(text);
    assert!(twice.contains("there twice"), "{twice}");
}

#[test]
fn a_selection_reads_only_its_bytes() {
    for (path, pattern) in
        [(data("pytorch/state_dict.pt"), "0.weight"), (digits("params.safetensors"), "*.bias")]
    {
        let (params, report) =
            Params::load_with(client(), &path, &LoadOptions::default().include(pattern)).unwrap();
        assert!(report.bytes < Params::load(client(), &path).unwrap().total_bytes());
        assert_eq!(report.bytes, params.total_bytes());
    }
}

#[test]
fn a_part_of_a_checkpoint_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("m.safetensors");
    let convert = |from: &std::path::Path, to: &std::path::Path, options: &[&str]| {
        let mut command = safejax();
        command.arg("convert").args([from, to]).args(options);
        command
    };
    succeeds(&mut convert(&digits("params.safetensors"), &target, &["--max-shard-size", "40kB"]));
    let before = common::files(directory.path());
    let shard = before.keys().find(|path| path.to_str().unwrap().contains("-00002-of-")).unwrap();
    let index = directory.path().join("m.safetensors.index.json");
    for (to, options) in [(shard, &[][..]), (shard, &["--max-shard-size", "40kB"]), (&index, &[])] {
        let error = fails(&mut convert(to, to, options));
        let said = "is a part of a checkpoint in several files; to replace that, give its name: ";
        assert!(error.contains(said) && error.contains("m.safetensors\n"), "{error}");
        assert!(common::files(directory.path()) == before);
    }
    // In the place of the whole, it goes.
    succeeds(&mut convert(shard, &target, &["--max-shard-size", "60kB"]));
    succeeds(safejax().arg("diff").arg(digits("params.safetensors")).arg(&index));
}

#[test]
fn a_name_that_is_as_long_as_can_be_is_written_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("n".repeat(255 - ".safetensors".len()) + ".safetensors");
    for _ in 0..2 {
        succeeds(safejax().arg("convert").arg(digits("params.safetensors")).arg(&target));
    }
    succeeds(safejax().arg("verify").arg(&target));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn the_files_of_a_checkpoint_keep_their_mode_however_they_are_named_and_many() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("model.safetensors");
    let params = Params::load(client(), digits("params.safetensors")).unwrap();
    let save = |most: u64| {
        params.save_with(&target, &safejax::SaveOptions::default().max_shard_bytes(most)).unwrap();
        let entries = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap());
        let modes =
            entries.map(|entry| (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o777));
        modes.collect::<std::collections::BTreeMap<_, _>>()
    };
    for path in save(40_000).keys() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    for most in [40_000, 40_000, 1 << 30, 80_000, 40_000] {
        let modes = save(most);
        assert!(modes.values().all(|mode| *mode == 0o640), "{most}: {modes:?}");
    }
}

#[test]
fn of_several_that_save_to_several_files_at_the_same_time_the_last_one_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("model.safetensors");
    let zeros = |_: &str, array: &safejax::Array| {
        let bytes = vec![0u8; array.spec().host_bytes()?];
        let zeros = HostArray::from_bytes(array.spec().clone(), bytes)?;
        Ok(client().put(&zeros)?.into())
    };
    let first = Params::load(client(), digits("params.safetensors")).unwrap();
    let second = first.map(zeros).unwrap();
    let contents = [&first, &second].map(|params| params.to_host().unwrap());
    let save = |params: &Params, most: u64| {
        params.save_with(&target, &safejax::SaveOptions::default().max_shard_bytes(most)).unwrap();
    };
    save(&first, 30_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                // Whatever is there, it is one of them.
                let found = Params::load(client(), &target).unwrap().to_host().unwrap();
                assert!(contents.contains(&found));
            }
        });
        for (params, most) in [(&first, 30_000), (&second, 30_000), (&second, 50_000)] {
            scope.spawn(move || (0..20).for_each(|_| save(params, most)));
        }
    });
    assert!(contents.contains(&Params::load(client(), &target).unwrap().to_host().unwrap()));
    let files = Checkpoint::open(&target).unwrap().files().len();
    let index = usize::from(files > 1);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), files + index);
}

#[test]
fn a_checkpoint_is_saved_in_several_files_and_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("model.safetensors");
    let index = directory.path().join("model.safetensors.index.json");
    let params = Params::load(client(), data("pickles/train_state.pkl")).unwrap();
    let largest = params.arrays().iter().map(|buffer| buffer.to_host().unwrap().bytes().len()).max().unwrap();
    let options = safejax::SaveOptions::default()
        .max_shard_bytes(largest as u64)
        .digests(safejax::save::Digests::Sha256);
    // One file of all that was there before is not left to be taken for the checkpoint.
    Params::load(client(), digits("params.safetensors")).unwrap().save(&target).unwrap();
    for _ in 0..2 {
        params.save_with(&target, &options).unwrap();
        assert_eq!(Params::load(client(), &target).unwrap().len(), params.len());
        let checkpoint = Checkpoint::open(&index).unwrap();
        assert!(checkpoint.files().len() > 1 && !target.exists());
        let again = LoadOptions::default().verification(Verification::Digests);
        let (again, report) = Params::load_with(client(), directory.path(), &again).unwrap();
        assert_eq!(report.checked_tensors, params.len());
        // With the tree that no name tells.
        assert_eq!(again.to_host().unwrap(), params.to_host().unwrap());
    }
    // Files of an older index do not stay, to be taken for a part of the checkpoint.
    let shards = || {
        let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().contains("-of-")).count()
    };
    params.save_with(&target, &options.clone().max_shard_bytes(2 * largest as u64)).unwrap();
    assert_eq!(shards(), Checkpoint::open(&index).unwrap().files().len());
    // What fits into one file is one, and no index of another stays beside it.
    params.save_with(&target, &options.clone().max_shard_bytes(1 << 30)).unwrap();
    assert!(target.exists() && !index.exists() && shards() == 0);
    // Two checkpoints in a directory: neither is taken for the other.
    let save = |options: safejax::SaveOptions| params.save_with(&target, &options).unwrap();
    save(safejax::SaveOptions::default().max_shard_bytes(largest as u64));
    save(safejax::SaveOptions::default());
    let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("two checkpoints, model.safetensors and model.safetensors.index.json"), "{error}");
    let error = safejax::serialize(&params).map(|_| ()).err();
    assert!(error.is_none());
    // What cannot be replaced in the end is found before anything is written.
    std::fs::create_dir_all(directory.path().join("taken/model.safetensors")).unwrap();
    let taken = directory.path().join("taken/model.safetensors");
    let error = params.save_with(&taken, &options.clone().max_shard_bytes(largest as u64)).unwrap_err();
    assert!(error.to_string().contains("taken/model.safetensors"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path().join("taken")).unwrap().count(), 1);
    let wrong = directory.path().join("model.bin");
    let options = safejax::SaveOptions::default().max_shard_bytes(1);
    assert!(
        params
            .save_with(&wrong, &options)
            .unwrap_err()
            .to_string()
            .contains("must be UTF-8 and end in .safetensors")
    );
    let out = directory.path().join("cli.safetensors");
    let mut command = safejax();
    command.arg("convert").arg(digits("params.safetensors")).arg(&out);
    succeeds(command.args(["--max-shard-size", "64kB"]));
    let index = directory.path().join("cli.safetensors.index.json");
    succeeds(safejax().arg("diff").arg(digits("params.safetensors")).arg(&index));
}

#[test]
fn arrays_of_every_order_are_made_native_on_their_way_and_cast() {
    use safejax::DType;
    let native = data("orders/native.safetensors");
    for options in deliveries().into_iter().chain(deliveries().map(|options| options.dtype("*", DType::BF16)))
    {
        let expected = through_a_device(&native, &options);
        for name in ["stored.npz", "deflated.npz"] {
            assert_eq!(
                through_a_device(&data(&format!("orders/{name}")), &options),
                expected,
                "{name} {options:?}"
            );
        }
    }
    for name in ["stored.npz", "deflated.npz"] {
        let path = data(&format!("orders/{name}"));
        succeeds(safejax().arg("diff").args([&path, &native]));
        // Checksums are those of the bytes in the file, whatever their order, and of what is compressed.
        for options in deliveries().map(|options| options.verification(Verification::Digests)) {
            let (params, report) = Params::load_with(client(), &path, &options).unwrap();
            assert_eq!(report.checked_tensors, params.len());
        }
        let copy = tempfile::tempdir().unwrap();
        succeeds(safejax().arg("convert").arg(&path).arg(copy.path().join("copy.safetensors")));
        succeeds(safejax().args(["verify", "--finite", "--hash"]).arg(&path));
    }
    let array = Params::load(client(), data("orders/big_fortran.npy")).unwrap();
    let whole = Params::load(client(), &native).unwrap();
    assert_eq!(
        array.arrays()[0].to_vec::<f64>().unwrap(),
        whole.get("big_fortran").unwrap().to_vec::<f64>().unwrap()
    );
}

#[test]
fn damage_to_bytes_of_another_order_is_found_by_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("damaged.npz");
    let whole = data("orders/stored.npz");
    let checkpoint = Checkpoint::open(&whole).unwrap();
    let mut content = std::fs::read(&whole).unwrap();
    let tensor = checkpoint.tensors().iter().find(|tensor| tensor.name == "big").unwrap();
    content[tensor.extents()[0].range.start] ^= 1;
    std::fs::write(&path, content).unwrap();
    let copy = directory.path().join("copy");
    for (name, command) in [
        ("verify", vec!["verify"]),
        ("load", vec!["load", "--verify"]),
        ("safetensors", vec!["convert", "--to", "safetensors"]),
        ("npz", vec!["convert", "--to", "npz"]),
    ] {
        let mut command_line = safejax();
        command_line.args(&command).arg(&path);
        if command[0] == "convert" {
            command_line.arg(&copy);
        }
        let output = command_line.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &common::stderr(&output);
        assert!(!output.status.success() && text.contains("`big`"), "{name}: {text}");
    }
    assert!(!copy.exists());
}
