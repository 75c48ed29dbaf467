//! Which tensors of a checkpoint are taken, under which names, and where in the tree each goes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::patterns::check_casts;
use super::selection::{Selection, Strictness, Structure, Template};
use crate::cast::cast_dtype;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::{Checkpoint, LeftOut, RecordedStructure, Tensor};
use crate::printable::{Count, Line, Name};
use crate::tree::{Framework, KeyMap, TreeDef, matches_glob, record, respell};

/// The tensors that are taken, in the order of the tree's leaves.
pub struct Selected<'a> {
    pub keys: KeyMap,
    pub framework: Framework,
    /// Whether the tree came from a structure record.
    pub has_record: bool,
    /// In the order of the leaves.
    pub tensors: Vec<&'a Tensor>,
}

/// Chooses the tensors and places them. The casts count where the tree must be a certain one.
///
/// # Errors
/// [`Error::Tree`], [`Error::Template`], [`Error::NotFound`] for a pattern that matches nothing; [`Error::Malformed`] where
/// something is wanted that the file cannot have.
pub fn select<'a>(
    checkpoint: &'a Checkpoint,
    selection: &Selection,
    dtypes: &[(String, DType)],
) -> Result<Selected<'a>> {
    select_in(checkpoint, selection, dtypes).map_err(|error| match error {
        Error::Tree(problem) => Error::Tree(format!("in {}, {problem}", checkpoint.origin())),
        other => other,
    })
}

fn select_in<'a>(
    checkpoint: &'a Checkpoint,
    selection: &Selection,
    dtypes: &[(String, DType)],
) -> Result<Selected<'a>> {
    let tensors = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str());
    let names: Vec<&str> =
        tensors.clone().chain(checkpoint.left_out().iter().map(|part| part.name.as_str())).collect();
    selection.check_patterns(&names)?;
    check_casts(dtypes, &names)?;
    report_left_out(checkpoint, selection)?;
    let (framework, is_guess) = framework_of(checkpoint, selection);
    // Under new names the file's own tree does not apply.
    let has_new_names = !selection.renames.is_empty() || selection.is_split();
    let uses_tree = selection.structure == Structure::Recorded && !has_new_names;
    let own = match &checkpoint.structure {
        RecordedStructure::Tree(def, _) if uses_tree => Some(def.clone()),
        RecordedStructure::Names if uses_tree => {
            record::read_within(checkpoint.metadata(), selection.limits)?
        }
        _ => None,
    };
    let has_record = own.is_some() && matches!(checkpoint.structure, RecordedStructure::Names);
    let (keys, tensors, framework) = match own {
        Some(def) => {
            let (keys, tensors) = recorded(checkpoint, def, framework, selection)?;
            (keys, tensors, framework)
        }
        None if is_guess && selection.split.is_empty() => guessed(checkpoint, framework, selection)?,
        None => {
            let (keys, tensors) = named(checkpoint, framework, selection)?;
            (keys, tensors, framework.after_split())
        }
    };
    if tensors.is_empty() && !checkpoint.tensors().is_empty() {
        return Err(Error::InvalidArgument(format!(
            "of the {} of {}, none is selected; change what is included or excluded",
            Count(checkpoint.tensors().len(), "tensor"),
            checkpoint.origin()
        )));
    }
    let Some(template) = &selection.template else {
        return Ok(Selected { keys, framework, has_record, tensors });
    };
    let (keys, tensors) = fit(template, &keys, framework, &tensors, dtypes)?;
    let framework = match framework {
        // The leaves have names now.
        Framework::Equinox => Framework::detect(keys.leaves().iter().map(|leaf| leaf.name.as_str())),
        framework => framework,
    };
    Ok(Selected { keys, framework, has_record, tensors })
}

/// Warns of what was wanted and is left out, or refuses the file for it.
fn report_left_out(checkpoint: &Checkpoint, selection: &Selection) -> Result<()> {
    for part in checkpoint.left_out().iter().filter(|part| selection.is_wanted(&part.name)) {
        let LeftOut { name, why, refusal, .. } = part;
        if let Some(problem) = refusal {
            return Err(Error::Malformed {
                origin: checkpoint.origin().to_owned(),
                format: checkpoint.format().description(),
                problem: problem.clone(),
            });
        }
        if selection.strict {
            return Err(Error::InvalidArgument(format!(
                "`{name}` of {} cannot be kept, since {why}; leave it out (`--exclude`)",
                checkpoint.origin()
            )));
        }
        let (name, file, why) = (Name(name), Line(checkpoint.origin()), Line(why));
        tracing::warn!("`{name}` of {file} is left out, since {why}");
    }
    Ok(())
}

