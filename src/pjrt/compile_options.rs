//! How a program is compiled, in the protobuf form that the C API takes.
//!
//! The messages are the parts of `xla/pjrt/proto/compile_options.proto` and `xla/xla_data.proto` that this
//! crate sets, by their field numbers.

use std::collections::{BTreeMap, HashSet};

use prost::Message;

use super::named_value::NamedValue;
use super::{Client, Device};
use crate::error::{Error, Result};

/// The sets of sizes whose executables are kept: a server that sees more of them pads to a few.
const DEFAULT_KEPT_SIZES: usize = 64;

/// How a program is compiled.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CompileOptions {
    /// Copies of the program that run side by side on different data.
    pub replicas: usize,
    /// Devices that one copy of the program is split over; 1 for a program that is not sharded.
    pub partitions: usize,
    /// Whether the sharding annotations are Shardy's (`sdy.mesh` in the module) rather than GSPMD's. Without it, the module tells:
    /// the compiler aborts the process over the wrong one.
    pub use_shardy: Option<bool>,
    /// Of each output, whether the compiler may choose how it is laid over the devices
    /// (`allow_spmd_sharding_propagation_to_output`); none may where this is empty.
    pub free_outputs: Vec<bool>,
    /// The device ids to run on, one row a replica, one id a partition; the client's default if `None`.
    pub device_assignment: Option<Vec<Vec<i32>>>,
    /// XLA debug options to override by name, such as `xla_cpu_enable_fast_math`.
    pub xla_options: BTreeMap<String, NamedValue>,
    /// Of a function with symbolic dimensions, the sets of sizes whose executables are kept in memory: those that were used
    /// last.
    pub kept_sizes: usize,
    /// Of a function with symbolic dimensions, the sizes that a variable is padded to, by its name: arguments get zeros at
    /// the end of their dimensions up to the smallest of these, and outputs are cut back. So few programs are compiled. Only
    /// for functions that do not mix what is at different places of such a dimension, or that take a mask.
    pub padded_sizes: BTreeMap<String, Vec<usize>>,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions {
            replicas: 1,
            partitions: 1,
            use_shardy: None,
            free_outputs: Vec::new(),
            device_assignment: None,
            xla_options: BTreeMap::new(),
            kept_sizes: DEFAULT_KEPT_SIZES,
            padded_sizes: BTreeMap::new(),
        }
    }
}

impl CompileOptions {
    /// The first device that a program runs on.
    pub(crate) fn first_device(&self, client: &Client) -> Result<Device> {
        let id = self.device_assignment.as_ref().and_then(|rows| rows.first()?.first().copied());
        match id {
            None => client.device(0),
            Some(id) => {
                let mut devices = client.addressable_devices().into_iter();
                let found = devices.find(|device| device.id() == id);
                found.ok_or_else(|| {
                    let is_elsewhere = client.devices().iter().any(|device| device.id() == id);
                    Error::InvalidArgument(match is_elsewhere {
                        true => format!(
                            "device {id} is attached to another process: a program runs on the devices of one process"
                        ),
                        false => format!("the client has no device {id}"),
                    })
                })
            }
        }
    }

    /// The same, on the first of these devices.
    pub(super) fn on_first(mut self, devices: &[i32]) -> CompileOptions {
        let rows = devices.chunks(self.partitions.max(1)).take(self.replicas);
        self.device_assignment = Some(rows.map(<[i32]>::to_vec).collect());
        self
    }

    /// Refuses options over which compilers abort the process or never return: of more devices than there are, of others than
    /// these, or of one twice. `holder` has them, and `whereabouts` says of one that it has not.
    pub(super) fn check_devices(&self, known: &[i32], holder: &str, whereabouts: &str) -> Result<()> {
        device_count(self.replicas, self.partitions, known.len(), holder)?;
        let mut seen = HashSet::new();
        for id in self.device_assignment.iter().flatten().flatten() {
            if !known.contains(id) {
                return Err(Error::InvalidArgument(format!(
                    "the device assignment has a device {id}, which is not {whereabouts}"
                )));
            }
            if !seen.insert(id) {
                return Err(Error::InvalidArgument(format!("the device assignment has device {id} twice")));
            }
        }
        Ok(())
    }

