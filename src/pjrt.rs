//! A safe binding of the PJRT C API over a library opened at run time.
//!
//! It knows plugins, clients, devices, memories, buffers, events, transfers and executables, and nothing
//! of safetensors, trees or JAX. Handles are `Send + Sync`, cheap to clone where they are `Clone`, and
//! keep alive what they need: a [`Buffer`] its client, a client its plugin. Calls that start device work
//! return before it ends; an [`Event`] or a method named `wait` ends it. A method that blocks says so.
//!
//! All `unsafe` code of the crate but the opening of memory maps lives here.

#![allow(unsafe_code)]

mod api;
mod bare;
mod buffer;
mod client;
mod compile_options;
mod device;
mod dma;
mod event;
mod executable;
mod execution;
mod ffi;
mod host_memory;
mod host_transfer;
mod memory;
mod named_value;
mod plugin;
mod transfer;

pub use api::ApiVersion;
pub use buffer::{Buffer, ExternalReference};
pub use client::{Client, ClientBuilder, HostSemantics, Placement};
pub use compile_options::CompileOptions;
pub use device::{Device, MemoryStats};
pub use dma::DmaRegion;
pub(crate) use dma::StagingMemory;
pub use event::Event;
pub use executable::{CompiledMemoryStats, LoadedExecutable, OptimizedProgram, ProgramFormat};
pub use execution::{Execution, Input};
pub use host_memory::HostMemory;
pub use host_transfer::HostTransfer;
pub use memory::Memory;
pub use named_value::NamedValue;
pub use plugin::Plugin;
pub use transfer::{Transfer, TransferManager, TransferPart};
