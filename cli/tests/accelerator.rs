//! What a device with memory of its own must do: registered staging memory, a memory that is full, memory of the host's
//! that it reaches, its options. On the CPU these tests say that they are skipped.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Only, binary, client, directory_on_disk, is_skipped, other_client, plugin};
use safejax::load::{Delivery, Registration, Staging};
use safejax::plugins;
use safejax::{
    ArraySpec, Client, DType, Device, Error, ErrorCode, HostSemantics, LoadOptions, Params, Placement,
    Program,
};

const TENSOR_BYTES: usize = 32 << 20;

/// A file of so many float32 tensors of 32 MiB, `t0`, `t1`, …: random bytes below 1.0, or zeros that take no disk.
fn write(path: &Path, tensors: usize, is_sparse: bool) {
    let entries: serde_json::Map<String, serde_json::Value> = (0..tensors)
        .map(|index| {
            let offsets = [index * TENSOR_BYTES, (index + 1) * TENSOR_BYTES];
            let entry =
                serde_json::json!({"dtype": "F32", "shape": [TENSOR_BYTES / 4], "data_offsets": offsets});
            (format!("t{index}"), entry)
        })
        .collect();
    let header = serde_json::Value::from(entries).to_string();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 0x3f7f_ffff_3f7f_ffff
    };
    let words = if is_sparse { 0 } else { tensors * TENSOR_BYTES / 8 };
    let data: Vec<u64> = (0..words).map(|_| random()).collect();
    std::fs::write(path, common::raw_file(&header, bytemuck::cast_slice(&data))).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len((8 + header.len() + tensors * TENSOR_BYTES) as u64).unwrap();
}

fn in_use(device: &Device) -> i64 {
    device.memory_stats().unwrap().in_use_bytes
}

/// What a device has in use once what was dropped has gone, which a thread of the plugin sees to.
fn settled(device: &Device, at_most: i64) -> i64 {
    let start = Instant::now();
    while in_use(device) > at_most && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    in_use(device)
}

/// A client that may take about this much of the card.
fn small_client(bytes: i64) -> Client {
    let whole = client().device(0).unwrap().memory_stats().unwrap().limit_bytes.unwrap();
    let builder = client().plugin().client().preallocate(true);
    // The limit of the shared client is its default share, three quarters.
    builder.memory_fraction((bytes as f64 / (whole as f64 / 0.75)) as f32).build().unwrap()
}

#[test]
fn staging_memory_is_registered_where_it_may_be_and_every_route_gives_the_same_bytes() {
    if is_skipped(Only::Accelerator, "nothing is staged for the CPU") {
        return;
    }
    let directory = directory_on_disk();
    let path = directory.path().join("a.safetensors");
    write(&path, 4, false);
    let original = safejax::Checkpoint::open(&path).unwrap();
    for delivery in [Delivery::Stream, Delivery::Whole] {
        for registration in [Registration::Auto, Registration::Never] {
            let staging = Staging::new(3, 4 << 20).registration(registration);
            let options = LoadOptions::default().delivery(delivery).staging(staging);
            let (params, report) = Params::load_with(client(), &path, &options).unwrap();
            let registers = registration == Registration::Auto && delivery == Delivery::Stream;
            if registers || registration == Registration::Never {
                assert_eq!(report.is_registered, registers, "{delivery:?}, {registration:?}");
            }
            for (name, buffer) in params.iter() {
                let same = buffer.to_host().unwrap().bytes() == &original.bytes(name).unwrap();
                assert!(same, "{delivery:?}, {registration:?}: {name}");
            }
        }
    }
}

