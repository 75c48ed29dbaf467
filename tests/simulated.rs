//! On the simulated accelerator (`tests/simulator`): what holds on any device, and what no CPU plugin has. Every test ends with
//! everything given back, and nothing done that must not be.

mod common;

use common::{data, digits};
use safejax::load::{Delivery, Staging};
use safejax::{Client, Donate, HostArray, LoadOptions, Params, Program, serialize};
use safejax_simulator::{Config, DeviceLayout, Simulator};

/// The layouts that the simulator has.
const LAYOUTS: [DeviceLayout; 3] =
    [DeviceLayout::RowMajor, DeviceLayout::ColumnMajor, DeviceLayout::Tiled(8, 128)];

fn client(simulator: &Simulator) -> Client {
    Client::from_plugin(simulator.path()).unwrap()
}

/// Whether the params are those of this file, by their bytes.
#[track_caller]
fn assert_same(params: &Params, file: &std::path::Path) {
    let (saved, original) = (serialize(params).unwrap(), std::fs::read(file).unwrap());
    let parse = |bytes: &'_ [u8]| -> Vec<(String, Vec<u8>)> {
        let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let mut tensors: Vec<_> =
            tensors.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
        tensors.sort();
        tensors
    };
    assert!(parse(&saved) == parse(&original));
}

#[test]
fn what_is_loaded_comes_back_from_every_layout_by_every_route() {
    for layout in LAYOUTS {
        for delivery in [Delivery::Auto, Delivery::Stream, Delivery::Whole] {
            let simulator = Simulator::new(Config { layout, ..Config::default() });
            let client = client(&simulator);
            let options = LoadOptions::default().delivery(delivery).staging(Staging::new(2, 64 << 10));
            let file = digits("params.safetensors");
            let (params, _) = Params::load_with(&client, &file, &options).unwrap();
            assert_same(&params, &file);
            drop((params, client));
            simulator.report().assert_clean(0);
        }
    }
}
