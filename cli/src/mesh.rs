//! `--mesh`: several devices, and which part of which tensor each of them gets.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use safejax::load::{LeafPlacement, ShardingRules, Unmatched};
use safejax::printable::Name;
use safejax::{Client, Device, DeviceMesh, Mesh, PartitionSpec};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Args)]
pub struct MeshArgs {
    /// Lay the tensors over the devices of a mesh with these axes, the last one fastest: data=2,model=4
    #[arg(long, value_name = "NAME=SIZE,…", conflicts_with_all = ["device", "verify"])]
    pub mesh: Option<Mesh>,

    /// The devices of the mesh, by their numbers, in its order [default: the first ones]
    #[arg(long, value_name = "ID,…", value_delimiter = ',', requires = "mesh", allow_hyphen_values = true)]
    #[arg(value_parser = parse_device)]
    devices: Vec<i32>,

    /// How the tensors whose names match a pattern are laid over the mesh, as JAX writes it: '*.kernel=P(None, model)'. The
    /// first that matches counts; a tensor that none matches is on every device
    #[arg(long = "rule", value_name = "PATTERN=SPEC", value_parser = parse_rule, requires = "mesh")]
    rules: Vec<(String, PartitionSpec)>,

    /// A TOML file of such rules, which come after those of --rule: [[rule]] tables with `match` and `spec`, and before them
    /// `unmatched = "error"` if every tensor is to have one
    #[arg(long = "rules", value_name = "FILE", requires = "mesh")]
    rules_file: Option<PathBuf>,

    /// Draw which device gets what to this file (SVG), or to standard output (-), without loading anything
    #[arg(long, value_name = "FILE", requires = "mesh")]
    pub svg: Option<PathBuf>,
}

/// A device's number.
pub fn parse_device(text: &str) -> Result<i32, String> {
    text.parse()
        .map_err(|_| "a device is given by its number, such as 0; `safejax devices` shows them".into())
}

fn parse_rule(text: &str) -> Result<(String, PartitionSpec), String> {
    let (pattern, spec) = text
        .rsplit_once("=P")
        .or_else(|| text.rsplit_once("= P"))
        .ok_or("it is not PATTERN=SPEC, such as '*.kernel=P(None, model)'")?;
    Ok((
        pattern.trim_end().to_owned(),
        format!("P{spec}").parse().map_err(|error: safejax::Error| error.to_string())?,
    ))
}

/// A file of rules.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    unmatched: UnmatchedText,
    #[serde(default, rename = "rule")]
    rules: Vec<Rule>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum UnmatchedText {
    #[default]
    Replicate,
    Error,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    r#match: String,
    spec: String,
}

impl MeshArgs {
    /// The rules of the command line and of the file.
    pub fn rules(&self) -> Result<ShardingRules> {
        let mut rules = ShardingRules::default();
        rules.rules = self.rules.clone();
        if let Some(path) = &self.rules_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("--rules {} cannot be read", path.display()))?;
            let file: RulesFile = toml::from_str(&text)
                .with_context(|| format!("--rules {} is no file of rules", path.display()))?;
            for Rule { r#match, spec } in file.rules {
                let spec = spec
                    .parse()
                    .with_context(|| format!("--rules {}: the rule for `{match}`", path.display()))?;
                rules.rules.push((r#match, spec));
            }
            if matches!(file.unmatched, UnmatchedText::Error) {
                rules.unmatched = Unmatched::Refuse;
            }
        }
        Ok(rules)
    }

    /// How many devices a client needs for a mesh with these axes.
    pub fn device_count(&self, axes: &Mesh) -> usize {
        let highest = self.devices.iter().max().map_or(0, |&id| usize::try_from(id).unwrap_or(0) + 1);
        axes.device_count().max(highest)
    }

    /// The mesh of this client's devices.
    pub fn device_mesh(&self, client: &Client, mesh: &Mesh) -> Result<DeviceMesh> {
        if self.devices.is_empty() {
            return Ok(DeviceMesh::new(client, mesh.clone())?);
        }
        Ok(DeviceMesh::over(devices_of(client, &self.devices)?, mesh.clone())?)
    }
}

/// The devices of these numbers.
pub fn devices_of(client: &Client, ids: &[i32]) -> Result<Vec<Device>> {
    let all = client.devices();
    let find = |id: &i32| match all.iter().find(|device| device.id() == *id) {
        Some(device) => Ok(device.clone()),
        None => {
            let known: Vec<String> = all.iter().map(|device| device.id().to_string()).collect();
            bail!("--devices: there is no device {id}; there are {}", known.join(", "))
        }
    };
    ids.iter().map(find).collect()
}

/// Which device gets which slice of which tensor, and the bytes of each.
pub fn explain(mesh: &DeviceMesh, leaves: &[LeafPlacement]) -> Result<String> {
    let mut text = format!("mesh {mesh}\n");
    for leaf in leaves {
        let _ = writeln!(text, "{}  {}  {}", Name(&leaf.name), leaf.spec, spec_text(leaf));
        for part in 0..leaf.layout.part_count() {
            let devices: Vec<String> = holders(mesh, leaf, part).map(Device::to_string).collect();
            let _ = writeln!(text, "  {:14} on {}", slice_text(leaf, part), devices.join(", "));
        }
    }
    for (device, bytes) in bytes_by_device(mesh, leaves)? {
        let _ = writeln!(text, "{device}: {bytes} bytes");
    }
    Ok(text)
}

