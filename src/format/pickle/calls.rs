//! What the functions and classes that are known make of their arguments and of their state.

use bytes::Bytes;

use super::globals::Global;
use super::machine::Machine;
use super::tensor::tensor;
use super::values::{Array, ByteString, Dict, Elements, Id, Object, Value};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::format::encoding::row_major;
use crate::format::npy;
use crate::format::problem::Problem;
use crate::limits::MAX_RANK;

type Result<T> = std::result::Result<T, Problem>;

/// What is made by a call.
enum Made {
    New(Value),
    /// Another name for a value that there is.
    Same(Id),
}

impl Machine {
    /// Pushes what the call of a function or class makes.
    pub(super) fn push_made(&mut self, function: Id, arguments: Id) -> Result<()> {
        let Some(ids) = self.items(arguments).map(<[Id]>::to_vec) else {
            return Err("something is called without a tuple of arguments".into());
        };
        // What the call may copy: its arguments. Text and lists can be long.
        let argument_bytes = |&id: &Id| match &self.values[id] {
            Value::Str(content) | Value::RawStr(content) => content.len(),
            Value::List(items) => items.len() * size_of::<[Id; 2]>(),
            _ => size_of::<Id>(),
        };
        let bytes = ids.iter().map(argument_bytes).sum();
        self.copy(bytes)?;
        match self.call(function, &ids)? {
            Made::New(value) => self.push(value),
            Made::Same(id) => self.push_known(id),
        }?;
        // A tensor's attributes come last.
        if let (Value::Global(Global::Parameter | Global::FromType), [_, _, _, attributes]) =
            (&self.values[function], &ids[..])
        {
            self.attributes.push((self.top()?, *attributes));
        }
        Ok(())
    }

    /// What the call of a function or class makes.
    fn call(&self, function: Id, ids: &[Id]) -> Result<Made> {
        let known = match &self.values[function] {
            Value::Global(function) => function,
            Value::Unknown(opaque) => {
                return Ok(Made::New(Value::unknown(&opaque.name, [&[function][..], ids].concat())));
            }
            _ => return Err("something is called that is no function".into()),
        };
        // A dictionary in another type is that dictionary.
        if let (Global::Wrapper | Global::Python("dict"), [id]) = (known, ids)
            && matches!(self.values[*id], Value::Dict(_))
        {
            return Ok(Made::Same(*id));
        }
        // So is a tensor that is a parameter, and a list or tuple in another type.
        if let (Global::Parameter, [id, ..]) | (Global::Same, [id]) = (known, ids) {
            return Ok(Made::Same(*id));
        }
        if let (Global::FromType, [function, _, arguments, ..]) = (known, ids)
            && let (Value::Global(Global::Tensor | Global::TypedTensor), Some(ids)) =
                (&self.values[*function], self.items(*arguments))
        {
            return self.call(*function, ids);
        }
        self.new_value(known, ids).map(Made::New)
    }

