//! Checkpoints that Orbax wrote, of several versions and layouts, and arrays that TensorStore wrote (scripts/make_orbax.py): what is in
//! them, and what is said of those that are damaged.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use safejax::load::ShardingRules;
use safejax::tree::LeafKind;
use safejax::{Checkpoint, Client, DeviceMesh, LoadOptions, Params, TreeDef};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/orbax")
}

fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(directory()).unwrap();
    let mut cases: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    cases.sort();
    assert!(cases.len() >= 14, "{cases:?}");
    cases
}

fn checkpoint(case: &str) -> PathBuf {
    directory().join(case).join("checkpoint")
}

/// Each array's bytes by its name; of sub-byte elements, one a byte.
fn expected(case: &str) -> BTreeMap<String, Vec<u8>> {
    common::read_tensors(&std::fs::read(directory().join(case).join("expected.safetensors")).unwrap())
}

#[test]
fn every_array_is_what_python_saved() {
    for case in cases() {
        common::orbax::assert_is_as_saved(&directory().join(case));
    }
}

/// What a node of the tree of a checkpoint is.
fn node(case: &str, path: &str) -> Option<TreeDef> {
    let source = safejax::convert::open(checkpoint(case), &Default::default()).unwrap();
    source.keys().def().node(&path.parse().unwrap()).cloned()
}

#[test]
fn the_tree_has_its_lists_strings_and_empty_nodes() {
    for case in ["default", "zarr3", "directories", "uncompressed"] {
        assert_eq!(node(case, "['list'][1][1]"), Some(TreeDef::None), "{case}");
        assert!(matches!(node(case, "['list']"), Some(TreeDef::List(items)) if items.len() == 2), "{case}");
        assert_eq!(node(case, "['name']"), Some(TreeDef::Str("a name".into())), "{case}");
        assert_eq!(node(case, "['empty']"), Some(TreeDef::Dict(vec![])), "{case}");
        assert_eq!(node(case, "['steps']"), Some(TreeDef::Leaf(LeafKind::Int)), "{case}");
        assert_eq!(node(case, "['rate']"), Some(TreeDef::Leaf(LeafKind::Float)), "{case}");
        assert_eq!(node(case, "['is_done']"), Some(TreeDef::Leaf(LeafKind::Bool)), "{case}");
    }
    assert_eq!(node("optimizer", "['opt'][0]['count']"), Some(TreeDef::LEAF));
    // Where its types were saved, a tuple is one; without, it is a list.
    assert!(matches!(node("optimizer", "['opt']"), Some(TreeDef::List(_))));
    assert!(matches!(node("rich_types", "['opt']"), Some(TreeDef::Tuple(_))));
    assert!(
        matches!(node("rich_types", "['opt'][0]"), Some(TreeDef::NamedTuple { name, .. }) if name == "State")
    );
    assert!(
        matches!(node("pytree_serialization", "['a']"), Some(TreeDef::List(items)) if items[1] == TreeDef::None)
    );
    assert!(matches!(node("orbax02", "['layers']"), Some(TreeDef::List(_))));
    let keys = Checkpoint::open(checkpoint("random_key")).unwrap();
    assert_eq!(keys.metadata()["random_key_impl.key"], "threefry2x32");
    assert_eq!(keys.metadata()["random_key_impl.keys"], "rbg");
}

