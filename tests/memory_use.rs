//! How much memory the process has, where only that tells. One test after the other: they share the process.

mod common;

use common::digits;
use safejax::load::Staging;
use safejax::{Client, HostArray, LoadOptions, Params};
use safejax_simulator::{Config, Fault, FaultKind, Simulator};

/// The bytes that a line of `/proc/self/status` tells.
fn status_bytes(key: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn memory_is_freed_when_nobody_uses_it_and_never_before() {
    copies_that_nobody_awaits_are_freed_when_they_have_ended();
    memory_that_cannot_be_unregistered_stays();
}

fn copies_that_nobody_awaits_are_freed_when_they_have_ended() {
    const BYTES: usize = 32 << 20;
    let simulator = Simulator::new(Config::default());
    let client = Client::from_plugin(simulator.path()).unwrap();
    let buffer = client.put(&HostArray::from_slice(&[BYTES], &vec![7u8; BYTES]).unwrap()).unwrap();
    buffer.wait().unwrap();
    simulator.set_faults(vec![Fault::always("PJRT_Buffer_ToHostBuffer", FaultKind::LateWork(5))]);
    let before = status_bytes("VmRSS:");
    for _ in 0..10 {
        // The copy is written after this; were the memory gone, that would end the process.
        drop(buffer.start_to_host().unwrap().into_future());
    }
    drop((buffer, client));
    simulator.assert_clean(0);
    let grown = status_bytes("VmRSS:").saturating_sub(before);
    assert!(grown < 4 * BYTES, "{grown} bytes stay");
}

fn memory_that_cannot_be_unregistered_stays() {
    const CHUNK: usize = 8 << 20;
    let load = |faults: Vec<Fault>| {
        let simulator = Simulator::new(Config::default());
        let client = Client::from_plugin(simulator.path()).unwrap();
        simulator.set_faults(faults);
        let options = LoadOptions::default().staging(Staging::new(2, CHUNK));
        let before = status_bytes("VmSize:");
        let (params, _) = Params::load_with(&client, digits("params.safetensors"), &options).unwrap();
        params.wait().unwrap();
        drop(params);
        status_bytes("VmSize:").saturating_sub(before)
    };
    let usual = load(Vec::new());
    let kept = load(vec![Fault::always("PJRT_Client_DmaUnmap", FaultKind::Error(13))]);
    assert!(kept >= usual + CHUNK, "{usual} bytes and {kept} bytes");
}
