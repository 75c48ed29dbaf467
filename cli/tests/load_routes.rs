//! The ways from a file to a device: each must give the same bytes, check and cast on the way, report what it did, and
//! end cleanly when it is stopped.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{
    Only, client, directory_on_disk as directory, fails, is_cpu, is_skipped, on_device, safejax, succeeds,
};
use safejax::format::DIGEST_KEY;
use safejax::load::{self, Delivery, Prefetch, Route, Sharing, Staging, Verification};
use safejax::save::Digests;
use safejax::store::Io;
use safejax::{
    ArraySpec, CancelToken, Checkpoint, DType, Donate, Error, LoadOptions, Monitor, Params, Program,
    Progress, SaveOptions,
};

/// Tensors of every kind that a load meets: large ones that are cut, many small ones, empty ones, scalars, sub-byte
/// elements; the first begins at an odd byte.
fn tensors() -> Vec<(String, DType, Vec<usize>)> {
    let mut tensors = vec![
        ("a.odd".to_owned(), DType::U8, vec![3]),
        ("b.large".to_owned(), DType::F32, vec![700, 401]),
        ("c.empty".to_owned(), DType::F32, vec![0, 7]),
        ("d.scalar".to_owned(), DType::F64, vec![]),
        ("e.four_bits".to_owned(), DType::F4E2M1FN, vec![3, 16]),
        ("f.half".to_owned(), DType::BF16, vec![129, 1000]),
        ("h.double".to_owned(), DType::F64, vec![50_001]),
    ];
    tensors.extend((0..500).map(|index| (format!("g.{index}"), DType::F32, vec![index % 40, 3])));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// A file of these tensors one after another, wherever that puts them, with elements that differ.
fn write(path: &Path, digests: bool) {
    let (mut entries, mut data, mut sums) = (serde_json::Map::new(), Vec::new(), BTreeMap::new());
    for (seed, (name, dtype, shape)) in tensors().into_iter().enumerate() {
        let spec = ArraySpec::new(dtype, shape.clone());
        let count = spec.element_count().unwrap();
        let values = (0..count).map(|index| ((index * 7 + seed * 13) % 1000) as f64 / 8.0 - 60.0);
        let bytes: Vec<u8> = match dtype {
            DType::F32 => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
            DType::F64 => values.flat_map(f64::to_le_bytes).collect(),
            DType::BF16 => values.flat_map(|value| half::bf16::from_f64(value).to_le_bytes()).collect(),
            _ => (0..spec.packed_bytes().unwrap()).map(|index| (index * 37 + seed) as u8).collect(),
        };
        let dtype = dtype.safetensors_name().unwrap();
        let offsets = [data.len(), data.len() + bytes.len()];
        sums.insert(name.clone(), safejax::store::sha256(&bytes));
        entries.insert(name, serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    if digests {
        let sums = serde_json::json!(sums).to_string();
        entries.insert("__metadata__".into(), serde_json::json!({DIGEST_KEY: sums}));
    }
    std::fs::write(path, common::raw_file(&serde_json::Value::from(entries).to_string(), &data)).unwrap();
}

fn small_staging() -> LoadOptions {
    LoadOptions::default().staging(Staging::new(3, 100_000)).threads(3)
}

/// Every way there is, by name.
fn ways() -> Vec<(String, LoadOptions)> {
    let mut ways = Vec::new();
    for io in [Io::Auto, Io::Mapped, Io::Positional, Io::Direct] {
        for delivery in [Delivery::Auto, Delivery::Stream, Delivery::Whole] {
            ways.push((format!("{io}, {delivery:?}"), small_staging().io(io).delivery(delivery)));
        }
    }
    ways.push(("never shared".into(), LoadOptions::default().sharing(Sharing::Never)));
    ways.push(("one thread".into(), small_staging().delivery(Delivery::Stream).threads(1)));
    for prefetch in [Prefetch::WillNeed, Prefetch::Populate] {
        ways.push((format!("{prefetch:?}"), LoadOptions::default().prefetch(prefetch)));
    }
    ways
}

#[test]
fn every_way_gives_the_same_bytes() {
    let directory = directory();
    let (odd, aligned) =
        (directory.path().join("odd.safetensors"), directory.path().join("ours.safetensors"));
    write(&odd, true);
    let whole = Params::load(client(), &odd).unwrap();
    whole.save_with(&aligned, &SaveOptions::default().digests(Digests::Sha256)).unwrap();
    for path in [&odd, &aligned] {
        for (way, options) in ways() {
            for verification in [Verification::None, Verification::Digests] {
                let options = options.clone().verification(verification);
                let (params, report) = Params::load_with(client(), path, &options)
                    .unwrap_or_else(|error| panic!("{way}: {error:?}"));
                params.wait().unwrap_or_else(|error| panic!("{way}: {error:?}"));
                assert_eq!(report.bytes, whole.total_bytes());
                assert_eq!(report.aliased_bytes + report.copied_bytes, report.bytes);
                assert_eq!(report.arena_bytes + report.streamed_bytes, report.copied_bytes, "{way}");
                let saved = Checkpoint::from_bytes(safejax::serialize(&params).unwrap()).unwrap();
                let original = Checkpoint::open(&odd).unwrap();
                for tensor in original.tensors() {
                    let (a, b) = (original.bytes(&tensor.name), saved.bytes(&tensor.name));
                    assert!(a.unwrap() == b.unwrap(), "{way}: {}", tensor.name);
                }
            }
        }
    }
}

#[test]
fn every_way_casts_on_the_way_in() {
    let directory = directory();
    let path = directory.path().join("odd.safetensors");
    write(&path, true);
    for to in [DType::BF16, DType::F64, DType::F16] {
        let mut expected: Option<Vec<u8>> = None;
        for (way, options) in ways() {
            let options = options.exclude("e.*").dtype("*", to).verification(Verification::Digests);
            let (params, report) = Params::load_with(client(), &path, &options).unwrap();
            assert!(params.arrays().iter().all(|buffer| [to, DType::U8].contains(&buffer.dtype())));
            assert!(report.cast_tensors >= 2, "{report:?}");
            let found = safejax::serialize(&params).unwrap();
            let expected = expected.get_or_insert_with(|| {
                // The same cast, on the way out.
                let plain = Params::load_with(client(), &path, &LoadOptions::default().exclude("e.*"));
                let out = directory.path().join("cast.safetensors");
                plain.unwrap().0.save_with(&out, &SaveOptions::default().dtype(to)).unwrap();
                std::fs::read(out).unwrap()
            });
            let (found, expected) = (&found, Checkpoint::from_bytes(expected.clone()).unwrap());
            let found = Checkpoint::from_bytes(found.clone()).unwrap();
            for tensor in expected.tensors() {
                let (a, b) = (expected.bytes(&tensor.name).unwrap(), found.bytes(&tensor.name).unwrap());
                assert!(a == b, "{way}: {to} {}", tensor.name);
            }
        }
    }
}

#[test]
fn a_changed_byte_is_found_on_every_way_and_nothing_waits_for_it() {
    let directory = directory();
    let path = directory.path().join("odd.safetensors");
    write(&path, true);
    let range = Checkpoint::open(&path).unwrap().tensor("b.large").unwrap().extents()[0].range.clone();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[range.end - 1] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for (way, options) in ways() {
        let options = options.verification(Verification::Digests);
        let error = Params::load_with(client(), &path, &options).unwrap_err();
        assert_eq!(error.to_string(), "tensor `b.large`", "{way}");
    }
}

#[test]
fn progress_counts_every_byte_once_and_a_cancelled_load_leaves_nothing() {
    let directory = directory();
    let path = directory.path().join("odd.safetensors");
    write(&path, false);
    let aligned = directory.path().join("aligned.safetensors");
    for (way, options) in ways() {
        let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
        let sums = Arc::clone(&seen);
        let monitor = Monitor::default().on_progress(move |progress: &Progress<'_>| {
            assert!(!progress.tensor.is_empty() && progress.bytes <= progress.total_bytes);
            sums.lock().unwrap().push(progress.bytes);
        });
        let (params, report) = Params::load_with(client(), &path, &options.clone().monitor(monitor)).unwrap();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(seen.is_sorted() && seen.last() == Some(&report.bytes), "{way}: {seen:?}");

        let token = CancelToken::new();
        let stop = token.clone();
        let monitor = Monitor::default().cancel(&token).on_progress(move |progress: &Progress<'_>| {
            if progress.bytes > progress.total_bytes / 3 {
                stop.cancel();
            }
        });
        let options = options.threads(1).monitor(monitor.clone());
        let error = Params::load_with(client(), &path, &options).unwrap_err();
        assert!(matches!(innermost(&error), Error::Cancelled), "{way}: {error:?}");
        // The client and everything else still work.
        params.wait().unwrap();
        let error = params.save_with(&aligned, &SaveOptions::default().monitor(monitor)).unwrap_err();
        assert!(matches!(innermost(&error), Error::Cancelled), "{way}: {error:?}");
    }
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [path]);
}

