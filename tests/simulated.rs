//! On the simulated accelerator (`tests/simulator`): what holds on any device, and what no CPU plugin has. Every test ends with
//! everything given back, and nothing done that must not be.

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{digits, read_tensors};
use safejax::load::{Delivery, Registration, ShardingRules, Staging};
use safejax::{
    Client, DeviceMesh, Donate, Error, ErrorCode, HostArray, LoadOptions, Params, Plugin, Program, load,
    serialize,
};
use safejax_simulator::{Config, DeviceLayout, Fault, FaultKind, Simulator};

/// The layouts that the simulator has.
const LAYOUTS: [DeviceLayout; 3] =
    [DeviceLayout::RowMajor, DeviceLayout::ColumnMajor, DeviceLayout::Tiled(8, 128)];

fn client(simulator: &Simulator) -> Client {
    Client::from_plugin(simulator.path()).unwrap()
}

/// Whether the params are those of this file, by their bytes.
#[track_caller]
fn assert_same(params: &Params, file: &Path) {
    assert!(read_tensors(&serialize(params).unwrap()) == read_tensors(&std::fs::read(file).unwrap()));
}

/// A checkpoint of so many float32 tensors of so many elements, each with content of its own.
fn checkpoint(directory: &Path, tensors: usize, elements: usize) -> PathBuf {
    let content = |index: usize| -> Vec<u8> {
        (0..elements).flat_map(|element| ((index * 7 + element) as f32).to_ne_bytes()).collect()
    };
    let contents: Vec<Vec<u8>> = (0..tensors).map(content).collect();
    let views = contents.iter().enumerate().map(|(index, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![elements], bytes);
        (format!("t{index:05}"), view.unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let file = directory.join("checkpoint.safetensors");
    std::fs::write(&file, bytes).unwrap();
    file
}

/// A program of the simulator's with these parameters and results.
fn program(name: &str, parameters: &[&str], results: &[&str]) -> Program {
    let parameters = parameters.iter().enumerate().map(|(index, of)| format!("%arg{index}: {of}"));
    let parameters = parameters.collect::<Vec<_>>().join(", ");
    let text = format!(
        "module @{name} {{\n  func.func public @main({parameters}) -> ({}) {{\n    return\n  }}\n}}\n",
        results.join(", ")
    );
    Program::from_bytes(text.into_bytes()).unwrap()
}

#[test]
fn what_is_loaded_comes_back_from_every_layout_by_every_route() {
    for layout in LAYOUTS {
        for delivery in [Delivery::Auto, Delivery::Stream, Delivery::Whole] {
            for has_registration in [true, false] {
                let simulator = Simulator::new(Config { layout, has_registration, ..Config::default() });
                let client = client(&simulator);
                let options = LoadOptions::default().delivery(delivery).staging(Staging::new(2, 64 << 10));
                let file = digits("params.safetensors");
                let (params, _) = Params::load_with(&client, &file, &options).unwrap();
                assert_same(&params, &file);
                let row_major = layout == DeviceLayout::RowMajor;
                let kernel = params.get("params.Dense_0.kernel").unwrap().buffer().unwrap();
                assert_eq!(kernel.is_row_major().unwrap(), row_major);
                assert!(!kernel.is_on_cpu().unwrap());
                drop((params, client));
                simulator.assert_clean(0);
            }
        }
    }
}

#[test]
fn a_plugin_of_any_age_is_loaded_onto() {
    // The table ends before transfer managers, before views, before memory statistics have a meaning, …
    let last = [
        "PJRT_Executable_OutputDimensions",
        "PJRT_Buffer_CopyToMemory",
        "PJRT_Client_CreateViewOfDeviceBuffer",
        "PJRT_Buffer_CopyRawToHost",
        "PJRT_AsyncHostToDeviceTransferManager_SetBufferError",
        "PJRT_Client_DmaUnmap",
    ];
    let missing = [
        "PJRT_Device_MemoryStats",
        "PJRT_Client_AddressableMemories",
        "PJRT_Client_CreateViewOfDeviceBuffer",
        "PJRT_Buffer_CopyRawToHost",
        "PJRT_Buffer_GetMemoryLayout",
        "PJRT_Buffer_OnDeviceSizeInBytes",
        "PJRT_Client_DmaMap",
        "PJRT_Event_OnReady",
        "PJRT_Event_Error",
        "PJRT_Plugin_Initialize",
        "PJRT_Plugin_Attributes",
        "PJRT_Error_GetCode",
        "PJRT_Buffer_OpaqueDeviceMemoryDataPointer",
        "PJRT_Buffer_IsOnCpu",
        "PJRT_Executable_OptimizedProgram",
    ];
    let ages =
        last.map(|last| Config { last_function: Some(last.into()), api_minor: 40, ..Config::default() });
    let gaps = missing.map(|name| Config { missing: vec![name.into()], ..Config::default() });
    for config in ages.into_iter().chain(gaps) {
        let what = format!("{:?} {:?}", config.last_function, config.missing);
        let simulator = Simulator::new(config);
        let client = client(&simulator);
        let file = digits("params.safetensors");
        let params = Params::load(&client, &file).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_same(&params, &file);
        let identity = program("sim_identity", &["tensor<2x3xf32>"], &["tensor<2x3xf32>"]);
        let array = HostArray::from_slice(&[2, 3], &[1f32, 2., 3., 4., 5., 6.]).unwrap();
        let outputs = client.compile(&identity).unwrap().call(&[&array]).unwrap();
        assert_eq!(outputs.single().unwrap().to_host().unwrap(), array, "{what}");
        drop((outputs, params, client));
        let problems = simulator.report_at_rest(0).problems(0);
        assert!(problems.is_empty(), "{what}: {problems:#?}");
    }
}

#[test]
fn no_more_host_memory_is_used_than_the_ring() {
    let directory = tempfile::tempdir().unwrap();
    let file = checkpoint(directory.path(), 40, 100_000);
    for has_registration in [true, false] {
        // Slow, so that the ring is full all the time.
        let config = Config { has_registration, bytes_per_second: 200e6, ..Config::default() };
        let simulator = Simulator::new(config);
        let client = client(&simulator);
        let options = LoadOptions::default().staging(Staging::new(3, 256 << 10));
        let (params, report) = Params::load_with(&client, &file, &options).unwrap();
        params.wait().unwrap();
        let seen = simulator.report();
        assert!(seen.peak_bytes_in_flight <= 3 * (256 << 10), "{seen:?}");
        assert_eq!(
            (report.is_registered, seen.to_device.unregistered_bytes == 0),
            (has_registration, has_registration)
        );
        assert!(seen.peak_registered_bytes <= 3 * (256 << 10), "{seen:?}");
        assert_eq!(seen.to_device.bytes, 40 * 400_000);
        // When the load is over, no memory is registered any more.
        drop(params);
        assert_eq!(simulator.report().registered_bytes, 0);
        drop(client);
        simulator.assert_clean(0);
    }
}

#[test]
fn small_tensors_are_sent_together() {
    let directory = tempfile::tempdir().unwrap();
    let file = checkpoint(directory.path(), 20_000, 16);
    let simulator = Simulator::new(Config::default());
    let client = client(&simulator);
    let params = Params::load(&client, &file).unwrap();
    params.wait().unwrap();
    assert_same(&params, &file);
    let seen = simulator.report();
    assert!(seen.to_device.count < 20, "{seen:?}");
    drop((params, client));
    simulator.assert_clean(0);
}

#[test]
fn a_full_device_says_what_was_loaded_and_asked_for_and_keeps_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = checkpoint(directory.path(), 64, 100_000);
    for has_memory_stats in [true, false] {
        for delivery in [Delivery::Stream, Delivery::Whole] {
            let config = Config { memory_bytes: 10_000_000, has_memory_stats, ..Config::default() };
            let simulator = Simulator::new(config);
            let client = client(&simulator);
            let options = LoadOptions::default().delivery(delivery).staging(Staging::new(2, 64 << 10));
            let error = Params::load_with(&client, &file, &options).unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::ResourceExhausted), "{error:?}");
            let Error::Tensor { tensor, source } = &error else { panic!("{error:?}") };
            let text = source.to_string();
            assert!(tensor.starts_with("t000"), "{tensor}: {text}");
            if has_memory_stats {
                // Known before.
                assert!(text.contains("has 10000000 of its 10000000 free; nothing was loaded"), "{text}");
            } else {
                assert!(text.contains("bytes were asked for"), "{text}");
                assert!(text.contains("of 64 tensors (") && text.contains("of 25600000 bytes"), "{text}");
                assert!(text.contains("and were released"), "{text}");
            }
            simulator.assert_clean(1);
            let plan = load::plan(&client, &safejax::Checkpoint::open(&file).unwrap(), &options).unwrap();
            let room = load::check_room(&client, &plan, &options);
            assert_eq!(room.is_err(), has_memory_stats);
            // There is room for what is smaller.
            let digits = Params::load(&client, digits("params.safetensors")).unwrap();
            digits.wait().unwrap();
            let full = client
                .put(&HostArray::from_slice(&[3_000_000], &vec![0f32; 3_000_000]).unwrap())
                .unwrap_err();
            let text = full.to_string();
            assert!(text.contains("; 12000000 bytes were asked for"), "{text}");
            assert_eq!(text.contains(" bytes in use of 10000000 bytes"), has_memory_stats, "{text}");
            drop((digits, client));
            simulator.assert_clean(0);
        }
    }
}

