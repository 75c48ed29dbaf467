//! The parts of HLO protos that say what a program takes and returns.
//!
//! The messages are the fields of `xla/service/hlo.proto` and `xla/xla_data.proto` that are read here, by
//! their numbers; everything else in them is skipped.

use bytes::Bytes;
use prost::Message;

use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::pjrt::OptimizedProgram;

/// `xla.HloModuleProto`.
#[derive(Clone, PartialEq, Message)]
pub struct HloModule {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub entry_computation_name: String,
    #[prost(message, optional, tag = "4")]
    pub host_program_shape: Option<ProgramShape>,
    #[prost(message, optional, tag = "8")]
    pub input_output_alias: Option<InputOutputAlias>,
    #[prost(message, optional, tag = "12")]
    pub spmd_output_sharding: Option<OpSharding>,
    #[prost(message, repeated, tag = "14")]
    pub spmd_parameters_shardings: Vec<OpSharding>,
}

/// `xla.ProgramShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct ProgramShape {
    #[prost(message, repeated, tag = "1")]
    pub parameters: Vec<Shape>,
    #[prost(message, optional, tag = "2")]
    pub result: Option<Shape>,
}

/// `xla.ShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    #[prost(int32, tag = "2")]
    pub element_type: i32,
    #[prost(int64, repeated, tag = "3")]
    pub dimensions: Vec<i64>,
    #[prost(message, repeated, tag = "4")]
    pub tuple_shapes: Vec<Shape>,
    #[prost(message, optional, tag = "5")]
    pub layout: Option<LayoutMessage>,
}

/// `xla.PrimitiveType.TUPLE`.
pub const TUPLE: i32 = 13;

/// `xla.LayoutProto`.
#[derive(Clone, PartialEq, Message)]
pub struct LayoutMessage {
    #[prost(int64, repeated, tag = "1")]
    pub minor_to_major: Vec<i64>,
    #[prost(message, repeated, tag = "6")]
    pub tiles: Vec<Tile>,
}

/// `xla.TileProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Tile {
    #[prost(int64, repeated, tag = "1")]
    pub dimensions: Vec<i64>,
}

/// `xla.OpSharding`.
#[derive(Clone, PartialEq, Message)]
pub struct OpSharding {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(int64, repeated, tag = "3")]
    pub tile_assignment_dimensions: Vec<i64>,
    #[prost(int64, repeated, tag = "4")]
    pub tile_assignment_devices: Vec<i64>,
    #[prost(message, repeated, tag = "5")]
    pub tuple_shardings: Vec<OpSharding>,
    #[prost(bool, tag = "6")]
    pub replicate_on_last_tile_dim: bool,
    #[prost(int32, repeated, tag = "8")]
    pub last_tile_dims: Vec<i32>,
    #[prost(int64, repeated, tag = "9")]
    pub iota_reshape_dims: Vec<i64>,
    #[prost(int32, repeated, tag = "10")]
    pub iota_transpose_perm: Vec<i32>,
}

/// `xla.HloInputOutputAliasProto`.
#[derive(Clone, PartialEq, Message)]
pub struct InputOutputAlias {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<AliasEntry>,
}

/// `xla.HloInputOutputAliasProto.AliasEntryProto`.
#[derive(Clone, PartialEq, Message)]
pub struct AliasEntry {
    /// The output's position; nothing where it is the only one.
    #[prost(int64, repeated, tag = "1")]
    pub output_shape_index: Vec<i64>,
    #[prost(int64, tag = "2")]
    pub parameter_number: i64,
}

/// A message whose first field is a module: `xla.HloProto` and `xla.HloModuleProtoWithConfig`.
#[derive(Clone, PartialEq, Message)]
struct ModuleAround {
    #[prost(bytes = "bytes", tag = "1")]
    module: Bytes,
}

impl Shape {
    /// The array's type and shape; `None` for a tuple, a token, or a type that is not an array's.
    pub fn to_spec(&self) -> Option<ArraySpec> {
        let dtype = DType::from_xla(self.element_type)?;
        let shape: Option<Vec<usize>> =
            self.dimensions.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        Some(ArraySpec::new(dtype, shape?))
    }
}

/// Decodes a module that has an entry computation; any other bytes are `None`.
pub fn decode_module(bytes: &[u8]) -> Option<HloModule> {
    let module = HloModule::decode(bytes).ok()?;
    (!module.entry_computation_name.is_empty() && module.host_program_shape.is_some()).then_some(module)
}

/// Decodes the module in an `HloModuleProtoWithConfig`.
fn decode_module_with_config(bytes: &[u8]) -> Option<HloModule> {
    decode_module(&ModuleAround::decode(bytes).ok()?.module)
}

/// Decodes what a compiler made of a program.
pub fn decode_optimized(program: &OptimizedProgram) -> Option<HloModule> {
    match &*program.format {
        "hlo_with_config" => decode_module_with_config(&program.code),
        "hlo" => decode_module(&program.code),
        _ => None,
    }
}

/// The bytes of a module: these, or those within the messages that wrap one.
pub fn module_within(bytes: &Bytes) -> Option<Bytes> {
    if decode_module(bytes).is_some() {
        return Some(bytes.clone());
    }
    let around = ModuleAround::decode(bytes.clone()).ok()?;
    decode_module(&around.module).map(|_| around.module)
}
