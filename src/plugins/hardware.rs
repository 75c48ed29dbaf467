//! Which accelerators this machine has, told by device files alone: nothing is loaded or asked.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A kind of accelerator.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Accelerator {
    /// What it is, such as `gpu (NVIDIA)`.
    pub name: &'static str,
    /// The plugins that drive it, the preferred first.
    pub plugins: &'static [&'static str],
    /// Whether it is there; why not, if not.
    pub present: Result<(), String>,
}

/// The kinds of accelerators in the order of preference.
pub fn accelerators() -> Vec<Accelerator> {
    let kind = |name, plugins, files: &[&str]| Accelerator { name, plugins, present: look_for(files) };
    vec![
        Accelerator { name: "tpu", plugins: &["tpu"], present: look_for_tpu() },
        kind("gpu (NVIDIA)", &["cuda13", "cuda12"][..], &NVIDIA_FILES),
        kind("gpu (AMD)", &["rocm", "rocm10"][..], &AMD_FILES),
    ]
}

/// The device files of NVIDIA's driver; the second is how WSL shows a GPU.
const NVIDIA_FILES: [&str; 2] = ["/dev/nvidia[0-9]", "/dev/dxg"];

/// The device file of AMD's compute driver.
const AMD_FILES: [&str; 1] = ["/dev/kfd"];

/// The device files of a TPU: older and newer drivers.
const TPU_FILES: [&str; 2] = ["/dev/accel[0-9]", "/dev/vfio/[0-9]"];

/// Whether there is a TPU on this machine.
pub(crate) fn has_tpu() -> bool {
    look_for_tpu().is_ok()
}

/// Whether a plugin is libtpu, and would ask the cloud's metadata server what it runs on, and wait for it.
pub(crate) fn waits_for_tpu(library: &Path) -> bool {
    let is_tpu = library.file_name().is_some_and(|name| name == "libtpu.so");
    is_tpu && std::env::var_os("TPU_SKIP_MDS_QUERY").is_none()
}

/// Looks for a TPU. The newer driver's files are also those of any device that is passed through to a virtual
/// machine, so that with them one of Google's must be on the bus.
fn look_for_tpu() -> Result<(), String> {
    /// Google's vendor number on the PCI bus.
    const GOOGLE: &str = "0x1ae0";
    look_for(&TPU_FILES)?;
    let vendors =
        Path::new("/sys/bus/pci/devices").read_dir().map_err(|_| "there is no PCI bus to look at")?;
    let mut vendors =
        vendors.flatten().filter_map(|device| std::fs::read_to_string(device.path().join("vendor")).ok());
    if vendors.any(|vendor| vendor.trim() == GOOGLE) {
        return Ok(());
    }
    Err(format!("no device of Google's ({GOOGLE}) is on the PCI bus"))
}

/// Refuses to wake a TPU plugin on a machine without a TPU: it would ask the cloud's metadata server for
/// over a minute before it gives up. Setting `TPU_SKIP_MDS_QUERY` says that one knows better.
pub fn check_before_connecting(library: &Path) -> Result<()> {
    if !waits_for_tpu(library) {
        return Ok(());
    }
    look_for_tpu().map_err(|reason| Error::NoDevice {
        platform: "tpu".into(),
        reason: format!("{reason}; to let libtpu look by itself, set TPU_SKIP_MDS_QUERY=1"),
    })
}

/// Says what is missing when a GPU plugin finds no device on a machine that shows none.
pub fn explain(library: &Path, error: Error) -> Error {
    let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (platform, files): (_, &[&str]) = match name.as_str() {
        "xla_cuda_plugin.so" => ("cuda", &NVIDIA_FILES),
        "xla_rocm_plugin.so" => ("rocm", &AMD_FILES),
        _ => return error,
    };
    match look_for(files) {
        Ok(()) => error,
        Err(reason) => Error::NoDevice {
            platform: platform.into(),
            reason: format!("{error}; {reason}, so there is no GPU here, or its driver is not installed"),
        },
    }
}

/// Looks for a file that begins like one of these; a trailing `[0-9]` stands for any digit.
fn look_for(patterns: &[&str]) -> Result<(), String> {
    for pattern in patterns {
        let found = match pattern.strip_suffix("[0-9]") {
            None => Path::new(pattern).exists(),
            Some(prefix) => {
                let path = PathBuf::from(format!("{prefix}0"));
                let (directory, stem) = (path.parent(), Path::new(prefix).file_name());
                // A prefix that ends in a slash has no stem of its own: any digit in that directory.
                let stem =
                    if prefix.ends_with('/') { "" } else { stem.and_then(|s| s.to_str()).unwrap_or("") };
                directory.is_some_and(|directory| has_numbered_file(directory, stem))
            }
        };
        if found {
            return Ok(());
        }
    }
    Err(format!("none of {} exists", patterns.join(", ")))
}

fn has_numbered_file(directory: &Path, stem: &str) -> bool {
    let Ok(entries) = directory.read_dir() else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(stem));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_device_files_are_found_and_others_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let pattern = format!("{}/accel[0-9]", directory.path().display());
        std::fs::write(directory.path().join("accelerometer"), "").unwrap();
        assert!(look_for(&[&pattern]).is_err());
        std::fs::write(directory.path().join("accel12"), "").unwrap();
        assert_eq!(look_for(&[&pattern]), Ok(()));
        let bare = format!("{}/[0-9]", directory.path().display());
        assert!(look_for(&[&bare]).is_err());
        std::fs::write(directory.path().join("3"), "").unwrap();
        assert_eq!(look_for(&[&bare]), Ok(()));
    }

    #[test]
    fn another_plugin_is_not_checked_for_a_tpu() {
        assert!(check_before_connecting(Path::new("/somewhere/libpjrt_cpu.so")).is_ok());
    }
}
