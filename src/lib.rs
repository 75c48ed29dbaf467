//! JAX parameters between safetensors files and PJRT devices, and JAX functions run on them, without Python.

pub mod array;
pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod load;
pub mod params;
pub mod pjrt;
pub mod plugins;
pub mod program;
pub mod save;
mod sub_byte;
pub mod tree;
pub use array::{ArraySpec, HostArray};
pub use checkpoint::Checkpoint;
pub use dtype::{DType, Element};
pub use error::{Blame, Error, ErrorCode, Result};
pub use load::{LoadOptions, LoadReport, Sharing};
pub use params::{Params, deserialize, serialize};
pub use pjrt::{Buffer, Client, CompileOptions, Device, Event, HostSemantics, Memory, Placement, Plugin};
pub use program::{Argument, Function, Outputs, Program};
pub use save::SaveOptions;
pub use tree::{KeyMap, KeyPath};
