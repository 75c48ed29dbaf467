//! As `benches/checkpoint.rs`, for candle: MODE FILE [TARGET], `ready` and `done SECONDS`.

#[path = "../../checkpoint/timed.rs"]
mod timed;

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use candle_core::safetensors::{MmapedSafetensors, load, save};
use candle_core::{DType, Device, Tensor};
use timed::timed;

fn map(file: &str) -> Result<HashMap<String, Tensor>> {
    // SAFETY: nothing writes to the file meanwhile.
    let mapped = unsafe { MmapedSafetensors::new(file) }?;
    let load = |(name, _): (String, _)| Ok((name.clone(), mapped.load(&name, &Device::Cpu)?));
    mapped.tensors().into_iter().map(load).collect()
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, file, rest @ ..] = &arguments[..] else { bail!("MODE FILE [TARGET]") };
    let tensors = match mode.as_str() {
        "load" => timed(|| Ok(load(file, &Device::Cpu)?))?,
        "map" => timed(|| map(file))?,
        "save" => {
            let tensors = map(file)?;
            let target = rest.first().context("no target")?;
            while timed(|| Ok(save(&tensors, target)?))?.is_some() {}
            return Ok(());
        }
        _ => bail!("there is no mode {mode}"),
    };
    let Some(tensors) = tensors else { return Ok(()) };
    timed(|| {
        let sum = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>();
        Ok(tensors.values().map(sum).collect::<Result<Vec<f32>, _>>()?)
    })?;
    Ok(())
}
