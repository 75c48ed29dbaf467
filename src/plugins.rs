//! Which plugin: where one is looked for, how one is installed, and the clients that come of it.
//!
//! A plugin is asked for by path or by name (`cpu`, `cuda13`, `cuda12`, `rocm`, `tpu`). A name is looked
//! for in the cache (`$SAFEJAX_HOME/plugins`), then in installed Python packages; `cpu` alone is installed
//! on first use if it is nowhere. Where nothing is asked for, `SAFEJAX_PLUGIN` (a path or a name) decides,
//! or else the hardware: TPU, then GPU, then CPU.

mod cache;
mod discover;
mod hardware;
mod install;
mod packages;
mod python;
#[cfg(test)]
#[path = "../tests/common/packages.rs"]
pub(crate) mod test_packages;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use cache::{home_dir, install_dir};
pub use discover::{Found, FoundIn, discover, family, find, find_first};
pub use hardware::{Accelerator, accelerators};
pub(crate) use hardware::{has_tpu, waits_for_tpu};
pub(crate) use install::library_digest;
pub use install::{InstallProgress, InstallStage, install, install_into};
pub use packages::{Package, Wheel};
pub use python::site_directories;

use crate::error::{Error, Result};
use crate::pjrt::{Client, ClientBuilder, Plugin};

/// The environment variable that decides which plugin is used where none is asked for: a path or a name.
pub const PLUGIN_VARIABLE: &str = "SAFEJAX_PLUGIN";

/// The environment variable that forbids installing, when it is `1` or `true`.
pub const OFFLINE_VARIABLE: &str = "SAFEJAX_OFFLINE";

/// How a client is chosen; built by [`Client::choose`].
pub struct ClientChoice<'a> {
    request: Option<Request>,
    progress: Option<&'a mut dyn FnMut(InstallProgress)>,
    configure: Option<Box<dyn Fn(ClientBuilder) -> ClientBuilder + 'a>>,
}

impl Client {
    /// The best client that this machine has: TPU, then GPU, then CPU, or what `SAFEJAX_PLUGIN` says.
    /// Says in a `tracing` event what it chose, and why not the others. Installs the CPU plugin if it is
    /// needed and nowhere to be found. Blocks while the plugin loads.
    ///
    /// # Errors
    /// The error of the CPU client, if even that cannot be made.
    pub fn auto() -> Result<Client> {
        Client::choose().build()
    }

    /// A CPU client with so many devices, which share the host's processors: to try programs for several. As [`Client::cpu`].
    ///
    /// # Errors
    /// As for [`Client::cpu`]; [`Error::InvalidArgument`] for a number of devices that cannot be.
    pub fn cpu_with_devices(count: usize) -> Result<Client> {
        Client::cpu()?.plugin().client().device_count(count).build()
    }

    /// A client on the host's processors. Installs the plugin if it is nowhere to be found.
    ///
    /// `SAFEJAX_PLUGIN` may name another CPU plugin by path.
    ///
    /// # Errors
    /// [`Error::PluginNotFound`] or [`Error::PluginInstall`] when there is no plugin.
    pub fn cpu() -> Result<Client> {
        match Request::from_environment() {
            Some(Request::Library(path)) => {
                let client = Client::from_plugin(&path)?;
                if client.platform_name() != "cpu" {
                    return Err(Error::PluginLibrary {
                        path,
                        reason: format!(
                            "{PLUGIN_VARIABLE} says to use it, but its platform is `{}` and a CPU client was \
                             asked for; unset the variable, or ask for Client::auto()",
                            client.platform_name()
                        ),
                    });
                }
                Ok(client)
            }
            _ => Client::choose().plugin("cpu").build(),
        }
    }

    /// A client of the plugin in this library, with its default options.
    ///
    /// # Errors
    /// As for [`Plugin::open`] and [`ClientBuilder::build`].
    pub fn from_plugin(path: impl AsRef<Path>) -> Result<Client> {
        let mut choice = Client::choose();
        choice.request = Some(Request::Library(path.as_ref().to_owned()));
        choice.build()
    }

    /// Starts choosing a client: by name or path, with options, with a view of an installation.
    pub fn choose<'a>() -> ClientChoice<'a> {
        ClientChoice { request: None, progress: None, configure: None }
    }
}

impl Plugin {
    /// Installs the plugin of this name at its pinned version, and opens it. A plugin that is installed
    /// already is only opened.
    ///
    /// # Errors
    /// [`Error::PluginInstall`] when there is no such package, no package client, no network, or a wheel
    /// does not have the pinned sha256; as for [`Plugin::open`].
    pub fn install(name: &str) -> Result<Plugin> {
        let package = package_named(name)?;
        Plugin::open(install(&package, &mut |_| {})?)
    }
}

/// The pinned package of this name.
///
/// # Errors
/// [`Error::PluginInstall`] naming those that there are.
pub fn package_named(name: &str) -> Result<Package> {
    Package::named(name).ok_or_else(|| {
        let names: Vec<&str> = Package::all().iter().map(|package| package.name).collect();
        let reason = if names.is_empty() {
            format!(
                "no packages are pinned for {} on {}; install a plugin yourself and set {PLUGIN_VARIABLE} to \
                 the path of its library",
                std::env::consts::OS,
                std::env::consts::ARCH
            )
        } else {
            format!("there is no package of that name; there are {}", names.join(", "))
        };
        Error::PluginInstall { name: name.to_owned(), reason }
    })
}

