//! `jax.export` artifacts: what `jax.export.export(f)(*args).serialize()` writes.
//!
//! A FlatBuffer whose schema is jax's `_src/export/serialization.fbs`. The slots were read off artifacts of jax
//! 0.4.38, 0.10.2 and 0.12.0; fields of newer versions are passed over, and unknown values of what is read are
//! errors that say which.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;

use super::dim;
use super::sharding;
use super::signature::Signature;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::flatbuffer::{Budget, Problem, Table};
use crate::sharding::{Mesh, Sharding};
use crate::tree::{TreeDef, pytreedef};

/// An exported function.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Exported {
    /// The name of the Python function.
    pub function_name: String,
    /// The arguments: a tuple of the positional ones, and a dictionary of the named ones.
    pub in_tree: TreeDef,
    /// The outputs.
    pub out_tree: TreeDef,
    /// What each leaf of the arguments is, in JAX's order.
    pub in_avals: Vec<Aval>,
    /// What each leaf of the outputs is, in JAX's order.
    pub out_avals: Vec<Aval>,
    /// The positions of the leaves that the program really takes; the others are dropped.
    pub kept: Vec<usize>,
    /// The platforms that the program was lowered for, such as `cpu`.
    pub platforms: Vec<String>,
    /// The devices that it runs on.
    pub device_count: usize,
    /// How each leaf of the arguments is laid over the devices, where that is said.
    pub in_shardings: Vec<Option<Sharding>>,
    /// How each leaf of the outputs is laid over the devices, where that is said.
    pub out_shardings: Vec<Option<Sharding>>,
    /// The checks that whoever exported it asked to leave out: `platform`, `shape_assertions`, or the target of a
    /// custom call.
    pub disabled_checks: Vec<String>,
    /// The side effects whose order matters; each is a token in and out of the program.
    pub ordered_effects: Vec<String>,
    /// The side effects whose order does not.
    pub unordered_effects: Vec<String>,
    /// How `main` is called: 9 or 10.
    pub calling_convention_version: u16,
    /// The version of the artifact's own format.
    pub serialization_version: u16,
    /// The version of jax that wrote it, from 0.8 on.
    pub jax_version: Option<String>,
    /// The program: a StableHLO portable artifact.
    pub module: Bytes,
    /// The function's gradient, if it was exported with it.
    pub vjp: Option<Box<Exported>>,
}

/// What a leaf is: a type, and a shape whose dimensions may be symbolic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Aval {
    /// The type of the elements, as the program sees them.
    pub dtype: DType,
    /// The dimensions, as the program sees them.
    pub shape: Vec<Dim>,
    /// The implementation of a PRNG key, such as `fry`; its raw integers are what the program sees.
    pub key: Option<&'static str>,
    /// The memory that it is in, where that is not the device's own: `host` or `any`.
    pub memory: Option<&'static str>,
}

/// A dimension: in JSON, a number or a text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Dim {
    /// A size.
    Size(usize),
    /// An expression of dimension variables, such as `2*b`.
    Symbolic(String),
}

impl Aval {
    /// Bytes that it takes in memory, about.
    fn bytes(&self) -> usize {
        let text = |dim: &Dim| match dim {
            Dim::Size(_) => 0,
            Dim::Symbolic(expression) => expression.len(),
        };
        size_of::<Aval>() + self.shape.iter().map(|dim| size_of::<Dim>() + text(dim)).sum::<usize>()
    }

    /// A leaf of this description, or what is wrong with it.
    pub(super) fn described(
        dtype: DType,
        shape: Vec<Dim>,
        key: Option<&str>,
        memory: Option<&str>,
    ) -> Result<Aval, String> {
        let key_of = |name: &str| {
            let found = KEYS.iter().find(|(known, _)| *known == name);
            found.map(|(known, _)| *known).ok_or_else(|| format!("there is no PRNG key of `{name}`"))
        };
        let memory_of = |name: &str| {
            let found = MEMORY_SPACES.iter().copied().flatten().find(|known| *known == name);
            found.ok_or_else(|| format!("there is no memory space `{name}`"))
        };
        Ok(Aval {
            dtype,
            shape,
            key: key.map(key_of).transpose()?,
            memory: memory.map(memory_of).transpose()?,
        })
    }

