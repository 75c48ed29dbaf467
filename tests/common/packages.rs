//! The other two CPU plugins that exist as packages, for tests: an older and the oldest.
//!
//! Shared by the unit tests (as `plugins::test_packages`) and the integration tests.

use std::path::{Path, PathBuf};

use super::{Package, Wheel, install_into};

/// C API 0.106.
#[allow(dead_code)] // Not every test binary uses both.
pub fn cpu_0_106() -> Package {
    let wheels = vec![Wheel {
        package: "fastatomstruct-xla-cpu",
        version: "2026.6.23",
        sha256: "88b1c430b341b4bea40a37420311c9c75db6e22b46d2ff95b6986577bee6afe9",
    }];
    Package::new("cpu-0.106", wheels, "fastatomstruct_xla_cpu/libpjrt_cpu.so")
}

/// C API 0.81. This package also holds the C header.
pub fn cpu_0_81() -> Package {
    let wheels = vec![Wheel {
        package: "xla-cpu-pjrt",
        version: "0.0.1",
        sha256: "55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc",
    }];
    Package::new("cpu-0.81", wheels, "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so")
}

/// Installs a package below the build directory, once, and returns its library.
pub fn installed(package: &Package) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| workspace().join("target"));
    install_into(&target.join("test-plugins"), package, &mut |_| {}).unwrap()
}

/// The directory of the workspace, which has the lock file.
pub fn workspace() -> &'static Path {
    let has_lock = |directory: &&Path| directory.join("Cargo.lock").exists();
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(has_lock).unwrap()
}
