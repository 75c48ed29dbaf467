//! Loads onto the `xla` crate's CPU client: as its users write it, and through safejax.

use std::borrow::Borrow;

use anyhow::{Result, bail};
use safejax::Checkpoint;
use safejax::xla_rs::{XlaParams, to_element_type};
use xla::{ElementType, PjRtBuffer, PjRtClient, PjRtLoadedExecutable, PrimitiveType, XlaBuilder};

use super::timed::timed;

/// Times a load, then a reduction over every tensor, if one is wanted.
pub fn load(mode: &str, file: &str, reduces: bool) -> Result<()> {
    let client = PjRtClient::cpu()?;
    let order: Vec<String> = match mode {
        "xla" => Checkpoint::open(file)?.tensors().iter().map(|tensor| tensor.name.clone()).collect(),
        _ => safejax::convert::open(file, &Default::default())?
            .keys()
            .leaves()
            .iter()
            .map(|leaf| leaf.name.clone())
            .collect(),
    };
    let reduce = reduces.then(|| reduction(&client, file, &order)).transpose()?;
    match mode {
        "xla" => run(|| by_hand(&client, file), reduce, |buffers| buffers.as_slice()),
        "ours-xla" => run(|| Ok(XlaParams::load(&client, file)?), reduce, |params| params.arrays()),
        _ => bail!("there is no mode {mode}"),
    }
}

fn run<T, B: Borrow<PjRtBuffer>>(
    load: impl FnOnce() -> Result<T>,
    reduce: Option<PjRtLoadedExecutable>,
    buffers: impl Fn(&T) -> &[B],
) -> Result<()> {
    if let (Some(loaded), Some(reduce)) = (timed(load)?, reduce) {
        timed(|| {
            let outputs = reduce.execute_b(buffers(&loaded))?;
            Ok(outputs[0].iter().map(PjRtBuffer::to_literal_sync).collect::<xla::Result<Vec<_>>>()?)
        })?;
    }
    Ok(())
}

/// A map of the file, and a copying call for every tensor.
fn by_hand(client: &PjRtClient, file: &str) -> Result<Vec<PjRtBuffer>> {
    let checkpoint = Checkpoint::open(file)?;
    let buffer = |tensor: &safejax::format::Tensor| -> Result<PjRtBuffer> {
        let (dtype, bytes) = (to_element_type(tensor.spec.dtype)?, checkpoint.bytes(&tensor.name)?);
        Ok(client.buffer_from_host_raw_bytes(dtype, &bytes, &tensor.spec.shape, None)?)
    };
    checkpoint.tensors().iter().map(buffer).collect()
}

/// The sum of every tensor, in float32.
fn reduction(client: &PjRtClient, file: &str, order: &[String]) -> Result<PjRtLoadedExecutable> {
    let (builder, checkpoint) = (XlaBuilder::new("reduce"), Checkpoint::open(file)?);
    let sum = |(number, name): (i64, &String)| -> Result<xla::XlaOp> {
        let spec = &checkpoint.tensor(name)?.spec;
        let dims: Vec<i64> = spec.shape.iter().map(|&dim| dim as i64).collect();
        let tensor = builder.parameter(number, to_element_type(spec.dtype)?, &dims, name)?;
        let all: Vec<i64> = (0..dims.len() as i64).collect();
        let zero = builder.zero(ElementType::F32)?;
        let combine = XlaBuilder::new("add");
        let operand = |number| combine.parameter(number, ElementType::F32, &[], "x");
        let add = (operand(0)? + operand(1)?)?.build()?;
        Ok(tensor.convert(PrimitiveType::F32)?.reduce(zero, add, &all, false)?)
    };
    let sums = (0..).zip(order).map(sum).collect::<Result<Vec<_>>>()?;
    Ok(client.compile(&builder.tuple(&sums)?.build()?)?)
}
