//! What a save is told: what is recorded, how the file is laid out and written, and who watches.

use std::collections::BTreeMap;

use crate::dtype::DType;
use crate::format::DEFAULT_ALIGNMENT;
use crate::monitor::Monitor;
use crate::store::WriteOptions;
use crate::transfer::{Digests, Registration};
use crate::tree::Framework;

/// How parameters are saved.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SaveOptions {
    /// What tensors are aligned to in the file where they can be, in bytes: a power of two, 8 to 4096.
    pub alignment: usize,
    /// Strings for the header; those that the parameters were loaded with if `None`.
    pub metadata: Option<BTreeMap<String, String>>,
    /// What floating point arrays are cast to; others stay as they are.
    pub dtype: Option<DType>,
    /// The framework that is recorded; that which the parameters were loaded as if `None`.
    pub framework: Option<Framework>,
    /// What is recorded beside the tensors.
    pub record: Record,
    /// Whether a digest of every tensor is recorded.
    pub digests: Digests,
    /// The most bytes of tensors in a file; a larger tensor has a file to itself. One file if `None`. Of more than one,
    /// `model.safetensors` becomes `model-00001-of-00003.safetensors` and so on, and `model.safetensors.index.json`,
    /// which is written last.
    pub max_shard_bytes: Option<u64>,
    /// Whether host memory that the device copies into is registered with it.
    pub registration: Registration,
    /// How the file is written.
    pub write: WriteOptions,
    /// Who watches the save, and who may stop it.
    pub monitor: Monitor,
}

/// What is recorded in the metadata beside the user's strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Record {
    /// The tree's structure.
    #[default]
    Structure,
    /// Nothing; refused for a tree that its names alone would not bring back.
    NamesOnly,
}

impl Default for SaveOptions {
    fn default() -> SaveOptions {
        SaveOptions {
            alignment: DEFAULT_ALIGNMENT,
            metadata: None,
            dtype: None,
            framework: None,
            record: Record::default(),
            digests: Digests::default(),
            max_shard_bytes: None,
            registration: Registration::default(),
            write: WriteOptions::default(),
            monitor: Monitor::default(),
        }
    }
}

impl SaveOptions {
    /// Puts these strings into the header.
    pub fn metadata(mut self, metadata: BTreeMap<String, String>) -> SaveOptions {
        self.metadata = Some(metadata);
        self
    }

    /// Casts floating point arrays to this type.
    pub fn dtype(mut self, dtype: DType) -> SaveOptions {
        self.dtype = Some(dtype);
        self
    }

    /// Says what is recorded beside the tensors.
    pub fn record(mut self, record: Record) -> SaveOptions {
        self.record = record;
        self
    }

    /// Says whether digests are recorded.
    pub fn digests(mut self, digests: Digests) -> SaveOptions {
        self.digests = digests;
        self
    }

    /// Writes several files with an index, each of at most so many bytes of tensors, where one would be larger.
    pub fn max_shard_bytes(mut self, bytes: u64) -> SaveOptions {
        self.max_shard_bytes = Some(bytes);
        self
    }

    /// Says whether host memory that the device copies into is registered with it.
    pub fn registration(mut self, registration: Registration) -> SaveOptions {
        self.registration = registration;
        self
    }

    /// Says how the file is written.
    pub fn write(mut self, write: WriteOptions) -> SaveOptions {
        self.write = write;
        self
    }

    /// Says who watches the save, and who may stop it.
    pub fn monitor(mut self, monitor: Monitor) -> SaveOptions {
        self.monitor = monitor;
        self
    }

    /// Says what tensors are aligned to, in bytes.
    pub fn alignment(mut self, alignment: usize) -> SaveOptions {
        self.alignment = alignment;
        self
    }
}
