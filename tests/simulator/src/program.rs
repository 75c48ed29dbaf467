//! The programs that the simulator runs. They are StableHLO text, of which only the module's name and `main`'s types are read:
//!
//! - `sim_identity`: each output is the argument at its position.
//! - `sim_add`: the first output is the sum of the two first arguments, which are float32.
//! - `sim_checksum`: each output is a uint32, which sums up the bytes of the argument at its position.
//!
//! An argument with the attribute `tf.aliasing_output = N` can give its memory to output N, and one with
//! `jax.buffer_donor = true` to the first output of its size.

use crate::c_api as c;
use crate::failure::{Failure, Result};
use crate::layout::Shape;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Identity,
    Add,
    Checksum,
}

#[derive(Debug, Clone)]
pub struct Program {
    pub name: String,
    pub kind: Kind,
    pub parameters: Vec<Shape>,
    pub outputs: Vec<Shape>,
    /// Pairs of a parameter and the output that can take its memory.
    pub aliases: Vec<(usize, usize)>,
}

/// A type with the attributes that follow it.
struct Typed<'a> {
    shape: Shape,
    attributes: &'a str,
}

impl Program {
    /// Reads the text.
    pub fn parse(code: &[u8]) -> Result<Program> {
        let failed = |what: &str| Failure::invalid(format!("the simulator runs StableHLO text: {what}"));
        let text = std::str::from_utf8(code).map_err(|_| failed("this is no text"))?;
        let after = |text: &'_ str, what: &str| text.find(what).map(|start| start + what.len());
        let name = &text[after(text, "module @").ok_or_else(|| failed("it has no named module"))?..];
        let name: String = name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let kind = match name.as_str() {
            "sim_identity" => Kind::Identity,
            "sim_add" => Kind::Add,
            "sim_checksum" => Kind::Checksum,
            _ => return Err(failed(&format!("`{name}` is none of its programs"))),
        };
        let main = &text[after(text, "@main(").ok_or_else(|| failed("it has no function main"))?..];
        let arguments_end = closing(main).ok_or_else(|| failed("the arguments do not end"))?;
        let results = &main[arguments_end + 1..];
        let results = &results[after(results, "->").ok_or_else(|| failed("main returns nothing"))?..];
        let results = results.split("{\n").next().unwrap_or(results);
        let arguments = typed(&main[..arguments_end])?;
        let program = Program {
            name,
            kind,
            outputs: typed(results)?.into_iter().map(|result| result.shape).collect(),
            aliases: aliases(&arguments, &typed(results)?),
            parameters: arguments.into_iter().map(|argument| argument.shape).collect(),
        };
        program.check()?;
        Ok(program)
    }

    fn check(&self) -> Result<()> {
        let (inputs, outputs) = (&self.parameters, &self.outputs);
        let fits = match self.kind {
            Kind::Identity => inputs == outputs,
            Kind::Add => {
                inputs.len() == 2 && outputs.len() == 1 && inputs[0] == inputs[1] && inputs[0] == outputs[0]
            }
            Kind::Checksum => {
                let is_sum =
                    |shape: &Shape| shape.dims.is_empty() && shape.element_type == c::PJRT_Buffer_Type_U32;
                inputs.len() == outputs.len() && outputs.iter().all(is_sum)
            }
        };
        if fits {
            Ok(())
        } else {
            Err(Failure::invalid(format!("`{}` does not take these types", self.name)))
        }
    }

    /// The outputs for these arguments, each as the host has it.
    pub fn run(&self, arguments: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        match self.kind {
            Kind::Identity => arguments,
            Kind::Add => {
                let numbers = |bytes: &[u8]| -> Vec<f32> {
                    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
                };
                let (left, right) = (numbers(&arguments[0]), numbers(&arguments[1]));
                vec![left.iter().zip(right).flat_map(|(a, b)| (a + b).to_ne_bytes()).collect()]
            }
            Kind::Checksum => arguments.iter().map(|bytes| checksum(bytes).to_ne_bytes().to_vec()).collect(),
        }
    }
}

/// The sum that `sim_checksum` computes: each byte times its place, counted from 1.
pub fn checksum(bytes: &[u8]) -> u32 {
    let weighted = bytes.iter().zip(1u32..).map(|(byte, place)| u32::from(*byte).wrapping_mul(place));
    weighted.fold(0, u32::wrapping_add)
}

