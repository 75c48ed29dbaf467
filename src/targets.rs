//! Devices to compile for by what they are called, whether they are here or not: `v5e:2x2`, `h100`, `b200:8`, `cpu:8`.

mod gpu;
mod tpu;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result, nearest};
use crate::pjrt::{NamedValue, Plugin, Topology};
use crate::plugins::{has_tpu, waits_for_tpu};
use gpu::GpuModel;
use tpu::TpuGeneration;

/// Devices that a program can be compiled for: TPUs and NVIDIA GPUs by name, of which none need be here, and what a plugin
/// finds on this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    name: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    /// A slice of TPUs, of this shape.
    Tpu(&'static TpuGeneration, String),
    /// GPUs of one machine.
    Gpu(&'static GpuModel, usize),
    /// GPUs of one machine that a file describes.
    Described(PathBuf, usize),
    /// The processors of this machine, as so many devices; without it, as many as the plugin makes of them.
    Cpu(Option<usize>),
    /// The devices that the plugin of this name finds here.
    Here,
}

/// What a device is rated at, by its vendor.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct DeviceFigures {
    /// Operations with floating point numbers a second, in matrix products of bfloat16, without sparsity; `None` where it is
    /// not known.
    pub flops_per_second: Option<f64>,
    /// Bytes a second to and from its memory.
    pub memory_bytes_per_second: f64,
}

/// The most GPUs of one machine, and devices that the processors are taken for.
const MAX_DEVICES: usize = 1024;

const CPU: &str = "cpu";

/// The other plugins, whose devices can be asked for by their names.
const PLUGINS: [&str; 7] = ["cuda13", "cuda12", "rocm", "rocm10", "oneapi", "tt", "tpu"];

impl FromStr for Target {
    type Err = Error;

    /// Reads `NAME` or `NAME:SHAPE`: a generation of TPUs and the shape of a slice (`v5e:2x2`; one chip without it), a model
    /// of GPUs and how many (`h100:8`; one without it), the path of a GPU's description (a `GpuTargetConfigProto` as text),
    /// `cpu` with the devices that the processors are taken for (`cpu:8`), or another plugin for the devices that it finds here.
    fn from_str(text: &str) -> Result<Target> {
        let target = |kind| Target { name: text.to_owned(), kind };
        let (name, shape) = match text.rsplit_once(':') {
            Some((name, shape)) => (name, Some(shape)),
            None => (text, None),
        };
        if let Some(generation) = tpu::generation(name) {
            let shape = generation.shape(shape).map_err(|problem| refuse(text, &problem))?;
            return Ok(target(Kind::Tpu(generation, shape)));
        }
        let count = || match shape {
            None => Ok(1),
            Some(count) => match count.parse() {
                Ok(count) if (1..=MAX_DEVICES).contains(&count) => Ok(count),
                _ => Err(refuse(text, &format!("`{count}` is no number of devices from 1 to {MAX_DEVICES}"))),
            },
        };
        if let Some(model) = gpu::model(name) {
            return Ok(target(Kind::Gpu(model, count()?)));
        }
        if name.contains(std::path::MAIN_SEPARATOR) || Path::new(name).extension().is_some() {
            return Ok(target(Kind::Described(name.into(), count()?)));
        }
        if name == CPU {
            return Ok(target(Kind::Cpu(shape.map(|_| count()).transpose()?)));
        }
        if PLUGINS.contains(&text) {
            return Ok(target(Kind::Here));
        }
        let known = Target::names();
        let meant = match tpu::of_cloud_name(text) {
            Some(meant) => vec![meant],
            None => nearest(&name.to_lowercase(), known.iter().copied()),
        };
        let hint = if meant.is_empty() {
            String::new()
        } else {
            format!("did you mean `{}`? ", meant.join("` or `"))
        };
        Err(refuse(
            text,
            &format!(
                "{hint}the targets are {}; the path of a GPU's description; and the plugins {CPU}, {}",
                known.join(", "),
                PLUGINS.join(", ")
            ),
        ))
    }
}

fn refuse(text: &str, problem: &str) -> Error {
    Error::InvalidArgument(format!("the target `{text}`: {problem}"))
}