/// The library of a plugin that is on this machine, by its name or its path. Installs nothing.
///
/// # Errors
/// As for [`find`].
pub fn library(name_or_path: &str) -> Result<PathBuf> {
    match Request::parse(name_or_path) {
        Request::Library(path) => Ok(path),
        Request::Name(name) => Ok(find(&name)?.path),
    }
}

impl<'a> ClientChoice<'a> {
    /// Asks for a plugin: a path to its library, or a name.
    pub fn plugin(mut self, name_or_path: impl Into<String>) -> Self {
        self.request = Some(Request::parse(&name_or_path.into()));
        self
    }

    /// Is told how an installation goes on, if there is one.
    pub fn on_install(mut self, progress: &'a mut dyn FnMut(InstallProgress)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Sets the options of the client.
    pub fn configure(mut self, configure: impl Fn(ClientBuilder) -> ClientBuilder + 'a) -> Self {
        self.configure = Some(Box::new(configure));
        self
    }

    /// Finds (or installs) the plugin, opens it and creates the client. Blocks meanwhile.
    ///
    /// # Errors
    /// [`Error::PluginNotFound`] listing every place that was looked at; [`Error::NoDevice`] when the
    /// plugin needs hardware that is not there; as for [`Plugin::open`] and [`ClientBuilder::build`].
    pub fn build(mut self) -> Result<Client> {
        match self.request.take().or_else(Request::from_environment) {
            Some(request) => {
                let library = self.locate(&request)?;
                self.connect(&library)
            }
            None => self.automatic(),
        }
    }

    /// The library behind a request, installing the CPU plugin if that is what is missing.
    fn locate(&mut self, request: &Request) -> Result<PathBuf> {
        let request = match request {
            Request::Library(path) => return Ok(path.clone()),
            Request::Name(name) => name.as_str(),
        };
        match find(request) {
            Ok(found) => Ok(found.path),
            Err(not_found) if request == "cpu" && Package::named("cpu").is_some() => {
                if is_offline() {
                    return Err(not_found);
                }
                let package = package_named("cpu")?;
                match &mut self.progress {
                    Some(progress) => install(&package, progress),
                    None => {
                        // Nobody else says so, and it takes a while.
                        tracing::warn!(
                            package = package.wheels[0].package,
                            "installing the CPU plugin, once"
                        );
                        install(&package, &mut |_| {})
                    }
                }
            }
            Err(not_found) => Err(not_found),
        }
    }

    fn connect(&self, library: &Path) -> Result<Client> {
        hardware::check_before_connecting(library)?;
        let builder = Plugin::open(library)?.client();
        let client = match &self.configure {
            Some(configure) => configure(builder).build(),
            None => builder.build(),
        };
        client.map_err(|error| hardware::explain(library, error))
    }

    /// The first platform that has hardware, a plugin and a working client.
    fn automatic(mut self) -> Result<Client> {
        let mut passed_over: Vec<String> = Vec::new();
        for accelerator in hardware::accelerators() {
            let outcome = match accelerator.present {
                Err(reason) => Err(reason),
                Ok(()) => self.first_working(accelerator.plugins),
            };
            match outcome {
                Ok(client) => {
                    tracing::info!(platform = client.platform_name(), ?passed_over, "chose a PJRT client");
                    return Ok(client);
                }
                Err(reason) => passed_over.push(format!("{}: {reason}", accelerator.name)),
            }
        }
        let library = self.locate(&Request::Name("cpu".into()))?;
        let client = self.connect(&library)?;
        tracing::info!(platform = client.platform_name(), ?passed_over, "chose a PJRT client");
        Ok(client)
    }

    fn first_working(&self, names: &[&str]) -> Result<Client, String> {
        let mut reasons = Vec::new();
        for name in names {
            let client = find(name).and_then(|found| self.connect(&found.path));
            match client {
                Ok(client) => return Ok(client),
                Err(Error::PluginNotFound { remedy, .. }) => {
                    reasons.push(format!(
                        "there is hardware, but the plugin `{name}` is not installed; {remedy}"
                    ));
                }
                Err(error) => reasons.push(format!("{name}: {error}")),
            }
        }
        // Hardware that is there and not used is worth more than an informational line.
        tracing::warn!(?reasons, "an accelerator is present but cannot be used");
        Err(reasons.join("; "))
    }
}

/// What is asked for.
enum Request {
    /// This library.
    Library(PathBuf),
    /// The plugin of this name, wherever it is.
    Name(String),
}

impl Request {
    /// A text with a separator or an ending is a path; anything else is a name.
    fn parse(text: &str) -> Request {
        if text.contains(std::path::MAIN_SEPARATOR) || Path::new(text).extension().is_some() {
            Request::Library(text.into())
        } else {
            Request::Name(text.to_owned())
        }
    }

    /// What the variable asks for, if it is set. A value that is no text can only be a path.
    fn from_environment() -> Option<Request> {
        let value = from_environment()?;
        Some(value.to_str().map_or_else(|| Request::Library(value.clone().into()), Request::parse))
    }
}

/// What [`PLUGIN_VARIABLE`] says, if it is set and not empty.
pub fn from_environment() -> Option<OsString> {
    std::env::var_os(PLUGIN_VARIABLE).filter(|value| !value.is_empty())
}

fn is_offline() -> bool {
    std::env::var(OFFLINE_VARIABLE).is_ok_and(|value| matches!(value.as_str(), "1" | "true"))
}