/// A tree and its tensors, in its order.
type Chosen<'a> = (KeyMap, Vec<&'a Tensor>);

/// What is wanted of the file's own tree.
fn recorded<'a>(
    checkpoint: &'a Checkpoint,
    def: TreeDef,
    framework: Framework,
    selection: &Selection,
) -> Result<Chosen<'a>> {
    let tensors = checkpoint.tensors();
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let (whole, order) = KeyMap::place_record(def, framework, &names)?;
    let keep: Vec<bool> = whole.leaves().iter().map(|leaf| selection.is_wanted(&leaf.name)).collect();
    let kept = order.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(&position, _)| &tensors[position]);
    let kept = kept.collect();
    Ok((if keep.iter().all(|keep| *keep) { whole } else { whole.filter(&keep)? }, kept))
}

/// The tree that the names of what is wanted stand for, under the rules for renaming.
fn named<'a>(checkpoint: &'a Checkpoint, framework: Framework, selection: &Selection) -> Result<Chosen<'a>> {
    let is_wanted = |tensor: &&Tensor| selection.is_wanted(&tensor.name);
    let tensors: Vec<&Tensor> = checkpoint.tensors().iter().filter(is_wanted).collect();
    let names: Vec<Cow<'_, str>> = tensors.iter().map(|tensor| selection.renamed(&tensor.name)).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    let (keys, order) = selection.place(framework, &names)?;
    Ok((keys, order.iter().map(|&position| tensors[position]).collect()))
}

/// The tree by a guess of the framework. One that does not hold is no reason to refuse a file: nor is it one if the names
/// are no tree at all.
fn guessed<'a>(
    checkpoint: &'a Checkpoint,
    framework: Framework,
    selection: &Selection,
) -> Result<(KeyMap, Vec<&'a Tensor>, Framework)> {
    for framework in [framework, Framework::Plain] {
        match named(checkpoint, framework, selection) {
            Ok((keys, tensors)) => return Ok((keys, tensors, framework)),
            Err(error @ Error::Tree(_)) => {
                tracing::info!(%error, %framework, "the names only look like this framework's");
            }
            Err(error) => return Err(error),
        }
    }
    let (keys, tensors) = named(checkpoint, Framework::Flat, selection)?;
    Ok((keys, tensors, Framework::Flat))
}

/// The framework that was given, recorded, or else recognised; and whether it is only recognised.
fn framework_of(checkpoint: &Checkpoint, selection: &Selection) -> (Framework, bool) {
    let known = match &checkpoint.structure {
        RecordedStructure::Tree(_, framework) => Some(*framework),
        RecordedStructure::Names => {
            checkpoint.metadata().get(record::FRAMEWORK_KEY).and_then(|name| name.parse().ok())
        }
    };
    match selection.framework.or(known) {
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

/// Leaves that have only numbers, under the names of those that they are laid over, in order.
fn laid_over(wanted: &KeyMap, found: &KeyMap) -> Result<KeyMap> {
    if wanted.len() == found.len() {
        return Ok(wanted.clone());
    }
    let (template, file) = (wanted.len(), found.len());
    let problem =
        format!("leaves: {template} in the template, and {file} in the file, where they have no names");
    Err(Error::Template { problems: vec![problem] })
}

/// Whether leaves of a tree are in an order that their names made.
fn has_sorted_keys(def: &TreeDef) -> bool {
    matches!(def, TreeDef::Dict(entries) if entries.len() > 1)
        || def.children().iter().any(|(_, child)| has_sorted_keys(child))
}

/// The template's own tree over the tensors, or everything that does not fit, in one report.
fn fit<'a>(
    template: &Template,
    found: &KeyMap,
    framework: Framework,
    tensors: &[&'a Tensor],
    dtypes: &[(String, DType)],
) -> Result<Chosen<'a>> {
    let wanted = KeyMap::new(template.def.clone())?;
    let numbered;
    let found = match framework {
        Framework::Equinox => {
            if has_sorted_keys(&template.def) {
                tracing::warn!(
                    "the leaves of the file have no names, and are matched by their positions; those of a dictionary are in the \
                     order of its keys, and those of a model of Equinox in the order of its fields: be sure that these are the same"
                );
            }
            numbered = laid_over(&wanted, found)?;
            &numbered
        }
        _ => found,
    };
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
