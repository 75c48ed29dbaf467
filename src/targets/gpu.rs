//! Models of NVIDIA GPUs, as XLA's compiler is told of them, with what they are rated at.
//!
//! XLA takes a `stream_executor.GpuTargetConfigProto` as text (`xla/stream_executor/device_description.proto`). The figures
//! are the cards' own, as XLA's repository has them (`xla/backends/gpu/target_config/specs`), but for the operations a
//! second, which are those of NVIDIA's data sheets: bfloat16, dense.

use std::path::Path;

use super::DeviceFigures;
use crate::error::{Error, Result};
use crate::pjrt::NamedValue;

/// A model of GPUs.
#[derive(Debug, PartialEq)]
pub struct GpuModel {
    pub name: &'static str,
    /// What the driver calls it.
    pub kind: &'static str,
    /// The compute capability.
    capability: (u32, u32),
    /// Whether it is compiled for with the features that only this architecture has (`sm_90a`).
    has_accelerated_features: bool,
    /// Multiprocessors.
    core_count: u32,
    /// Units for float32 in each.
    fpus_per_core: u32,
    clock_rate_ghz: f64,
    memory_bytes: u64,
    memory_bytes_per_second: f64,
    l2_cache_bytes: u64,
    /// Of a multiprocessor, and the most that one block can have of it.
    shared_memory_bytes: (u32, u32),
    flops_per_second: f64,
}

/// Hopper's and Blackwell's shared memory.
const LARGE_SHARED_MEMORY: (u32, u32) = (233_472, 232_448);

const A100_80: GpuModel = GpuModel {
    name: "a100",
    kind: "NVIDIA A100-SXM4-80GB",
    capability: (8, 0),
    has_accelerated_features: false,
    core_count: 108,
    fpus_per_core: 64,
    clock_rate_ghz: 1.41,
    memory_bytes: 85_100_068_864,
    memory_bytes_per_second: 2_039.04e9,
    l2_cache_bytes: 41_943_040,
    shared_memory_bytes: (167_936, 166_912),
    flops_per_second: 312e12,
};

const H100: GpuModel = GpuModel {
    name: "h100",
    kind: "NVIDIA H100 80GB HBM3",
    capability: (9, 0),
    has_accelerated_features: true,
    core_count: 132,
    fpus_per_core: 128,
    clock_rate_ghz: 1.98,
    memory_bytes: 84_942_979_072,
    memory_bytes_per_second: 3_352.32e9,
    l2_cache_bytes: 52_428_800,
    shared_memory_bytes: LARGE_SHARED_MEMORY,
    flops_per_second: 989e12,
};

const B200: GpuModel = GpuModel {
    name: "b200",
    kind: "NVIDIA B200",
    capability: (10, 0),
    core_count: 148,
    clock_rate_ghz: 1.965,
    memory_bytes: 191_514_411_008,
    memory_bytes_per_second: 7_672.32e9,
    l2_cache_bytes: 132_644_864,
    flops_per_second: 2250e12,
    ..H100
};

pub const MODELS: [GpuModel; 8] = [
    GpuModel {
        name: "a100-40",
        kind: "NVIDIA A100-SXM4-40GB",
        memory_bytes: 42_331_013_120,
        memory_bytes_per_second: 1_555.2e9,
        ..A100_80
    },
    A100_80,
    H100,
    GpuModel {
        name: "h100-pcie",
        kind: "NVIDIA H100 PCIe",
        core_count: 114,
        clock_rate_ghz: 1.755,
        memory_bytes_per_second: 2_039.04e9,
        flops_per_second: 756e12,
        ..H100
    },
    GpuModel {
        name: "h200",
        kind: "NVIDIA H200",
        memory_bytes: 151_397_597_184,
        memory_bytes_per_second: 4_800e9,
        ..H100
    },
    B200,
    GpuModel {
        name: "gb200",
        kind: "NVIDIA GB200",
        core_count: 152,
        clock_rate_ghz: 2.062,
        memory_bytes: 197_897_748_480,
        memory_bytes_per_second: 7_928.064e9,
        l2_cache_bytes: 135_528_448,
        flops_per_second: 2500e12,
        ..B200
    },
    GpuModel {
        name: "b300",
        kind: "NVIDIA B300",
        capability: (10, 3),
        has_accelerated_features: false,
        core_count: 158,
        memory_bytes: 297_021_865_984,
        memory_bytes_per_second: 7_936e9,
        l2_cache_bytes: 135_528_448,
        ..B200
    },
];

/// The model of this name.
pub fn model(name: &str) -> Option<&'static GpuModel> {
    MODELS.iter().find(|model| model.name == name)
}

impl GpuModel {
    /// What a GPU of the model is rated at.
    pub fn figures(&self) -> DeviceFigures {
        DeviceFigures {
            flops_per_second: Some(self.flops_per_second),
            memory_bytes_per_second: self.memory_bytes_per_second,
        }
    }

