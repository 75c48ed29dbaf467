//! `safejax plugin`: the plugins that there are, and their installation.

use std::fmt::Write;

use anyhow::Result;
use clap::{Args, Subcommand};
use safejax::plugins::{self, Package};
use serde_json::json;

use crate::output::OutputArgs;
use crate::progress::InstallBar;

#[derive(Subcommand)]
pub enum Plugin {
    /// List the plugins on this machine, and those that can be installed
    List(List),
    /// Install a plugin at its pinned version
    Install(Name),
    /// Print the path of a plugin's library
    Path(Name),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
pub struct Name {
    /// cpu, cuda13, cuda13-compiler, cuda12, rocm, rocm10, oneapi, tpu or tt
    name: String,

    #[command(flatten)]
    output: OutputArgs,
}

impl Plugin {
    pub fn run(self) -> Result<String> {
        match self {
            Plugin::List(command) => Ok(list(command.output)),
            Plugin::Install(command) => {
                let package = plugins::package_named(&command.name)?;
                let mut bar = InstallBar::default();
                let library = plugins::install(&package, &mut |progress| bar.show(&progress))?;
                Ok(command.output.choose(|| format!("{}\n", library.display()), || json!({"path": library})))
            }
            Plugin::Path(command) => {
                let found = plugins::find(&command.name)?;
                Ok(command.output.choose(|| format!("{}\n", found.path.display()), || json!(found)))
            }
        }
    }
}

fn list(output: OutputArgs) -> String {
    let found = plugins::discover();
    let packages = Package::all();
    output.choose(
        || {
            let mut text = String::from("on this machine:\n");
            for plugin in &found {
                let _ = writeln!(text, "  {:<16}{}", plugin.name, plugin.path.display());
            }
            if found.is_empty() {
                text += "  none\n";
            }
            text += "to install with `safejax plugin install NAME`:\n";
            for package in &packages {
                let wheel = &package.wheels[0];
                let _ = writeln!(
                    text,
                    "  {:<16}{} ({} {})",
                    package.name, package.summary, wheel.package, wheel.version
                );
            }
            text
        },
        || {
            json!({
                "found": found,
                "packages": packages.iter().map(|package| json!({
                    "name": package.name,
                    "summary": package.summary,
                    "package": package.wheels[0].package,
                    "version": package.version(),
                })).collect::<Vec<_>>(),
            })
        },
    )
}