    /// The value that a call makes anew.
    fn new_value(&self, function: &Global, ids: &[Id]) -> Result<Value> {
        let values: Vec<&Value> = ids.iter().map(|&id| &self.values[id]).collect();
        let text = |value: &Value| value.short_text().map(|text| text.into_owned());
        match (function, &values[..]) {
            (Global::Unknown(name), _) => Ok(Value::unknown(name, ids.to_vec())),
            (Global::Reconstruct, _) => Ok(Value::EmptyArray),
            (Global::JaxArray, [_, _, Value::Tuple(state), ..]) => self.array_of_state(state),
            (Global::OrderedDict, []) => {
                Ok(Value::Dict(Box::new(Dict { is_ordered: true, ..Dict::default() })))
            }
            // As Python 2 wrote it: with a list of pairs.
            (Global::OrderedDict, [Value::List(pairs)]) => {
                let pairs: Option<Vec<&[Id]>> = pairs
                    .iter()
                    .map(|&pair| match &self.values[pair] {
                        Value::Tuple(pair) | Value::List(pair) if pair.len() == 2 => Some(&pair[..]),
                        _ => None,
                    })
                    .collect();
                let items = pairs.ok_or("an OrderedDict is made of what are no pairs")?.concat();
                Ok(Value::Dict(Box::new(Dict { items, is_ordered: true })))
            }
            (Global::DefaultDict, _) | (Global::Python("dict"), []) => Ok(Value::Dict(Box::default())),
            (Global::Python("list"), []) => Ok(Value::List(Vec::new())),
            (Global::Python("bytes" | "bytearray"), []) => {
                Ok(Value::Bytes(ByteString::Decoded(Bytes::new())))
            }
            (Global::Python("bytes" | "bytearray"), [Value::Bytes(content)]) => {
                Ok(Value::Bytes(content.clone()))
            }
            (Global::Python("complex"), [Value::Float(real), Value::Float(imaginary)]) => {
                Ok(Value::Complex(*real, *imaginary))
            }
            (Global::Encode, [characters, encoding]) if text(encoding).as_deref() == Some("latin1") => {
                let characters = characters.read_text(self.bytes.blob())?;
                let characters = characters.ok_or("bytes are made of what is no text")?;
                // Every character stands for the byte of its number.
                let bytes: Option<Vec<u8>> =
                    characters.chars().map(|c| u8::try_from(c as u32).ok()).collect();
                let bytes = bytes.ok_or("bytes are written as characters that stand for none")?;
                Ok(Value::Bytes(ByteString::Decoded(bytes.into())))
            }
            (Global::DType, [Value::Global(Global::Extension(dtype)), ..]) => {
                Ok(Value::DType(dtype.name().to_owned()))
            }
            // Arrays of it are no numbers that are known.
            (Global::DType, [Value::Global(Global::Unknown(name)), ..]) => Ok(Value::DType(name.clone())),
            (Global::DType, [descr, ..]) if text(descr).is_some() => {
                Ok(Value::DType(text(descr).unwrap_or_default()))
            }
            (Global::Scalar, [Value::DType(descr), content]) => match content.bytes() {
                Some(content) => self.array(vec![], descr, content.clone(), false),
                None => Ok(Value::NoNumbers("it is a scalar that is no number".into())),
            },
            // Since NumPy 2.4: the array as it lies in memory, and the order of its dimensions.
            (
                Global::FromBuffer,
                [Value::Bytes(content), Value::DType(descr), Value::Tuple(shape), order, Value::Tuple(axes)],
            ) if text(order).as_deref() == Some("K") => {
                self.turned_array(&self.dims(shape)?, &self.dims(axes)?, descr, content.clone())
            }
            (
                Global::FromBuffer,
                [Value::Bytes(content), Value::DType(descr), Value::Tuple(shape), order]
                | [Value::Bytes(content), Value::DType(descr), Value::Tuple(shape), order, Value::None],
            ) => {
                let is_fortran_order = text(order).as_deref() == Some("F");
                self.array(self.dims(shape)?, descr, content.clone(), is_fortran_order)
            }
            (
                Global::Tensor,
                [Value::Storage(storage), offset, Value::Tuple(shape), Value::Tuple(strides), ..],
            ) => {
                let is_view = self.has_true(values.get(6));
                Ok(tensor(storage, None, offset, (self.dims(shape)?, self.dims(strides)?), is_view)?)
            }
            (
                Global::TypedTensor,
                [
                    Value::Storage(storage),
                    offset,
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    _,
                    _,
                    dtype,
                    ..,
                ],
            ) => {
                let dtype = match dtype {
                    Value::Global(Global::Extension(dtype)) => *dtype,
                    other => return Ok(Value::NoNumbers(format!("its elements are of {}", other.kind()))),
                };
                let is_view = self.has_true(values.get(7));
                Ok(tensor(storage, Some(dtype), offset, (self.dims(shape)?, self.dims(strides)?), is_view)?)
            }
            (Global::FromType, [_, Value::Global(class), ..]) => {
                Ok(Value::unknown(class.name(), ids.to_vec()))
            }
            // Of a class that is not known, what it is made of may have arrays in it.
            (Global::Reconstructor, [Value::Global(Global::Unknown(name)), ..]) => {
                Ok(Value::unknown(name, ids.to_vec()))
            }
            (Global::Reconstructor, [Value::Global(class), ..]) => Ok(self.object(class, &[])),
            (Global::OptaxState(_) | Global::TrainState | Global::Module(_) | Global::JoblibArray, _) => {
                Ok(self.object(function, ids))
            }
            (function, _) => Err(format!("{} is called in a way that is not known", function.name()).into()),
        }
    }