#[test]
fn steps_and_items_are_found() {
    let manager = checkpoint("several_items");
    let origin = |path: &Path| Checkpoint::open(path).map(|checkpoint| checkpoint.origin().to_owned());
    // The newest finished one, and the item with a usual name.
    assert_eq!(origin(&manager).unwrap(), manager.join("10/state").display().to_string());
    assert_eq!(origin(&manager.join("2")).unwrap(), manager.join("2/state").display().to_string());
    let other = manager.join("2/params");
    assert_eq!(Checkpoint::open(&other).unwrap().tensor("w").unwrap().spec.shape, [4, 2]);
    let unfinished = origin(&manager.join("20.orbax-checkpoint-tmp-1")).unwrap_err().to_string();
    assert!(unfinished.contains("was never finished"), "{unfinished}");
    let json = origin(&manager.join("2/facts")).unwrap_err().to_string();
    assert!(json.contains("it has JSON, in `metadata`, and there are no arrays in it"), "{json}");
    let named = |step: Option<u64>, item: Option<&str>| safejax::format::orbax_item(&manager, step, item);
    assert_eq!(named(Some(2), None).unwrap(), manager.join("2/state"));
    assert_eq!(named(None, Some("params")).unwrap(), manager.join("10/params"));
    assert_eq!(named(Some(2), Some("params")).unwrap(), manager.join("2/params"));
    let missing = named(Some(20), None).unwrap_err().to_string();
    assert!(missing.contains("has no step 20: it has 2, 10"), "{missing}");
    let missing = named(None, Some("parms")).unwrap_err().to_string();
    assert!(missing.contains("10 has no item `parms`: with arrays, it has params, state"), "{missing}");
    let single =
        safejax::format::orbax_item(manager.join("10/params"), Some(3), None).unwrap_err().to_string();
    assert!(single.contains("has no step 3: it is a single checkpoint"), "{single}");
    let single =
        safejax::format::orbax_item(manager.join("10/params"), None, Some("x")).unwrap_err().to_string();
    assert!(single.contains("it is an item itself"), "{single}");
    assert!(named(None, Some("facts")).unwrap_err().to_string().contains("no arrays"));
    let copied = copy("several_items");
    std::fs::rename(copied.path().join("10/state"), copied.path().join("10/other")).unwrap();
    let several = origin(copied.path()).unwrap_err().to_string();
    assert!(
        several.contains("several directories with arrays: other, params; give one of them, such as"),
        "{several}"
    );
    assert!(several.ends_with("10/params (or `--item params`)"), "{several}");
    for (path, whole) in [("10/params/_METADATA", "10/params"), ("10/_CHECKPOINT_METADATA", "10/state")] {
        assert_eq!(origin(&manager.join(path)).unwrap(), manager.join(whole).display().to_string());
    }
    // Names like those of steps: a copy beside the steps, an empty step, and items of a step.
    let copied = copy("several_items");
    std::fs::rename(copied.path().join("2"), copied.path().join("old_99")).unwrap();
    std::fs::create_dir(copied.path().join("11")).unwrap();
    std::fs::create_dir(copied.path().join("logs_2024")).unwrap();
    assert!(origin(copied.path()).unwrap().ends_with("10/state"));
    for name in ["state", "params"] {
        let (from, to) = (format!("10/{name}"), format!("10/model_{}", name.len()));
        std::fs::rename(copied.path().join(from), copied.path().join(to)).unwrap();
    }
    let items = origin(copied.path()).unwrap_err().to_string();
    assert!(items.contains("several directories with arrays: model_5, model_6"), "{items}");
    let part = origin(&manager.join("10/params/d")).unwrap_err().to_string();
    assert!(part.contains("a part of the checkpoint"), "{part}");
    let within = origin(&manager.join("20.orbax-checkpoint-tmp-1/params")).unwrap_err().to_string();
    assert!(within.contains("was never finished"), "{within}");
}

fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| Client::cpu_with_devices(4).unwrap())
}

#[test]
fn arrays_go_to_the_device_whole_and_in_shards() {
    for case in ["default", "uncompressed", "zarr3", "zarr3_chunks", "directories"] {
        let path = checkpoint(case);
        let (whole, once) = Params::load_with(client(), &path, &LoadOptions::default()).unwrap();
        let mesh = DeviceMesh::new(client(), "x=2,y=2".parse().unwrap()).unwrap();
        let (rows, both) = if case == "zarr3_chunks" { ("a", "b") } else { ("split.rows", "split.both") };
        let rules = ShardingRules::default()
            .rule(rows, "P('x')".parse().unwrap())
            .rule(both, "P('x', 'y')".parse().unwrap());
        let options = LoadOptions::default().sharded(&mesh, rules);
        let (sharded, report) = Params::load_with(client(), &path, &options).unwrap();
        assert_eq!(sharded.to_host().unwrap(), whole.to_host().unwrap(), "{case}");
        // Every chunk is read once, whoever wants it.
        assert_eq!(report.bytes, once.bytes, "{case}");
        let expected = expected(case);
        for (name, array) in whole.iter().filter(|(_, array)| array.dtype().bits() >= 8) {
            assert_eq!(&array.to_host().unwrap().bytes()[..], expected[name], "{case}: {name}");
        }
    }
}

#[test]
fn what_is_not_compressed_is_used_in_place() {
    let directory = copy("uncompressed");
    let (_, report) = Params::load_with(client(), directory.path(), &LoadOptions::default()).unwrap();
    // Smaller ones are among the keys.
    assert!(report.aliased_bytes >= 4096, "{report:?}");
}

/// A copy of a checkpoint.
fn copy(case: &str) -> tempfile::TempDir {
    fn copy_all(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => copy_all(&entry.path(), &target),
                false => drop(std::fs::copy(entry.path(), target).unwrap()),
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    copy_all(&checkpoint(case), directory.path());
    directory
}

/// The files of a checkpoint.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Reads all of a checkpoint; an error names what it is about.
fn read_all(path: &Path) -> Result<usize, String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    let names: Vec<String> = checkpoint.tensors().iter().map(|tensor| tensor.name.clone()).collect();
    names.iter().try_for_each(|name| checkpoint.read(name).map(drop)).map_err(|error| error.to_string())?;
    if let Some(part) = checkpoint.left_out().first() {
        return Err(format!("{}: {}", part.name, part.why));
    }
    Ok(names.len())
}

