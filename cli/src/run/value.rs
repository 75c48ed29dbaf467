//! What `--arg` gives an argument: a file, standard input, or the value itself.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use safejax::compare::non_finite;
use safejax::format::{Format, npy, sniff};
use safejax::program::ArgumentKey;
use safejax::{Checkpoint, DType, Device, Function, HostArray, LoadOptions, Params, cast};
use serde_json::Value;

use super::{Loaded, Root};
use crate::{stream, work_bar};

/// What stands after KEY=.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    File(PathBuf),
    /// What is below a name in a file.
    Part(PathBuf, String),
    /// A number, a bool, or lists of them.
    Literal(Value),
}

impl Given {
    /// A number, `true`, `false` or a list is a value, if there is no file of that name. `FILE#NAME` is a part of a file.
    pub fn parse(text: &str) -> Given {
        if Path::new(text).exists() {
            return Given::File(text.into());
        }
        match serde_json::from_str(text) {
            Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Array(_))) => Given::Literal(value),
            _ => match text
                .rsplit_once('#')
                .filter(|(file, name)| Path::new(file).exists() && !name.is_empty())
            {
                Some((file, name)) => Given::Part(file.into(), name.to_owned()),
                None => Given::File(text.into()),
            },
        }
    }

    /// The array or tree, of the type that the program expects there, where that is known.
    /// A tree that is all of an argument goes to where the function takes it.
    pub fn load(
        &self,
        device: &Device,
        dtype: Option<DType>,
        whole_of: Option<(&Function, &Root)>,
    ) -> Result<Loaded> {
        match self {
            Given::Literal(value) => Ok(Loaded::Array(literal(value, dtype)?)),
            Given::File(path) => {
                load_file(device, dtype, &stream::input(path)?, LoadOptions::default(), whole_of)
            }
            Given::Part(path, name) => {
                let checkpoint = Checkpoint::open(path)?;
                if checkpoint.tensor(name).is_ok() {
                    return Ok(Loaded::Array(checkpoint.array(name)?));
                }
                let part = LoadOptions::default().include(format!("{name}.*")).rename(format!("{name}."), "");
                load_file(device, dtype, path, part, whole_of)
            }
        }
    }
}

fn load_file(
    device: &Device,
    dtype: Option<DType>,
    file: &Path,
    options: LoadOptions,
    whole_of: Option<(&Function, &Root)>,
) -> Result<Loaded> {
    let options = options.monitor(work_bar::watch());
    if sniff(file)? == Some(Format::Npy) {
        return Ok(Loaded::Array(npy::read(file, dtype)?));
    }
    // Names that are not the function's are told of by the call.
    if let Some((function, root)) = whole_of.filter(|(function, _)| function.devices().len() > 1) {
        let key = match root {
            Root::Position(position) => ArgumentKey::Position(*position),
            Root::Name(name) => ArgumentKey::Name(name.clone()),
        };
        return Ok(Loaded::Tree(Params::load_for(function, key, file, &options)?.0));
    }
    Ok(Loaded::Tree(Params::load_with(device.client(), file, &options.to(device))?.0))
}

/// The array that a value stands for: of this type, or of JAX's for Python's numbers.
fn literal(value: &Value, dtype: Option<DType>) -> Result<HostArray> {
    let (mut shape, mut elements) = (Vec::new(), Vec::new());
    flatten(value, 0, &mut shape, &mut elements)?;
    let is_bool = !elements.is_empty() && elements.iter().all(|element| element.is_boolean());
    let is_integer = elements.iter().all(|element| element.is_i64() || element.is_u64());
    let dtype = dtype.unwrap_or(if is_bool {
        DType::Bool
    } else if is_integer && !elements.is_empty() {
        DType::I32
    } else {
        DType::F32
    });
    let array = if is_bool {
        let values: Vec<u8> =
            elements.iter().map(|element| u8::from(element.as_bool() == Some(true))).collect();
        HostArray::from_bytes(safejax::ArraySpec::new(DType::Bool, shape), values)?
    } else if is_integer && !cast::can_cast(DType::F64, dtype) {
        let values: Option<Vec<i64>> = elements.iter().map(|element| element.as_i64()).collect();
        HostArray::from_slice(&shape, &values.context("an integer does not fit into 64 bits with a sign")?)?
    } else {
        let values: Option<Vec<f64>> = elements.iter().map(|element| element.as_f64()).collect();
        HostArray::from_slice(&shape, &values.context("numbers and bools cannot be in one list")?)?
    };
    let converted = cast::convert(&array, dtype)?;
    // What JSON holds is finite.
    if non_finite(dtype, converted.bytes()).infinite > 0 {
        bail!("a number is too large for {dtype}");
    }
    Ok(converted)
}

/// Collects the numbers of a list of lists, which are all of one length at each level.
fn flatten<'a>(
    value: &'a Value,
    level: usize,
    shape: &mut Vec<usize>,
    elements: &mut Vec<&'a Value>,
) -> Result<()> {
    let Value::Array(items) = value else {
        if level != shape.len() {
            bail!("the lists are nested to different depths");
        }
        if !value.is_number() && !value.is_boolean() {
            bail!("`{value}` is neither a number nor a bool");
        }
        elements.push(value);
        return Ok(());
    };
    match shape.get(level) {
        None if elements.is_empty() => shape.push(items.len()),
        Some(&length) if length == items.len() => {}
        _ => bail!("the lists are of different lengths"),
    }
    items.iter().try_for_each(|item| flatten(item, level + 1, shape, elements))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(text: &str, dtype: Option<DType>) -> HostArray {
        literal(&serde_json::from_str(text).unwrap(), dtype).unwrap()
    }

    #[test]
    fn a_value_takes_the_type_that_is_expected_or_that_of_jax() {
        assert_eq!(array("2", None).spec().to_string(), "int32[]");
        assert_eq!(array("2.5", None).to_vec::<f32>().unwrap(), [2.5]);
        assert_eq!(array("[true, false]", None).spec().to_string(), "bool[2]");
        assert_eq!(array("[[1, 2, 3], [4, 5, 6]]", Some(DType::BF16)).spec().to_string(), "bfloat16[2,3]");
        assert_eq!(array("7", Some(DType::U8)).to_vec::<u8>().unwrap(), [7]);
        assert_eq!(array("[]", None).spec().to_string(), "float32[0]");
        for wrong in ["[[1], [2, 3]]", "[1, [2]]", "[[1], 2]", "[1, true]", "[\"x\"]"] {
            assert!(literal(&serde_json::from_str(wrong).unwrap(), None).is_err(), "{wrong}");
        }
        assert!(literal(&serde_json::json!(300), Some(DType::U8)).is_err());
        assert!(literal(&serde_json::json!(1e40), Some(DType::F32)).is_err());
        assert!(literal(&serde_json::json!(1e40), Some(DType::F64)).is_ok());
        assert_eq!(Given::parse("x.npy"), Given::File("x.npy".into()));
        assert_eq!(Given::parse("-1.5"), Given::Literal(serde_json::json!(-1.5)));
        assert_eq!(Given::parse("-"), Given::File("-".into()));
    }
}
