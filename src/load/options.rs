//! How a checkpoint is loaded.

use std::borrow::Cow;

use super::ring::Staging;
use crate::array::ArraySpec;
use crate::checkpoint::Io;
use crate::dtype::DType;
use crate::error::Result;
use crate::limits::Limits;
use crate::monitor::Monitor;
use crate::params::Params;
use crate::pjrt::Placement;
use crate::tree::{Framework, KeyMap, Placed, TreeDef, matches_glob, split_path};

/// How a checkpoint is loaded. Patterns are those of [`crate::tree::matches_glob`], over names on disk.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Where the buffers go; the client's first device if `None`.
    pub to: Option<Placement>,
    /// Whether buffers may use the file's memory map in place.
    pub sharing: Sharing,
    /// The types that floating point tensors are cast to, by pattern; the first that matches counts.
    pub dtypes: Vec<(String, DType)>,
    /// Load only tensors that match one of these; all if empty.
    pub include: Vec<String>,
    /// Do not load tensors that match one of these.
    pub exclude: Vec<String>,
    /// Rules that are applied to every name, one after another, before it is placed in the tree.
    pub renames: Vec<Rename>,
    /// The framework whose names these are; recognised if `None`.
    pub framework: Option<Framework>,
    /// What names are split at to make a tree of them, one after another, such as `//` and then `/`; by the framework's
    /// convention if empty. The leaves get new names, and the structure record does not apply.
    pub split: Vec<String>,
    /// Whether the structure record is used.
    pub structure: Structure,
    /// What the tree must be.
    pub template: Option<Template>,
    /// What is checked of the bytes.
    pub verification: Verification,
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
    /// Whether a file is refused that holds something besides arrays, text and bytes; it is left out with a warning
    /// otherwise. For files of other formats than safetensors, which holds arrays only.
    pub strict: bool,
    /// What the file may ask for.
    pub limits: Limits,
    /// Who watches the load, and who may stop it.
    pub monitor: Monitor,
}

/// What is done for tensors that use the file's memory map in place, whose bytes are otherwise read when they are
/// first used, page by page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
pub enum Sharing {
    /// They may: nothing is copied, and the file must not be overwritten in place while they live.
    #[default]
    Allowed,
    /// They may not: the load waits until everything is copied, and what happens to the file then does not
    /// matter.
    Never,
}

/// Whether the structure record of a file is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Structure {
    /// It is, if there is one.
    #[default]
    Recorded,
    /// It is not: the tree comes from the names alone.
    FromNames,
}

/// What is checked of the bytes on the way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verification {
    /// Nothing: bytes that nobody uses are not read.
    #[default]
    None,
    /// The digests that the file records. A tensor that it records none of is an error.
    Digests,
}

/// A rule for names: a beginning that is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// What a name must begin with.
    pub from: String,
    /// What stands there instead.
    pub to: String,
}

impl Rename {
    /// The name under this rule, if it applies.
    pub fn apply(&self, name: &str) -> Option<String> {
        name.strip_prefix(&self.from).map(|rest| format!("{}{rest}", self.to))
    }
}

/// What a loaded tree must be.
#[derive(Debug, Clone)]
pub struct Template {
    /// The structure.
    pub def: TreeDef,
    /// The types and shapes of the leaves, in JAX's order.
    pub specs: Vec<ArraySpec>,
    /// What may differ.
    pub strictness: Strictness,
}

/// What of a template may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// Nothing.
    #[default]
    Exact,
    /// The file may hold more; what the template does not have is not loaded.
    AllowUnused,
}

impl Template {
    /// The structure, types and shapes of these parameters.
    pub fn of(params: &Params) -> Template {
        Template {
            def: params.keys().def().clone(),
            specs: params.buffers().iter().map(|buffer| buffer.spec().clone()).collect(),
            strictness: Strictness::Exact,
        }
    }

    /// Says what may differ.
    pub fn strictness(mut self, strictness: Strictness) -> Template {
        self.strictness = strictness;
        self
    }
}

