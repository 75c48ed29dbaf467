//! `safejax doctor`: everything that a bug report needs. Installs nothing.

use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use safejax::Target;
use safejax::plugins::{self, Found};
use safejax::printable::Line;
use safejax::program::CACHE_VARIABLE;
use serde_json::{Value, json};

use crate::output::OutputArgs;
use crate::probe::probe;

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    output: OutputArgs,
}

/// The environment variables that change what safejax does.
const VARIABLES: [&str; 8] = [
    plugins::PLUGIN_VARIABLE,
    plugins::OFFLINE_VARIABLE,
    "SAFEJAX_HOME",
    CACHE_VARIABLE,
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

/// The targets that need not be here, by what compiles for them, and the plugin that does if it is on this machine.
fn targets() -> Vec<(String, Option<String>)> {
    let known = Target::names().into_iter().filter_map(|name| name.parse::<Target>().ok());
    let mut groups: Vec<Vec<Target>> = Vec::new();
    for target in known {
        match groups.iter_mut().find(|group| group[0].plugins() == target.plugins()) {
            Some(group) => group.push(target),
            None => groups.push(vec![target]),
        }
    }
    let with_plugin = |group: &Vec<Target>| {
        let names: Vec<&str> = group.iter().map(Target::name).collect();
        (names.join(", "), plugins::find_first(&group[0].plugins()).ok().map(|found| found.name))
    };
    groups.iter().map(with_plugin).collect()
}

/// The client that a command without options would use, unless it would have to be installed first.
fn client(found: &[Found]) -> Result<Value> {
    if found.is_empty() && plugins::from_environment().is_none() {
        plugins::find("cpu")?;
    }
    probe(&[])
}

/// A plugin in a line.
fn describe(plugin: &Found) -> String {
    if plugin.name.ends_with("-compiler") {
        return "compiles, and runs nothing".into();
    }
    match probe(&["--plugin".as_ref(), plugin.path.as_os_str()]) {
        Ok(client) => summary(&client),
        Err(error) => format!("does not work: {error:#}"),
    }
}

/// A client in a line.
fn summary(client: &Value) -> String {
    let text = |key: &str| client[key].as_str().unwrap_or("unknown").to_owned();
    let devices = client["devices"].as_array().map_or(0, Vec::len);
    format!(
        "{} with {devices} devices, API {}, StableHLO up to {}",
        text("platform"),
        text("api_version"),
        text("stablehlo_version")
    )
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
    plugins::install_dir().map_or_else(|error| error.to_string(), |path| path.display().to_string())
}

fn text(found: &[Found], client: &Result<Value>) -> String {
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
        let _ = writeln!(
            text,
            "  {:<16}{}\n                  {}",
            plugin.name,
            plugin.path.display(),
            describe(plugin)
        );
    }
    if found.is_empty() {
        text += "  none\n";
    }
    text += "compiles for\n";
    for (targets, plugin) in targets() {
        let _ = match plugin {
            Some(plugin) => writeln!(text, "  {targets} ({plugin})"),
            None => writeln!(text, "  not for {targets}: no plugin"),
        };
    }
    text += "client\n";
    let searched: &[String] = match client.as_ref().err().and_then(|error| error.downcast_ref()) {
        Some(safejax::Error::PluginNotFound { searched, .. }) => searched,
        _ => &[],
    };
    let client = client.as_ref().map_or_else(crate::output::failure, |client| {
        format!("{}, {}", summary(client), client["plugin"].as_str().unwrap_or_default())
    });
    client.lines().for_each(|line| text += &format!("  {line}\n"));
    for place in searched {
        let _ = writeln!(text, "  looked at {}", Line(place));
    }
    text
}

fn to_json(found: &[Found], client: &Result<Value>) -> Value {
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
        "targets": targets().into_iter().map(|(names, plugin)| json!({
            "names": names,
            "plugin": plugin,
        })).collect::<Vec<_>>(),
        "client": client.as_ref().ok(),
        "error": client.as_ref().err().map(crate::output::failure),
    })
}
