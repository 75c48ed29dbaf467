//! Looking for plugins that are already on the machine.

use std::path::{Path, PathBuf};

use super::cache::install_dir;
use super::install::{check_owner, directory_name, installed_library};
use super::is_offline;
use super::packages::{KNOWN_LIBRARIES, Package};
use super::python::site_directories;
use crate::error::{Error, Result};

/// A plugin on this machine.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Found {
    /// The name that users call it by.
    pub name: String,
    /// Its library.
    pub path: PathBuf,
    /// How it came here.
    pub source: FoundIn,
}

/// How a plugin came to be on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FoundIn {
    /// Installed into the cache by safejax.
    Cache,
    /// Part of an installed Python package.
    PythonPackage,
}

/// Every plugin on this machine, the cache's before those of Python packages. Loads none of them.
pub fn discover() -> Vec<Found> {
    let mut found = Vec::new();
    let cache = install_dir().ok();
    for package in Package::all() {
        found.extend(cache.as_deref().and_then(|cache| in_cache(cache, &package)));
    }
    for directory in site_directories() {
        for (name, library) in KNOWN_LIBRARIES {
            found.extend(in_packages(&directory, name, library));
        }
    }
    found
}

/// Names that stand for several plugins, of which the first that is on the machine counts.
const FAMILIES: [(&str, &[&str]); 3] = [
    ("gpu", &["cuda13", "cuda12", "rocm", "rocm10", "oneapi"]),
    ("cuda", &["cuda13", "cuda12"]),
    ("rocm", &["rocm", "rocm10"]),
];

/// The plugins that a family's name stands for, the preferred first; `None` for the name of one plugin.
pub fn family(name: &str) -> Option<&'static [&'static str]> {
    FAMILIES.iter().find(|(family, _)| *family == name).map(|(_, members)| *members)
}

/// The plugin of this name; `gpu` and `cuda` are the first of these that is there.
///
/// # Errors
/// [`Error::PluginNotFound`] listing every place that was looked at and the command that helps.
pub fn find(name: &str) -> Result<Found> {
    let Some(members) = family(name) else { return find_member(name) };
    find_first(members).map_err(|error| match error {
        Error::PluginNotFound { searched, remedy, .. } => {
            Error::PluginNotFound { name: name.to_owned(), searched, remedy }
        }
        other => other,
    })
}

/// The first of these plugins that is on this machine.
///
/// # Errors
/// [`Error::PluginNotFound`] as for [`find`], of all of them; those of a plugin that is there and cannot be used.
pub fn find_first(names: &[&str]) -> Result<Found> {
    let mut searched = Vec::new();
    for name in names {
        match find_member(name) {
            Err(Error::PluginNotFound { searched: places, .. }) => searched.extend(places),
            found => return found,
        }
    }
    let first = names.first().copied().unwrap_or_default();
    let remedy = format!("install one of {}: `safejax plugin install {first}`", names.join(", "));
    Err(Error::PluginNotFound { name: first.to_owned(), searched, remedy })
}

fn find_member(name: &str) -> Result<Found> {
    let package = Package::named(name);
    if package.is_none() && !KNOWN_LIBRARIES.iter().any(|(known, _)| *known == name) {
        let mut known: Vec<&str> = KNOWN_LIBRARIES.iter().map(|(known, _)| *known).collect();
        known.dedup();
        let nearest = known.iter().map(|known| (*known).to_owned()).collect();
        return Err(Error::NotFound { what: "plugin", name: name.to_owned(), nearest });
    }
    let mut searched = Vec::new();
    match install_dir() {
        Ok(cache) => {
            if let Some(found) = package.as_ref().and_then(|package| in_cache(&cache, package)) {
                check_owner(&found.path)?;
                return Ok(found);
            }
            let directory =
                package.as_ref().map_or(cache.clone(), |package| cache.join(directory_name(package)));
            searched.push(format!("the cache: nothing at {}", directory.display()));
        }
        Err(error) => searched.push(format!("the cache: {error}")),
    }
    for directory in site_directories() {
        for (_, library) in KNOWN_LIBRARIES.iter().filter(|(known, _)| *known == name) {
            if let Some(found) = in_packages(&directory, name, library) {
                return Ok(found);
            }
        }
        searched.push(format!("Python packages: no {name} plugin in {}", directory.display()));
    }
    let remedy = match package {
        Some(_) if is_offline() => format!(
            "SAFEJAX_OFFLINE forbids installing; unset it and run `safejax plugin install {name}`, or give the path of a \
             library, in SAFEJAX_PLUGIN or as --plugin"
        ),
        Some(_) => format!("run `safejax plugin install {name}`, or give the path of its library"),
        None => "give the path of its library, in SAFEJAX_PLUGIN or as --plugin".to_owned(),
    };
    Err(Error::PluginNotFound { name: name.to_owned(), searched, remedy })
}

fn in_cache(cache: &Path, package: &Package) -> Option<Found> {
    let path = installed_library(cache, package)?;
    Some(Found { name: package.name.to_owned(), path, source: FoundIn::Cache })
}

fn in_packages(directory: &Path, name: &str, library: &str) -> Option<Found> {
    let path = directory.join(library);
    path.is_file().then(|| Found { name: name.to_owned(), path, source: FoundIn::PythonPackage })
}
