//! The engine: it carries a plan out. Threads, the staging ring, the arena, casts, digests, progress, cancellation and
//! errors are here, whichever device is at the other end.

mod arena;
mod block_reader;
mod carry;
mod device;
mod file;
mod journal;
mod offers;
mod options;
mod replace;
mod ring;
mod room;
mod shards;
mod sink;
mod stream;
mod supply;
mod together;

#[cfg(feature = "xla")]
pub(crate) use block_reader::BlockReader;
pub(crate) use block_reader::ThreadTimes;
pub(crate) use carry::{Destination, TensorSource, carry_out};
pub(crate) use device::{ClientDestination, target};
pub use options::{Delivery, Digests, Prefetch, Sharing, TransferOptions};
#[cfg(feature = "xla")]
pub(crate) use ring::Ring;
pub use ring::{Registration, Staging};
pub(crate) use room::check_all as check_room;
pub(crate) use shards::{CheckpointPlan, FileOptions};
pub(crate) use sink::Sink;
#[cfg(feature = "xla")]
pub(crate) use stream::{pass_on, read_staged};
pub(crate) use supply::{ByteSource, DeviceSupply, FileChange, ReadPart, Supply, TensorBytes};
pub(crate) use together::TogetherSave;
