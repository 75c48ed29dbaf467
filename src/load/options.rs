//! How a checkpoint is loaded.

use std::collections::BTreeMap;

use super::sharded::Distribution;
use crate::device_mesh::DeviceMesh;
use crate::dtype::DType;
use crate::limits::Limits;
use crate::monitor::Monitor;
use crate::pjrt::{Device, Placement};
use crate::plan::{Rename, Selection, ShardingRules, Structure, Template};
use crate::sharding::Sharding;
use crate::store::Io;
use crate::transfer::{Delivery, Prefetch, Sharing, Staging, TransferOptions};
use crate::tree::Framework;

/// How a checkpoint is loaded.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// What is loaded, under which names, and what tree it makes.
    pub selection: Selection,
    /// The types that floating point tensors are cast to, by pattern over names in the file; the first that matches
    /// counts.
    pub dtypes: Vec<(String, DType)>,
    /// Where the buffers go; the client's first device if `None`.
    pub to: Option<Placement>,
    /// The devices that tensors are laid over, if they are several.
    pub(crate) distribution: Option<Distribution>,
    /// How the bytes get there.
    pub transfer: TransferOptions,
    /// What is checked of the bytes.
    pub verification: Verification,
    /// Who watches the load, and who may stop it.
    pub monitor: Monitor,
}

/// What is checked of the bytes on the way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Verification {
    /// Nothing: bytes that nobody uses are not read.
    #[default]
    None,
    /// The digests that the file records. A tensor that it records none of is an error.
    Digests,
}

impl LoadOptions {
    /// Puts the buffers on this device or memory.
    pub fn to(mut self, placement: impl Into<Placement>) -> LoadOptions {
        self.to = Some(placement.into());
        self
    }

    /// Lays tensors over the devices of a mesh by rules, rather than on one device. Each device gets its slice straight from the
    /// file.
    pub fn sharded(mut self, mesh: &DeviceMesh, rules: ShardingRules) -> LoadOptions {
        self.distribution = Some(Distribution::by_rules(mesh, rules));
        self
    }

    /// Lays tensors over these devices, each as its name says.
    pub(crate) fn over(mut self, devices: Vec<Device>, shardings: BTreeMap<String, Sharding>) -> LoadOptions {
        self.distribution = Some(Distribution::each(devices, shardings));
        self
    }

    /// Casts floating point tensors whose names match to this type.
    pub fn dtype(mut self, pattern: impl Into<String>, dtype: DType) -> LoadOptions {
        self.dtypes.push((pattern.into(), dtype));
        self
    }

    /// Loads only tensors that match this pattern, or another one given so.
    pub fn include(mut self, pattern: impl Into<String>) -> LoadOptions {
        self.selection.include.push(pattern.into());
        self
    }

    /// Does not load tensors that match this pattern.
    pub fn exclude(mut self, pattern: impl Into<String>) -> LoadOptions {
        self.selection.exclude.push(pattern.into());
        self
    }

    /// Replaces the beginning `from` of names by `to`. The structure record does not apply to new names.
    pub fn rename(mut self, from: impl Into<String>, to: impl Into<String>) -> LoadOptions {
        self.selection.renames.push(Rename { from: from.into(), to: to.into() });
        self
    }

    /// Reads the names by this framework's convention.
    pub fn framework(mut self, framework: Framework) -> LoadOptions {
        self.selection.framework = Some(framework);
        self
    }

    /// Splits names at this, after what was given before, to make a tree of them.
    pub fn split(mut self, separator: impl Into<String>) -> LoadOptions {
        self.selection.split.push(separator.into());
        self
    }

    /// Says whether the structure record is used.
    pub fn structure(mut self, structure: Structure) -> LoadOptions {
        self.selection.structure = structure;
        self
    }

    /// Requires the tree to be this.
    pub fn template(mut self, template: Template) -> LoadOptions {
        self.selection.template = Some(template);
        self
    }

    /// Says what the file may ask for.
    pub fn limits(mut self, limits: Limits) -> LoadOptions {
        self.selection.limits = limits;
        self
    }

    /// Says whether buffers may use the file's memory map in place.
    pub fn sharing(mut self, sharing: Sharing) -> LoadOptions {
        self.transfer.sharing = sharing;
        self
    }

    /// Says how the bytes that must be copied are read.
    pub fn io(mut self, io: Io) -> LoadOptions {
        self.transfer.io = io;
        self
    }

    /// Says what is done for tensors that use the file's memory map in place.
    pub fn prefetch(mut self, prefetch: Prefetch) -> LoadOptions {
        self.transfer.prefetch = prefetch;
        self
    }

    /// Says how tensors that cannot be used in place get to the device.
    pub fn delivery(mut self, delivery: Delivery) -> LoadOptions {
        self.transfer.delivery = delivery;
        self
    }

    /// Says how much host memory a load through the staging ring uses.
    pub fn staging(mut self, staging: Staging) -> LoadOptions {
        self.transfer.staging = staging;
        self
    }

    /// Says how many threads read, cast and check.
    pub fn threads(mut self, threads: usize) -> LoadOptions {
        self.transfer.threads = Some(threads.max(1));
        self
    }

    /// Says what is checked of the bytes.
    pub fn verification(mut self, verification: Verification) -> LoadOptions {
        self.verification = verification;
        self
    }

    /// Says who watches the load, and who may stop it.
    pub fn monitor(mut self, monitor: Monitor) -> LoadOptions {
        self.monitor = monitor;
        self
    }
}
