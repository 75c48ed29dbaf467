//! The options that choose a client and a device.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use safejax::pjrt::{ClientBuilder, NamedValue};
use safejax::plugins::{accelerators, family, find, from_environment, library};
use safejax::{Client, Device};

use crate::probe;
use crate::progress::InstallBar;

/// The create option of CPU clients that says how many devices they have.
const CPU_DEVICES: &str = "cpu_device_count";

/// The most devices that the processors are taken for.
const MOST_CPU_DEVICES: usize = 1024;

/// Which plugin, which device, and with which options.
#[derive(Args)]
pub struct ClientArgs {
    /// The plugin: a name (cpu, cuda13, cuda12, rocm, rocm10, oneapi, tpu, tt; gpu or cuda for what is installed of these) or the path of a
    /// library [default: $SAFEJAX_PLUGIN, or the best that there is: TPU, GPU, CPU]
    #[arg(long, value_name = "NAME|PATH")]
    plugin: Option<String>,

    /// A create option of the plugin, such as cpu_device_count=8 or visible_devices=[0]
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = parse_option)]
    options: Vec<(String, NamedValue)>,

    /// The longest to wait for one piece of a device's work, in seconds [default: as long as it takes]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    time_limit: Option<Duration>,
}

/// Which device of the client.
#[derive(Args)]
pub struct DeviceArgs {
    #[command(flatten)]
    client: ClientArgs,

    /// The device: a number, or platform:number such as cpu:1 [default: the first]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
}

/// A device as it is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DeviceName {
    platform: Option<String>,
    index: usize,
    /// Whether the number was given, and not the platform alone.
    is_numbered: bool,
}

impl std::str::FromStr for DeviceName {
    type Err = String;
    fn from_str(text: &str) -> Result<DeviceName, String> {
        let (platform, index) = match text.split_once(':') {
            Some((platform, index)) => (Some(platform.to_ascii_lowercase()), index),
            None if text.parse::<usize>().is_ok() => (None, text),
            None => (Some(text.to_ascii_lowercase()), "0"),
        };
        let index = index.parse().map_err(|_| format!("`{index}` is not a device number"))?;
        let is_numbered = text.contains(':') || platform.is_none();
        Ok(DeviceName { platform, index, is_numbered })
    }
}

fn parse_option(text: &str) -> Result<(String, NamedValue), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), NamedValue::parse(value))),
        _ => Err("it is not NAME=VALUE".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
    let limit = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if limit.is_zero() { Err("it must be more than nothing".into()) } else { Ok(limit) }
}

impl ClientArgs {
    /// Creates the client, installing the CPU plugin first if it is needed.
    pub fn connect(&self) -> Result<Client> {
        self.connect_to(None)
    }

    /// As [`ClientArgs::connect`], of a plugin that is tried in a process of its own if it is new.
    pub fn connect_carefully(&self) -> Result<Client> {
        let asked = self.plugin.clone().or_else(|| from_environment()?.into_string().ok());
        // One that is not there is told of where it is asked for.
        if let Some(library) = asked.and_then(|asked| library(&asked).ok()) {
            probe::try_if_new(&library)?;
        }
        self.connect()
    }