/// Where the parenthesis that is open at the beginning is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    text.char_indices().find_map(|(place, c)| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        (depth == 0).then_some(place)
    })
}

/// Every `tensor<…>`, with what follows it.
fn typed(text: &str) -> Result<Vec<Typed<'_>>> {
    let mut parts = text.split("tensor<");
    parts.next();
    parts
        .map(|part| {
            let (end, _) = part
                .char_indices()
                .rev()
                .find(|(_, c)| *c == '>')
                .ok_or_else(|| Failure::invalid("a type has no end"))?;
            // Attributes have no types in them.
            let end = part.find("> ").or(part.find(">,")).or(part.find(">)")).unwrap_or(end);
            Ok(Typed { shape: shape(&part[..end])?, attributes: &part[end..] })
        })
        .collect()
}

/// A shape such as `2x3xf32`.
fn shape(text: &str) -> Result<Shape> {
    let element = text.rsplit('x').next().unwrap_or(text);
    // `complex<f32>` has the only x that is no product.
    let element = if text.contains("complex") { &text[text.find("complex").unwrap_or(0)..] } else { element };
    let element_type = match element {
        "i1" => c::PJRT_Buffer_Type_PRED,
        "i8" => c::PJRT_Buffer_Type_S8,
        "i16" => c::PJRT_Buffer_Type_S16,
        "i32" => c::PJRT_Buffer_Type_S32,
        "i64" => c::PJRT_Buffer_Type_S64,
        "ui8" => c::PJRT_Buffer_Type_U8,
        "ui16" => c::PJRT_Buffer_Type_U16,
        "ui32" => c::PJRT_Buffer_Type_U32,
        "ui64" => c::PJRT_Buffer_Type_U64,
        "f16" => c::PJRT_Buffer_Type_F16,
        "bf16" => c::PJRT_Buffer_Type_BF16,
        "f32" => c::PJRT_Buffer_Type_F32,
        "f64" => c::PJRT_Buffer_Type_F64,
        "complex<f32>" => c::PJRT_Buffer_Type_C64,
        "complex<f64>" => c::PJRT_Buffer_Type_C128,
        other => return Err(Failure::unimplemented(format!("the type {other}"))),
    };
    let dims = text[..text.len() - element.len()].split('x').filter(|dim| !dim.is_empty());
    let dims = dims.map(|dim| dim.parse().map_err(|_| Failure::invalid(format!("the dimension {dim}"))));
    Ok(Shape { element_type, dims: dims.collect::<Result<_>>()? })
}

fn aliases(arguments: &[Typed<'_>], outputs: &[Typed<'_>]) -> Vec<(usize, usize)> {
    let mut aliases = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        if let Some((_, after)) = argument.attributes.split_once("tf.aliasing_output = ") {
            let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
            aliases.extend(digits.parse().ok().map(|output: usize| (index, output)));
        } else if argument.attributes.contains("jax.buffer_donor = true") {
            let fits = |output: &usize| {
                outputs[*output].shape == argument.shape && !aliases.iter().any(|(_, taken)| taken == output)
            };
            aliases.extend((0..outputs.len()).find(fits).map(|output| (index, output)));
        }
    }
    aliases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_donations_are_read() {
        let program = Program::parse(
            b"module @sim_identity attributes {mhlo.num_partitions = 1 : i32} {
  func.func public @main(%arg0: tensor<2x3xf32> {tf.aliasing_output = 0 : i32}, %arg1: tensor<ui8>, %arg2: tensor<4xcomplex<f32>> {jax.buffer_donor = true}) -> (tensor<2x3xf32> {jax.result_info = \"a\"}, tensor<ui8>, tensor<4xcomplex<f32>>) {
    return
  }
}",
        )
        .unwrap();
        assert_eq!(program.parameters, program.outputs);
        assert_eq!(program.parameters[0].dims, [2, 3]);
        assert_eq!(program.parameters[2].element_type, c::PJRT_Buffer_Type_C64);
        assert_eq!(program.aliases, [(0, 0), (2, 2)]);
        assert!(Program::parse(b"module @other { func.func @main() -> () {\n} }").is_err());
    }
}
