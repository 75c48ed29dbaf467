//! Programs compiled for devices that need not be here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::artifact::Program;
use super::cache::{flag_variables, processor};
use super::compile::{Compiler, about_module, ready};
use super::compiled_output::{CompiledOutput, outputs_of};
use super::exported::Exported;
use super::stablehlo::MatrixWork;
use super::symbolic::matrix_work_of;
use crate::error::{Error, Result};
use crate::pjrt::{Client, CompileOptions, DeviceDescription, Executable, NamedValue, Plugin, Topology};
use crate::plugins::library_digest;
use crate::store::sha256;

/// A program compiled for a topology, and loaded nowhere.
#[derive(Debug, Clone)]
pub struct Compilation {
    executable: Executable,
    exported: Option<Arc<Exported>>,
    topology: Topology,
    /// What was compiled.
    code: Bytes,
    options: CompileOptions,
    sizes: Vec<(String, usize)>,
}

impl Program {
    /// Compiles the program for devices that need not be here. Blocks while it compiles. Nothing is cached.
    ///
    /// Only for programs that you trust: a damaged one can make a plugin abort the process.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a function that was exported for other platforms
    /// ([`Program::for_any_platform`] takes it all the same), and for one whose sizes are not known, which is to be
    /// [`refined`](Program::refined) first; [`Error::Pjrt`] with the compiler's words.
    pub fn compile_for(&self, topology: &Topology, options: &CompileOptions) -> Result<Compilation> {
        let compiler = Compiler::from(topology);
        let compile = |exported: Option<Exported>, code: Bytes, options: CompileOptions| {
            let executable = topology
                .compile_program(&code, self.format(), &options)
                .map_err(|error| about_module(error, compiler, self.origin(), &code))?;
            let (topology, sizes) = (topology.clone(), self.sizes.clone());
            Ok(Compilation { executable, exported: exported.map(Arc::new), topology, code, options, sizes })
        };
        let Some(exported) = self.exported() else {
            return compile(None, self.code().clone(), options.clone());
        };
        if exported.has_symbolic_arguments() {
            let example: Vec<String> =
                exported.dimension_variables().iter().map(|name| format!("{name}=8")).collect();
            return Err(Error::InvalidArgument(format!(
                "`{}` needs sizes to be compiled ahead: --sizes {}, or Program::refined",
                exported.function_name,
                example.join(",")
            )));
        }
        let (exported, options) = ready(compiler, exported, self.origin(), options)?;
        let module = exported.module.clone();
        compile(Some(exported.into_owned()), module, options)
    }
}

impl Compilation {
    /// What the compiler made: its memory, its cost, its outputs.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// The exported function as it was compiled, if the program is one.
    pub fn exported(&self) -> Option<&Exported> {
        self.exported.as_deref()
    }

    /// The outputs, with their layouts and shardings where the compiler says them. Reads what it made of the program.
    pub fn outputs(&self) -> Vec<CompiledOutput> {
        let specs = self.executable.outputs().iter().map(|spec| (**spec).clone()).collect();
        outputs_of(specs, self.executable.optimized_program().ok().as_ref())
    }

    /// The topology that it was compiled for.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The dimension variables and their sizes, if it had some.
    pub fn sizes(&self) -> &[(String, usize)] {
        &self.sizes
    }

    /// The floating point operations of the program's matrix products and convolutions on all devices together, as its sizes
    /// tell: not every compiler says what a program costs. `None` for what is no StableHLO bytecode.
    pub fn matrix_work(&self) -> Option<MatrixWork> {
        matrix_work_of(&self.code)
    }

    /// What it is an executable of, and for what.
    ///
    /// # Errors
    /// [`Error::Io`] when the plugin's library cannot be read.
    pub fn identity(&self) -> Result<Identity> {
        let (replicas, partitions) = self.executable.replicas_and_partitions()?;
        let devices: Vec<&DeviceDescription> =
            self.topology.devices().iter().take((replicas * partitions).max(1)).collect();
        Ok(Identity {
            plugin: PluginIdentity::of(self.topology.plugin(), self.topology.platform_version())?,
            devices: DevicesIdentity::of(self.topology.platform_name(), &devices),
            program_sha256: sha256(&self.code),
            options_sha256: sha256(&self.options.to_bytes()?),
        })
    }
}

/// What an executable depends on. It is loaded by the plugin that made it, onto such devices, and by nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Identity {
    /// The plugin that made it.
    pub plugin: PluginIdentity,
    /// The devices that it was made for.
    pub devices: DevicesIdentity,
    /// The sha256 of the program that was compiled.
    pub program_sha256: String,
    /// The sha256 of the options that it was compiled with.
    pub options_sha256: String,
}

