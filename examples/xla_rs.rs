//! The digits example for users of the `xla` crate: the same params on its client, and the CNN written with its builder.
//!
//! ```text
//! export XLA_EXTENSION_DIR=$(scripts/xla_extension.sh)
//! cargo run --release --features xla --example xla_rs [OUTPUT.safetensors]
//! ```

#[path = "digits/score.rs"]
mod score;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use safejax::format::npy;
use safejax::xla_rs::XlaParams;
use xla::{ElementType, PjRtBuffer, PjRtClient, XlaBuilder, XlaOp};

fn main() -> Result<()> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
    let output = std::env::args_os().nth(1).map_or_else(default_output, PathBuf::from);
    let images = npy::read(files.join("images.npy"), None)?;
    let labels = npy::read(files.join("labels.npy"), None)?.to_vec::<i32>()?;
    let jax = npy::read(files.join("logits.npy"), None)?.to_vec::<f32>()?;
    let shape = images.spec().shape.clone();

    let client = PjRtClient::cpu()?;
    let params = XlaParams::load(&client, files.join("params.safetensors"))?;
    println!("loaded {params:?} onto {}", client.platform_name());

    let builder = XlaBuilder::new("digits");
    let weights = params.declare(&builder, 0)?;
    let dims: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
    let input = builder.parameter(params.len() as i64, ElementType::F32, &dims, "images")?;
    let forward = client.compile(&cnn(&input, dims[0], &weights)?.build()?)?;

    let images = client.buffer_from_host_buffer(&images.to_vec::<f32>()?, &shape, None)?;
    let arguments: Vec<&PjRtBuffer> = params.arrays().iter().map(|leaf| &**leaf).chain([&images]).collect();
    let logits = forward.execute_b(&arguments)?[0][0].to_literal_sync()?.to_vec::<f32>()?;

    score::report(&logits, &jax, &labels)?;

    params.save(&output)?;
    println!("saved the params from the device to {}", output.display());
    Ok(())
}

fn default_output() -> PathBuf {
    PathBuf::from("digits-xla-rs.safetensors")
}

/// The network of `scripts/make_digits.py`, on images of 8 × 8.
fn cnn(images: &XlaOp, batch: i64, weights: &HashMap<String, XlaOp>) -> Result<XlaOp> {
    let weight = |name: &str| &weights[&format!("params.{name}")];
    let x = images.reshape(&[batch, 8, 8, 1])?;
    let x = relu(&conv(&x, weight("Conv_0.kernel"), weight("Conv_0.bias"), 1, (1, 1))?)?;
    // As Flax's "SAME" pads an even length for a stride of 2: behind only.
    let x = relu(&conv(&x, weight("Conv_1.kernel"), weight("Conv_1.bias"), 2, (0, 1))?)?;
    let x = x.reshape(&[batch, 4 * 4 * 32])?;
    let x = relu(&dense(&x, weight("Dense_0.kernel"), weight("Dense_0.bias"))?)?;
    dense(&x, weight("Dense_1.kernel"), weight("Dense_1.bias"))
}

/// A convolution of images, rows, columns and features, in that order, with a kernel as Flax stores it.
fn conv(x: &XlaOp, kernel: &XlaOp, bias: &XlaOp, stride: i64, padding: (i64, i64)) -> Result<XlaOp> {
    let [strides, ones] = [[stride; 2], [1; 2]];
    let spatial = [1, 2];
    let y = x.conv_general_dilated(
        kernel,
        &strides,
        &[padding; 2],
        &ones,
        &ones,
        0,
        3,
        &spatial,
        0,
        3,
        &spatial,
        2,
        3,
        &[0, 1],
        1,
        1,
        false,
    )?;
    add_bias(&y, bias)
}

fn dense(x: &XlaOp, kernel: &XlaOp, bias: &XlaOp) -> Result<XlaOp> {
    add_bias(&x.matmul(kernel)?, bias)
}

/// Adds a bias along the last dimension.
fn add_bias(x: &XlaOp, bias: &XlaOp) -> Result<XlaOp> {
    let dims: Vec<i64> = x.dims()?.iter().map(|&dim| dim as i64).collect();
    Ok((x + bias.broadcast_in_dim(&dims, &[dims.len() as i64 - 1])?)?)
}

fn relu(x: &XlaOp) -> Result<XlaOp> {
    Ok(x.max(&x.zeros_like()?)?)
}
