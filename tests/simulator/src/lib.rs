//! A PJRT plugin that stands for an accelerator: device memory that the host cannot address, of a limited size; transfers
//! that take their time and end later; rules about memory for direct access; layouts that are not the host's; and faults, on
//! demand, in any function. It counts what it is given and what is given back.
//!
//! It is the second implementation of the C API that the tests have, so it is written from the header (`c_api.rs` is
//! generated from it) and knows nothing of safejax's own binding. Numbers are the CPU plugin's job: it runs a few toy programs
//! (`program.rs`), so that arguments, donation and outputs can be tested.
//!
//! [`Simulator::new`] gives a test a plugin of its own, with its own state: a copy of the library, which the test loads by
//! path. What the two say to each other is in `config.rs`.

#![warn(missing_docs)]

#[allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    missing_docs,
    dead_code,
    unused_imports
)]
mod c_api;

mod buffer;
mod calls;
mod client;
mod config;
mod control;
mod device;
mod dma;
mod event;
mod executable;
mod failure;
mod lane;
mod layout;
mod manager;
mod memory;
mod objects;
mod program;
mod table;

pub use config::{Config, DeviceLayout, Fault, FaultKind, Report, Transfers};
pub use control::{CONFIG_VARIABLE, Simulator};
