//! Rules: which tensors are split over which axes of a mesh.

use crate::error::{Error, Result};
use crate::sharding::PartitionSpec;
use crate::tree::matches_glob;

/// How tensors are laid over a mesh, by their names: the first rule that matches counts. Patterns are those of
/// [`crate::tree::matches_glob`], over the names that tensors are loaded by.
///
/// ```
/// use safejax::load::ShardingRules;
/// let rules = ShardingRules::default()
///     .rule("*.kernel", "P(None, 'model')".parse()?)
///     .rule("*.embedding", "P('model')".parse()?);
/// assert_eq!(rules.spec("params.Dense_0.kernel")?.to_string(), "P(None, 'model')");
/// assert_eq!(rules.spec("params.Dense_0.bias")?.to_string(), "P()");
/// # Ok::<(), safejax::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ShardingRules {
    /// Patterns, and the specs of what matches them.
    pub rules: Vec<(String, PartitionSpec)>,
    /// What becomes of tensors that match none.
    pub unmatched: Unmatched,
}

/// What becomes of tensors that no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Unmatched {
    /// Every device has all of them.
    #[default]
    Replicate,
    /// They are an error.
    Refuse,
}

impl ShardingRules {
    /// Adds a rule after those that are there.
    pub fn rule(mut self, pattern: impl Into<String>, spec: PartitionSpec) -> ShardingRules {
        self.rules.push((pattern.into(), spec));
        self
    }

    /// Says what becomes of tensors that no rule matches.
    pub fn unmatched(mut self, unmatched: Unmatched) -> ShardingRules {
        self.unmatched = unmatched;
        self
    }

    /// The spec of a tensor of this name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where no rule matches, and one has to.
    pub fn spec(&self, name: &str) -> Result<PartitionSpec> {
        match self.rules.iter().find(|(pattern, _)| matches_glob(pattern, name)) {
            Some((_, spec)) => Ok(spec.clone()),
            None if self.unmatched == Unmatched::Replicate => Ok(PartitionSpec::replicated()),
            None => Err(Error::InvalidArgument(format!("no sharding rule matches `{name}`"))),
        }
    }
}