/// A build of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PluginIdentity {
    /// The sha256 of its library.
    pub library_sha256: String,
    /// The version of its C API.
    pub api_version: String,
    /// What it says of itself.
    pub platform_version: String,
    /// The environment variables with flags of its compiler.
    pub flags: BTreeMap<String, String>,
}

/// Devices, by what a program that was compiled for them depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DevicesIdentity {
    /// The platform.
    pub platform: String,
    /// The kind of the devices.
    pub kind: String,
    /// How many.
    pub count: usize,
    /// What tells devices of one kind apart: the compute capability and the multiprocessors of a GPU, the cores of a TPU's
    /// device.
    pub attributes: BTreeMap<String, String>,
    /// The sha256 of what the processor can do, where the program is for it.
    pub processor: Option<String>,
}

/// The attributes of a device that tell what runs on it.
const TELLING_ATTRIBUTES: [&str; 3] = ["compute_capability", "core_count", "num_cores"];

impl PluginIdentity {
    fn of(plugin: &Plugin, platform_version: &str) -> Result<PluginIdentity> {
        let library = plugin.path();
        Ok(PluginIdentity {
            library_sha256: library_digest(library).map_err(|error| Error::io("read", library, error))?,
            api_version: plugin.api_version().to_string(),
            platform_version: platform_version.to_owned(),
            flags: flag_variables(),
        })
    }
}

impl DevicesIdentity {
    fn of(platform: &str, devices: &[&DeviceDescription]) -> DevicesIdentity {
        let first = devices.first();
        let text = |value: &NamedValue| value.to_string();
        let attributes = first.into_iter().flat_map(|device| device.attributes());
        let telling = attributes.filter(|(name, _)| TELLING_ATTRIBUTES.contains(&name.as_str()));
        DevicesIdentity {
            platform: platform.to_owned(),
            kind: first.map_or(String::new(), |device| device.kind().to_owned()),
            count: devices.len(),
            attributes: telling.map(|(name, value)| (name.clone(), text(value))).collect(),
            processor: (platform == "cpu").then(|| processor().unwrap_or_default()),
        }
    }

    /// Whether they are as good as the others for a program.
    fn is_like(&self, other: &DevicesIdentity) -> bool {
        // Drivers do not all name a GPU alike.
        let is_kind = self.kind == other.kind || (self.platform == "cuda" && !self.attributes.is_empty());
        self.platform == other.platform && is_kind && self.attributes == other.attributes
    }
}

impl Identity {
    /// What differs between what an executable needs and what a client is, one sentence each; nothing if it can be loaded.
    ///
    /// # Errors
    /// [`Error::Io`] when the plugin's library cannot be read.
    pub fn differences(&self, client: &Client) -> Result<Vec<String>> {
        let devices = client.addressable_devices();
        let descriptions: Vec<&DeviceDescription> =
            devices.iter().map(|device| device.description()).collect();
        let found = DevicesIdentity::of(client.platform_name(), &descriptions);
        let mut differences = Vec::new();
        let needed = &self.devices;
        if !needed.is_like(&found) {
            let text = |devices: &DevicesIdentity| {
                let attributes = devices.attributes.iter().map(|(name, value)| format!(", {name} {value}"));
                format!("{} ({}{})", devices.kind, devices.platform, attributes.collect::<String>())
            };
            differences.push(format!("it is for {}, and the client has {}", text(needed), text(&found)));
            // Another platform's plugin is another one, too.
            return Ok(differences);
        }
        if needed.count > found.count {
            differences
                .push(format!("it is for {} devices, and the client has {}", needed.count, found.count));
        }
        if needed.processor != found.processor {
            differences.push("it was made for another processor".to_owned());
        }
        let plugin = PluginIdentity::of(client.plugin(), client.platform_version())?;
        if plugin.library_sha256 != self.plugin.library_sha256 {
            let text = |plugin: &PluginIdentity| {
                let version = plugin.platform_version.replace('\n', ", ");
                format!("{version}, API {}, sha256 {:.12}", plugin.api_version, plugin.library_sha256)
            };
            differences.push(format!(
                "it was made by another build of the plugin ({}) than the client's ({})",
                text(&self.plugin),
                text(&plugin)
            ));
        }
        for (name, value) in &plugin.flags {
            let made_with = self.plugin.flags.get(name).map_or("", String::as_str);
            if made_with != value {
                differences.push(format!("it was made with {name}=`{made_with}`, and here it is `{value}`"));
            }
        }
        Ok(differences)
    }
}
