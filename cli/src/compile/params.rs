//! A checkpoint that a program is to run with: what it takes of a device, and what of it does not fit.

use std::path::Path;

use anyhow::{Result, bail};
use safejax::printable::File;
use safejax::program::Aval;
use safejax::sharding::Sharding;
use safejax::{Checkpoint, ExecutableFile, Program, TreeDef};

/// A checkpoint that the program is to run with.
pub struct Params {
    pub bytes_on_each: u64,
    /// Of these, what the program does not take: it is on the device all the same.
    pub unused_bytes: u64,
    /// What does not fit the program.
    pub problems: Vec<String>,
}

/// The problems of each kind that are said.
const SHOWN_PROBLEMS: usize = 4;

impl Params {
    /// Whether the program can be given it.
    pub fn fits(&self) -> bool {
        self.problems.is_empty()
    }

    pub fn of(path: &Path, program: &Program) -> Result<Params> {
        let checkpoint = Checkpoint::open(path)?;
        if ExecutableFile::is_in(&checkpoint) {
            bail!("--params {}: it is a file of executables, and no checkpoint", File(path));
        }
        let leaves = leaves_of(program);
        let (mut bytes_on_each, mut unused_bytes) = (0u64, 0u64);
        let (mut other_types, mut unknown) = (Vec::new(), Vec::new());
        let mut is_only_cast = true;
        for tensor in checkpoint.tensors() {
            let bytes = tensor.spec.host_bytes()? as u64;
            let Some(leaf) = leaves.iter().find(|leaf| leaf.name == tensor.name) else {
                // Without paths, all of it may be meant.
                if program.exported().is_none() {
                    bytes_on_each += bytes;
                } else {
                    unknown.push(format!("`{}` is no leaf of the program's arguments", tensor.name));
                }
                continue;
            };
            let (aval, part) = (leaf.aval, bytes.div_ceil(leaf.parts as u64));
            bytes_on_each += part;
            unused_bytes += if leaf.is_used { 0 } else { part };
            if let Some(spec) = aval.to_spec().filter(|spec| *spec != tensor.spec) {
                is_only_cast &= spec.shape == tensor.spec.shape;
                other_types
                    .push(format!("`{}` is {}, and the program takes {aval}", tensor.name, tensor.spec));
            }
        }
        let mut problems: Vec<String> = added_or_left_out(&leaves, &checkpoint).into_iter().collect();
        let is_for_cast = is_only_cast && !other_types.is_empty();
        for (found, kind) in [
            (other_types, "are of another type or shape"),
            (unknown, "are no leaves of the program's arguments"),
            (missing(&leaves, &checkpoint), "are not in it, and the program takes them"),
        ] {
            let more = found.len().saturating_sub(SHOWN_PROBLEMS);
            problems.extend(found.into_iter().take(SHOWN_PROBLEMS));
            if more > 0 {
                problems.push(format!("{more} more {kind}"));
            }
        }
        if is_for_cast {
            problems.push("`safejax run --cast` casts, and so does `convert --dtype`".into());
        }
        Ok(Params { bytes_on_each, unused_bytes, problems })
    }
}

/// What the names of a checkpoint have before those of the leaves, or the other way round, where none fits as it is.
fn added_or_left_out(leaves: &[Leaf<'_>], checkpoint: &Checkpoint) -> Option<String> {
    let names: Vec<&str> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    if leaves.iter().any(|leaf| names.contains(&leaf.name.as_str())) {
        return None;
    }
    let more = |long: &str, short: &str| {
        long.strip_suffix(short).filter(|more| more.len() > 1 && more.ends_with('.')).map(str::to_owned)
    };
    let pairs = || names.iter().flat_map(|name| leaves.iter().map(move |leaf| (*name, leaf.name.as_str())));
    if let Some(prefix) = pairs().find_map(|(name, leaf)| more(name, leaf)) {
        return Some(format!(
            "its names begin with `{prefix}`, and the program's do not: safejax convert --rename {prefix}="
        ));
    }
    let prefix = pairs().find_map(|(name, leaf)| more(leaf, name))?;
    Some(format!(
        "the program's names begin with `{prefix}`, and its do not: safejax convert --rename ={prefix}"
    ))
}

/// What a checkpoint does not have of the argument that most of it is for.
fn missing(leaves: &[Leaf<'_>], checkpoint: &Checkpoint) -> Vec<String> {
    let is_there = |leaf: &Leaf<'_>| checkpoint.tensor(&leaf.name).is_ok();
    let mut found: Vec<&str> =
        leaves.iter().filter(|leaf| is_there(leaf)).map(|leaf| leaf.argument.as_str()).collect();
    found.sort_unstable();
    if found.is_empty() {
        // The largest tree is most likely meant.
        found = leaves.iter().map(|leaf| leaf.argument.as_str()).collect();
        found.sort_unstable();
    }
    let most = found.chunk_by(|a, b| a == b).max_by_key(|chunk| chunk.len());
    let Some(argument) = most.and_then(|chunk| chunk.first()) else { return Vec::new() };
    let of_it = leaves.iter().filter(|leaf| leaf.argument == *argument && !is_there(leaf));
    of_it
        .map(|leaf| {
            let argument = argument.split_once('.').map_or(*argument, |(_, argument)| argument);
            format!(
                "`{}` is not in it, and the program takes {} there, in argument {argument}",
                leaf.name, leaf.aval
            )
        })
        .collect()
}

/// A leaf of an argument, by its name within the argument.
struct Leaf<'a> {
    /// The argument, as `0.2` is the third positional one.
    argument: String,
    name: String,
    aval: &'a Aval,
    /// How many parts it is split into over the devices.
    parts: usize,
    /// Whether the program takes it: JAX leaves out what a function does not use.
    is_used: bool,
}

/// The leaves of the arguments of an exported function.
fn leaves_of(program: &Program) -> Vec<Leaf<'_>> {
    let Some(exported) = program.exported() else { return Vec::new() };
    let paths: Vec<String> = match &exported.in_tree {
        TreeDef::Tuple(_) => exported.in_tree.paths().iter().map(|path| path.to_name()).collect(),
        _ => return Vec::new(),
    };
    let shardings = exported.in_shardings.iter().map(Option::as_ref).chain(std::iter::repeat(None));
    // `0.2.kernel` is the leaf `kernel` of the third positional argument.
    let parts = |path: &str| {
        let mut parts = path.splitn(3, '.');
        let argument = [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()].join(".");
        (argument, parts.next().unwrap_or_default().to_owned())
    };
    let leaves = paths.iter().zip(&exported.in_avals).zip(shardings).enumerate();
    let leaf = |(index, ((path, aval), sharding)): (usize, ((&String, _), Option<&Sharding>))| {
        let (argument, name) = parts(path);
        let is_used = exported.kept.contains(&index);
        Leaf { argument, name, aval, parts: sharding.map_or(1, Sharding::part_count), is_used }
    };
    leaves.map(leaf).collect()
}