    /// The type and shape, if no dimension is symbolic.
    pub fn to_spec(&self) -> Option<ArraySpec> {
        let size = |dim: &Dim| match dim {
            Dim::Size(size) => Some(*size),
            Dim::Symbolic(_) => None,
        };
        Some(ArraySpec::new(self.dtype, self.shape.iter().map(size).collect::<Option<Vec<_>>>()?))
    }
}

impl From<&ArraySpec> for Aval {
    fn from(spec: &ArraySpec) -> Aval {
        Aval {
            dtype: spec.dtype,
            shape: spec.shape.iter().map(|&size| Dim::Size(size)).collect(),
            key: None,
            memory: None,
        }
    }
}

impl fmt::Display for Aval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dim = |dim: &Dim| match dim {
            Dim::Size(size) => size.to_string(),
            Dim::Symbolic(expression) => expression.clone(),
        };
        let dims: Vec<String> = self.shape.iter().map(dim).collect();
        write!(f, "{}[{}]", self.dtype, dims.join(","))?;
        self.key.map_or(Ok(()), |key| write!(f, " (a PRNG key of {key})"))?;
        self.memory.map_or(Ok(()), |memory| write!(f, " in {memory} memory"))
    }
}

/// The deepest nesting of gradients: each is a whole artifact.
const MAX_VJP_DEPTH: usize = 8;

/// Whether bytes look like an artifact: a FlatBuffer's root, and a module within it.
pub fn is_artifact(data: &[u8]) -> bool {
    Table::root(data, &Budget::of(data)).is_ok_and(
        |root| matches!(root.bytes(13), Ok(Some(module)) if module.starts_with(super::version::MLIR_BYTECODE_MAGIC)),
    )
}

impl Exported {
    /// The name in [`Exported::disabled_checks`] of the check that the platform is one of [`Exported::platforms`].
    pub const PLATFORM_CHECK: &str = "platform";

    /// The name in [`Exported::disabled_checks`] of the checks of sizes that the program makes itself.
    pub const SHAPE_CHECK: &str = "shape_assertions";

    /// Reads an artifact, or says what is wrong with it.
    pub fn parse(data: &Bytes) -> Result<Exported, Problem> {
        read(Table::root(data, &Budget::of(data))?, 0)
    }

    /// What its arguments are.
    pub fn signature(&self) -> Signature {
        Signature::of_exported(self)
    }

    /// Whether a dimension of an argument is symbolic.
    pub fn has_symbolic_arguments(&self) -> bool {
        self.in_avals.iter().any(|aval| aval.to_spec().is_none())
    }