#[test]
fn a_file_that_is_missing_or_cut_off_is_an_error_that_names_it() {
    let whole = read_all(&checkpoint("default")).unwrap();
    let directory = copy("default");
    let mut refused = 0;
    for file in files(directory.path()) {
        let content = std::fs::read(&file).unwrap();
        for kept in [None, Some(0), Some(content.len() / 2), Some(content.len().saturating_sub(1))] {
            match kept {
                None => std::fs::remove_file(&file).unwrap(),
                Some(kept) => std::fs::write(&file, &content[..kept]).unwrap(),
            }
            match read_all(directory.path()) {
                // What it is about is not needed to read the arrays.
                Ok(count) => assert!(count <= whole),
                Err(error) => {
                    refused += 1;
                    let name = file.strip_prefix(directory.path()).unwrap().display().to_string();
                    let is_told =
                        error.contains(&name) || error.contains(&directory.path().display().to_string());
                    assert!(is_told || error.contains("missing"), "{name} {kept:?}: {error}");
                }
            }
        }
        std::fs::write(&file, content).unwrap();
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn paths_do_not_lead_out_of_the_directory() {
    let directory = copy("default");
    // The data file's name, in the manifest, which has no other checksum than its own.
    let manifest = directory.path().join("manifest.ocdbt");
    let mut content = std::fs::read(&manifest).unwrap();
    let at = content.windows(2).position(|pair| pair == b"d/").unwrap();
    content[at..at + 3].copy_from_slice(b"../");
    let end = content.len() - 4;
    let crc = crc32c::crc32c(&content[..end]);
    content[end..].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&manifest, content).unwrap();
    let error = read_all(directory.path()).unwrap_err();
    assert!(error.contains("is not within its directory"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_damaged_byte_is_an_error_or_no_matter(
        case in proptest::sample::select(vec!["default", "zarr3", "tensorstore", "orbax02", "directories"]),
        (file, at, bit) in (0usize..1000, 0usize..100_000, 0u8..8),
        mend: bool,
    ) {
        let directory = copy(case);
        let files = files(directory.path());
        let file = &files[file % files.len()];
        let mut content = std::fs::read(file).unwrap();
        if !content.is_empty() {
            let at = at % content.len();
            content[at] ^= 1 << bit;
            // With a checksum that fits, so that what comes after it is tried too.
            if mend && file.file_name().unwrap().to_string_lossy().starts_with("manifest") && content.len() > 12 {
                let end = content.len() - 4;
                let crc = crc32c::crc32c(&content[..end]);
                content[end..].copy_from_slice(&crc.to_le_bytes());
            }
            std::fs::write(file, content).unwrap();
            // Neither a panic nor more memory than there is.
            let _ = read_all(directory.path());
        }
    }
}

/// A zarr array of numbers that count up, in chunks of this shape, each compressed or not.
fn counting(shape: [usize; 2], chunk: [usize; 2], is_compressed: bool) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let compressor = if is_compressed { r#"{"id": "zstd", "level": 1}"# } else { "null" };
    let description = format!(
        r#"{{"zarr_format": 2, "shape": {shape:?}, "chunks": {chunk:?}, "dtype": "<u4", "order": "C", "fill_value": null,
            "compressor": {compressor}, "filters": null, "dimension_separator": "."}}"#
    );
    std::fs::write(directory.path().join(".zarray"), description).unwrap();
    for (row, column) in (0..shape[0])
        .step_by(chunk[0])
        .flat_map(|row| (0..shape[1]).step_by(chunk[1]).map(move |column| (row, column)))
    {
        let rows = row..row + chunk[0];
        let numbers = rows
            .flat_map(|row| (column..column + chunk[1]).map(move |column| (row * shape[1] + column) as u32));
        let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let bytes = if is_compressed { zstd::bulk::compress(&bytes, 1).unwrap() } else { bytes };
        std::fs::write(directory.path().join(format!("{}.{}", row / chunk[0], column / chunk[1])), bytes)
            .unwrap();
    }
    directory
}

#[test]
fn large_tensors_are_put_together_by_several_threads() {
    // Rows of chunks lie together in the tensor, and columns do not.
    for (chunk, is_compressed) in [
        ([256, 4096], true),
        ([2048, 512], true),
        ([256, 4096], false),
        ([512, 1024], false),
        ([2048, 4096], true),
    ] {
        let directory = counting([2048, 4096], chunk, is_compressed);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let name = checkpoint.tensors()[0].name.clone();
        let found = checkpoint.read(&name).unwrap();
        assert!(
            found.chunks_exact(4).enumerate().all(|(at, four)| four == (at as u32).to_le_bytes()),
            "{chunk:?}"
        );
        let (params, _) = Params::load_with(client(), directory.path(), &LoadOptions::default()).unwrap();
        assert!(params.iter().next().unwrap().1.to_host().unwrap().bytes() == &found[..], "{chunk:?}");
        // What is damaged is found by whichever thread has it.
        let last = directory.path().join(format!("{}.{}", 2048 / chunk[0] - 1, 4096 / chunk[1] - 1));
        let whole = std::fs::read(&last).unwrap();
        std::fs::write(&last, &whole[..whole.len() - 1]).unwrap();
        let error = Checkpoint::open(directory.path()).unwrap().read(&name).unwrap_err().to_string();
        assert!(
            error.contains(&format!("chunk {}: ", checkpoint.tensors()[0].extents().len() - 1)),
            "{error}"
        );
    }
}
