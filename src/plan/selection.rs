//! What is taken of a checkpoint, under which names, and what tree it makes.

use std::borrow::Cow;

use crate::array::ArraySpec;
use crate::error::Result;
use crate::limits::Limits;
use crate::tree::{Framework, KeyMap, Placed, TreeDef, matches_glob, split_path};

/// What is taken of a checkpoint, under which names, and what tree it makes. Patterns are those of
/// [`crate::tree::matches_glob`], over names on disk.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Selection {
    /// Take only tensors that match one of these; all if empty.
    pub include: Vec<String>,
    /// Do not take tensors that match one of these.
    pub exclude: Vec<String>,
    /// Rules that are applied to every name, one after another, before it is placed in the tree.
    pub renames: Vec<Rename>,
    /// The framework whose names these are; that of the format, or recognised, if `None`.
    pub framework: Option<Framework>,
    /// What names are split at to make a tree of them, one after another, such as `//` and then `/`; by the framework's
    /// convention if empty. The leaves get new names, and the file's own tree does not apply.
    pub split: Vec<String>,
    /// Whether the file's own tree is used.
    pub structure: Structure,
    /// What the tree must be.
    pub template: Option<Template>,
    /// Whether a file is refused that holds something besides arrays, text and bytes; it is left out with a warning
    /// otherwise. For files of other formats than safetensors, which holds arrays only.
    pub strict: bool,
    /// What the file may ask for.
    pub limits: Limits,
}

/// Whether a file's own tree is used: its structure record, or that of a format that holds trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Structure {
    /// It is, if there is one.
    #[default]
    Recorded,
    /// It is not: the tree comes from the names alone.
    FromNames,
}

/// A rule for names: a beginning that is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
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
#[non_exhaustive]
pub enum Strictness {
    /// Nothing.
    #[default]
    Exact,
    /// The file may hold more; what the template does not have is not loaded.
    AllowUnused,
}

impl Template {
    /// This structure, with leaves of these types and shapes in JAX's order.
    pub fn new(def: TreeDef, specs: Vec<ArraySpec>) -> Template {
        Template { def, specs, strictness: Strictness::Exact }
    }

    /// Says what may differ.
    pub fn strictness(mut self, strictness: Strictness) -> Template {
        self.strictness = strictness;
        self
    }
}

impl Selection {
    /// Whether the patterns choose a tensor of this name.
    pub(crate) fn is_wanted(&self, name: &str) -> bool {
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| matches_glob(pattern, name));
        (self.include.is_empty() || matches(&self.include)) && !matches(&self.exclude)
    }

    /// Whether names make the tree that do not have to, since they are split in another way.
    pub(crate) fn is_split(&self) -> bool {
        let is_framework_split = self.framework.is_some_and(|given| given.after_split() != given);
        !self.split.is_empty() || is_framework_split
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

    /// Takes only tensors that match this pattern, or another one given so.
    pub fn include(mut self, pattern: impl Into<String>) -> Selection {
        self.include.push(pattern.into());
        self
    }

    /// Does not take tensors that match this pattern.
    pub fn exclude(mut self, pattern: impl Into<String>) -> Selection {
        self.exclude.push(pattern.into());
        self
    }

    /// Replaces the beginning `from` of names by `to`. The file's own tree does not apply to new names.
    pub fn rename(mut self, from: impl Into<String>, to: impl Into<String>) -> Selection {
        self.renames.push(Rename { from: from.into(), to: to.into() });
        self
    }

    /// Reads the names by this framework's convention.
    pub fn framework(mut self, framework: Framework) -> Selection {
        self.framework = Some(framework);
        self
    }

    /// Splits names at this, after what was given before, to make a tree of them.
    pub fn split(mut self, separator: impl Into<String>) -> Selection {
        self.split.push(separator.into());
        self
    }

    /// Says whether the file's own tree is used.
    pub fn structure(mut self, structure: Structure) -> Selection {
        self.structure = structure;
        self
    }

    /// Requires the tree to be this.
    pub fn template(mut self, template: Template) -> Selection {
        self.template = Some(template);
        self
    }

    /// Says what the file may ask for.
    pub fn limits(mut self, limits: Limits) -> Selection {
        self.limits = limits;
        self
    }

    /// Refuses a file that holds something besides arrays, text and bytes, instead of leaving that out.
    pub fn strict(mut self) -> Selection {
        self.strict = true;
        self
    }
}