#[test]
fn every_argument_gets_there_and_what_is_donated_is_used_up() {
    let simulator = Simulator::new(Config { layout: DeviceLayout::Tiled(2, 4), ..Config::default() });
    let client = client(&simulator);
    let types = ["tensor<3x5xf32>", "tensor<7xui8>", "tensor<2x2x3xbf16>"];
    let sums = client.compile(&program("sim_checksum", &types, &["tensor<ui32>"; 3])).unwrap();
    let floats: Vec<f32> = (0..15).map(|number| number as f32).collect();
    let arrays = [
        HostArray::from_slice(&[3, 5], &floats).unwrap(),
        HostArray::from_slice(&[7], &[1u8, 2, 3, 4, 5, 6, 7]).unwrap(),
        HostArray::from_slice(&[2, 2, 3], &[half::bf16::from_f32(1.5); 12]).unwrap(),
    ];
    let outputs = sums.call(&[&arrays[0], &arrays[1], &arrays[2]]).unwrap();
    let weighted =
        |bytes: &[u8]| bytes.iter().zip(1u32..).map(|(byte, place)| u32::from(*byte) * place).sum::<u32>();
    for (output, array) in outputs.iter().zip(&arrays) {
        assert_eq!(output.item::<u32>().unwrap(), weighted(array.bytes()));
    }
    let kept = ["tensor<1000xf32> {tf.aliasing_output = 0 : i32}", "tensor<1000xf32>"];
    let sum = client.compile(&program("sim_add", &kept, &["tensor<1000xf32>"])).unwrap();
    let one = HostArray::from_slice(&[1000], &[1f32; 1000]).unwrap();
    let (left, right) = (client.put(&one).unwrap(), client.put(&one).unwrap());
    let before = simulator.report().bytes_in_use;
    let total = sum.call(&[&Donate(left.clone()), &right]).unwrap();
    assert_eq!(total.single().unwrap().to_vec::<f32>().unwrap(), [2f32; 1000]);
    assert_eq!(simulator.report().bytes_in_use, before);
    assert!(left.is_deleted().unwrap() && left.to_host().is_err());
    assert_eq!(right.to_vec::<f32>().unwrap(), [1f32; 1000]);
    let again = sum.call(&[&right, &right]).unwrap();
    assert_eq!(simulator.report().bytes_in_use, before + 4000);
    drop((again, total, outputs, left, right, sum, sums, client));
    simulator.assert_clean(0);
}