    /// Whether a dictionary has an entry that is true.
    fn has_true(&self, dict: Option<&&Value>) -> bool {
        let items = dict.and_then(|dict| if let Value::Dict(dict) = dict { Some(&dict.items) } else { None });
        items.is_some_and(|items| items.iter().any(|&id| self.values[id] == Value::Bool(true)))
    }

    fn object(&self, class: &Global, arguments: &[Id]) -> Value {
        if let Global::Unknown(name) = class {
            return Value::unknown(name, arguments.to_vec());
        }
        let (class, arguments) = (class.clone(), arguments.to_vec());
        Value::Object(Box::new(Object { class, arguments, attributes: Vec::new() }))
    }

    /// BUILD: gives an object its state. What it makes takes the object's place, for all who refer to it.
    pub(super) fn build(&mut self) -> Result<()> {
        let (state, object) = (self.pop()?, self.top()?);
        if let (Value::Object(known), Value::Dict(attributes)) = (&self.values[object], &self.values[state]) {
            self.copy((known.attributes.len() + attributes.items.len()) * size_of::<Id>())?;
        }
        if let Value::Unknown(opaque) = &mut self.values[object] {
            opaque.parts.push(state);
            return Ok(());
        }
        let built = match (&self.values[object], &self.values[state]) {
            (Value::EmptyArray, Value::Tuple(items)) => self.array_of_state(items)?,
            (Value::DType(descr), Value::Tuple(items)) => self.dtype_of_state(descr, items)?,
            (Value::Object(known), Value::Dict(attributes)) => {
                let mut built = known.clone();
                built.attributes.extend(&attributes.items);
                if built.class == Global::JoblibArray {
                    self.joblib_array(&built)?
                } else {
                    Value::Object(built)
                }
            }
            // A cached hash, or what PyTorch notes of modules.
            (Value::Dict(_), _) => {
                self.attributes.push((object, state));
                return Ok(());
            }
            _ => return Err("an object is given a state that is not known".into()),
        };
        self.values[object] = built;
        Ok(())
    }

    /// An array of the state that NumPy writes: (version, shape, type, is in Fortran's order, content).
    fn array_of_state(&self, state: &[Id]) -> Result<Value> {
        let values: Vec<&Value> = state.iter().map(|&id| &self.values[id]).collect();
        match &values[..] {
            [_, _, _, _, Value::List(_)] => {
                Ok(Value::unknown("numpy.ndarray, of Python objects", state.to_vec()))
            }
            [Value::Int(_), Value::Tuple(shape), Value::DType(descr), Value::Bool(order), content] => {
                let content = content.bytes().ok_or("an array has no content")?;
                self.array(self.dims(shape)?, descr, content.clone(), *order)
            }
            _ => Err("an array is given a state that NumPy does not write".into()),
        }
    }

    /// A type of the state that NumPy writes: (version, byte order, …). The byte order is the first letter of the name.
    fn dtype_of_state(&self, descr: &str, state: &[Id]) -> Result<Value> {
        let order = state.get(1).and_then(|&id| self.values[id].short_text());
        let order = order.ok_or("a type is given a state that NumPy does not write")?;
        // The types of ml_dtypes have whole names, and no byte order.
        let is_named =
            DType::from_name(descr).is_some_and(|dtype| dtype.name() == descr) || descr.contains('.');
        let is_plain = descr.starts_with(['b', 'i', 'u', 'f', 'c', 'O', 'M', 'm', 'S', 'U']) && !is_named;
        Ok(Value::DType(if is_plain { format!("{order}{descr}") } else { descr.to_owned() }))
    }