fn innermost(error: &Error) -> &Error {
    match error {
        Error::Tensor { source, .. } => innermost(source),
        error => error,
    }
}

#[test]
fn the_plan_says_what_the_load_will_do() {
    let directory = directory();
    let path = directory.path().join("odd.safetensors");
    write(&path, false);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let plan = load::plan(client(), &checkpoint, &LoadOptions::default().dtype("h.*", DType::BF16)).unwrap();
    assert_eq!(plan.sum(Route::Empty).0, plan.steps.iter().filter(|step| step.bytes == 0).count());
    let (here, elsewhere) =
        if is_cpu() { (Route::Arena, Route::Stream) } else { (Route::Stream, Route::Arena) };
    let small = if is_cpu() { Route::Arena } else { Route::Packed };
    assert!(plan.sum(here).0 > 0 && plan.sum(small).0 > 300 && plan.sum(elsewhere) == (0, 0));
    let streamed =
        load::plan(client(), &checkpoint, &LoadOptions::default().delivery(Delivery::Stream)).unwrap();
    // What the device holds of four bits is not what the host passes.
    let whole: Vec<&str> = streamed
        .steps
        .iter()
        .filter(|step| step.route == Route::Whole)
        .map(|step| step.name.as_str())
        .collect();
    assert_eq!(whole, ["e.four_bits"]);
    let load = || {
        let mut command = safejax();
        command.arg("load").arg(&path).args(on_device());
        command
    };
    let printed = succeeds(load().args(["--explain", "--dtype", "h.*=bf16"]));
    assert!(printed.contains("h.double  bfloat16[50001] from float64\n"), "{printed}");
    assert!(printed.contains("read by:"), "{printed}");
    let error = fails(load().args(["--dtype", "i8"]));
    assert!(error.contains("a cast from"), "{error}");
}

