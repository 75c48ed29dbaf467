//! `safejax doctor`: everything that a bug report needs. Installs nothing.

use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use safejax::plugins::{self, Found};
use safejax::{Client, Plugin};
use serde_json::{Value, json};

use super::{OutputArgs, devices};

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    output: OutputArgs,
}

/// The environment variables that change what safejax does.
const VARIABLES: [&str; 7] = [
    plugins::PLUGIN_VARIABLE,
    plugins::OFFLINE_VARIABLE,
    "SAFEJAX_HOME",
    "SAFEJAX_LOG",
    "XLA_FLAGS",
    "TF_CPP_MIN_LOG_LEVEL",
    "TPU_SKIP_MDS_QUERY",
];

impl Doctor {
    pub fn run(self) -> Result<String> {
        let found = plugins::discover();
        let client = client(&found);
        Ok(self.output.choose(|| text(&found, &client), || to_json(&found, &client)))
    }
}

/// The client that a command without options would use, unless it would have to be installed first.
fn client(found: &[Found]) -> Result<Client> {
    let is_chosen = std::env::var_os(plugins::PLUGIN_VARIABLE).is_some_and(|value| !value.is_empty());
    if found.is_empty() && !is_chosen {
        plugins::find("cpu")?;
    }
    Ok(Client::auto()?)
}

/// What a plugin is, without making a client of it.
fn describe(plugin: &Found) -> String {
    match Plugin::open(&plugin.path) {
        Ok(opened) => format!(
            "API {}, StableHLO up to {}",
            opened.api_version(),
            opened.stablehlo_version().unwrap_or_else(|| "an unknown version".into())
        ),
        Err(error) => format!("cannot be opened: {error}"),
    }
}

fn build() -> [(&'static str, &'static str); 5] {
    [
        ("version", env!("CARGO_PKG_VERSION")),
        ("target", env!("SAFEJAX_TARGET")),
        ("profile", env!("SAFEJAX_PROFILE")),
        ("compiler", env!("SAFEJAX_RUSTC")),
        ("commit", env!("SAFEJAX_COMMIT")),
    ]
}

fn variables() -> Vec<(&'static str, String)> {
    VARIABLES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect()
}

fn cache() -> String {
    plugins::cache_dir().map_or_else(|error| error.to_string(), |path| path.display().to_string())
}

fn text(found: &[Found], client: &Result<Client>) -> String {
    let mut text = String::from("build\n");
    // Writing to a string cannot fail.
    for (name, value) in build() {
        let _ = writeln!(text, "  {name:<10}{value}");
    }
    text += "environment\n";
    for (name, value) in variables() {
        let _ = writeln!(text, "  {name}={value}");
    }
    let _ = writeln!(text, "  plugin cache: {}", cache());
    for directory in plugins::site_directories() {
        let _ = writeln!(text, "  Python packages: {}", directory.display());
    }
    text += "hardware\n";
    for accelerator in plugins::accelerators() {
        let state =
            accelerator.present.map_or_else(|reason| format!("not found: {reason}"), |()| "present".into());
        let _ = writeln!(text, "  {:<14}{state}", accelerator.name);
    }
    text += "plugins\n";
    for plugin in found {
        let _ =
            writeln!(text, "  {:<8}{}\n          {}", plugin.name, plugin.path.display(), describe(plugin));
    }
    if found.is_empty() {
        text += "  none\n";
    }
    text += "client\n";
    let client = client.as_ref().map_or_else(super::failure, devices::text);
    client.lines().for_each(|line| text += &format!("  {line}\n"));
    text
}

fn to_json(found: &[Found], client: &Result<Client>) -> Value {
    let object = |pairs: Vec<(&str, String)>| -> Value {
        pairs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    json!({
        "build": object(build().into_iter().map(|(name, value)| (name, value.to_owned())).collect()),
        "environment": object(variables()),
        "plugin_cache": cache(),
        "python_packages": plugins::site_directories(),
        "hardware": plugins::accelerators().into_iter().map(|accelerator| json!({
            "name": accelerator.name,
            "is_present": accelerator.present.is_ok(),
            "reason": accelerator.present.err(),
        })).collect::<Vec<_>>(),
        "plugins": found.iter().map(|plugin| json!({
            "found": plugin,
            "description": describe(plugin),
        })).collect::<Vec<_>>(),
        "client": client.as_ref().map(devices::to_json).ok(),
        "error": client.as_ref().err().map(super::failure),
    })
}
