//! What is said of a program that was compiled for a target.

use std::fmt::Write;
use std::time::Duration;

use safejax::pjrt::{CompiledMemoryStats, NamedValue};
use safejax::printable::Line;
use safejax::program::{Collectives, CompiledOutput, MatrixWork};
use safejax::{Compilation, DeviceFigures, Error, ErrorCode, Target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::params::Params;

/// The outputs whose layouts are said.
const SHOWN_OUTPUTS: usize = 4;

/// What came of compiling for one target.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub target: String,
    /// The name of the plugin that compiles for it.
    pub plugin: String,
    /// Why it did not compile.
    pub error: Option<String>,
    /// Whether that is because it does not fit.
    pub is_too_large: bool,
    compiled: Option<Compiled>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Compiled {
    platform: String,
    /// What the plugin says of itself.
    version: String,
    kind: String,
    /// Devices that the program runs on, and that the target has.
    devices: usize,
    all_devices: usize,
    seconds: f64,
    memory: Option<CompiledMemoryStats>,
    /// What a device has.
    device_memory_bytes: Option<u64>,
    cost: Option<Cost>,
    /// The FLOP of matrix products and convolutions on one device, as the program's sizes tell, and whether these are all.
    counted_flops: Option<(f64, bool)>,
    figures: Option<DeviceFigures>,
    outputs: Vec<ReportedOutput>,
    /// How often the devices tell each other something, and by which operations, where the compiler says.
    collectives: Option<Collectives>,
    /// Whether the compiler had the device to try what is fast.
    is_tuned: bool,
}

/// An output on one device.
#[derive(Debug, Serialize, Deserialize)]
struct ReportedOutput {
    #[serde(rename = "type")]
    spec: String,
    /// How it lies in the memory, as XLA writes it.
    layout: Option<String>,
    /// How the whole is laid over the devices.
    sharding: Option<String>,
}

/// What the compiler says of one device's work.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Cost {
    flops: Option<f64>,
    transcendentals: Option<f64>,
    bytes: Option<f64>,
    seconds: Option<f64>,
}

/// The least time that a device can take, by what it is rated at.
#[derive(Debug, Clone, Copy, Serialize)]
struct Roofline {
    seconds: f64,
    bound: &'static str,
}

impl Outcome {
    /// Of a process that left no report.
    pub fn failed(target: &Target, error: String) -> Outcome {
        Outcome {
            target: target.to_string(),
            plugin: String::new(),
            error: Some(error),
            is_too_large: false,
            compiled: None,
        }
    }

    pub fn of_error(target: &Target, error: &anyhow::Error) -> Outcome {
        let is_too_large = matches!(
            error.downcast_ref::<Error>(),
            Some(Error::Pjrt { code: ErrorCode::ResourceExhausted, .. })
        );
        Outcome { is_too_large, ..Outcome::failed(target, format!("{error:#}")) }
    }

    pub fn of_compilation(target: &Target, compilation: &Compilation, took: Duration) -> Outcome {
        let (executable, topology) = (compilation.executable(), compilation.topology());
        let device = topology.devices().first();
        let attribute = |name: &str| {
            let found = device?.attributes().iter().find(|(known, _)| known == name)?;
            match found.1 {
                NamedValue::Int64(value) => u64::try_from(value).ok(),
                _ => None,
            }
        };
        let (replicas, partitions) = executable.replicas_and_partitions().unwrap_or((1, 1));
        let cost = executable.cost_analysis().ok().map(|properties| Cost::of(&properties));
        let counted = |work: MatrixWork| (work.flops / (partitions.max(1) as f64), work.is_complete);
        let compiled = Compiled {
            platform: topology.platform_name().to_owned(),
            version: topology.platform_version().replace('\n', ", "),
            kind: device.map_or(String::new(), |device| device.kind().to_owned()),
            devices: replicas * partitions,
            all_devices: topology.devices().len(),
            seconds: took.as_secs_f64(),
            memory: executable.memory_stats().ok(),
            device_memory_bytes: attribute("device_memory_bytes_limit")
                .or_else(|| host_memory().filter(|_| topology.platform_name() == "cpu")),
            counted_flops: compilation.matrix_work().map(counted),
            cost,
            figures: target.figures(),
            outputs: compilation.outputs().iter().map(ReportedOutput::of).collect(),
            collectives: compilation.collectives(),
            is_tuned: target.is_here() || topology.platform_name() != "cuda",
        };
        Outcome {
            target: target.to_string(),
            plugin: String::new(),
            error: None,
            is_too_large: false,
            compiled: Some(compiled),
        }
    }

