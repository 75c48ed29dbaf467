//! What `run` says of the outputs: their values where they are small, and whether they are what was expected.

use std::path::Path;

use anyhow::{Context, Result, bail};
use safejax::compare::{compare, show_values};
use safejax::convert;
use safejax::format::{Format, npy, sniff};
use safejax::load::Selection;
use safejax::printable::{File, Name};
use safejax::{HostArray, Outputs};

use crate::stream;

/// Outputs of no more elements are printed where they are not written.
const PRINTED_ELEMENTS: usize = 64;

/// The values of an output, if they are few.
pub fn values(array: &HostArray) -> Option<String> {
    let count = array.spec().element_count().ok()?;
    if count > PRINTED_ELEMENTS { None } else { show_values(array) }
}

/// How outputs differ from a file, a line each; none where they do not by more than the tolerance.
///
/// # Errors
/// When the file cannot be read, or its arrays are not those of the outputs.
pub fn differences(outputs: &Outputs, expected: &Path, tolerance: f64) -> Result<Vec<String>> {
    let file = stream::input(expected)?;
    let found = outputs.to_params();
    let mut lines = Vec::new();
    let mut check = |name: &str, found: &HostArray, expected: &HostArray| {
        if found.spec() != expected.spec() {
            lines.push(format!("{} is {}, and {} was expected", Name(name), found.spec(), expected.spec()));
            return;
        }
        let comparison = compare(found.spec(), found.bytes(), expected.bytes());
        if !comparison.is_within(tolerance) {
            let by = comparison.largest_absolute.map_or(String::new(), |by| format!(", by at most {by:.3e}"));
            let (differing, elements) = (comparison.differing, comparison.elements);
            lines.push(format!("{}: {differing} of {elements} elements differ{by}", Name(name)));
        }
    };
    if sniff(&file)? == Some(Format::Npy) {
        let output =
            outputs.single().with_context(|| {
            let path = File(expected);
            format!("--expect {path}: an .npy file holds one array, and there are several outputs; give a .safetensors file")
        })?;
        check("the output", &output.to_host()?, &npy::read(&file, Some(output.dtype()))?);
        return Ok(lines);
    }
    let source = convert::open(&file, &Selection::default())?;
    let arrays = source.to_host()?;
    let names: Vec<String> = source.keys().leaves().iter().map(|leaf| leaf.path.to_name()).collect();
    if let Some(name) = names.iter().find(|name| found.get(name).is_err()) {
        bail!("{} has `{}`, and there is no such output", File(expected), Name(name));
    }
    if let Some((name, _)) = found.iter().find(|(name, _)| !names.iter().any(|other| other == name)) {
        bail!("{} does not have the output `{}`", File(expected), Name(name));
    }
    for (name, array) in names.iter().zip(arrays.leaves()) {
        check(name, &found.get(name)?.to_host()?, array);
    }
    Ok(lines)
}
