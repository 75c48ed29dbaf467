//! What a load will do, worked out before a byte moves: which tensors of a checkpoint are taken and what tree they make,
//! how each gets to the device, and what is read at once.
//!
//! Pure: it opens no file and asks no device. What a device can do comes in as a [`Abilities`].

mod blocks;
mod parts;
mod patterns;
mod rules;
mod select;
mod selection;
mod steps;

pub(crate) use blocks::{Block, Piece, jobs};
pub(crate) use parts::{has_parts, part_of};
pub(crate) use patterns::{check_casts, check_pattern};
pub use rules::{ShardingRules, Unmatched};
pub(crate) use select::{Selected, loaded_dtype, select};
pub use selection::{Rename, Selection, Strictness, Structure, Template};
pub(crate) use steps::{Abilities, PLACE_ALIGNMENT, Wanted, place};
pub use steps::{Change, LoadPlan, Route, Step};