#[test]
fn params_go_to_pinned_memory_of_the_host_and_from_there_to_the_device() {
    if is_skipped(Only::Accelerator, "its memories are one") {
        return;
    }
    let directory = directory_on_disk();
    let path = directory.path().join("a.safetensors");
    write(&path, 2, false);
    let original = safejax::Checkpoint::open(&path).unwrap();
    let device = client().device(0).unwrap();
    let pinned = device.memory("pinned_host").unwrap();
    let (params, _) = Params::load_with(client(), &path, &LoadOptions::default().to(&pinned)).unwrap();
    params.wait().unwrap();
    let moved = params.copy_to(&device.default_memory().unwrap()).unwrap();
    for (name, buffer) in params.iter() {
        assert_eq!(buffer.buffer().unwrap().memory().unwrap().as_ref(), Some(&pinned));
        assert!(buffer.to_host().unwrap().bytes() == &original.bytes(name).unwrap(), "{name}");
        let there = moved.get(name).unwrap();
        assert_eq!(there.buffer().unwrap().memory().unwrap().unwrap().kind(), "device");
        assert!(there.to_host().unwrap().bytes() == &original.bytes(name).unwrap(), "{name}");
    }
    let saved = directory.path().join("saved.safetensors");
    params.save(&saved).unwrap();
    let saved = safejax::Checkpoint::open(&saved).unwrap();
    for tensor in original.tensors() {
        assert!(saved.bytes(&tensor.name).unwrap() == original.bytes(&tensor.name).unwrap());
    }
}

#[test]
fn memory_comes_back_when_params_are_dropped_and_when_a_load_fails() {
    if is_skipped(Only::Accelerator, "the CPU does not count its memory") {
        return;
    }
    let directory = directory_on_disk();
    let (path, broken) =
        (directory.path().join("a.safetensors"), directory.path().join("broken.safetensors"));
    write(&path, 4, true);
    let own = other_client();
    let device = own.device(0).unwrap();
    let before = in_use(&device);
    for _ in 0..3 {
        let params = Params::load(&own, &path).unwrap();
        params.wait().unwrap();
        assert!(in_use(&device) - before >= 4 * TENSOR_BYTES as i64);
        drop(params);
        assert!(settled(&device, before) <= before);
    }
    let file = std::fs::read(&path).unwrap();
    let digests = serde_json::json!({"t3": "0".repeat(64)}).to_string();
    let checkpoint = safejax::Checkpoint::open(&path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    header["__metadata__"] = serde_json::json!({safejax::format::DIGEST_KEY: digests});
    std::fs::write(&broken, common::raw_file(&header.to_string(), &file[checkpoint.data_start()..])).unwrap();
    let options = LoadOptions::default().verification(safejax::load::Verification::Digests);
    Params::load_with(&own, &broken, &options).unwrap_err();
    assert!(settled(&device, before) <= before);
}

#[test]
fn params_that_are_larger_than_the_memory_are_an_error_that_names_them_and_leave_nothing() {
    if is_skipped(Only::Accelerator, "the CPU's memory is the machine's") {
        return;
    }
    let directory = directory_on_disk();
    let (large, small) =
        (directory.path().join("large.safetensors"), directory.path().join("small.safetensors"));
    write(&large, 64, true);
    write(&small, 4, true);
    let own = small_client(1 << 30);
    let device = own.device(0).unwrap();
    let limit = device.memory_stats().unwrap().limit_bytes.unwrap();
    assert!(limit < 2 << 30, "{limit}");
    for delivery in [Delivery::Stream, Delivery::Whole] {
        let error = Params::load_with(&own, &large, &LoadOptions::default().delivery(delivery)).unwrap_err();
        let Error::Tensor { tensor: name, source } = &error else { panic!("{error:?}") };
        assert!(name.starts_with('t'), "{error}");
        assert_eq!(source.code(), Some(ErrorCode::ResourceExhausted), "{source}");
        let text = source.to_string();
        assert!(matches!(**source, Error::DeviceMemory { .. }), "{source:?}");
        assert!(text.contains(" free; load less of it"), "{text}");
        println!("{delivery:?}: tensor `{name}`: {text}");
        assert!(settled(&device, 1 << 20) <= 1 << 20, "{} bytes stay in use", in_use(&device));
        Params::load(&own, &small).unwrap().wait().unwrap();
    }
    // What is not a load is refused by the plugin, after some seconds.
    let spec = ArraySpec::new(DType::F32, [1 << 30]);
    let error = own.uninitialized_buffer(&spec, &device).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ResourceExhausted), "{error}");
    assert!(error.to_string().contains("bytes in use of"), "{error}");
}