    /// The serialised `xla.CompileOptionsProto`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the device assignment is not replicas x partitions, or an XLA option
    /// is a list.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let proto = CompileOptionsProto {
            executable_build_options: Some(ExecutableBuildOptionsProto {
                device_ordinal: -1, // not set
                num_replicas: self.replicas as i64,
                num_partitions: self.partitions as i64,
                use_spmd_partitioning: self.partitions > 1,
                device_assignment: self.device_assignment()?,
                allow_spmd_sharding_propagation_to_output: self.free_outputs.clone(),
                use_shardy_partitioner: self.use_shardy.unwrap_or(false),
            }),
            env_option_overrides: self
                .xla_options
                .iter()
                .map(|(name, value)| Ok((name.clone(), override_of(name, value)?)))
                .collect::<Result<_>>()?,
        };
        Ok(proto.encode_to_vec())
    }

    fn device_assignment(&self) -> Result<Option<DeviceAssignmentProto>> {
        let Some(rows) = &self.device_assignment else { return Ok(None) };
        if rows.len() != self.replicas || rows.iter().any(|row| row.len() != self.partitions) {
            return Err(Error::InvalidArgument(format!(
                "the device assignment {rows:?} is not {} replicas of {} partitions",
                self.replicas, self.partitions
            )));
        }
        let column = |partition: usize| ComputationDevice {
            replica_device_ids: rows.iter().map(|row| i64::from(row[partition])).collect(),
        };
        Ok(Some(DeviceAssignmentProto {
            replica_count: self.replicas as i32,
            computation_count: self.partitions as i32,
            computation_devices: (0..self.partitions).map(column).collect(),
        }))
    }
}

/// The number of devices that a program of so many replicas and partitions takes, of those that `holder` has.
///
/// # Errors
/// [`Error::InvalidArgument`] when it has fewer, or the program takes none.
pub(super) fn device_count(replicas: usize, partitions: usize, found: usize, holder: &str) -> Result<usize> {
    match replicas.checked_mul(partitions) {
        Some(count) if (1..=found).contains(&count) => Ok(count),
        Some(0) | None => Err(Error::InvalidArgument(format!(
            "a program of {replicas} replicas and {partitions} partitions cannot be: it needs at least one device, and \
             few enough; {holder} has {found}"
        ))),
        Some(count) => {
            let replicas = if replicas > 1 {
                format!(" ({replicas} replicas of {partitions} partitions)")
            } else {
                String::new()
            };
            Err(Error::InvalidArgument(format!(
                "the program runs on {count} devices{replicas}, and {holder} has {found}"
            )))
        }
    }
}

fn override_of(name: &str, value: &NamedValue) -> Result<OptionOverrideProto> {
    let value = match value {
        NamedValue::String(text) => OptionValue::String(text.clone()),
        NamedValue::Bool(value) => OptionValue::Bool(*value),
        NamedValue::Int64(value) => OptionValue::Int(*value),
        NamedValue::Float(value) => OptionValue::Double(f64::from(*value)),
        NamedValue::Int64List(_) => {
            return Err(Error::InvalidArgument(format!("the XLA option `{name}` cannot be a list")));
        }
    };
    Ok(OptionOverrideProto { value: Some(value) })
}

#[derive(Clone, PartialEq, Message)]
struct CompileOptionsProto {
    #[prost(message, optional, tag = "3")]
    executable_build_options: Option<ExecutableBuildOptionsProto>,
    #[prost(btree_map = "string, message", tag = "7")]
    env_option_overrides: BTreeMap<String, OptionOverrideProto>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecutableBuildOptionsProto {
    #[prost(int64, tag = "1")]
    device_ordinal: i64,
    #[prost(int64, tag = "4")]
    num_replicas: i64,
    #[prost(int64, tag = "5")]
    num_partitions: i64,
    #[prost(bool, tag = "6")]
    use_spmd_partitioning: bool,
    #[prost(message, optional, tag = "9")]
    device_assignment: Option<DeviceAssignmentProto>,
    #[prost(bool, repeated, tag = "12")]
    allow_spmd_sharding_propagation_to_output: Vec<bool>,
    #[prost(bool, tag = "19")]
    use_shardy_partitioner: bool,
}

#[derive(Clone, PartialEq, Message)]
struct DeviceAssignmentProto {
    #[prost(int32, tag = "1")]
    replica_count: i32,
    #[prost(int32, tag = "2")]
    computation_count: i32,
    #[prost(message, repeated, tag = "3")]
    computation_devices: Vec<ComputationDevice>,
}

#[derive(Clone, PartialEq, Message)]
struct ComputationDevice {
    #[prost(int64, repeated, tag = "1")]
    replica_device_ids: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct OptionOverrideProto {
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4")]
    value: Option<OptionValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OptionValue {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_one_device_of_the_clients_choice() {
        let bytes = CompileOptions::default().to_bytes().unwrap();
        let proto = CompileOptionsProto::decode(&bytes[..]).unwrap();
        let build = proto.executable_build_options.unwrap();
        assert_eq!((build.num_replicas, build.num_partitions, build.device_ordinal), (1, 1, -1));
        assert!(!build.use_spmd_partitioning);
        assert_eq!(build.device_assignment, None);
    }

    #[test]
    fn an_assignment_of_another_size_is_an_error() {
        let options = CompileOptions { device_assignment: Some(vec![vec![0, 1]]), ..Default::default() };
        assert!(options.to_bytes().unwrap_err().to_string().contains("1 replicas of 1 partitions"));
    }
}
