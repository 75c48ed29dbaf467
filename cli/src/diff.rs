//! `safejax diff`: how two files differ, in structure, types, shapes and values.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use safejax::ArraySpec;
use safejax::compare::{Comparison, compare, compare_values};
use safejax::convert::{Source, open};
use safejax::load::Selection;
use safejax::printable::{Count, Line, Name};
use serde_json::json;

use crate::output::{Output, OutputArgs};
use crate::select::SelectArgs;
use crate::stream;
use crate::work_bar::WorkBar;

#[derive(Args)]
pub struct Diff {
    /// One file, of any format that is read
    first: PathBuf,

    /// The other file; it may be of another format
    second: PathBuf,

    /// Call values equal whose difference is at most this, of arrays of different types too
    #[arg(long, value_name = "DIFFERENCE", value_parser = parse_tolerance)]
    tolerance: Option<f64>,

    #[command(flatten, next_help_heading = "What is taken of the first file")]
    select: SelectArgs,

    #[command(flatten, next_help_heading = "Output")]
    output: OutputArgs,
}

pub fn parse_tolerance(text: &str) -> Result<f64, String> {
    let tolerance = text.parse().ok().filter(|tolerance: &f64| *tolerance >= 0.0);
    tolerance.ok_or_else(|| "it is not a number from 0 on".into())
}

/// What differs.
#[derive(Default, serde::Serialize)]
struct Report {
    structure: Option<String>,
    only_in_first: Vec<String>,
    only_in_second: Vec<String>,
    types: BTreeMap<String, (ArraySpec, ArraySpec)>,
    values: BTreeMap<String, Comparison>,
    equal: usize,
}

impl Diff {
    pub fn run(self) -> Result<Output> {
        let first = open(self.select.input(&self.first)?, &self.select.selection()?)?;
        let mut selection = Selection::default();
        selection.limits = self.select.limits();
        let second = open(stream::input(&self.second)?, &selection)?;
        let report = self.compare(&first, &second)?;
        let is_equal = report.structure.is_none()
            && report.only_in_first.is_empty()
            && report.only_in_second.is_empty()
            && report.types.is_empty()
            && report.values.is_empty();
        let text = self.output.choose(|| text(&report), || json!({"equal": is_equal, "report": report}));
        Ok(Output { text, is_success: is_equal })
    }

    fn compare(&self, first: &Source, second: &Source) -> Result<Report> {
        let mut report =
            Report { structure: first.keys().def().difference(second.keys().def()), ..Report::default() };
        let places = |source: &Source| -> BTreeMap<String, usize> {
            source
                .keys()
                .leaves()
                .iter()
                .enumerate()
                .map(|(index, leaf)| (leaf.path.to_name(), index))
                .collect()
        };
        let (ours, mut theirs) = (places(first), places(second));
        let bytes = |spec: &ArraySpec| spec.packed_bytes().unwrap_or(0) as u64;
        let mut bar = WorkBar::new(first.specs().iter().map(bytes).sum());
        let mut memory = (Vec::new(), Vec::new());
        for (name, index) in ours {
            let Some(other) = theirs.remove(&name) else {
                report.only_in_first.push(name);
                continue;
            };
            let (a, b) = (&first.specs()[index], &second.specs()[other]);
            let is_compared = a == b || (a.shape == b.shape && self.tolerance.is_some());
            let comparison = if is_compared {
                let (ours, theirs) = &mut memory;
                let mut progress = |read: u64| bar.advance(&name, read);
                let ours = first.read_lent(index, ours, &mut progress)?;
                let theirs = second.read_lent(other, theirs, &mut |_| Ok(()))?;
                // Of two types, a tolerance says that the values are what counts.
                if a == b {
                    Some(compare(a, &ours, &theirs))
                } else {
                    compare_values((a.dtype, &ours), (b.dtype, &theirs))
                }
            } else {
                None
            };
            let Some(comparison) = comparison else {
                report.types.insert(name, (a.clone(), b.clone()));
                continue;
            };
            if comparison.differing == 0 || self.tolerance.is_some_and(|t| comparison.is_within(t)) {
                report.equal += 1;
            } else {
                report.values.insert(name, comparison);
            }
        }
        first.warn_if_changed();
        second.warn_if_changed();
        report.only_in_second = theirs.into_keys().collect();
        Ok(report)
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let Some(difference) = &report.structure {
        let _ = writeln!(text, "the structures differ {}", Line(difference));
    }
    for name in &report.only_in_first {
        let _ = writeln!(text, "only in the first: {}", Name(name));
    }
    for name in &report.only_in_second {
        let _ = writeln!(text, "only in the second: {}", Name(name));
    }
    for (name, (first, second)) in &report.types {
        let _ = writeln!(text, "{}: {first} in the first, {second} in the second", Name(name));
    }
    for (name, values) in &report.values {
        let _ = write!(text, "{}: {} of {} elements differ", Name(name), values.differing, values.elements);
        if let (Some(absolute), Some(relative)) = (values.largest_absolute, values.largest_relative) {
            let _ = write!(text, ", by at most {absolute:.3e} ({relative:.3e} of the value)");
        }
        if values.not_measured > 0 {
            let _ = write!(text, "; {} where one is infinite or NaN", values.not_measured);
        }
        if values.first_nan + values.second_nan > 0 {
            let _ = write!(text, "; NaN: {} and {}", values.first_nan, values.second_nan);
        }
        text.push('\n');
    }
    let verb = if report.equal == 1 { "is" } else { "are" };
    let _ = writeln!(text, "{} {verb} equal", Count(report.equal, "tensor"));
    text
}
