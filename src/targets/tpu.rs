//! Generations of TPUs, as libtpu calls them, with what a chip of each is rated at.
//!
//! The ratings are those of Google's pages on the generations (cloud.google.com/tpu/docs, "system architecture"), for a chip;
//! the names, and which cores make a device, were tried with libtpu 0.0.51.

use super::DeviceFigures;
use crate::pjrt::NamedValue;

/// A generation of TPUs.
#[derive(Debug, PartialEq)]
pub struct TpuGeneration {
    pub name: &'static str,
    /// What libtpu calls it.
    pub plugin_name: &'static str,
    /// How its chips are used, where a device is not what libtpu makes it by default: JAX joins the two cores of a v4.
    chip_config: Option<&'static str>,
    /// The devices that a chip is.
    devices_per_chip: f64,
    /// Of a chip, in bfloat16.
    flops_per_second: f64,
    /// Of a chip.
    memory_bytes_per_second: f64,
    /// Dimensions of a slice.
    rank: usize,
    /// Of the largest slice.
    most_chips: usize,
}

pub const GENERATIONS: [TpuGeneration; 7] = [
    TpuGeneration {
        name: "v2",
        plugin_name: "v2",
        chip_config: None,
        devices_per_chip: 2.0,
        flops_per_second: 46e12,
        memory_bytes_per_second: 700e9,
        rank: 2,
        most_chips: 256,
    },
    TpuGeneration {
        name: "v3",
        plugin_name: "v3",
        chip_config: None,
        devices_per_chip: 2.0,
        flops_per_second: 123e12,
        memory_bytes_per_second: 900e9,
        rank: 2,
        most_chips: 1024,
    },
    TpuGeneration {
        name: "v4",
        plugin_name: "v4",
        chip_config: Some("megacore"),
        devices_per_chip: 1.0,
        flops_per_second: 275e12,
        memory_bytes_per_second: 1200e9,
        rank: 3,
        most_chips: 4096,
    },
    TpuGeneration {
        name: "v5e",
        plugin_name: "v5e",
        chip_config: None,
        devices_per_chip: 1.0,
        flops_per_second: 197e12,
        memory_bytes_per_second: 819e9,
        rank: 2,
        most_chips: 256,
    },
    TpuGeneration {
        name: "v5p",
        plugin_name: "v5p",
        chip_config: None,
        devices_per_chip: 1.0,
        flops_per_second: 459e12,
        memory_bytes_per_second: 2765e9,
        rank: 3,
        most_chips: 8960,
    },
    TpuGeneration {
        name: "v6e",
        plugin_name: "v6e",
        chip_config: None,
        devices_per_chip: 1.0,
        flops_per_second: 918e12,
        memory_bytes_per_second: 1640e9,
        rank: 2,
        most_chips: 256,
    },
    TpuGeneration {
        name: "v7x",
        plugin_name: "tpu7x",
        chip_config: None,
        devices_per_chip: 2.0,
        flops_per_second: 2307e12,
        memory_bytes_per_second: 7380e9,
        rank: 3,
        most_chips: 9216,
    },
];

/// The most chips along a side: more than there are of any generation.
const MAX_SIDE: usize = 256;

/// The generation and the slice that the cloud calls so: `v5litepod-4` for `v5e:2x2`, and `v4-8` for `v4:1x2x2`, since of some it
/// counts cores.
pub fn of_cloud_name(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let (name, number) = name.split_once('-')?;
    let name = if name == "v5litepod" { "v5e" } else { name };
    let generation = generation(name)?;
    let number: usize = number.parse().ok()?;
    let cores_per_chip = if generation.rank == 3 || generation.devices_per_chip > 1.0 { 2 } else { 1 };
    Some(format!("{}:{}", generation.name, generation.slice_of_chips(number.div_ceil(cores_per_chip))?))
}

/// The generation of this name, as we or libtpu call it.
pub fn generation(name: &str) -> Option<&'static TpuGeneration> {
    GENERATIONS.iter().find(|generation| generation.name == name || generation.plugin_name == name)
}

impl TpuGeneration {
    /// The shape of a slice as libtpu takes it: what was given, or one chip. libtpu ends the process over a side of 0.
    pub fn shape(&self, given: Option<&str>) -> Result<String, String> {
        let Some(given) = given else { return Ok(vec!["1"; self.rank].join("x")) };
        let sides: Vec<Option<usize>> = given
            .split('x')
            .map(|side| side.parse().ok().filter(|side| (1..=MAX_SIDE).contains(side)))
            .collect();
        if sides.len() != self.rank || sides.contains(&None) {
            let example = if self.rank == 2 { "2x2" } else { "2x2x1" };
            return Err(format!(
                "the slice `{given}` is no shape; {} takes a shape such as {example}, of chips from 1 to {MAX_SIDE}",
                self.name
            ));
        }
        Ok(given.to_owned())
    }

    /// Refuses a slice of more chips than there are: libtpu ends the process over some.
    pub fn check_size(&self, shape: &str) -> Result<(), String> {
        let chips = shape.split('x').filter_map(|side| side.parse::<usize>().ok()).product::<usize>();
        if chips > self.most_chips {
            return Err(format!(
                "the slice {shape} has {chips} chips, and the largest of {} has {}",
                self.name, self.most_chips
            ));
        }
        Ok(())
    }

    /// The least slice of so many devices: sides of powers of two, as equal as can be.
    pub fn slice_of(&self, devices: usize) -> Option<String> {
        self.slice_of_chips((devices as f64 / self.devices_per_chip).ceil() as usize)
    }

    fn slice_of_chips(&self, chips: usize) -> Option<String> {
        let chips = chips.checked_next_power_of_two().filter(|chips| *chips <= self.most_chips)?;
        let (twos, rank) = (chips.trailing_zeros() as usize, self.rank);
        let sides: Vec<String> =
            (0..rank).map(|side| (1usize << ((twos + side) / rank)).to_string()).collect();
        Some(sides.join("x"))
    }

    /// The options of its topologies.
    pub fn options(&self) -> Vec<(String, NamedValue)> {
        self.chip_config.map(|config| ("chip_config_name".to_owned(), config.into())).into_iter().collect()
    }

    /// What a device is rated at.
    pub fn figures(&self) -> DeviceFigures {
        DeviceFigures {
            flops_per_second: Some(self.flops_per_second / self.devices_per_chip),
            memory_bytes_per_second: self.memory_bytes_per_second / self.devices_per_chip,
        }
    }
}
