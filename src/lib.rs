//! JAX parameters between safetensors files and PJRT devices, and JAX functions run on them, without Python.
//!
//! ```no_run
//! use safejax::{Client, Params, Program};
//!
//! let client = Client::auto()?; // TPU, then GPU, then CPU
//! let params = Params::load(&client, "params.safetensors")?; // straight onto device 0
//! let kernel = params.get("params.Dense_0.kernel")?; // still on the device
//! let forward = client.compile(&Program::open("forward.stablehlo")?)?;
//! # let x = kernel.clone();
//! let logits = forward.call(&[&params, &x])?; // so is this
//! let logits: Vec<f32> = logits.single()?.to_vec()?;
//! params.save("copy.safetensors")?; // device to file
//! # Ok::<(), safejax::Error>(())
//! ```
//!
//! The modules, from the bottom up: [`pjrt`], a safe binding of the PJRT C API; [`plugins`], which finds and installs PJRT
//! plugins; [`store`], where bytes are; [`tree`], key paths and the key map; [`format`](mod@format), what bytes say; [`load`],
//! [`save`] and [`convert`], the three front doors; [`program`], what runs; [`Target`], what it is compiled for where that is not here; [`cast`] and [`compare`], for arrays on the host;
//! [`printable`], for the names of strangers.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod array;
pub mod cast;
pub mod compare;
pub mod convert;
mod device_array;
mod device_mesh;
mod dtype;
mod error;
mod flatbuffer;
pub mod format;
mod limits;
pub mod load;
mod monitor;
mod params;
pub mod pjrt;
mod plan;
pub mod plugins;
pub mod printable;
pub mod processes;
pub mod program;
pub mod save;
mod serialize;
pub mod sharding;
pub mod store;
mod sub_byte;
mod sync;
mod targets;
mod transfer;
pub mod tree;
mod workers;
#[cfg(feature = "xla")]
pub mod xla_rs;

// What most programs name is here, and only here; the modules have the rest.
pub use array::{ArraySpec, HostArray};
pub use device_array::{Array, ArrayTransfer, DeviceArray, Shard};
pub use device_mesh::DeviceMesh;
pub use dtype::{DType, Element};
pub use error::{Blame, Error, ErrorCode, Result};
pub use format::checkpoint::Checkpoint;
pub use limits::Limits;
pub use load::options::LoadOptions;
pub use load::report::LoadReport;
pub use monitor::{CancelToken, Monitor, Progress};
pub use params::{ParamTree, Params};
pub use pjrt::buffer::Buffer;
pub use pjrt::client::{Client, HostSemantics, Placement};
pub use pjrt::compile_options::CompileOptions;
pub use pjrt::device::Device;
pub use pjrt::event::Event;
pub use pjrt::memory::Memory;
pub use pjrt::plugin::Plugin;
pub use pjrt::topology::Topology;
pub use program::argument::{Argument, Donate};
pub use program::artifact::Program;
pub use program::bind::Conversion;
pub use program::call::{BoundFunction, Function};
pub use program::compilation::Compilation;
pub use program::executable_file::ExecutableFile;
pub use program::outputs::Outputs;
pub use save::options::SaveOptions;
pub use serialize::{deserialize, serialize};
pub use sharding::{Mesh, NamedSharding, PartitionSpec, Sharding};
pub use targets::{DeviceFigures, Target};
pub use tree::convention::Framework;
pub use tree::def::{Tree, TreeDef};
pub use tree::key_map::KeyMap;
pub use tree::key_path::KeyPath;