    /// The array that joblib writes after the object that describes it: since joblib 1.3, a byte that counts the padding,
    /// the padding, and then the elements.
    fn joblib_array(&mut self, wrapper: &Object) -> Result<Value> {
        let attribute = |name: &str| {
            let mut pairs = wrapper.attributes.chunks_exact(2);
            let pair = pairs.find(|pair| self.values[pair[0]].short_text().as_deref() == Some(name));
            pair.map(|pair| &self.values[pair[1]])
        };
        let (Some(Value::Tuple(shape)), Some(Value::DType(descr))) = (attribute("shape"), attribute("dtype"))
        else {
            return Err("an array of joblib has no shape or type".into());
        };
        let order = attribute("order").and_then(|order| order.short_text());
        let (shape, descr, is_fortran_order) =
            (self.dims(shape)?, descr.clone(), order.as_deref() == Some("F"));
        let is_padded = matches!(attribute("numpy_array_alignment_bytes"), Some(Value::Int(_)));
        let dtype = dtype_of(&descr)
            .map_err(|problem| format!("an array of joblib cannot be read, since {problem}"))?;
        if is_padded {
            let [padding] = self.bytes.array()?;
            self.bytes.skip(usize::from(padding))?;
        }
        let bytes = ArraySpec::new(dtype, shape.clone()).host_bytes()?;
        let content = ByteString::Range(self.bytes.skip(bytes)?);
        self.array(shape, &descr, content, is_fortran_order)
    }

    pub(super) fn dims(&self, shape: &[Id]) -> Result<Vec<usize>> {
        if shape.len() > MAX_RANK {
            return Err(format!("an array has more than {MAX_RANK} dimensions").into());
        }
        let dim = |&id: &Id| match self.values[id] {
            Value::Int(dim) => usize::try_from(dim).ok(),
            _ => None,
        };
        Ok(shape.iter().map(dim).collect::<Option<_>>().ok_or("a shape is not one of sizes")?)
    }

    /// An array that lies in memory row-major in this shape, of which each dimension is the one that `axes` says.
    fn turned_array(
        &self,
        stored: &[usize],
        axes: &[usize],
        descr: &str,
        content: ByteString,
    ) -> Result<Value> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..stored.len()) {
            return Err("an array is turned by what is no order of its dimensions".into());
        }
        let turned = |of: &[usize]| -> Vec<usize> { axes.iter().map(|&axis| of[axis]).collect() };
        let mut value = self.array(turned(stored), descr, content, false)?;
        if let Value::Array(array) = &mut value {
            array.encoding.strides = Some(turned(&row_major(stored)));
        }
        Ok(value)
    }

    fn array(
        &self,
        shape: Vec<usize>,
        descr: &str,
        content: ByteString,
        is_fortran_order: bool,
    ) -> Result<Value> {
        let dtype = match dtype_of(descr) {
            Ok(dtype) => dtype,
            Err(problem) => return Ok(Value::NoNumbers(problem)),
        };
        let spec = ArraySpec::new(dtype, shape);
        let (expected, length) = (spec.host_bytes()?, content.len());
        if length != expected {
            return Err(format!("an array is {spec}, {expected} bytes, but has {length}").into());
        }
        let encoding = npy::encoding_of(&spec, descr.starts_with('>'), is_fortran_order);
        Ok(Value::Array(Box::new(Array { spec, elements: Elements::Here(content), encoding })))
    }
}

/// The type behind NumPy's or ml_dtypes's name for it.
fn dtype_of(descr: &str) -> std::result::Result<DType, String> {
    match DType::from_name(descr).filter(|dtype| dtype.name() == descr) {
        Some(dtype) => Ok(dtype),
        None => npy::dtype_of(descr),
    }
}
