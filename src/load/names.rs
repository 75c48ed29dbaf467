//! Which tensors of a file are loaded, under which names, and where in the tree each goes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::Selected;
use super::options::{LoadOptions, Strictness, Structure, Template};
use crate::cast::cast_dtype;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tree::{Framework, KeyMap, matches_glob, record};

/// The tensors that are loaded, in the order of the tree's leaves.
pub struct Selection<'a> {
    pub keys: KeyMap,
    pub framework: Framework,
    pub has_record: bool,
    by_name: HashMap<String, &'a TensorInfo>,
}

impl<'a> Selection<'a> {
    /// The tensors in the order of the leaves.
    pub fn tensors(&self) -> Vec<Selected<'a>> {
        let tensor = |name: &String| (Cow::Owned(name.clone()), self.by_name[name]);
        self.keys.leaves().iter().map(|leaf| tensor(&leaf.name)).collect()
    }
}

/// Chooses the tensors and places them.
pub fn select<'a>(checkpoint: &'a Checkpoint, options: &LoadOptions) -> Result<Selection<'a>> {
    let framework = framework_of(checkpoint, options)?;
    let record = match options.structure {
        Structure::Recorded => record::read(checkpoint.metadata())?,
        Structure::FromNames => None,
    };
    let has_record = record.is_some() && options.renames.is_empty();
    let whole = match record.filter(|_| has_record) {
        Some(def) => KeyMap::from_record(
            def,
            framework,
            checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()),
        )?,
        None => {
            let kept = checkpoint.tensors().iter().filter(|tensor| options.is_wanted(&tensor.name));
            let names: Vec<String> = kept.map(|tensor| options.renamed(&tensor.name)).collect();
            KeyMap::from_names_by(framework, names.iter().map(String::as_str))?
        }
    };
    let by_name: HashMap<String, &TensorInfo> = checkpoint
        .tensors()
        .iter()
        .filter(|tensor| options.is_wanted(&tensor.name))
        .map(|tensor| (options.renamed(&tensor.name), tensor))
        .collect();
    let keep: Vec<bool> = whole.leaves().iter().map(|leaf| by_name.contains_key(&leaf.name)).collect();
    let keys = if keep.iter().all(|keep| *keep) { whole } else { whole.filter(&keep)? };
    let keys = match &options.template {
        Some(template) => fit(template, keys, framework, &by_name, &options.dtypes)?,
        None => keys,
    };
    Ok(Selection { keys, framework, has_record, by_name })
}

/// The framework that was given, recorded, or else recognised.
fn framework_of(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Framework> {
    if let Some(framework) = options.framework {
        return Ok(framework);
    }
    let recorded = checkpoint.metadata().get(record::FRAMEWORK_KEY).and_then(|name| name.parse().ok());
    Ok(recorded
        .unwrap_or_else(|| Framework::detect(checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()))))
}

/// The type that a tensor is loaded as.
pub fn loaded_dtype(name: &str, dtype: DType, dtypes: &[(String, DType)]) -> Result<DType> {
    let wanted = dtypes.iter().find(|(pattern, _)| matches_glob(pattern, name)).map(|(_, dtype)| *dtype);
    cast_dtype(dtype, wanted)
}

/// The template's own key map over the tensors, or everything that does not fit, in one report.
fn fit(
    template: &Template,
    found: KeyMap,
    framework: Framework,
    tensors: &HashMap<String, &TensorInfo>,
    dtypes: &[(String, DType)],
) -> Result<KeyMap> {
    let wanted = KeyMap::new(template.def.clone())?;
    let mut unused: BTreeMap<String, &str> = found
        .leaves()
        .iter()
        .map(|leaf| (framework.path(&leaf.name).to_name(), leaf.name.as_str()))
        .collect();
    let mut problems = Vec::new();
    let mut names = Vec::new();
    for (leaf, expected) in wanted.leaves().iter().zip(&template.specs) {
        let Some(name) = unused.remove(&leaf.name) else {
            problems.push(format!("missing: {} {expected}", leaf.path));
            continue;
        };
        let spec = &tensors[name].spec;
        let dtype = loaded_dtype(name, spec.dtype, dtypes)?;
        if spec.shape != expected.shape || dtype != expected.dtype {
            let cast = if dtype == spec.dtype { String::new() } else { format!(" (loaded as {dtype})") };
            problems.push(format!("mismatched: {} must be {expected}, and is {spec}{cast}", leaf.path));
        }
        names.push(name);
    }
    if template.strictness == Strictness::Exact {
        problems.extend(unused.values().map(|name| format!("unused: the tensor `{name}`")));
    }
    if problems.is_empty() {
        return KeyMap::from_record(template.def.clone(), framework, names);
    }
    Err(Error::Template { problems })
}
