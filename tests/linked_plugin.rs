//! A plugin that is linked into the program. It is the simulated accelerator (`tests/simulator`), so Miri can follow the whole
//! binding, and what the plugin does with it (`scripts/checkers.sh miri`): Miri can load no library. For its sake no test here
//! maps a file, and all is small.

mod common;

use common::{block_on, read_tensors};
use safejax::load::{Delivery, ShardingRules, Staging};
use safejax::processes::{MemoryStore, Processes};
use safejax::{
    Checkpoint, Client, DeviceMesh, Donate, HostArray, LoadOptions, NamedSharding, Params, PartitionSpec,
    Plugin, Program, serialize,
};
use safejax_simulator::{Config, DeviceLayout, Fault, FaultKind, Simulator};

const NAME: &str = "the linked simulator";

#[allow(unsafe_code)]
fn plugin() -> Plugin {
    // SAFETY: the simulator's table is constant, and only this names it.
    unsafe { Plugin::linked(NAME, Simulator::get_pjrt_api) }.unwrap()
}

/// A checkpoint of some tensors, of several types and sizes.
fn checkpoint() -> Vec<u8> {
    common::official_file(&[
        ("dense.kernel", safejax::DType::F32, &[6, 4]),
        ("dense.bias", safejax::DType::BF16, &[4]),
        ("count", safejax::DType::I32, &[]),
        ("none", safejax::DType::F32, &[0, 3]),
        ("table", safejax::DType::U8, &[3000]),
    ])
}

/// Adds two vectors.
fn sum_program() -> Program {
    let text = "module @sim_add {\n  func.func public @main(%arg0: tensor<4xf32>, %arg1: tensor<4xf32>) -> \
                (tensor<4xf32>) {\n    return\n  }\n}\n";
    Program::from_bytes(text.as_bytes().to_vec()).unwrap()
}

fn loads_and_saves(client: &Client) {
    let bytes = checkpoint();
    let checkpoint = Checkpoint::from_bytes(bytes.clone()).unwrap();
    for delivery in [Delivery::Auto, Delivery::Stream, Delivery::Whole] {
        let options = LoadOptions::default().delivery(delivery).staging(Staging::new(2, 1024));
        let (params, _) = Params::load_checkpoint(client, &checkpoint, &options).unwrap();
        params.wait().unwrap();
        assert_eq!(read_tensors(&serialize(&params).unwrap()), read_tensors(&bytes));
        let kernel = params.get("dense.kernel").unwrap();
        let buffer = kernel.buffer().unwrap();
        assert_eq!(block_on(async { buffer.start_to_host().unwrap().await }).unwrap().len(), 96);
        drop(kernel.start_to_host().unwrap());
    }
}

fn calls(client: &Client) {
    let sum = client.compile(&sum_program()).unwrap();
    let one = HostArray::from_slice(&[4], &[1f32; 4]).unwrap();
    let (left, right) = (client.put(&one).unwrap(), client.put(&one).unwrap());
    let total = sum.call(&[&left, &right]).unwrap().single().unwrap().clone();
    let total = sum.call(&[&Donate(total), &one]).unwrap().single().unwrap().clone();
    assert_eq!(total.to_vec::<f32>().unwrap(), [3f32; 4]);
    let with_one = sum.bind(&[&left]).unwrap();
    let outputs = with_one.call(&[&Donate(total)]).unwrap();
    assert_eq!(outputs.single().unwrap().to_vec::<f32>().unwrap(), [4f32; 4]);
    assert!(sum.call(&[&left]).is_err());
}

fn loads_shards_and_moves_them(client: &Client) {
    let bytes = checkpoint();
    let checkpoint = Checkpoint::from_bytes(bytes.clone()).unwrap();
    let mesh = DeviceMesh::new(client, "x=2".parse().unwrap()).unwrap();
    let specs = ["P('x')", "P(None, 'x')", "P()"].map(|spec| spec.parse::<PartitionSpec>().unwrap());
    for spec in &specs {
        let rules = ShardingRules::default().rule("dense.kernel", spec.clone());
        let options = LoadOptions::default().sharded(&mesh, rules).staging(Staging::new(2, 1024));
        let (params, _) = Params::load_checkpoint(client, &checkpoint, &options).unwrap();
        assert_eq!(read_tensors(&serialize(&params).unwrap()), read_tensors(&bytes));
        let kernel = params.get("dense.kernel").unwrap();
        for other in &specs {
            let sharding = NamedSharding::new(mesh.mesh().clone(), other.clone()).unwrap();
            let moved = kernel.reshard(sharding.into(), mesh.devices()).unwrap();
            assert_eq!(moved.to_host().unwrap(), kernel.to_host().unwrap());
        }
    }
}

/// Two clients that meet through the store of their caller, which the plugin calls.
fn meets_another() {
    let store = MemoryStore::default();
    let clients = std::thread::scope(|scope| {
        let threads = [0, 1].map(|index| {
            let processes = Processes::new(index, 2, store.clone()).unwrap();
            scope.spawn(move || plugin().client().processes(&processes).build().unwrap())
        });
        threads.map(|thread| thread.join().unwrap())
    });
    for client in &clients {
        assert_eq!((client.devices().len(), client.addressable_devices().len()), (2, 1));
        calls(client);
    }
}

/// One test: the linked plugin has one state.
#[test]
fn a_linked_plugin_does_what_one_in_a_library_does() {
    for layout in [DeviceLayout::RowMajor, DeviceLayout::Tiled(2, 3)] {
        let simulator = Simulator::linked(Config { layout, devices: 2, ..Config::default() });
        let client = plugin().client().build().unwrap();
        assert_eq!(client.devices().len(), 2);
        loads_and_saves(&client);
        calls(&client);
        loads_shards_and_moves_them(&client);
        drop(client);
        simulator.assert_clean(0);
    }
    assert_eq!(plugin().path().to_str(), Some(NAME));
    let simulator = Simulator::linked(Config::default());
    meets_another();
    simulator.assert_clean(0);
    faults_are_errors();
}

/// Work that fails, comes late or never, and calls that fail, in the middle of a load and of a call.
fn faults_are_errors() {
    let faults = [
        ("PJRT_Client_BufferFromHostBuffer", FaultKind::Error(13)),
        ("PJRT_Client_BufferFromHostBuffer", FaultKind::FailingWork(13)),
        ("PJRT_AsyncHostToDeviceTransferManager_TransferData", FaultKind::Error(13)),
        ("PJRT_AsyncHostToDeviceTransferManager_TransferData", FaultKind::FailingWork(13)),
        ("PJRT_AsyncHostToDeviceTransferManager_TransferData", FaultKind::LateWork(1)),
        ("PJRT_Buffer_ToHostBuffer", FaultKind::FailingWork(13)),
        ("PJRT_LoadedExecutable_Execute", FaultKind::FailingWork(13)),
        ("PJRT_LoadedExecutable_Execute", FaultKind::DeviceLost),
    ];
    for (function, kind) in faults {
        let simulator = Simulator::linked(Config::default());
        let client = plugin().client().build().unwrap();
        simulator.set_faults(vec![Fault::once(function, 0, kind)]);
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            loads_and_saves(&client);
            calls(&client);
        }));
        assert_eq!(attempt.is_ok(), matches!(kind, FaultKind::LateWork(_)), "{function} {kind:?}");
        assert_eq!(simulator.report().faults.min(1), 1, "{function} {kind:?}");
        drop(client);
        simulator.assert_clean(0);
    }
}