#[test]
fn work_is_over_when_it_is_and_not_when_a_plugin_does_not_wait_for_it() {
    let refusals =
        [&["PJRT_Event_OnReady"][..], &["PJRT_Event_Await"], &["PJRT_Event_OnReady", "PJRT_Event_Await"]];
    for refused in refusals {
        let faults = refused.iter().map(|function| Fault::always(function, FaultKind::Error(12))).collect();
        let config = Config { faults, bytes_per_second: 100e6, transfer_micros: 200, ..Config::default() };
        let simulator = Simulator::new(config);
        let client = client(&simulator);
        for delivery in [Delivery::Stream, Delivery::Whole] {
            let options = LoadOptions::default().delivery(delivery).staging(Staging::new(2, 64 << 10));
            let file = digits("params.safetensors");
            let (params, _) = Params::load_with(&client, &file, &options).unwrap();
            params.wait().unwrap();
            assert_same(&params, &file);
            drop(params.get("params.Dense_0.kernel").unwrap().start_to_host().unwrap());
        }
        drop(client);
        simulator.assert_clean(0);
    }
}

#[test]
fn memory_stays_where_a_plugin_will_not_say_that_it_is_done_with_it() {
    let functions = ["PJRT_Event_OnReady", "PJRT_Event_Await", "PJRT_Event_IsReady"];
    let mut faults: Vec<Fault> =
        functions.iter().map(|function| Fault::always(function, FaultKind::Error(12))).collect();
    faults.push(Fault::always("PJRT_Buffer_ToHostBuffer", FaultKind::LateWork(200)));
    let simulator = Simulator::new(Config { faults, ..Config::default() });
    let client = client(&simulator);
    // So large that its memory leaves the process when it is freed: what is written there later ends the process.
    let array = HostArray::from_slice(&[64 << 20], &vec![7u8; 64 << 20]).unwrap();
    let buffer = client.put(&array).unwrap();
    for _ in 0..2 {
        common::block_on(buffer.start_to_host().unwrap().into_future()).unwrap_err();
        buffer.start_to_host().unwrap().wait().unwrap_err();
        drop(buffer.start_to_host().unwrap());
        drop(buffer.start_to_host().unwrap().into_future());
    }
    std::thread::sleep(Duration::from_millis(2000));
    assert!(simulator.report().violations.is_empty(), "{:?}", simulator.report());
}