/// `x * x + 1` over eight floats, in the place of `x` if that is given away.
const SQUARE: &str = r"
module @square {
  func.func public @main(%x: tensor<8xf32> {tf.aliasing_output = 0 : i32}) -> tensor<8xf32> {
    %one = stablehlo.constant dense<1.0> : tensor<8xf32>
    %square = stablehlo.multiply %x, %x : tensor<8xf32>
    %sum = stablehlo.add %square, %one : tensor<8xf32>
    return %sum : tensor<8xf32>
  }
}
";

#[test]
fn small_tensors_that_share_device_memory_are_buffers_of_their_own() {
    let directory = directory();
    let path = directory.path().join("small.safetensors");
    let data: Vec<f32> = (0..9000 * 8).map(|index| (index % 977) as f32).collect();
    let entries: serde_json::Map<String, serde_json::Value> = (0..9000)
        .map(|index| {
            let offsets = [index * 32, (index + 1) * 32];
            (
                format!("{index:04}"),
                serde_json::json!({"dtype": "F32", "shape": [8], "data_offsets": offsets}),
            )
        })
        .collect();
    let header = serde_json::Value::from(entries).to_string();
    std::fs::write(&path, common::raw_file(&header, bytemuck::cast_slice(&data))).unwrap();
    let options = LoadOptions::default().delivery(Delivery::Stream).threads(4);
    let plan = load::plan(client(), &Checkpoint::open(&path).unwrap(), &options).unwrap();
    assert_eq!(plan.sum(Route::Packed), (9000, 9000 * 32));
    let (params, _) = Params::load_with(client(), &path, &options).unwrap();
    let values = |index: usize| data[index * 8..][..8].to_vec();
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    // One outlives all others; another is given away, and keeps its memory to itself.
    let (kept, given) = (params.get("4711").unwrap().clone(), params.get("4712").unwrap().clone());
    let neighbour = params.get("4713").unwrap().clone();
    drop(params);
    let squared: Vec<f32> = values(4712).iter().map(|x| x * x + 1.0).collect();
    for _ in 0..2 {
        let outputs = function.call(&[&Donate(given.clone())]).unwrap();
        assert_eq!(outputs.single().unwrap().to_vec::<f32>().unwrap(), squared);
    }
    assert_eq!(given.to_vec::<f32>().unwrap(), values(4712));
    given.delete().unwrap();
    assert!(given.to_vec::<f32>().is_err());
    drop(given);
    assert_eq!(neighbour.to_vec::<f32>().unwrap(), values(4713));
    assert_eq!(kept.to_vec::<f32>().unwrap(), values(4711));
    let on_device = kept.copy_to(common::first_device()).unwrap();
    drop((kept, neighbour));
    assert_eq!(on_device.to_vec::<f32>().unwrap(), values(4711));
}

