//! Files of executables, as `safejax inspect` shows them.

use std::fmt::Write;

use anyhow::Result;
use safejax::printable::Line;
use safejax::program::Entry;
use safejax::{Client, ExecutableFile, plugins};
use serde_json::{Value, json};

use crate::output::OutputArgs;

/// The digits of a sha256 that are shown.
const SHOWN_DIGITS: usize = 12;

/// Shows what is in a file of executables, and which of them a plugin can load here, if one is named. Loads none.
pub fn show(file: &ExecutableFile, plugin: Option<&str>, output: OutputArgs) -> Result<String> {
    let program = file.program()?;
    let fitting = plugin.map(|plugin| fitting(file, plugin)).transpose()?;
    let text = || {
        let count = file.entries().len();
        let with = if program.is_some() { ", and the program that they were compiled of" } else { "" };
        let mut text = format!(
            "{}: {count} executable{}{with}\n",
            Line(file.origin()),
            if count == 1 { "" } else { "s" }
        );
        for entry in file.entries() {
            text += &describe(entry);
        }
        if let Some(Ok(fitting)) = &fitting {
            let names: Vec<&str> =
                fitting.iter().map(|&index| file.entries()[index].target.as_str()).collect();
            let _ = writeln!(text, "the plugin loads here: {}", Line(&names.join(", ")));
        }
        if let Some(Err(reasons)) = &fitting {
            text += "the plugin loads none of them here\n";
            for reason in reasons {
                let _ = writeln!(text, "  {}", Line(reason));
            }
        }
        let signature = file.entries().iter().find_map(Entry::signature_text);
        text += &signature.map_or(String::new(), |signature| format!("takes\n{signature}"));
        text += "an executable is code: `run --trust-executable` and Client::load_executable run it with your rights\n";
        text
    };
    let json = || {
        let entry = |entry: &Entry| -> Value {
            json!({
                "target": entry.target,
                "sizes": entry.sizes.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
                "identity": entry.identity,
                "memory": entry.memory,
                "sha256": entry.sha256,
            })
        };
        json!({
            "file": file.origin(),
            "format": "executables",
            "executables": file.entries().iter().map(entry).collect::<Vec<_>>(),
            "has_program": program.is_some(),
            "loads_here": fitting.as_ref().map(|fitting| fitting.as_ref().ok()),
            "differences": fitting.as_ref().map(|fitting| fitting.as_ref().err()),
        })
    };
    Ok(output.choose(text, json))
}

fn fitting(file: &ExecutableFile, plugin: &str) -> Result<Result<Vec<usize>, Vec<String>>> {
    let client = Client::from_plugin(plugins::library(plugin)?)?;
    Ok(file.fitting(&client)?)
}

fn describe(entry: &Entry) -> String {
    let (devices, plugin) = (&entry.identity.devices, &entry.identity.plugin);
    let sizes = if entry.sizes.is_empty() { String::new() } else { format!(" at {}", entry.sizes_text()) };
    let attributes: String =
        devices.attributes.iter().map(|(name, value)| format!(", {name} {value}")).collect();
    let several = if devices.count == 1 { "" } else { "s" };
    format!(
        "  {}{}: {} device{several} {} ({}{}); made by {}, API {}, sha256 {}\n",
        Line(&entry.target),
        Line(&sizes),
        devices.count,
        Line(&devices.kind),
        Line(&devices.platform),
        Line(&attributes),
        Line(&plugin.platform_version.replace('\n', ", ")),
        Line(&plugin.api_version),
        Line(&plugin.library_sha256.chars().take(SHOWN_DIGITS).collect::<String>()),
    )
}
