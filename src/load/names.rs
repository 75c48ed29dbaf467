//! Which tensors of a file are loaded, under which names, and where in the tree each goes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Selected;
use super::options::{LoadOptions, Strictness, Structure, Template};
use super::patterns::check_casts;
use crate::cast::cast_dtype;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tree::{Framework, KeyMap, TreeDef, matches_glob, record, respell};

/// The tensors that are loaded, in the order of the tree's leaves.
pub struct Selection<'a> {
    pub keys: KeyMap,
    pub framework: Framework,
    pub has_record: bool,
    pub tensors: Vec<&'a TensorInfo>,
}

impl Selection<'_> {
    /// The tensors under the names that they are loaded by.
    pub fn named_tensors(&self) -> impl Iterator<Item = Selected<'_>> {
        self.keys.leaves().iter().map(|leaf| leaf.name.as_str()).zip(self.tensors.iter().copied())
    }
}

/// Chooses the tensors and places them.
pub fn select<'a>(checkpoint: &'a Checkpoint, options: &LoadOptions) -> Result<Selection<'a>> {
    let names: Vec<&str> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    options.check_patterns(&names)?;
    check_casts(&options.dtypes, &names)?;
    let (framework, is_guess) = framework_of(checkpoint, options);
    let record = match options.structure {
        // Under new names it does not apply.
        Structure::Recorded => record::read_within(checkpoint.metadata(), options.limits)?
            .filter(|_| options.renames.is_empty() && options.split.is_empty()),
        Structure::FromNames => None,
    };
    let has_record = record.is_some();
    let (keys, tensors, framework) = match record {
        Some(def) => {
            let (keys, tensors) = recorded(checkpoint, def, framework, options)?;
            (keys, tensors, framework)
        }
        None if is_guess && options.split.is_empty() => guessed(checkpoint, framework, options)?,
        None => {
            let (keys, tensors) = named(checkpoint, framework, options)?;
            (keys, tensors, framework.after_split())
        }
    };
    let (keys, tensors) = match &options.template {
        Some(template) => fit(template, &keys, framework, &tensors, &options.dtypes)?,
        None => (keys, tensors),
    };
    Ok(Selection { keys, framework, has_record, tensors })
}

/// A tree and its tensors, in its order.
type Chosen<'a> = (KeyMap, Vec<&'a TensorInfo>);

/// What is wanted of the recorded tree.
fn recorded<'a>(
    checkpoint: &'a Checkpoint,
    def: TreeDef,
    framework: Framework,
    options: &LoadOptions,
) -> Result<Chosen<'a>> {
    let tensors = checkpoint.tensors();
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let (whole, order) = KeyMap::place_record(def, framework, &names)?;
    let keep: Vec<bool> = whole.leaves().iter().map(|leaf| options.is_wanted(&leaf.name)).collect();
    let kept = order.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(&position, _)| &tensors[position]);
    let kept = kept.collect();
    Ok((if keep.iter().all(|keep| *keep) { whole } else { whole.filter(&keep)? }, kept))
}

/// The tree that the names of what is wanted stand for, under the rules for renaming.
fn named<'a>(checkpoint: &'a Checkpoint, framework: Framework, options: &LoadOptions) -> Result<Chosen<'a>> {
    let is_wanted = |tensor: &&TensorInfo| options.is_wanted(&tensor.name);
    let tensors: Vec<&TensorInfo> = checkpoint.tensors().iter().filter(is_wanted).collect();
    let names: Vec<Cow<'_, str>> = tensors.iter().map(|tensor| options.renamed(&tensor.name)).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let (keys, order) = options.place(framework, &names)?;
    Ok((keys, order.iter().map(|&position| tensors[position]).collect()))
}