    /// The model as XLA's compiler is told of it.
    pub fn target_config(&self) -> String {
        let (major, minor) = self.capability;
        let (shared_memory, shared_memory_of_block) = self.shared_memory_bytes;
        let features = if self.has_accelerated_features { "ACCELERATED_FEATURES" } else { "NONE" };
        let GpuModel {
            kind, core_count, fpus_per_core, clock_rate_ghz, memory_bytes, l2_cache_bytes, ..
        } = self;
        let bandwidth = self.memory_bytes_per_second as u64;
        format!(
            "gpu_device_info {{
               name: \"{kind}\"
               device_vendor: \"NVIDIA Corporation\"
               cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
               core_count: {core_count} fpus_per_core: {fpus_per_core} clock_rate_ghz: {clock_rate_ghz}
               device_memory_size: {memory_bytes} memory_bandwidth: {bandwidth} l2_cache_size: {l2_cache_bytes}
               shared_memory_per_block: 49152 shared_memory_per_core: {shared_memory}
               shared_memory_per_block_optin: {shared_memory_of_block}
               threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
               thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
               block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
               registers_per_core_limit: 65536 registers_per_block_limit: 65536
               device_address_bits: 64 ecc_enabled: true
               {VERSIONS}
             }}
             platform_name: \"CUDA\"
             dnn_version_info {{ major: 9 minor: 10 }}
             device_description_str: \"{kind}\""
        )
    }
}

/// The libraries that a program may count on.
const VERSIONS: &str = "driver_version: \"13.0.0\" runtime_version: \"13.0.0\" compile_time_toolkit_version: \"13.0.0\" dnn_version: \"9.10.0\"";

/// The options of a topology of so many GPUs of one machine.
pub fn options(target_config: &str, count: usize) -> Vec<(String, NamedValue)> {
    vec![
        ("target_config".to_owned(), target_config.into()),
        // Partitions, hosts in each, devices of each.
        ("topology".to_owned(), format!("1x1x{count}").into()),
    ]
}

/// The largest description that is read, in bytes: some have 5,000.
const MAX_DESCRIPTION_BYTES: u64 = 1 << 20;

/// What the compiler divides by, and cannot do without.
const NEEDED_FIELDS: [&str; 15] = [
    "cuda_compute_capability",
    "core_count",
    "fpus_per_core",
    "clock_rate_ghz",
    "device_memory_size",
    "memory_bandwidth",
    "l2_cache_size",
    "threads_per_block_limit",
    "threads_per_warp",
    "threads_per_core_limit",
    "shared_memory_per_block",
    "shared_memory_per_core",
    "shared_memory_per_block_optin",
    "registers_per_core_limit",
    "registers_per_block_limit",
];

/// The description in a file, of which the compiler needs some fields or ends the process.
pub fn read_description(path: &Path) -> Result<String> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
    let refuse = |problem: String| {
        Err(Error::InvalidArgument(format!("{} is no description of a GPU: {problem}", path.display())))
    };
    if !metadata.is_file() || metadata.len() > MAX_DESCRIPTION_BYTES {
        return refuse(format!("it is not a regular file of at most {MAX_DESCRIPTION_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("open", path, error))?;
    if let Some(name) = NEEDED_FIELDS.iter().find(|name| !text.split(is_separator).any(|word| word == **name))
    {
        return refuse(format!("it does not say `{name}`"));
    }
    match field(&text, "platform_name") {
        Some("CUDA") => Ok(text),
        Some(other) => refuse(format!("its platform is `{other}`, and the compiler is CUDA's")),
        None => refuse("it does not say `platform_name`, which is \"CUDA\"".to_owned()),
    }
}

fn is_separator(c: char) -> bool {
    !c.is_ascii_alphanumeric() && c != '_'
}

/// The value of a field in a description, as text.
fn field<'a>(description: &'a str, name: &str) -> Option<&'a str> {
    let lines = description.lines().map(|line| line.trim().trim_end_matches(','));
    let values = lines.filter_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    values.map(|value| value.trim().trim_matches('"')).next_back()
}

/// What a description calls its GPU.
pub fn described_name(description: &str) -> String {
    field(description, "device_description_str").unwrap_or("GPU").to_owned()
}

/// What is known of a GPU that is described.
pub fn described_figures(description: &str) -> Option<DeviceFigures> {
    let memory_bytes_per_second = field(description, "memory_bandwidth")?.parse().ok()?;
    Some(DeviceFigures { flops_per_second: None, memory_bytes_per_second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_says_what_its_gpu_is() {
        let text =
            "gpu_device_info {\n  memory_bandwidth: 3352320000000\n}\ndevice_description_str: \"NVIDIA X\"\n";
        assert_eq!(described_name(text), "NVIDIA X");
        assert_eq!(described_figures(text).unwrap().memory_bytes_per_second, 3.35232e12);
        assert_eq!(described_figures("nothing"), None);
        assert!(model("h200").unwrap().target_config().contains("device_memory_size: 151397597184"));
    }
}