    /// Whether it fits into a device; `None` where that is not known.
    pub fn fits(&self, params: Option<&Params>) -> Option<bool> {
        if self.is_too_large {
            return Some(false);
        }
        let compiled = self.compiled.as_ref()?;
        Some(compiled.needed(params)? <= compiled.device_memory_bytes?)
    }

    pub fn text(&self, params: Option<&Params>) -> String {
        let name = Line(&self.target);
        let Some(compiled) = &self.compiled else {
            let what = if self.is_too_large { "does not fit" } else { "does not compile" };
            return format!("{name}: {what}: {}\n", self.error.as_deref().unwrap_or_default());
        };
        let devices = match (compiled.devices, compiled.all_devices) {
            (1, 1) => String::new(),
            (used, all) => format!(", {used} of {all} devices"),
        };
        let mut text = format!(
            "{name}: {}{devices}; compiled in {:.1} s by {}\n",
            Line(&compiled.kind),
            compiled.seconds,
            Line(&self.plugin)
        );
        if compiled.devices == 1 && compiled.all_devices > 1 && compiled.platform != "cpu" {
            text += "  the program is for one device; the others have nothing to do\n";
        }
        text += &compiled.memory_text(params);
        text += &compiled.work_text();
        text.extend(compiled.outputs.iter().take(SHOWN_OUTPUTS).map(ReportedOutput::text));
        if compiled.outputs.len() > SHOWN_OUTPUTS {
            text += &format!(
                "  and {} outputs more; --json has them all\n",
                compiled.outputs.len() - SHOWN_OUTPUTS
            );
        }
        if let Some(collectives) = compiled.collectives.as_ref().filter(|_| compiled.devices > 1) {
            text += &format!("  collectives: {}\n", collectives_text(collectives));
        }
        if !compiled.is_tuned {
            text += "  no card was there to try kernels on: what is compiled on one can be faster\n";
        }
        text
    }

    pub fn json(&self, params: Option<&Params>) -> Value {
        let compiled = self.compiled.as_ref();
        json!({
            "target": self.target,
            "compiles": compiled.is_some(),
            "error": self.error,
            "fits": self.fits(params),
            "device": compiled.map(|compiled| json!({
                "kind": compiled.kind,
                "platform": compiled.platform,
                "memory_bytes": compiled.device_memory_bytes,
                "flops_per_second": compiled.figures.and_then(|figures| figures.flops_per_second),
                "memory_bytes_per_second": compiled.figures.map(|figures| figures.memory_bytes_per_second),
            })),
            "plugin": self.plugin,
            "platform_version": compiled.map(|compiled| &compiled.version),
            "devices": compiled.map(|compiled| compiled.devices),
            "compile_seconds": compiled.map(|compiled| compiled.seconds),
            "memory": compiled.and_then(|compiled| compiled.memory),
            "needed_bytes": compiled.and_then(|compiled| compiled.needed(params)),
            "params_bytes": params.map(|params| params.bytes_on_each),
            "params_problems": params.map(|params| &params.problems),
            "cost": compiled.and_then(|compiled| compiled.cost),
            "counted_flops": compiled.and_then(|compiled| Some(compiled.counted_flops?.0)),
            "roofline": compiled.and_then(Compiled::roofline),
            "is_tuned": compiled.map(|compiled| compiled.is_tuned),
            "outputs": compiled.map(|compiled| &compiled.outputs),
            "collectives": compiled.and_then(|compiled| compiled.collectives.as_ref()),
        })
    }
}

