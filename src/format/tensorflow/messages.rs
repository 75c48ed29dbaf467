//! The protocol buffers of TensorFlow's checkpoints: what is read of `tensor_bundle.proto`, `tensor_shape.proto` and
//! `trackable_object_graph.proto`.

use prost::Message;

/// `BundleHeaderProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    /// The number of files of data.
    #[prost(int32, tag = "1")]
    pub num_shards: i32,
    /// 0 where numbers begin with the lowest byte, 1 where with the highest.
    #[prost(int32, tag = "2")]
    pub endianness: i32,
}

/// `BundleEntryProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(int32, tag = "1")]
    pub dtype: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
    #[prost(int32, tag = "3")]
    pub shard_id: i32,
    #[prost(int64, tag = "4")]
    pub offset: i64,
    #[prost(int64, tag = "5")]
    pub size: i64,
    #[prost(fixed32, tag = "6")]
    pub crc32c: u32,
    /// What nothing is read of but that there is some.
    #[prost(message, repeated, tag = "7")]
    pub slices: Vec<Slice>,
}

/// `TensorSliceProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Slice {}

/// `TensorShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "2")]
    pub dims: Vec<Dim>,
    #[prost(bool, tag = "3")]
    pub unknown_rank: bool,
}

/// `TensorShapeProto.Dim`.
#[derive(Clone, PartialEq, Message)]
pub struct Dim {
    #[prost(int64, tag = "1")]
    pub size: i64,
}

/// `TrackableObjectGraph`.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectGraph {
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<Object>,
}

/// `TrackableObjectGraph.TrackableObject`.
#[derive(Clone, PartialEq, Message)]
pub struct Object {
    #[prost(message, repeated, tag = "2")]
    pub attributes: Vec<Attribute>,
}

/// `TrackableObjectGraph.TrackableObject.SerializedTensor`.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// The name of the variable in the program.
    #[prost(string, tag = "2")]
    pub full_name: String,
    /// Its key in the table.
    #[prost(string, tag = "3")]
    pub checkpoint_key: String,
}
