//! How bytes get from files to a device, and what is recorded of them on their way back.

use super::ring::Staging;
use crate::store::Io;

/// How bytes get from files to a device.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TransferOptions {
    /// Whether buffers may use the file's memory map in place.
    pub sharing: Sharing,
    /// How the bytes that must be copied are read.
    pub io: Io,
    /// What is done before the load returns for the tensors that use the file's memory map in place.
    pub prefetch: Prefetch,
    /// How tensors that cannot be used in place get to the device.
    pub delivery: Delivery,
    /// How much host memory a load through the staging ring uses.
    pub staging: Staging,
    /// Threads that read, cast and check. If `None`, as many as there are processors, up to 16; at least 8 where reads wait
    /// for a disk or a network; at most two fewer than the chunks of a staging ring.
    pub threads: Option<usize>,
}

/// What is done for tensors that use the file's memory map in place, whose bytes are otherwise read when they are
/// first used, page by page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Prefetch {
    /// Nothing.
    #[default]
    None,
    /// The system is asked to read them soon, in the background (`MADV_WILLNEED`).
    WillNeed,
    /// They are read, and mapped into the process, before the load returns (`MADV_POPULATE_READ`, Linux 5.14 or
    /// newer; as `WillNeed` elsewhere).
    Populate,
}

/// How tensors that cannot be used in place get to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Delivery {
    /// Through aligned host memory that the device uses in place, where it can; else as `Stream`.
    #[default]
    Auto,
    /// Through the staging ring piece by piece, all of them, on every device. Tensors of up to 1 MiB go together, into
    /// device memory that they share, where the plugin has views of it. As `Whole` where the plugin has no transfer
    /// manager, or does not lay elements out row-major.
    Stream,
    /// Through the staging ring, each tensor whole, all of them.
    Whole,
}

/// Whether buffers may use the file's memory map in place, where the platform can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sharing {
    /// They may: nothing is copied, and the file must not be overwritten in place while they live.
    #[default]
    Allowed,
    /// They may not: the load waits until everything is copied, and what happens to the file then does not
    /// matter.
    Never,
}

/// Whether digests are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Digests {
    /// They are not.
    #[default]
    None,
    /// The sha256 of every tensor.
    Sha256,
}