impl Target {
    /// The names of TPUs and GPUs that can be compiled for without them, each without its shape.
    pub fn names() -> Vec<&'static str> {
        let tpus = tpu::GENERATIONS.iter().map(|generation| generation.name);
        tpus.chain(gpu::MODELS.iter().map(|model| model.name)).collect()
    }

    /// The target as it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugins that compile for it, the preferred first.
    pub fn plugins(&self) -> Vec<&str> {
        match &self.kind {
            Kind::Tpu(..) => vec!["tpu"],
            Kind::Gpu(..) | Kind::Described(..) => vec!["cuda13", "cuda13-compiler"],
            Kind::Cpu(_) => vec![CPU],
            Kind::Here => vec![&self.name],
        }
    }

    /// Whether the devices must be on this machine.
    pub fn is_here(&self) -> bool {
        matches!(self.kind, Kind::Here | Kind::Cpu(_))
    }

    /// What to ask for to have so many of these devices, or as few more as there can be; `None` where they are what is here.
    pub fn of_devices(&self, count: usize) -> Option<Target> {
        let name = match &self.kind {
            Kind::Tpu(generation, _) => format!("{}:{}", generation.name, generation.slice_of(count)?),
            Kind::Gpu(model, _) => format!("{}:{count}", model.name),
            Kind::Described(path, _) => format!("{}:{count}", path.display()),
            Kind::Cpu(_) => format!("{CPU}:{count}"),
            Kind::Here => return None,
        };
        name.parse().ok()
    }

    /// The devices, as the plugin that compiles for them knows them. Of what is not here, nothing is looked for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a shape that the plugin does not take, and for TPUs if `TPU_SKIP_MDS_QUERY` is not set
    /// on a machine without one: libtpu would wait for the cloud's metadata server, for minutes; [`Error::Io`] for a
    /// description that cannot be read; [`Error::Pjrt`] as the plugin says.
    pub fn topology(&self, plugin: &Plugin) -> Result<Topology> {
        let of = |name: &str, options: Vec<(String, NamedValue)>| {
            plugin.topology(name, &options).map_err(|error| match error {
                Error::Pjrt { message, .. } => {
                    Error::InvalidArgument(format!("the target `{}` cannot be made: {message}", self.name))
                }
                other => other,
            })
        };
        match &self.kind {
            Kind::Tpu(generation, shape) => {
                generation.check_size(shape).map_err(|problem| refuse(&self.name, &problem))?;
                if waits_for_tpu(plugin.path()) && !has_tpu() {
                    return Err(Error::InvalidArgument(format!(
                        "to compile for {} where no TPU is, set TPU_SKIP_MDS_QUERY=1 before the process starts: without \
                         it, libtpu waits for the cloud's metadata server",
                        self.name
                    )));
                }
                of(&format!("{}:{shape}", generation.plugin_name), generation.options())
            }
            Kind::Gpu(model, count) => of(model.kind, gpu::options(&model.target_config(), *count)),
            Kind::Described(path, count) => {
                let text = gpu::read_description(path)?;
                of(&gpu::described_name(&text), gpu::options(&text, *count))
            }
            Kind::Cpu(Some(count)) => plugin.client().device_count(*count).build()?.topology(),
            Kind::Cpu(None) | Kind::Here => {
                plugin.client().build().map_err(|error| self.without_device(error))?.topology()
            }
        }
    }

    /// Adds what to ask for instead where the device is not here.
    fn without_device(&self, error: Error) -> Error {
        let example = match &*self.name {
            "tpu" => "v5e or v5e:2x2",
            "cuda12" | "cuda13" => "h100",
            _ => return error,
        };
        Error::InvalidArgument(format!(
            "the target `{}` is the devices of this machine, and: {error}; name one that need not be here, such as {example}",
            self.name
        ))
    }

    /// What one of its devices is rated at, where that is known.
    pub fn figures(&self) -> Option<DeviceFigures> {
        match &self.kind {
            Kind::Tpu(generation, _) => Some(generation.figures()),
            Kind::Gpu(model, _) => Some(model.figures()),
            Kind::Described(path, _) => gpu::described_figures(&gpu::read_description(path).ok()?),
            Kind::Cpu(_) | Kind::Here => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<Target>().unwrap_err().to_string()
    }

    #[test]
    fn targets_are_read_as_they_are_called() {
        for name in [
            "v5e",
            "v5e:2x4",
            "v4:2x2x1",
            "v7x",
            "h100",
            "h200:8",
            "b200",
            "a/b.txtpb",
            "cpu",
            "cpu:64",
            "tpu",
        ] {
            assert_eq!(name.parse::<Target>().unwrap().to_string(), name);
        }
        assert_eq!("h100:4".parse::<Target>().unwrap().plugins(), ["cuda13", "cuda13-compiler"]);
        assert!(
            refused("v9z:2x2").contains("did you mean") || refused("v9z:2x2").contains("the targets are v2")
        );
        assert!(refused("h1000").contains("did you mean `h100"), "{}", refused("h1000"));
        assert!(refused("h100:0").contains("no number of devices"));
        assert!(refused("v5e:0x2").contains("a shape such as 2x2"), "{}", refused("v5e:0x2"));
        assert!(refused("v5e:2x").contains("a shape such as 2x2"));
        assert!(refused("cpu:0").contains("no number of devices"));
        assert!(refused("tt:2").contains("the targets are") && refused("tt:2").contains("oneapi"));
        for (cloud, meant) in [
            ("V5E", "v5e"),
            ("v5e-4", "v5e:2x2"),
            ("v5litepod-8", "v5e:2x4"),
            ("v4-8", "v4:1x2x2"),
            ("H100:8", "h100"),
        ] {
            assert!(refused(cloud).contains(&format!("did you mean `{meant}`")), "{}", refused(cloud));
        }
    }

    #[test]
    fn more_devices_of_a_kind_have_a_name() {
        let more =
            |name: &str, count| name.parse::<Target>().unwrap().of_devices(count).map(|more| more.name);
        assert_eq!(more("v5e", 64).as_deref(), Some("v5e:8x8"));
        assert_eq!(more("v5e:2x2", 3).as_deref(), Some("v5e:2x2"));
        assert_eq!(more("v3", 32).as_deref(), Some("v3:4x4"));
        assert_eq!(more("v5p", 128).as_deref(), Some("v5p:4x4x8"));
        assert_eq!((more("v5e", 1000), more("tpu", 2)), (None, None));
        assert_eq!(more("h100", 8).as_deref(), Some("h100:8"));
        assert_eq!(more("cpu", 64).as_deref(), Some("cpu:64"));
    }

    #[test]
    fn every_name_has_figures() {
        for name in Target::names() {
            let figures = name.parse::<Target>().unwrap().figures().unwrap();
            assert!(
                figures.flops_per_second.unwrap() > 1e13 && figures.memory_bytes_per_second > 3e11,
                "{name}"
            );
        }
    }
}