#[test]
fn a_stuck_device_is_waited_for_as_long_as_is_asked_for() {
    let simulator = Simulator::new(Config::default());
    let limit = Duration::from_millis(100);
    let client = Plugin::open(simulator.path()).unwrap().client().time_limit(limit).build().unwrap();
    let stuck = |function: &str| simulator.set_faults(vec![Fault::always(function, FaultKind::EndlessWork)]);
    let options = LoadOptions::default().staging(Staging::new(2, 64 << 10));
    let load = || Params::load_with(&client, digits("params.safetensors"), &options);
    let started = Instant::now();
    stuck("PJRT_AsyncHostToDeviceTransferManager_TransferData");
    let error = load().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::DeadlineExceeded), "{error:?}");
    let Error::Tensor { source, .. } = error else { panic!("{error:?}") };
    assert!(source.to_string().contains("has not ended within 100ms, which is the time limit"), "{source}");
    simulator.set_faults(Vec::new());
    simulator.release();
    let (params, _) = load().unwrap();
    params.wait_for(Duration::from_secs(10)).unwrap();
    stuck("PJRT_Buffer_ToHostBuffer");
    let error = params.get("params.Dense_0.kernel").unwrap().to_vec::<f32>().unwrap_err();
    assert!(error.to_string().starts_with("PJRT_Buffer_ToHostBuffer has not ended within 100ms"), "{error}");
    stuck("PJRT_Buffer_CopyRawToHost");
    let directory = tempfile::tempdir().unwrap();
    let error = params.save(directory.path().join("saved.safetensors")).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::DeadlineExceeded), "{error:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    assert!(started.elapsed() < Duration::from_secs(20));
    // What is stuck is waited for no longer than one asks.
    stuck("PJRT_Client_BufferFromHostBuffer");
    let one = client.put(&HostArray::from_slice(&[1], &[1f32]).unwrap()).unwrap();
    let error = one.wait_for(Duration::from_millis(10)).unwrap_err();
    assert!(error.to_string().contains("within 10ms"), "{error}");
    simulator.set_faults(Vec::new());
    simulator.release();
    drop((one, params, client));
    simulator.assert_clean(0);
}

