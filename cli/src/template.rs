//! `--template`: the tree that a checkpoint is to be.

use std::path::Path;

use anyhow::{Context, Result, bail};
use safejax::convert;
use safejax::format::{Format, sniff};
use safejax::load::{Selection, Template};
use safejax::printable::File;
use safejax::program::{ArgumentKey, BUNDLE_KEY};
use safejax::{Checkpoint, Limits, Program};

/// The tree of a checkpoint, or of what a program takes: `FILE`, or `FILE#NAME` for a part of it; of a program, the argument by
/// its position or name, `0` where none is given.
///
/// # Errors
/// When the file cannot be read, or has no such part.
pub fn read(text: &str, limits: Limits) -> Result<Template> {
    let (file, part) = match text.rsplit_once('#') {
        Some((file, part)) if !Path::new(text).exists() && !part.is_empty() => (file, Some(part)),
        _ => (text, None),
    };
    let found = of_file(Path::new(file), part, limits);
    found.with_context(|| format!("{} gives no template", File(Path::new(file))))
}

fn of_file(file: &Path, part: Option<&str>, limits: Limits) -> Result<Template> {
    let is_program = match sniff(file)? {
        Some(Format::Safetensors) => {
            Checkpoint::open_within(file, limits)?.metadata().contains_key(BUNDLE_KEY)
        }
        // An artifact can begin like a map of msgpack by chance.
        Some(Format::Msgpack) => Program::open(file).is_ok(),
        Some(_) => false,
        None => true,
    };
    if is_program {
        return of_program(&Program::open(file)?, part.unwrap_or("0"));
    }
    let mut selection = Selection::default();
    selection.limits = limits;
    let source = convert::open(file, &selection)?;
    match part {
        None => Ok(Template::new(source.keys().def().clone(), source.specs().to_vec())),
        Some(part) => {
            let (keys, leaves) = source.keys().subtree(part)?;
            Ok(Template::new(keys.def().clone(), source.specs()[leaves].to_vec()))
        }
    }
}

fn of_program(program: &Program, argument: &str) -> Result<Template> {
    let Some(exported) = program.exported() else {
        bail!("it is a program without a tree; only what jax.export wrote has one")
    };
    let key = match argument.parse() {
        Ok(position) => ArgumentKey::Position(position),
        Err(_) => ArgumentKey::Name(argument.to_owned()),
    };
    Ok(Template::of_argument(exported, &key)?)
}
