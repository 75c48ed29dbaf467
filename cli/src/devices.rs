//! `safejax devices`: the platform's devices, their memories, and what the plugin can do.

use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use safejax::{Client, Device};
use serde_json::{Value, json};

use crate::client::ClientArgs;
use crate::output::OutputArgs;

#[derive(Args)]
pub struct Devices {
    #[command(flatten)]
    client: ClientArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl Devices {
    pub fn run(self) -> Result<String> {
        let client = self.client.connect_carefully()?;
        Ok(self.output.choose(|| text(&client), || to_json(&client)))
    }
}

fn text(client: &Client) -> String {
    let plugin = client.plugin();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ =
        writeln!(text, "platform   {} ({})", client.platform_name(), first_line(client.platform_version()));
    let _ = writeln!(text, "plugin     {}", plugin.path().display());
    let _ = writeln!(text, "API        {}", plugin.api_version());
    let _ = writeln!(text, "StableHLO  {}", stablehlo_range(client));
    let _ = writeln!(text, "devices    {}", client.devices().len());
    for device in client.devices() {
        let _ = writeln!(text, "  {device}  {}{}", device.kind(), details(&device));
    }
    text
}

fn details(device: &Device) -> String {
    let mut text = String::new();
    if !device.is_addressable() {
        let _ = write!(text, "  of process {}", device.process_index());
    }
    let kinds: Vec<String> = device.memories().iter().map(|memory| memory.kind().to_owned()).collect();
    if !kinds.is_empty() {
        let _ = write!(text, "  memories {}", kinds.join(", "));
    }
    if let Ok(stats) = device.memory_stats() {
        let limit = stats.limit_bytes.map_or(String::new(), |limit| format!(" of {limit}"));
        let _ = write!(text, "  {}{limit} bytes in use", stats.in_use_bytes);
    }
    text
}

fn stablehlo_range(client: &Client) -> String {
    let plugin = client.plugin();
    match (plugin.stablehlo_minimum_version(), plugin.stablehlo_version()) {
        (Some(minimum), Some(current)) => format!("{minimum} to {current}"),
        (None, Some(current)) => format!("up to {current}"),
        _ => "not said".into(),
    }
}

fn to_json(client: &Client) -> Value {
    let plugin = client.plugin();
    let attributes = |list: &[(String, safejax::pjrt::NamedValue)]| -> Value {
        list.iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let device = |device: &Device| {
        json!({
            "name": device.to_string(),
            "id": device.id(),
            "kind": device.kind(),
            "process_index": device.process_index(),
            "local_hardware_id": device.local_hardware_id(),
            "is_addressable": device.is_addressable(),
            "attributes": attributes(device.attributes()),
            "memories": device.memories().iter().map(|memory| json!({
                "id": memory.id(),
                "kind": memory.kind(),
            })).collect::<Vec<_>>(),
            "memory_stats": device.memory_stats().ok(),
        })
    };
    json!({
        "platform": client.platform_name(),
        "platform_version": client.platform_version(),
        "plugin": plugin.path(),
        "api_version": plugin.api_version().to_string(),
        "stablehlo_version": plugin.stablehlo_version(),
        "stablehlo_minimum_version": plugin.stablehlo_minimum_version(),
        "attributes": attributes(plugin.attributes()),
        "devices": client.devices().iter().map(device).collect::<Vec<_>>(),
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