    /// The names of the dimension variables, sorted.
    pub fn dimension_variables(&self) -> Vec<String> {
        let names = self.symbolic_dimensions().into_iter().flat_map(dim::variables);
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether a check is to be made that an export can leave out.
    pub(super) fn has_check(&self, check: &str) -> bool {
        !self.disabled_checks.iter().any(|disabled| disabled == check)
    }

    /// The expressions of the dimensions that are symbolic, in the order of the arguments.
    pub fn symbolic_dimensions(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for dim in self.in_avals.iter().chain(&self.out_avals).flat_map(|aval| &aval.shape) {
            if let Dim::Symbolic(expression) = dim
                && !found.contains(&expression.as_str())
            {
                found.push(expression);
            }
        }
        found
    }
}

fn read(table: Table<'_>, depth: usize) -> Result<Exported, Problem> {
    if depth > MAX_VJP_DEPTH {
        return Err(format!("it has gradients of gradients, more than {MAX_VJP_DEPTH} deep"));
    }
    let missing = |what: &str| format!("it has no {what}");
    let tree = |slot: usize, what: &str| -> Result<TreeDef, Problem> {
        let root = table.table(slot)?.ok_or_else(|| missing(what))?;
        pytreedef::read(root)
    };
    let uniques: Vec<Aval> = table.tables(19)?.into_iter().map(read_aval).collect::<Result<_, _>>()?;
    let avals = |indices_slot: usize, own_slot: usize| -> Result<Vec<Aval>, Problem> {
        match table.u32s(indices_slot)? {
            Some(indices) => indices
                .into_iter()
                .map(|index| {
                    let aval =
                        uniques.get(index as usize).ok_or_else(|| format!("there is no type {index}"))?;
                    table.budget().charge(aval.bytes())?;
                    Ok(aval.clone())
                })
                .collect(),
            None => table.tables(own_slot)?.into_iter().map(read_aval).collect(),
        }
    };
    let effects = |slot: usize| -> Result<Vec<String>, Problem> {
        let name = |effect: Table<'_>| Ok(effect.string(0)?.unwrap_or_default().to_owned());
        table.tables(slot)?.into_iter().map(name).collect()
    };
    let meshes: Vec<Mesh> =
        table.tables(20)?.into_iter().map(sharding::read_mesh).collect::<Result<_, _>>()?;
    let named = table.tables(21)?;
    let shardings = |indices_slot: usize, own_slot: usize| -> Result<Vec<Option<Sharding>>, Problem> {
        match table.u32s(indices_slot)? {
            // 0 is one that is not said; the others count from 1.
            Some(indices) => indices
                .into_iter()
                .map(|index| match (index as usize).checked_sub(1) {
                    None => Ok(None),
                    Some(index) => {
                        let named =
                            named.get(index).ok_or_else(|| format!("there is no sharding {index}"))?;
                        sharding::read_named(*named, &meshes).map(Some)
                    }
                })
                .collect(),
            None => {
                let own = table.tables(own_slot)?.into_iter();
                own.map(|sharding| sharding::read(sharding, &meshes)).collect()
            }
        }
    };
    let module = table.bytes(13)?.ok_or_else(|| missing("program"))?;
    let device_count = match table.u32(18)? {
        None | Some(0) => usize::from(table.u16(6)?.unwrap_or(1)),
        Some(count) => count as usize,
    };
    let exported = Exported {
        function_name: table.string(1)?.unwrap_or_default().to_owned(),
        in_tree: tree(2, "tree of arguments")?,
        out_tree: tree(4, "tree of outputs")?,
        in_avals: avals(22, 3)?,
        out_avals: avals(23, 5)?,
        kept: table.u16s(15)?.unwrap_or_default().into_iter().map(usize::from).collect(),
        platforms: table.strings(9)?.into_iter().map(str::to_owned).collect(),
        device_count,
        in_shardings: shardings(24, 7)?,
        out_shardings: shardings(25, 8)?,
        disabled_checks: table.tables(12)?.into_iter().map(read_check).collect::<Result<_, _>>()?,
        ordered_effects: effects(10)?,
        unordered_effects: effects(11)?,
        calling_convention_version: table.u16(14)?.unwrap_or(0),
        serialization_version: table.u16(0)?.unwrap_or(0),
        jax_version: table.string(26)?.map(str::to_owned),
        module: Bytes::copy_from_slice(module),
        vjp: table.table(17)?.map(|vjp| read(vjp, depth + 1).map(Box::new)).transpose()?,
    };
    check(&exported)?;
    Ok(exported)
}

/// `DisabledSafetyCheck.kind`: that the platform is one of those that it was lowered for.
const PLATFORM_CHECK: u8 = 0;
/// `DisabledSafetyCheck.kind`: that a custom call's target is known to be stable.
const CUSTOM_CALL_CHECK: u8 = 1;
/// `DisabledSafetyCheck.kind`: that symbolic dimensions are what they were assumed to be.
const SHAPE_CHECK: u8 = 2;

fn read_check(table: Table<'_>) -> Result<String, Problem> {
    match table.u8(0)?.unwrap_or(0) {
        PLATFORM_CHECK => Ok(Exported::PLATFORM_CHECK.to_owned()),
        CUSTOM_CALL_CHECK => Ok(table.string(1)?.unwrap_or("custom calls").to_owned()),
        SHAPE_CHECK => Ok(Exported::SHAPE_CHECK.to_owned()),
        kind => Err(format!("a disabled check is of kind {kind}, which is not known")),
    }
}

/// What the parts must agree on.
fn check(exported: &Exported) -> Result<(), Problem> {
    let TreeDef::Tuple(parts) = &exported.in_tree else { return Err("its arguments are no tuple".into()) };
    if !matches!(&parts[..], [TreeDef::Tuple(_), TreeDef::Dict(_)]) {
        return Err("its arguments are not a tuple of positional and a dictionary of named ones".into());
    }
    for (what, tree, avals) in [
        ("arguments", &exported.in_tree, &exported.in_avals),
        ("outputs", &exported.out_tree, &exported.out_avals),
    ] {
        let leaves = tree.leaf_count();
        if leaves != avals.len() {
            return Err(format!(
                "its tree of {what} has {leaves} leaves, but there are {} types",
                avals.len()
            ));
        }
    }
    match exported.kept.iter().find(|index| **index >= exported.in_avals.len()) {
        Some(index) => Err(format!("it takes argument {index} of {}", exported.in_avals.len())),
        None => Ok(()),
    }
}

/// The element types by number; PRNG keys follow them.
const DTYPES: [Option<DType>; 27] = [
    Some(DType::Bool),
    Some(DType::I8),
    Some(DType::I16),
    Some(DType::I32),
    Some(DType::I64),
    Some(DType::U8),
    Some(DType::U16),
    Some(DType::U32),
    Some(DType::U64),
    Some(DType::F16),
    Some(DType::F32),
    Some(DType::F64),
    Some(DType::C64),
    Some(DType::C128),
    Some(DType::BF16),
    Some(DType::I4),
    Some(DType::U4),
    Some(DType::F8E4M3B11FNUZ),
    Some(DType::F8E4M3FN),
    Some(DType::F8E4M3FNUZ),
    Some(DType::F8E5M2),
    Some(DType::F8E5M2FNUZ),
    None, // float0, the type of gradients of integers
    Some(DType::F8E4M3),
    Some(DType::F8E3M4),
    Some(DType::F8E8M0FNU),
    Some(DType::F4E2M1FN),
];

/// PRNG keys by number, from 27: the implementation, and how many 32-bit integers a key is.
const KEYS: [(&str, usize); 3] = [("fry", 2), ("rbg", 4), ("unsafe_rbg", 4)];

/// `AbstractValue.kind`: an array; there is no other yet.
const SHAPED: u8 = 0;

/// `MemorySpace`: not said, a device's, the host's, any.
const MEMORY_SPACES: [Option<&str>; 4] = [None, None, Some("host"), Some("any")];

fn read_aval(table: Table<'_>) -> Result<Aval, Problem> {
    let kind = table.u8(0)?.unwrap_or(SHAPED);
    if kind != SHAPED {
        return Err(format!("a type is of kind {kind}, which is not known"));
    }
    let space = table.u8(3)?.unwrap_or(0);
    let memory = MEMORY_SPACES
        .get(usize::from(space))
        .ok_or_else(|| format!("a type is in the memory space {space}, which is not known"))?;
    let mut shape: Vec<Dim> = table
        .strings(1)?
        .into_iter()
        .map(|dim| dim.parse().map_or_else(|_| Dim::Symbolic(dim.to_owned()), Dim::Size))
        .collect();
    let number = usize::from(table.u8(2)?.unwrap_or(0));
    if let Some((key, words)) = number.checked_sub(DTYPES.len()).and_then(|index| KEYS.get(index)) {
        shape.push(Dim::Size(*words));
        return Ok(Aval { dtype: DType::U32, shape, key: Some(key), memory: *memory });
    }
    match DTYPES.get(number) {
        Some(Some(dtype)) => Ok(Aval { dtype: *dtype, shape, key: None, memory: *memory }),
        // float0 arrays are passed as booleans.
        Some(None) => Ok(Aval { dtype: DType::Bool, shape, key: None, memory: *memory }),
        None => Err(format!("a type has the number {number}, which is not known")),
    }
}