/// The tree by a guess of the framework. One that does not hold is no reason to refuse a file: nor is it one if the names
/// are no tree at all.
fn guessed<'a>(
    checkpoint: &'a Checkpoint,
    framework: Framework,
    options: &LoadOptions,
) -> Result<(KeyMap, Vec<&'a TensorInfo>, Framework)> {
    for framework in [framework, Framework::Plain] {
        match named(checkpoint, framework, options) {
            Ok((keys, tensors)) => return Ok((keys, tensors, framework)),
            Err(error @ Error::Tree(_)) => {
                tracing::info!(%error, %framework, "the names only look like this framework's");
            }
            Err(error) => return Err(error),
        }
    }
    let (keys, tensors) = named(checkpoint, Framework::Flat, options)?;
    Ok((keys, tensors, Framework::Flat))
}

/// The framework that was given, recorded, or else recognised; and whether it is only recognised.
fn framework_of(checkpoint: &Checkpoint, options: &LoadOptions) -> (Framework, bool) {
    let recorded = || checkpoint.metadata().get(record::FRAMEWORK_KEY).and_then(|name| name.parse().ok());
    match options.framework.or_else(recorded) {
        Some(framework) => (framework, false),
        None => {
            let names = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str());
            (Framework::detect(names), true)
        }
    }
}

/// The type that a tensor is loaded as.
pub fn loaded_dtype(name: &str, dtype: DType, dtypes: &[(String, DType)]) -> Result<DType> {
    let wanted = dtypes.iter().find(|(pattern, _)| matches_glob(pattern, name)).map(|(_, dtype)| *dtype);
    cast_dtype(dtype, wanted)
}

/// The template's own tree over the tensors, or everything that does not fit, in one report.
fn fit<'a>(
    template: &Template,
    found: &KeyMap,
    framework: Framework,
    tensors: &[&'a TensorInfo],
    dtypes: &[(String, DType)],
) -> Result<Chosen<'a>> {
    let wanted = KeyMap::new(template.def.clone())?;
    let mut unused: BTreeMap<String, usize> =
        found.leaves().iter().enumerate().map(|(position, leaf)| (leaf.path.to_name(), position)).collect();
    let needed = wanted.leaves().iter().map(|leaf| leaf.name.as_str());
    let mut is_respelled = false;
    if !needed.clone().all(|name| unused.contains_key(name)) {
        let names: Vec<&str> = found.leaves().iter().map(|leaf| leaf.name.as_str()).collect();
        if let Some(spelled) = respell(&names, needed) {
            unused = spelled.into_iter().zip(0..).collect();
            is_respelled = true;
        }
    }
    let mut problems = Vec::new();
    let mut chosen = Vec::new();
    for (leaf, expected) in wanted.leaves().iter().zip(&template.specs) {
        let Some(position) = unused.remove(&leaf.name) else {
            problems.push(format!("missing: {} {expected}", leaf.path));
            continue;
        };
        let tensor = tensors[position];
        let spec = &tensor.spec;
        let dtype = loaded_dtype(&tensor.name, spec.dtype, dtypes)?;
        if spec.shape != expected.shape || dtype != expected.dtype {
            let cast = if dtype == spec.dtype { String::new() } else { format!(" (loaded as {dtype})") };
            problems.push(format!("mismatched: {} must be {expected}, and is {spec}{cast}", leaf.path));
        }
        chosen.push(position);
    }
    let name = |position: usize| found.leaves()[position].name.as_str();
    if template.strictness == Strictness::Exact {
        problems.extend(unused.values().map(|&position| format!("unused: the tensor `{}`", name(position))));
    }
    if !problems.is_empty() {
        return Err(Error::Template { problems });
    }
    let names: Vec<&str> = chosen.iter().map(|&position| name(position)).collect();
    if is_respelled {
        // The leaves get the names of the template, in its order.
        return Ok((wanted, chosen.iter().map(|&position| tensors[position]).collect()));
    }
    let (keys, order) = KeyMap::place_record(template.def.clone(), framework, &names)?;
    Ok((keys, order.iter().map(|&position| tensors[chosen[position]]).collect()))
}
