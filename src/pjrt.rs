//! A safe binding of the PJRT C API over a library opened at run time.
//!
//! It knows plugins, clients, devices, memories, buffers, events, transfers and executables, and nothing
//! of safetensors, trees or JAX. Handles are `Send + Sync`, cheap to clone where they are `Clone`, and
//! keep alive what they need: a [`Buffer`] its client, a client its plugin. Calls that start device work
//! return before it ends; an [`Event`](crate::Event) or a method named `wait` ends it. A method that blocks says so.
//!
//! All `unsafe` code of the crate but the opening of memory maps lives here.

#![allow(unsafe_code)]

mod api;
#[cfg(feature = "bare")]
mod bare;
pub(crate) mod buffer;
pub(crate) mod client;
mod client_builder;
pub(crate) mod compile_options;
pub(crate) mod device;
mod dma;
pub(crate) mod event;
mod executable;
mod execution;
mod ffi;
mod host_memory;
mod host_transfer;
mod key_value;
mod lifecycle;
mod loaded_executable;
pub(crate) mod memory;
mod named_value;
pub(crate) mod plugin;
pub(crate) mod topology;
mod transfer;

pub use api::ApiVersion;
pub(crate) use buffer::Buffer;
pub use buffer::ExternalReference;
pub(crate) use client::{Client, HostSemantics, Placement};
pub use client_builder::ClientBuilder;
pub(crate) use compile_options::CompileOptions;
pub(crate) use device::Device;
pub use device::{DeviceDescription, MemoryStats};
pub use dma::DmaRegion;
pub(crate) use dma::StagingMemory;
pub use executable::{CompiledMemoryStats, Executable, HostMemoryStats, OptimizedProgram, ProgramFormat};
pub use execution::{Execution, Input};
pub use host_memory::HostMemory;
pub use host_transfer::HostTransfer;
pub use loaded_executable::LoadedExecutable;
pub(crate) use memory::Memory;
pub use named_value::NamedValue;
pub(crate) use plugin::Plugin;
pub(crate) use topology::Topology;
pub use transfer::{Transfer, TransferManager, TransferPart};