/// The same for scripts.
pub fn explain_json(mesh: &DeviceMesh, leaves: &[LeafPlacement]) -> Result<Value> {
    let leaf = |leaf: &LeafPlacement| {
        let slice = |place: usize| -> Vec<[usize; 2]> {
            leaf.layout.slice(place).iter().map(|range| [range.start, range.end]).collect()
        };
        let slices: Vec<_> = (0..mesh.devices().len()).map(slice).collect();
        json!({"name": leaf.name, "spec": leaf.spec, "sharding": spec_text(leaf), "slices": slices})
    };
    let bytes = bytes_by_device(mesh, leaves)?;
    Ok(json!({
        "mesh": mesh.mesh().to_string(),
        "devices": mesh.devices().iter().map(Device::to_string).collect::<Vec<_>>(),
        "tensors": leaves.iter().map(leaf).collect::<Vec<_>>(),
        "bytes": bytes.iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(),
    }))
}

/// The spec alone: the mesh is said once.
fn spec_text(leaf: &LeafPlacement) -> String {
    match &leaf.sharding {
        safejax::Sharding::Named(named) => named.spec.to_string(),
        other => other.to_string(),
    }
}

fn holders<'a>(
    mesh: &'a DeviceMesh,
    leaf: &'a LeafPlacement,
    part: usize,
) -> impl Iterator<Item = &'a Device> {
    mesh.devices()
        .iter()
        .enumerate()
        .filter(move |(place, _)| leaf.layout.part(*place) == part)
        .map(|(_, device)| device)
}

fn slice_text(leaf: &LeafPlacement, part: usize) -> String {
    let ranges: Vec<String> = leaf
        .layout
        .slice_of_part(part)
        .iter()
        .map(|range| format!("{}:{}", range.start, range.end))
        .collect();
    format!("[{}]", ranges.join(", "))
}

fn bytes_by_device(mesh: &DeviceMesh, leaves: &[LeafPlacement]) -> Result<Vec<(String, u64)>> {
    let mut bytes = 0;
    for leaf in leaves {
        let shard = safejax::ArraySpec::new(leaf.spec.dtype, leaf.layout.shard_shape());
        bytes += shard.host_bytes()? as u64;
    }
    // Every device has one shard of every tensor, and all shards of a tensor are equally large.
    Ok(mesh.devices().iter().map(|device| (device.to_string(), bytes)).collect())
}

/// How a picture is laid out, in pixels.
mod size {
    pub const WIDTH: usize = 960;
    pub const ROW: usize = 92;
    pub const BOX: (usize, usize) = (420, 68);
    pub const LEFT: usize = 520;
}

/// Colours that are told apart, also by people who see few; repeated where there are more devices.
const COLOURS: [&str; 8] =
    ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee8866"];

/// Each tensor as a rectangle cut into its parts, each in the colours of the devices that have it.
pub fn picture(mesh: &DeviceMesh, leaves: &[LeafPlacement]) -> String {
    let height = 60 + leaves.len() * size::ROW + mesh.devices().len().div_ceil(8) * 28;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{height}\" viewBox=\"0 0 {0} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"16\">{1}</text>\n",
        size::WIDTH,
        escaped(&format!("mesh {mesh}: a box for each part, in the colours of the devices that have it"))
    );
    let mut top = 48;
    for (place, device) in mesh.devices().iter().enumerate() {
        let (x, y) = (16 + place % 8 * 116, top + place / 8 * 28);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"16\" height=\"16\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{device}</text>",
            COLOURS[place % COLOURS.len()],
            x + 22,
            y + 13
        );
    }
    top += mesh.devices().len().div_ceil(8) * 28;
    for leaf in leaves {
        draw_leaf(&mut svg, top, mesh, leaf);
        top += size::ROW;
    }
    svg + "</svg>\n"
}

fn draw_leaf(svg: &mut String, top: usize, mesh: &DeviceMesh, leaf: &LeafPlacement) {
    let name = Name(&leaf.name).to_string();
    for (line, text) in [name, format!("{}  {}", leaf.spec, spec_text(leaf))].iter().enumerate() {
        let _ = writeln!(svg, "<text x=\"16\" y=\"{}\">{}</text>", top + 28 + line * 20, escaped(text));
    }
    // The first dimension goes down, all others go across.
    let rows = leaf.layout.parts().first().copied().filter(|_| leaf.layout.parts().len() > 1).unwrap_or(1);
    let columns = leaf.layout.part_count() / rows.max(1);
    let (width, height) = (size::BOX.0 / columns.max(1), size::BOX.1 / rows.max(1));
    for part in 0..leaf.layout.part_count() {
        let (x, y) = (size::LEFT + part % columns * width, top + 8 + part / columns * height);
        let places: Vec<usize> =
            (0..mesh.devices().len()).filter(|&place| leaf.layout.part(place) == part).collect();
        for (stripe, place) in places.iter().enumerate() {
            let share = width / places.len().max(1);
            let _ = writeln!(
                svg,
                "<rect x=\"{}\" y=\"{y}\" width=\"{share}\" height=\"{height}\" fill=\"{}\"/>",
                x + stripe * share,
                COLOURS[place % COLOURS.len()]
            );
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"black\">\
             <title>{}</title></rect>",
            escaped(&slice_text(leaf, part))
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