#[test]
fn the_options_for_memory_are_passed_on_and_checked() {
    if is_skipped(Only::Accelerator, "the options are a GPU's") {
        return;
    }
    let own = small_client(2 << 30);
    let limit = own.device(0).unwrap().memory_stats().unwrap().limit_bytes.unwrap();
    assert!((1 << 30..3 << 30).contains(&limit), "{limit}");
    let builder = || client().plugin().client();
    let error = builder().memory_fraction(1.5).build().unwrap_err().to_string();
    assert!(error.contains("`memory_fraction` is a number from 0 to 1"), "{error}");
    let error = builder().option("preallocate", 1).build().unwrap_err().to_string();
    assert!(error.contains("`preallocate` is true or false"), "{error}");
    let error = builder().option("no_such_option", true).build().unwrap_err().to_string();
    assert!(error.contains("no_such_option"), "{error}");
}

/// `x * x + 1` over eight floats.
const SQUARE: &str = r"
module @square {
  func.func public @main(%x: tensor<8xf32>) -> tensor<8xf32> {
    %one = stablehlo.constant dense<1.0> : tensor<8xf32>
    %square = stablehlo.multiply %x, %x : tensor<8xf32>
    %sum = stablehlo.add %square, %one : tensor<8xf32>
    return %sum : tensor<8xf32>
  }
}
";

#[test]
fn two_clients_work_at_once() {
    let clients = [other_client(), other_client()];
    let results: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let work = |own: &Client| {
            let function = own.compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
            let to = Placement::from(&own.device(0).unwrap());
            let spec = ArraySpec::new(DType::F32, [8]);
            let mut last = Vec::new();
            for round in 0..50 {
                let bytes = bytemuck::cast_slice(&[round as f32; 8]).to_vec();
                let x = own.buffer_from_host(&spec, bytes.into(), &to, HostSemantics::Copy).unwrap();
                last = function.call(&[&x]).unwrap().single().unwrap().to_vec::<f32>().unwrap();
            }
            last
        };
        let threads: Vec<_> = clients.iter().map(|own| scope.spawn(move || work(own))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(results, [[2402.0; 8], [2402.0; 8]]);
}

#[test]
fn a_killed_load_leaves_the_device_to_the_next() {
    let directory = directory_on_disk();
    let path = directory.path().join("a.safetensors");
    write(&path, 24, true);
    let load = || {
        let mut command = Command::new(binary());
        command.arg("load").arg(&path).args(common::on_device()).stdout(Stdio::null());
        command
    };
    let started = Instant::now();
    assert!(load().status().unwrap().success());
    let whole = started.elapsed();
    for part in [4, 6, 8, 9] {
        let mut child = load().spawn().unwrap();
        std::thread::sleep(whole * part / 10);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(load().status().unwrap().success());
}

#[test]
fn a_plugin_without_its_libraries_says_so() {
    if is_skipped(Only::Accelerator, "the CPU's plugin needs none") {
        return;
    }
    let directory = directory_on_disk();
    let library = plugins::library(&plugin()).unwrap();
    let alone = directory.path().join(library.file_name().unwrap());
    std::fs::copy(&library, &alone).unwrap();
    let mut command = Command::new(binary());
    command.args(["devices", "--option", "preallocate=false", "--plugin"]).arg(&alone);
    let output = command.env_remove("LD_LIBRARY_PATH").output().unwrap();
    let error = common::stderr(&output);
    println!("{:?}: {error}", output.status);
    // Where the system has the libraries elsewhere, it works.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{error}");
    assert!(output.status.success() || error.contains("error: "), "{error}");
}
