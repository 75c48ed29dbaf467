//! What a file may ask for. A file that a stranger made can be small and describe something huge; what reading it takes
//! is bounded here, and the bound is checked before memory is taken. `docs/reliability.md` has the figures.

/// The most dimensions that an array of a file may have: as many as NumPy allows since 2.0 (`NPY_MAXDIMS`).
pub(crate) const MAX_RANK: usize = 64;

/// How much a file may ask for. The defaults are far above what real checkpoints hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Nodes and leaves of the tree that a msgpack, pickle or structure record describes: by default 1,048,576. A node
    /// takes some hundred bytes of memory, however few it takes in the file.
    pub nodes: usize,
    /// Bytes to which an array of a compressed file, or a compressed file itself, may expand where it expands more than
    /// twentyfold: by default 256 MiB.
    pub expanded_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nodes: 1 << 20, expanded_bytes: 256 << 20 }
    }
}

/// Real arrays are seldom compressed to less than one part in so many.
const ORDINARY_EXPANSION: u64 = 20;

impl Limits {
    /// No limits, for files whose origin is known.
    pub fn none() -> Limits {
        Limits { nodes: usize::MAX, expanded_bytes: u64::MAX }
    }

    /// Refuses a tree of more nodes than there may be.
    pub(crate) fn check_nodes(&self, nodes: usize) -> Result<(), String> {
        if nodes <= self.nodes {
            return Ok(());
        }
        Err(format!(
            "its tree has more than {} nodes; if it is real, read it without limits (`--no-limits`, \
             `LoadOptions::limits`)",
            self.nodes
        ))
    }

    /// Refuses to expand so many bytes to so many.
    pub(crate) fn check_expansion(&self, compressed: u64, expanded: u64) -> Result<(), String> {
        if expanded <= self.expanded_bytes || expanded / ORDINARY_EXPANSION <= compressed {
            return Ok(());
        }
        Err(format!(
            "it would expand from {compressed} to {expanded} bytes, as files do that are made to fill the memory; if it \
             is real, read it without limits (`--no-limits`, `LoadOptions::limits`)"
        ))
    }

    /// The most bytes to which so many may expand.
    pub(crate) fn most_expanded(&self, compressed: u64) -> u64 {
        self.expanded_bytes.max(compressed.saturating_mul(ORDINARY_EXPANSION))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expands_a_little_or_is_small_passes() {
        let limits = Limits::default();
        assert!(limits.check_expansion(1, 256 << 20).is_ok());
        assert!(limits.check_expansion(1 << 30, 4 << 30).is_ok());
        assert!(limits.check_expansion(1 << 20, 1 << 30).unwrap_err().contains("--no-limits"));
        assert!(Limits::none().check_expansion(1, u64::MAX).is_ok());
        assert_eq!(limits.most_expanded(1), 256 << 20);
        assert!(limits.check_nodes(1 << 20).is_ok() && limits.check_nodes((1 << 20) + 1).is_err());
    }
}