#[test]
fn unregistered_memory_goes_through_the_drivers_copy_and_is_not_locked() {
    let simulator = Simulator::new(Config::default());
    let client = client(&simulator);
    let staging = Staging::new(2, 64 << 10).registration(Registration::Never);
    let options = LoadOptions::default().staging(staging);
    let (params, report) = Params::load_with(&client, digits("params.safetensors"), &options).unwrap();
    params.wait().unwrap();
    let seen = simulator.report();
    assert!(!report.is_registered && !seen.calls.contains_key("PJRT_Client_DmaMap"));
    assert_eq!(seen.to_device.unregistered_bytes, seen.to_device.bytes);
    drop((params, client));
    simulator.assert_clean(0);
}

#[test]
fn a_load_ends_where_a_plugin_will_not_say_when_its_transfers_do() {
    let functions = ["PJRT_Event_OnReady", "PJRT_Event_Await", "PJRT_Event_IsReady"];
    for limit in [None, Some(Duration::from_millis(300))] {
        let faults = functions.map(|function| Fault::always(function, FaultKind::Error(12))).to_vec();
        let simulator = Simulator::new(Config { faults, ..Config::default() });
        let builder = Plugin::open(simulator.path()).unwrap().client();
        let builder = limit.into_iter().fold(builder, |builder, limit| builder.time_limit(limit));
        let client = builder.build().unwrap();
        let options = LoadOptions::default().staging(Staging::new(2, 64 << 10));
        let error = Params::load_with(&client, digits("params.safetensors"), &options).unwrap_err();
        let Error::Tensor { source, .. } = &error else { panic!("{error:?}") };
        assert!(source.to_string().starts_with("a transfer from the staging ring"), "{source}");
        // The device is well again, and what was given up stays so.
        simulator.set_faults(Vec::new());
        let (params, _) = Params::load_with(&client, digits("params.safetensors"), &options).unwrap();
        assert_same(&params, &digits("params.safetensors"));
        assert!(simulator.report().violations.is_empty(), "{:?}", simulator.report());
    }
}

#[test]
fn a_wait_ends_where_a_plugin_does_not_answer() {
    let faults = vec![
        Fault::always("PJRT_Event_IsReady", FaultKind::Error(12)),
        Fault::always("PJRT_Client_BufferFromHostBuffer", FaultKind::EndlessWork),
    ];
    let simulator = Simulator::new(Config { faults, ..Config::default() });
    let client = client(&simulator);
    let buffer = client.put(&HostArray::from_slice(&[1], &[1f32]).unwrap()).unwrap();
    let error = buffer.wait_for(Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().starts_with("PJRT_Event_IsReady"), "{error}");
    simulator.release();
    drop((buffer, client));
    simulator.assert_clean(0);
}

#[test]
fn shards_go_to_their_devices_side_by_side_and_no_byte_twice() {
    for layout in LAYOUTS {
        let simulator = Simulator::new(Config { devices: 4, layout, ..Config::default() });
        let client = client(&simulator);
        let mesh = DeviceMesh::new(&client, "data=2,model=2".parse().unwrap()).unwrap();
        let rules = ShardingRules::default()
            .rule("*Dense_0.kernel", "P(None, 'model')".parse().unwrap())
            .rule("*Dense_1.kernel", "P(('model', 'data'))".parse().unwrap());
        let options = LoadOptions::default().sharded(&mesh, rules).staging(Staging::new(2, 64 << 10));
        let file = digits("params.safetensors");
        let (params, _) = Params::load_with(&client, &file, &options).unwrap();
        params.wait().unwrap();
        // What several devices have goes from one to the others.
        let sent = simulator.report().to_device.bytes - params.total_bytes();
        // Small tensors that are sent together begin at multiples of 256 bytes.
        assert!(sent < 256 * params.len() as u64, "{sent} bytes too many");
        assert_same(&params, &file);
        drop((params, mesh, options, client));
        simulator.assert_clean(0);
    }
}