    /// The names of the plugins for the hardware that is there, and for the CPU, without those that are new and do not work;
    /// `None` if all of them may.
    fn working_plugins() -> Option<Vec<&'static str>> {
        let present = accelerators().into_iter().filter(|accelerator| accelerator.present.is_ok());
        let names: Vec<&'static str> =
            present.flat_map(|accelerator| accelerator.plugins.iter().copied()).chain(["cpu"]).collect();
        let works = |name: &&str| match find(name) {
            Ok(found) => probe::try_if_new(&found.path).inspect_err(|error| {
                tracing::warn!("{error:#}; another is used");
            }),
            Err(_) => Ok(()),
        };
        let working: Vec<&'static str> = names.iter().copied().filter(|name| works(name).is_ok()).collect();
        (working.len() < names.len()).then_some(working)
    }

    fn connect_to(&self, platform: Option<&str>) -> Result<Client> {
        let requests: Vec<Option<&str>> = match (self.plugin.as_deref(), platform) {
            (Some(plugin), _) => vec![Some(plugin)],
            (None, None) if from_environment().is_some() => vec![None],
            (None, None) => match ClientArgs::working_plugins() {
                None => vec![None],
                Some(names) => names.into_iter().map(Some).collect(),
            },
            // The variable decides, and the device's platform is compared with what comes of it.
            (None, Some(_)) if from_environment().is_some() => vec![None],
            (None, Some(platform)) => match family(platform) {
                Some(members) => members.iter().copied().map(Some).collect(),
                None => vec![Some(platform)],
            },
        };
        let mut errors = Vec::new();
        for request in requests {
            match self.connect_by(request) {
                Ok(client) => return Ok(client),
                Err(error) => errors.push(error),
            }
        }
        // A plugin that is there and does not work says more than one that is not.
        let is_missing = |error: &safejax::Error| matches!(error, safejax::Error::PluginNotFound { .. });
        errors.sort_by_key(is_missing);
        Err(errors.swap_remove(0).into())
    }

    /// What the arguments say of a client.
    fn configured(&self, builder: ClientBuilder) -> ClientBuilder {
        let builder = match self.time_limit {
            Some(limit) => builder.time_limit(limit),
            None => builder,
        };
        self.options.iter().fold(builder, |builder, (name, value)| builder.option(name, value.clone()))
    }

    fn connect_by(&self, request: Option<&str>) -> safejax::Result<Client> {
        let mut bar = InstallBar::default();
        let mut show = |progress| bar.show(&progress);
        let mut choice = Client::choose().on_install(&mut show).configure(|builder| self.configured(builder));
        if let Some(request) = request {
            choice = choice.plugin(request);
        }
        choice.build()
    }
}

/// The client, or another one with so many devices where it has fewer: on the CPU they are the host's processors all the same.
pub fn with_devices(
    client: Client,
    count: usize,
    configure: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> safejax::Result<Client> {
    // Who asks for more than can be is told so where they are missed.
    if client.platform_name() != "cpu" || client.devices().len() >= count || count > MOST_CPU_DEVICES {
        return Ok(client);
    }
    configure(client.plugin().client().device_count(count)).build()
}

impl DeviceArgs {
    /// Whether one device was asked for.
    pub fn is_one(&self) -> bool {
        self.device.as_ref().is_some_and(|name| name.is_numbered)
    }

    /// Creates a client with at least so many devices: a CPU has as many as one asks for.
    pub fn connect_to_several(&self, count: usize) -> Result<Client> {
        let client =
            self.client.connect_to(self.device.as_ref().and_then(|name| name.platform.as_deref()))?;
        if self.client.options.iter().any(|(name, _)| name == CPU_DEVICES) {
            return Ok(client);
        }
        Ok(with_devices(client, count, |builder| self.client.configured(builder))?)
    }

    /// Creates the client and finds the device.
    pub fn connect(&self) -> Result<(Client, Device)> {
        let Some(name) = &self.device else {
            let client = self.client.connect()?;
            let device = client.device(0)?;
            return Ok((client, device));
        };
        let client = self.client.connect_to(name.platform.as_deref())?;
        if let Some(platform) = &name.platform
            && !is_platform(&client, platform)
        {
            bail!(
                "--device asks for a {platform} device, but the plugin's platform is {}",
                client.platform_name()
            );
        }
        let device = client.device(name.index).context("--device cannot be found")?;
        Ok((client, device))
    }
}

/// Whether the client is of this platform; `gpu` is any vendor's.
fn is_platform(client: &Client, platform: &str) -> bool {
    let name = client.platform_name();
    name == platform || (platform == "gpu" && matches!(name, "cuda" | "rocm" | "sycl" | "oneapi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_number_platform_or_both() {
        let name = |platform: Option<&str>, index, is_numbered| DeviceName {
            platform: platform.map(str::to_owned),
            index,
            is_numbered,
        };
        assert_eq!("2".parse(), Ok(name(None, 2, true)));
        assert_eq!("cpu:1".parse(), Ok(name(Some("cpu"), 1, true)));
        assert_eq!("GPU".parse(), Ok(name(Some("gpu"), 0, false)));
        assert!("cpu:x".parse::<DeviceName>().is_err());
        assert!("cpu:-1".parse::<DeviceName>().is_err());
    }
}