/// Such as `all_reduce, 2 all_gather`.
pub fn collectives_text(collectives: &Collectives) -> String {
    let one = |(name, count): (&String, &usize)| match count {
        1 => name.clone(),
        count => format!("{count} {name}"),
    };
    match collectives.is_empty() {
        true => "none".into(),
        false => collectives.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

impl ReportedOutput {
    fn of(output: &CompiledOutput) -> ReportedOutput {
        ReportedOutput {
            spec: output.spec.to_string(),
            // A scalar has none to speak of.
            layout: output.layout.as_ref().filter(|_| !output.spec.shape.is_empty()).map(ToString::to_string),
            sharding: output.sharding.as_ref().map(ToString::to_string),
        }
    }

    fn text(&self) -> String {
        let sharding = self.sharding.as_ref().map_or(String::new(), |sharding| format!(", {sharding}"));
        format!("  returns {}{}{sharding}\n", self.spec, self.layout.as_deref().unwrap_or_default())
    }
}

impl Cost {
    fn of(properties: &[(String, NamedValue)]) -> Cost {
        let value = |name: &str| {
            let found = properties.iter().find(|(known, _)| known == name)?;
            match found.1 {
                NamedValue::Float(value) => Some(f64::from(value)),
                NamedValue::Int64(value) => Some(value as f64),
                _ => None,
            }
        };
        Cost {
            flops: value("flops"),
            transcendentals: value("transcendentals"),
            bytes: value("bytes accessed"),
            seconds: value("optimal_seconds").filter(|seconds| *seconds > 0.0),
        }
    }
}

impl Compiled {
    /// The bytes of a device's memory that a call takes: what the compiler says is the most at once, the program, and of the
    /// params those that are there and no argument.
    fn needed(&self, params: Option<&Params>) -> Option<u64> {
        let memory = self.memory.as_ref()?;
        let data = memory.data_bytes().max(memory.peak_bytes);
        let needed = u64::try_from(data + memory.generated_code_bytes).ok()?;
        Some(needed.saturating_add(params.map_or(0, |params| params.unused_bytes)))
    }

    /// The FLOP of one device: as the compiler says, or what the program's sizes tell if that is more. Compilers count the
    /// body of a loop once.
    fn flops(&self) -> Option<f64> {
        let said = self.cost.and_then(|cost| cost.flops);
        let counted = self.counted_flops.map(|(flops, _)| flops);
        said.into_iter().chain(counted).reduce(f64::max)
    }

    /// Arguments and outputs, which are read and written, also where they share memory.
    fn least_bytes(&self) -> Option<f64> {
        let memory = self.memory.as_ref()?;
        Some((memory.argument_bytes + memory.output_bytes) as f64)
    }

    /// The least time that the rated device can take. Where the compiler does not say what the program costs, matrix
    /// products, convolutions, arguments and outputs are the least.
    fn roofline(&self) -> Option<Roofline> {
        let figures = self.figures?;
        let bytes = self.cost.and_then(|cost| cost.bytes).or(self.least_bytes())?;
        let by_memory = bytes / figures.memory_bytes_per_second;
        let by_compute = self.flops().zip(figures.flops_per_second).map(|(work, rate)| work / rate);
        Some(match by_compute {
            Some(seconds) if seconds > by_memory => Roofline { seconds, bound: "compute" },
            _ => Roofline { seconds: by_memory, bound: "memory" },
        })
    }

    fn memory_text(&self, params: Option<&Params>) -> String {
        let Some(memory) = &self.memory else {
            return "  the compiler does not say what it takes of the memory\n".into();
        };
        let mut text = String::new();
        let mut row = |name: &str, bytes: i64| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name:<22}{:>12}", size(bytes as f64));
        };
        // Not every compiler says it.
        if memory.generated_code_bytes > 0 {
            row("program", memory.generated_code_bytes);
        }
        row("arguments", memory.argument_bytes);
        row("outputs", memory.output_bytes);
        if memory.alias_bytes > 0 {
            row("shared by donation", -memory.alias_bytes);
        }
        row("temporaries", memory.temp_bytes);
        if memory.peak_bytes > memory.data_bytes() {
            row("peak of these, padded", memory.peak_bytes);
        }
        let host = &memory.host;
        let on_host = host.generated_code_bytes + host.argument_bytes + host.output_bytes + host.temp_bytes
            - host.alias_bytes;
        if on_host > 0 {
            row("on the host beside", on_host);
        }
        let needed = self.needed(params).unwrap_or(0);
        if let Some(unused) = params.map(|params| params.unused_bytes).filter(|bytes| *bytes > 0) {
            row("params not used", i64::try_from(unused).unwrap_or(i64::MAX));
        }
        let _ = write!(text, "  {:<22}{:>12}", "at once, at most", size(needed as f64));
        let _ = match self.device_memory_bytes {
            Some(has) if needed <= has => {
                writeln!(text, " of {}: fits, {} are left", size(has as f64), size((has - needed) as f64))
            }
            Some(has) => writeln!(
                text,
                " of {}: does not fit, {} are missing",
                size(has as f64),
                size((needed - has) as f64)
            ),
            None => writeln!(text),
        };
        if let Some(params) = params {
            let _ =
                writeln!(text, "  {:<22}{:>12} on each device", "params", size(params.bytes_on_each as f64));
            for problem in &params.problems {
                let _ = writeln!(text, "    {}", Line(problem));
            }
        }
        text
    }

    fn work_text(&self) -> String {
        let mut text = String::new();
        if let Some(Cost { flops: Some(flops), bytes: Some(bytes), transcendentals, .. }) = self.cost {
            let transcendentals = transcendentals.filter(|count| *count > 0.0);
            let transcendentals = transcendentals
                .map_or(String::new(), |count| format!(", {} transcendentals", scaled(count, "")));
            let _ = writeln!(
                text,
                "  work: {}{transcendentals}, {} to and from the memory",
                scaled(flops, "FLOP"),
                size(bytes)
            );
        }
        if let (Some((flops, is_complete)), Some(bytes)) = (self.counted_flops, self.least_bytes()) {
            let more = if is_complete { "" } else { " or more" };
            let work = format!("{}{more} in matrix products and convolutions", scaled(flops, "FLOP"));
            let _ = match self.cost.and_then(|cost| cost.flops) {
                None => writeln!(text, "  work: {work}, {} of arguments and outputs", size(bytes)),
                Some(said) if flops > said => {
                    writeln!(text, "  with all rounds of its loops, which the compiler counts once: {work}")
                }
                Some(_) => Ok(()),
            };
        }
        if let (Some(roofline), Some(figures)) = (self.roofline(), self.figures) {
            let rates = figures
                .flops_per_second
                .map_or(String::new(), |flops| format!(", {}/s in bfloat16", scaled(flops, "FLOP")));
            let or_more = match self.counted_flops {
                Some((_, false)) => " or more",
                _ => "",
            };
            let _ = writeln!(
                text,
                "  roofline: {}{or_more} ({} bound; {}/s{rates})",
                seconds(roofline.seconds),
                roofline.bound,
                size(figures.memory_bytes_per_second)
            );
        }
        if let Some(estimate) = self.cost.and_then(|cost| cost.seconds) {
            let said = self.cost.and_then(|cost| cost.flops);
            let has_loops =
                self.counted_flops.is_some_and(|(flops, is_complete)| !is_complete || Some(flops) > said);
            let loops = if has_loops { ", with one round of each loop" } else { "" };
            let _ = writeln!(text, "  the compiler's estimate: {}{loops}", seconds(estimate));
        }
        text
    }
}