/// A file that is much larger than what it takes on the disk: zeros, but for its header, and aligned.
fn sparse(path: &Path, tensors: usize, bytes: usize) {
    let entries: serde_json::Map<String, serde_json::Value> = (0..tensors)
        .map(|index| {
            let offsets = [index * bytes, (index + 1) * bytes];
            let entry = serde_json::json!({"dtype": "F32", "shape": [bytes / 4], "data_offsets": offsets});
            (format!("t{index}"), entry)
        })
        .collect();
    let mut header = serde_json::Value::from(entries).to_string();
    header.push_str(&" ".repeat((8 + header.len()).next_multiple_of(64) - 8 - header.len()));
    std::fs::write(path, common::raw_file(&header, &[])).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let header = file.metadata().unwrap().len();
    file.set_len(header + (tensors * bytes) as u64).unwrap();
}

#[test]
fn one_tensor_of_a_huge_file_costs_what_it_costs() {
    let directory = directory();
    let path = directory.path().join("huge.safetensors");
    // 16 GB, more than the memory of most machines that run this.
    sparse(&path, 250, 64 << 20);
    let options = LoadOptions::default().include("t7").io(Io::Positional);
    let (params, report) = Params::load_with(client(), &path, &options).unwrap();
    assert_eq!((params.len(), report.bytes, report.copied_bytes), (1, 64 << 20, 64 << 20));
}

#[test]
#[cfg(target_os = "linux")]
fn files_larger_than_the_memory_are_converted_and_cast() {
    let directory = directory();
    let (path, out) = (directory.path().join("large.safetensors"), directory.path().join("out.safetensors"));
    sparse(&path, 6, 100 << 20);
    for dtype in ["f32", "bf16"] {
        // 100 MB of memory of its own, for 600 MB of tensors of 100 MB each.
        let script = "ulimit -d 100000 && exec \"$0\" \"$@\"";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).arg(common::binary()).arg("convert");
        succeeds(command.args([&path, &out]).args(["--no-sync", "--dtype", dtype]));
        let converted = Checkpoint::open(&out).unwrap();
        assert_eq!(converted.tensors().len(), 6);
        assert_eq!(converted.tensor("t5").unwrap().spec.dtype, DType::from_name(dtype).unwrap());
    }
}

#[test]
#[cfg(target_os = "linux")]
fn files_larger_than_the_memory_are_used_in_place_and_saved_from_the_device() {
    if is_skipped(Only::Cpu, "only the CPU uses files in place") {
        return;
    }
    const SOURCE: &str = "SAFEJAX_TEST_SOURCE";
    if let Some(source) = std::env::var_os(SOURCE) {
        // In the limited process.
        let (params, report) =
            Params::load_with(client(), &source, &LoadOptions::default().sharing(Sharing::Allowed)).unwrap();
        assert_eq!(report.aliased_bytes, 6 * (100 << 20));
        let mut options = SaveOptions::default();
        options.write.sync = false;
        params.save_with(Path::new(&source).with_extension("saved"), &options).unwrap();
        return;
    }
    let directory = directory();
    let path = directory.path().join("large.safetensors");
    sparse(&path, 6, 100 << 20);
    let name = "files_larger_than_the_memory_are_used_in_place_and_saved_from_the_device";
    // 150 MB of memory of its own, the test and the plugin included, for 600 MB of tensors.
    let script = "ulimit -d 150000 && exec \"$0\" \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script]).arg(std::env::current_exe().unwrap()).args(["--exact", name]);
    succeeds(command.env(SOURCE, &path));
    assert_eq!(Checkpoint::open(path.with_extension("saved")).unwrap().tensors().len(), 6);
}