impl LoadOptions {
    /// Whether the patterns choose a tensor of this name.
    pub(crate) fn is_wanted(&self, name: &str) -> bool {
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| matches_glob(pattern, name));
        (self.include.is_empty() || matches(&self.include)) && !matches(&self.exclude)
    }

    /// The name under the rules.
    pub(crate) fn renamed<'a>(&self, name: &'a str) -> Cow<'a, str> {
        self.renames.iter().fold(name.into(), |name, rule| rule.apply(&name).map_or(name, Cow::Owned))
    }

    /// The tree of these names, by the framework's convention or split as the options say.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] when they make no tree.
    pub(crate) fn place(&self, framework: Framework, names: &[&str]) -> Result<Placed> {
        // An empty separator would split a name into its letters.
        let separators: Vec<&String> = self.split.iter().filter(|separator| !separator.is_empty()).collect();
        if separators.is_empty() {
            return KeyMap::place_names(framework, names);
        }
        let paths = names.iter().map(|name| split_path(name, &separators)).collect();
        KeyMap::place_paths(names, paths, true)
    }

    /// Puts the buffers on this device or memory.
    pub fn to(mut self, placement: impl Into<Placement>) -> LoadOptions {
        self.to = Some(placement.into());
        self
    }

    /// Says whether buffers may use the file's memory map in place.
    pub fn sharing(mut self, sharing: Sharing) -> LoadOptions {
        self.sharing = sharing;
        self
    }

    /// Casts floating point tensors whose names match to this type.
    pub fn dtype(mut self, pattern: impl Into<String>, dtype: DType) -> LoadOptions {
        self.dtypes.push((pattern.into(), dtype));
        self
    }

    /// Loads only tensors that match this pattern, or another one given so.
    pub fn include(mut self, pattern: impl Into<String>) -> LoadOptions {
        self.include.push(pattern.into());
        self
    }

    /// Does not load tensors that match this pattern.
    pub fn exclude(mut self, pattern: impl Into<String>) -> LoadOptions {
        self.exclude.push(pattern.into());
        self
    }

    /// Replaces the beginning `from` of names by `to`. The structure record does not apply to new names.
    pub fn rename(mut self, from: impl Into<String>, to: impl Into<String>) -> LoadOptions {
        self.renames.push(Rename { from: from.into(), to: to.into() });
        self
    }

    /// Reads the names by this framework's convention.
    pub fn framework(mut self, framework: Framework) -> LoadOptions {
        self.framework = Some(framework);
        self
    }

    /// Splits names at this, after what was given before, to make a tree of them.
    pub fn split(mut self, separator: impl Into<String>) -> LoadOptions {
        self.split.push(separator.into());
        self
    }

    /// Says whether the structure record is used.
    pub fn structure(mut self, structure: Structure) -> LoadOptions {
        self.structure = structure;
        self
    }

    /// Requires the tree to be this.
    pub fn template(mut self, template: Template) -> LoadOptions {
        self.template = Some(template);
        self
    }

    /// Says what is checked of the bytes.
    pub fn verification(mut self, verification: Verification) -> LoadOptions {
        self.verification = verification;
        self
    }

    /// Says how the bytes that must be copied are read.
    pub fn io(mut self, io: Io) -> LoadOptions {
        self.io = io;
        self
    }

    /// Says what is done for tensors that use the file's memory map in place.
    pub fn prefetch(mut self, prefetch: Prefetch) -> LoadOptions {
        self.prefetch = prefetch;
        self
    }

    /// Says how tensors that cannot be used in place get to the device.
    pub fn delivery(mut self, delivery: Delivery) -> LoadOptions {
        self.delivery = delivery;
        self
    }

    /// Says how much host memory a load through the staging ring uses.
    pub fn staging(mut self, staging: Staging) -> LoadOptions {
        self.staging = staging;
        self
    }

    /// Says how many threads read, cast and check.
    pub fn threads(mut self, threads: usize) -> LoadOptions {
        self.threads = Some(threads.max(1));
        self
    }

    /// Says what the file may ask for.
    pub fn limits(mut self, limits: Limits) -> LoadOptions {
        self.limits = limits;
        self
    }

    /// Says who watches the load, and who may stop it.
    pub fn monitor(mut self, monitor: Monitor) -> LoadOptions {
        self.monitor = monitor;
        self
    }
}