/// The memory of this machine, in bytes.
fn host_memory() -> Option<u64> {
    let said = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = said.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Bytes in powers of 1000, as memory is sold.
fn size(bytes: f64) -> String {
    scaled(bytes, "B")
}

/// A number with a unit, in powers of 1000.
fn scaled(number: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    let mut scaled = number;
    let mut index = 0;
    while scaled.abs() >= 999.95 && index + 1 < prefixes.len() {
        scaled /= 1000.0;
        index += 1;
    }
    let digits = usize::from(index > 0);
    let space = if unit.is_empty() && prefixes[index].is_empty() { "" } else { " " };
    format!("{scaled:.digits$}{space}{}{unit}", prefixes[index])
}

fn seconds(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s if s >= 1e-6 => (s * 1e6, "µs"),
        s if s >= 1e-9 => (s * 1e9, "ns"),
        s => (s * 1e12, "ps"),
    };
    format!("{number:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_in_powers_of_a_thousand() {
        assert_eq!(size(0.0), "0 B");
        assert_eq!(size(999.0), "999 B");
        assert_eq!(size(16_909_334_528.0), "16.9 GB");
        assert_eq!(size(-2_048.0), "-2.0 kB");
        assert_eq!(scaled(55.0, ""), "55");
        assert_eq!(scaled(1.97e14, "FLOP"), "197.0 TFLOP");
        assert_eq!(
            (seconds(2.1e-4), seconds(3e-8), seconds(1.5)),
            ("210.0 µs".into(), "30.0 ns".into(), "1.5 s".into())
        );
    }
}
