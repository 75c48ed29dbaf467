//! The functions and classes that a pickle names. They are names only: none of them is run.

use super::optax;
use crate::dtype::DType;

/// A function or class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Global {
    /// How NumPy rebuilds arrays and scalars.
    Reconstruct,
    NdArray,
    DType,
    Scalar,
    FromBuffer,
    /// How JAX rebuilds its arrays, from what NumPy rebuilds them from.
    JaxArray,
    OrderedDict,
    DefaultDict,
    /// Containers of one dictionary: Flax's frozen ones, Haiku's flat ones.
    Wrapper,
    /// A type of Python's whose call makes a container or a number of its argument.
    Python(&'static str),
    /// How protocols 0 to 2 write bytes: as text that is encoded.
    Encode,
    /// How protocols 0 and 1 write objects: class, base and its value.
    Reconstructor,
    /// A named tuple of optax, by its position in [`optax::STATES`].
    OptaxState(usize),
    /// A training state of Flax, with its module and name.
    TrainState,
    /// A module of TorchScript.
    Module(String),
    /// What joblib writes before the bytes of an array.
    JoblibArray,
    /// A type of ml_dtypes or PyTorch.
    Extension(DType),
    /// How PyTorch rebuilds a tensor from its storage: of the storage's type, or of one that is given.
    Tensor,
    TypedTensor,
    /// What PyTorch makes of a tensor, and is one: a parameter.
    Parameter,
    /// How PyTorch rebuilds a tensor of a class derived from its own: by another function.
    FromType,
    /// A kind of storage, and the type of its elements.
    Storage(Option<DType>),
    /// What is made of a tuple or a list, and is that: the shape of a tensor, a list of tensors.
    Same,
    /// Any other.
    Unknown(String),
}

/// The types of Python that are called.
const PYTHON_TYPES: [&str; 5] = ["bytes", "bytearray", "complex", "dict", "list"];

impl Global {
    /// The one of this name in this module.
    pub fn named(module: &str, name: &str) -> Global {
        match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Global::Reconstruct,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::Scalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Global::FromBuffer,
            ("numpy", "ndarray") => Global::NdArray,
            ("numpy", "dtype") => Global::DType,
            ("jax._src.array", "_reconstruct_array")
            | ("jax._src.device_array" | "jax.interpreters.xla", "reconstruct_device_array") => {
                Global::JaxArray
            }
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("collections", "defaultdict") => Global::DefaultDict,
            ("flax.core.frozen_dict", "FrozenDict")
            | ("haiku._src.data_structures", "FlatMapping" | "FlatMap" | "frozendict") => Global::Wrapper,
            ("_codecs", "encode") => Global::Encode,
            ("copyreg" | "copy_reg", "_reconstructor") => Global::Reconstructor,
            ("flax.training.train_state", "TrainState") => Global::TrainState,
            ("joblib.numpy_pickle" | "sklearn.externals.joblib.numpy_pickle", "NumpyArrayWrapper") => {
                Global::JoblibArray
            }
            ("builtins" | "__builtin__", name) => match PYTHON_TYPES.iter().find(|known| **known == name) {
                Some(known) => Global::Python(known),
                None => Global::Unknown(format!("{module}.{name}")),
            },
            ("ml_dtypes", name) => match DType::from_name(name).filter(|dtype| dtype.name() == name) {
                Some(dtype) => Global::Extension(dtype),
                None => Global::Unknown(format!("ml_dtypes.{name}")),
            },
            // The first is PyTorch's of before 0.4.
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Tensor,
            ("torch._utils", "_rebuild_tensor_v3") => Global::TypedTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::Parameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Global::FromType,
            ("torch", "Size") => Global::Same,
            ("torch.jit._pickle", "build_tensorlist") => Global::Same,
            ("torch" | "torch.storage", name) => Global::of_torch(name),
            (module, name) if module == "__torch__" || module.starts_with("__torch__.") => {
                Global::Module(format!("{module}.{name}"))
            }
            (module, name) => match optax::position(module, name) {
                Some(position) => Global::OptaxState(position),
                None => Global::Unknown(format!("{module}.{name}")),
            },
        }
    }

    /// The type of elements or of storages that PyTorch calls so.
    fn of_torch(name: &str) -> Global {
        if let Some(dtype) = DType::from_name(name).filter(|dtype| dtype.name() == name) {
            return Global::Extension(dtype);
        }
        let dtype = match name {
            "UntypedStorage" => return Global::Storage(None),
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "LongStorage" => DType::I64,
            "IntStorage" => DType::I32,
            "ShortStorage" => DType::I16,
            "CharStorage" => DType::I8,
            "ByteStorage" => DType::U8,
            "BoolStorage" => DType::Bool,
            "ComplexFloatStorage" => DType::C64,
            "ComplexDoubleStorage" => DType::C128,
            name => return Global::Unknown(format!("torch.{name}")),
        };
        Global::Storage(Some(dtype))
    }

    /// Its name, for a message and for the record.
    pub fn name(&self) -> &str {
        match self {
            Global::Reconstruct => "numpy's _reconstruct",
            Global::NdArray => "numpy.ndarray",
            Global::DType => "numpy.dtype",
            Global::Scalar => "numpy's scalar",
            Global::FromBuffer => "numpy's _frombuffer",
            Global::JaxArray => "jax's _reconstruct_array",
            Global::OrderedDict => "collections.OrderedDict",
            Global::DefaultDict => "collections.defaultdict",
            Global::Wrapper => "a frozen dictionary",
            Global::Python(name) => name,
            Global::Encode => "_codecs.encode",
            Global::Reconstructor => "copyreg._reconstructor",
            Global::OptaxState(position) => optax::STATES[*position].0,
            Global::TrainState => "flax.training.train_state.TrainState",
            Global::JoblibArray => "joblib.numpy_pickle.NumpyArrayWrapper",
            Global::Extension(dtype) => dtype.name(),
            Global::Tensor => "torch's _rebuild_tensor",
            Global::TypedTensor => "torch's _rebuild_tensor_v3",
            Global::Parameter => "torch's _rebuild_parameter",
            Global::FromType => "torch's _rebuild_from_type_v2",
            Global::Storage(_) => "a storage of torch",
            Global::Same => "a list of torch",
            Global::Module(name) | Global::Unknown(name) => name,
        }
    }
}
