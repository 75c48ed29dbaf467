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
//! The modules, from the bottom up: [`dtype`] and [`error`]; [`pjrt`], a safe binding of the PJRT C API; [`plugins`], which
//! finds and installs PJRT plugins; [`store`], where bytes are; [`tree`], key paths and the key map; [`format`](mod@format),
//! what bytes say; [`load`], [`save`] and [`convert`], the three front doors; [`program`], what runs; [`limits`] and
//! [`printable`], for files of strangers.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod array;
pub mod cast;
pub mod compare;
pub mod convert;
pub mod dtype;
pub mod error;
pub mod format;
pub mod limits;
pub mod load;
pub mod monitor;
pub mod params;
pub mod pjrt;
mod plan;
pub mod plugins;
pub mod printable;
pub mod program;
pub mod save;
pub mod store;
mod sub_byte;
mod transfer;
pub mod tree;
#[cfg(feature = "xla")]
pub mod xla_rs;

pub use array::{ArraySpec, HostArray};
pub use dtype::{DType, Element};
pub use error::{Blame, Error, ErrorCode, Result};
pub use format::Checkpoint;
pub use limits::Limits;
pub use load::{LoadOptions, LoadReport, Sharing};
pub use monitor::{CancelToken, Monitor, Progress};
pub use params::{Params, deserialize, serialize};
pub use pjrt::{Buffer, Client, CompileOptions, Device, Event, HostSemantics, Memory, Placement, Plugin};
pub use program::{Argument, BoundFunction, Conversion, Donate, Function, Outputs, Program};
pub use save::SaveOptions;
pub use tree::{Framework, KeyMap, KeyPath, Tree, TreeDef};
