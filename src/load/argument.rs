//! Loading an argument of a function to where the function takes it.

use std::collections::BTreeMap;
use std::path::Path;

use super::options::LoadOptions;
use super::report::LoadReport;
use crate::error::{Error, Result};
use crate::format::{Format, sniff};
use crate::params::Params;
use crate::plan::Template;
use crate::program::call::Function;
use crate::program::{ArgumentKey, ArgumentTree, Exported, Parameter};
use crate::sharding::Sharding;

impl Params {
    /// Loads a checkpoint as an argument of a function, by position or name: each tensor onto the devices that the function runs
    /// on, in the shards that it takes there, read straight from the file.
    ///
    /// ```no_run
    /// # use safejax::{Client, LoadOptions, Params, Program};
    /// let client = Client::cpu()?;
    /// let forward = client.compile(&Program::open("forward.jaxexport")?)?;
    /// let (params, _) = Params::load_for(&forward, 0, "params.safetensors", &LoadOptions::default())?;
    /// # Ok::<(), safejax::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an argument that there is not; as for [`Params::load_with`].
    pub fn load_for(
        function: &Function,
        argument: impl Into<ArgumentKey>,
        path: impl AsRef<Path>,
        options: &LoadOptions,
    ) -> Result<(Params, LoadReport)> {
        let argument = argument.into();
        let mut options = placed(function, &argument, options)?;
        if options.selection.template.is_none()
            && let Some(exported) = function.exported()
            && sniff(&path)? == Some(Format::Equinox)
        {
            // Its leaves have no names; the function's do.
            options = options.template(Template::of_argument(exported, &argument)?);
        }
        Params::load_with(function.client(), path, &options)
    }
}

impl Template {
    /// What an exported function takes as an argument.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an argument that there is not, or one with symbolic dimensions.
    pub fn of_argument(exported: &Exported, key: &ArgumentKey) -> Result<Template> {
        let signature = exported.signature();
        let tree = find(&signature.arguments, key, &exported.function_name)?;
        let parameters = &signature.parameters[tree.leaves.clone()];
        let spec = |parameter: &Parameter| {
            let Parameter { place, aval, .. } = parameter;
            let symbolic =
                || Error::InvalidArgument(format!("{place} is {aval}, of which the sizes are not known"));
            aval.to_spec().ok_or_else(symbolic)
        };
        Ok(Template::new(tree.def.clone(), parameters.iter().map(spec).collect::<Result<_>>()?))
    }
}

/// Load options that put an argument where the function takes it.
///
/// # Errors
/// [`Error::InvalidArgument`] for an argument that there is not.
fn placed(function: &Function, key: &ArgumentKey, options: &LoadOptions) -> Result<LoadOptions> {
    if let Some(device) = function.device() {
        return Ok(options.clone().to(device));
    }
    let tree = argument(function, key)?;
    let leaves = tree.names.iter().zip(tree.leaves.clone());
    let sharding = |leaf: usize| function.sharding(leaf).unwrap_or(Sharding::Replicated);
    let shardings: BTreeMap<String, Sharding> =
        leaves.map(|(name, leaf)| (name.clone(), sharding(leaf))).collect();
    Ok(options.clone().over(function.devices(), shardings))
}

fn argument<'f>(function: &'f Function, key: &ArgumentKey) -> Result<&'f ArgumentTree> {
    let arguments = function.signature().map(|signature| &signature.arguments[..]).unwrap_or_default();
    find(arguments, key, function.name())
}

fn find<'a>(arguments: &'a [ArgumentTree], key: &ArgumentKey, function: &str) -> Result<&'a ArgumentTree> {
    arguments.iter().find(|argument| argument.key == *key).ok_or_else(|| {
        let known: Vec<String> = arguments.iter().map(|argument| argument.key.to_string()).collect();
        Error::InvalidArgument(format!("`{function}` has no {key}; it has {}", known.join(", ")))
    })
}
