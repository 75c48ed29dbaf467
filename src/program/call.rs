//! Functions: programs compiled, and called with arrays and trees of them.

use std::sync::Arc;

use super::argument::{Argument, LeafArgument};
use super::bind::{Binding, Conversion, Resharding, Sizes, Slot};
use super::buckets::Buckets;
use super::compiled::{Compiled, prepare};
use super::exported::{Aval, Exported};
use super::outputs::Outputs;
use super::partitioned::Partitioned;
use super::signature::Signature;
use super::symbolic::Symbolic;
use crate::device_array::Array;
use crate::error::{Context, Error, Result};
use crate::pjrt::{Client, Device, Input, LoadedExecutable};
use crate::sharding::Sharding;
use crate::tree::{KeyMap, TreeDef};

/// A compiled program that can be called. Cheap to clone; calls from several threads at once run side by side.
#[derive(Debug, Clone)]
pub struct Function {
    inner: Arc<Inner>,
    conversion: Conversion,
    resharding: Resharding,
}

#[derive(Debug)]
struct Inner {
    name: String,
    client: Client,
    exported: Option<Arc<Exported>>,
    /// `None` where neither an artifact nor the compiler says it.
    signature: Option<Signature>,
    outputs: Vec<Aval>,
    /// The tree of the outputs: the exported one, or a tuple.
    out_keys: Arc<KeyMap>,
    code: Code,
}

#[derive(Debug)]
enum Code {
    One(Compiled),
    Buckets(Buckets),
    Symbolic(Box<Symbolic>),
}

impl Function {
    /// A program of one set of shapes.
    pub(super) fn of_one(compiled: Compiled, exported: Option<Arc<Exported>>) -> Result<Function> {
        let executable = &compiled.executable;
        let client = executable.client().clone();
        let name = exported.as_ref().map_or(executable.name(), |exported| &exported.function_name).to_owned();
        let outputs: Vec<Aval> = match &exported {
            Some(exported) => exported.out_avals.clone(),
            None => match &compiled.partitioned {
                Some(partitioned) => partitioned.outputs.iter().map(|laid| Aval::from(&laid.spec)).collect(),
                None => executable.outputs().iter().map(|spec| Aval::from(&**spec)).collect(),
            },
        };
        let found = executable.outputs().len();
        if outputs.len() != found {
            return Err(Error::InvalidArgument(format!(
                "`{name}` has {found} outputs, but its tree has {} leaves",
                outputs.len()
            )));
        }
        let signature = match &exported {
            Some(exported) => Some(donatable(Signature::of_exported(exported), &compiled)),
            None => Signature::of_compiled(compiled.interface.as_ref())
                .map(|signature| of_wholes(signature, compiled.partitioned.as_ref())),
        };
        let out_keys = out_keys(exported.as_deref(), outputs.len())?;
        let code = Code::One(compiled);
        let inner = Inner { name, client, exported, signature, outputs, out_keys, code };
        Ok(Function { inner: Arc::new(inner), conversion: Conversion::Exact, resharding: Resharding::Refuse })
    }

    /// A bundle. Its smallest bucket is compiled.
    pub(super) fn of_buckets(buckets: Buckets) -> Result<Function> {
        let exported = buckets.signature();
        let signature = donatable(Signature::of_exported(&exported), buckets.compiled(0)?);
        let inner = Inner {
            name: exported.function_name.clone(),
            client: buckets.client().clone(),
            signature: Some(signature),
            outputs: exported.out_avals.clone(),
            out_keys: out_keys(Some(&exported), exported.out_avals.len())?,
            exported: Some(exported),
            code: Code::Buckets(buckets),
        };
        Ok(Function { inner: Arc::new(inner), conversion: Conversion::Exact, resharding: Resharding::Refuse })
    }

    /// A function with symbolic dimensions. Nothing is compiled before sizes are known.
    pub(super) fn of_symbolic(symbolic: Symbolic, exported: Arc<Exported>) -> Result<Function> {
        let inner = Inner {
            name: exported.function_name.clone(),
            client: symbolic.client().clone(),
            signature: Some(Signature::of_exported(&exported)),
            outputs: exported.out_avals.clone(),
            out_keys: out_keys(Some(&exported), exported.out_avals.len())?,
            exported: Some(exported),
            code: Code::Symbolic(Box::new(symbolic)),
        };
        Ok(Function { inner: Arc::new(inner), conversion: Conversion::Exact, resharding: Resharding::Refuse })
    }

    /// The same function with another way to treat arguments whose element type is not its own.
    pub fn with_conversion(&self, conversion: Conversion) -> Function {
        Function { conversion, ..self.clone() }
    }

    /// The same function with another way to treat arguments that lie on devices otherwise than it takes them.
    pub fn with_resharding(&self, resharding: Resharding) -> Function {
        Function { resharding, ..self.clone() }
    }

    /// The function's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The exported function behind this one, if it came from a `jax.export` artifact.
    pub fn exported(&self) -> Option<&Exported> {
        self.inner.exported.as_deref()
    }

    /// What the function takes; `None` where neither an artifact nor the plugin says it.
    pub fn signature(&self) -> Option<&Signature> {
        self.inner.signature.as_ref()
    }

    /// The types and shapes of the outputs, in JAX's order.
    pub fn outputs(&self) -> &[Aval] {
        &self.inner.outputs
    }

    /// The executable behind the function; `None` for a bundle and for a function with symbolic dimensions, which have
    /// several.
    pub fn executable(&self) -> Option<&LoadedExecutable> {
        match &self.inner.code {
            Code::One(compiled) => Some(&compiled.executable),
            Code::Buckets(_) | Code::Symbolic(_) => None,
        }
    }

    /// The client that the function was compiled by.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The device that the function runs on; `None` if there are several.
    pub fn device(&self) -> Option<&Device> {
        match &self.inner.code {
            Code::One(compiled) => compiled.device(),
            Code::Buckets(buckets) => buckets.compiled(0).ok().and_then(Compiled::device),
            Code::Symbolic(symbolic) => symbolic.device(),
        }
    }

    /// The devices that the function runs on, in the order of its own mesh.
    pub fn devices(&self) -> Vec<Device> {
        match &self.inner.code {
            Code::One(compiled) => compiled.executable.devices().to_vec(),
            Code::Buckets(buckets) => buckets
                .compiled(0)
                .map_or_else(|_| Vec::new(), |compiled| compiled.executable.devices().to_vec()),
            Code::Symbolic(symbolic) => symbolic.device().cloned().into_iter().collect(),
        }
    }

    /// How the leaf at this position among the parameters lies on the devices, if these are several.
    pub fn sharding(&self, parameter: usize) -> Option<Sharding> {
        Some((*self.partitioned()?.wanted(parameter)?.sharding).clone())
    }

    /// Compiles every bucket of a bundle now, rather than when a call first needs it, and so every combination of the sizes
    /// that the variables of a function are padded to ([`crate::CompileOptions::padded_sizes`]). Blocks. Does nothing for a
    /// program of one set of shapes, nor if one of the variables can have any size.
    ///
    /// # Errors
    /// As for [`Client::compile`].
    pub fn compile_buckets(&self) -> Result<()> {
        match &self.inner.code {
            Code::One(_) => Ok(()),
            Code::Symbolic(symbolic) => symbolic.prepare_all(),
            Code::Buckets(buckets) => buckets.compile_all(),
        }
    }

    /// Compiles a function with symbolic dimensions for variables of these sizes now, rather than when a call first has
    /// them: `prepare(&[("b", 8), ("t", 64)])`. Blocks. Does nothing for another function that has no variables.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a variable without a size, or one that there is not; [`Error::Arguments`] for sizes
    /// that the function was not exported for; as for [`Client::compile`].
    pub fn prepare(&self, sizes: &[(&str, usize)]) -> Result<()> {
        match &self.inner.code {
            Code::Symbolic(symbolic) => symbolic.prepare(sizes),
            Code::One(_) | Code::Buckets(_) if sizes.is_empty() => Ok(()),
            Code::One(_) | Code::Buckets(_) => Err(Error::InvalidArgument(format!(
                "`{}` has no dimension variables that are not known in size",
                self.name()
            ))),
        }
    }

    /// Whether the sizes of symbolic dimensions are held against each other before a call: a function refined for its sizes
    /// does that itself.
    fn checked_sizes<'m, 's>(&self, sizes: &'m mut Sizes<'s>) -> Option<&'m mut Sizes<'s>> {
        match &self.inner.code {
            Code::One(_) | Code::Buckets(_) => Some(sizes),
            Code::Symbolic(_) => None,
        }
    }

    /// Calls the function. Does not wait for the execution to end. Nothing is donated but what is in a
    /// [`crate::Donate`].
    ///
    /// An exported function takes its positional arguments, and finds the leaves of a tree by their paths, whatever
    /// order they have; arguments that the program does not use may be missing. Of any other program, the leaves of
    /// the arguments, one after another, are what it takes.
    ///
    /// # Errors
    /// [`Error::Arguments`] listing everything that does not fit (missing and unknown leaves, types, shapes,
    /// devices), before anything runs; [`Error::Pjrt`] when the plugin refuses.
    pub fn call(&self, arguments: &[&dyn Argument]) -> Result<Outputs> {
        self.call_with(arguments, &[])
    }

    /// Calls an exported function with positional and named arguments. As [`Function::call`].
    ///
    /// # Errors
    /// As for [`Function::call`].
    pub fn call_with(&self, arguments: &[&dyn Argument], named: &[(&str, &dyn Argument)]) -> Result<Outputs> {
        let mut sizes = Sizes::new();
        let slots = self.bound(arguments, named, &mut sizes)?;
        self.run(&slots, &sizes)
    }

    /// Compiles what a call with these arguments would compile first, and does not run it: of a function with symbolic
    /// dimensions, the program for the sizes of the arguments. Blocks.
    ///
    /// # Errors
    /// As for [`Function::call`].
    pub fn prepare_call(&self, arguments: &[&dyn Argument], named: &[(&str, &dyn Argument)]) -> Result<()> {
        match &self.inner.code {
            Code::Symbolic(symbolic) => {
                symbolic.prepare_call(&self.bound(arguments, named, &mut Sizes::new())?)
            }
            Code::One(_) | Code::Buckets(_) => Ok(()),
        }
    }

    /// What was given for each parameter, checked.
    fn bound<'s, 'a>(
        &'s self,
        arguments: &[&'a dyn Argument],
        named: &[(&str, &'a dyn Argument)],
        sizes: &mut Sizes<'s>,
    ) -> Result<Vec<Slot<'a>>> {
        let arguments: Vec<_> = arguments.iter().copied().map(Some).collect();
        let Some(signature) = self.tree_signature() else { return self.flat_slots(&[], &arguments, named) };
        let mut binding = Binding::new(signature);
        let open: Vec<usize> = (0..signature.arguments.len()).collect();
        binding.add(&open, &arguments, named);
        binding.finish();
        let all = 0..signature.parameters.len();
        binding.check(all.clone(), self.device(), self.conversion, self.checked_sizes(sizes));
        self.check_layouts(&mut binding, all);
        self.complete(binding)
    }

    /// Compares where what was given for these parameters lies with where the function takes it.
    fn check_layouts(&self, binding: &mut Binding<'_, '_>, indices: impl IntoIterator<Item = usize>) {
        let Some(partitioned) = self.partitioned() else { return };
        for index in indices {
            if let Some(leaf) = super::bind::given(&binding.slots[index])
                && let Some(problem) = partitioned.mismatch(index, &leaf, self.resharding)
            {
                let place = binding.place(index);
                binding.problems.push(format!("{place}: {problem}"));
            }
        }
    }

    /// Fixes the first positional arguments, so that calls need not be given them, nor look for their leaves or
    /// check them again. Arrays on the host are copied to the device now.
    ///
    /// # Errors
    /// [`Error::Arguments`] as for [`Function::call`], of what was given.
    pub fn bind(&self, arguments: &[&dyn Argument]) -> Result<BoundFunction> {
        self.bind_with(&arguments.iter().copied().map(Some).collect::<Vec<_>>(), &[])
    }

    /// Fixes arguments: positional ones, where `None` leaves one open, and named ones. As [`Function::bind`].
    ///
    /// # Errors
    /// As for [`Function::bind`].
    pub fn bind_with(
        &self,
        arguments: &[Option<&dyn Argument>],
        named: &[(&str, &dyn Argument)],
    ) -> Result<BoundFunction> {
        let Some(signature) = self.tree_signature() else { return self.bind_flat(arguments, named) };
        let mut binding = Binding::new(signature);
        let all: Vec<usize> = (0..signature.arguments.len()).collect();
        binding.add(&all, arguments, named);
        binding.check(
            0..signature.parameters.len(),
            self.device(),
            self.conversion,
            self.checked_sizes(&mut Sizes::new()),
        );
        self.check_layouts(&mut binding, 0..signature.parameters.len());
        let slots = self.complete(binding)?;
        let is_open = |&index: &usize| {
            let leaves = signature.arguments[index].leaves.clone();
            // An argument without leaves is as good as given.
            !leaves.is_empty() && slots[leaves].iter().all(|slot| matches!(slot, Slot::Open))
        };
        let open: Vec<usize> = all.into_iter().filter(is_open).collect();
        let open_leaves = open.iter().flat_map(|&index| signature.arguments[index].leaves.clone()).collect();
        let fix = |(index, (slot, parameter)): (usize, (&Slot<'_>, &super::signature::Parameter))| match slot
        {
            Slot::Given(leaf) => {
                self.fix(index, *leaf, &parameter.aval).for_tensor(&parameter.place).map(Some)
            }
            Slot::Open | Slot::Missing => Ok(None),
        };
        let fixed = slots.iter().zip(&signature.parameters).enumerate().map(fix).collect::<Result<_>>()?;
        Ok(BoundFunction { function: self.clone(), fixed, open, open_leaves })
    }

    fn bind_flat(
        &self,
        arguments: &[Option<&dyn Argument>],
        named: &[(&str, &dyn Argument)],
    ) -> Result<BoundFunction> {
        if arguments.iter().any(Option::is_none) {
            return Err(Error::InvalidArgument(format!(
                "`{}` is no jax.export artifact, so that only its first arguments can be bound",
                self.name()
            )));
        }
        self.refuse_names(named)?;
        let mut leaves = Vec::new();
        arguments.iter().flatten().for_each(|argument| argument.append_leaves(&mut leaves));
        self.check_flat(&leaves, false)?;
        let parameters = self.signature().map(|signature| &signature.parameters[..]).unwrap_or_default();
        let fix = |(position, leaf): (usize, &LeafArgument<'_>)| {
            let aval =
                parameters.get(position).map_or_else(|| Aval::from(leaf.spec()), |known| known.aval.clone());
            self.fix(position, *leaf, &aval).map(Some)
        };
        let fixed = leaves.iter().enumerate().map(fix).collect::<Result<_>>()?;
        Ok(BoundFunction { function: self.clone(), fixed, open: Vec::new(), open_leaves: Vec::new() })
    }

    /// The leaf as an array that calls can use again and again.
    fn fix(&self, index: usize, leaf: LeafArgument<'_>, aval: &Aval) -> Result<Array> {
        let leaf = LeafArgument { is_donated: false, ..leaf };
        if let Some(partitioned) = self.partitioned() {
            return partitioned.fix(index, leaf);
        }
        let Some(device) = self.device() else {
            return Err(Error::InvalidArgument(format!(
                "`{}` has symbolic dimensions and runs on several devices, so that its arguments cannot be bound before \
                 their sizes are known",
                self.name()
            )));
        };
        // A symbolic dimension keeps its own size, and is padded by the call.
        let mut wanted = leaf.spec().clone();
        wanted.dtype = aval.dtype;
        match prepare(leaf, &wanted, device)? {
            Input::Borrow(buffer) => Ok(Array::from(buffer)),
            Input::Donate(buffer) => Ok(Array::from(buffer)),
        }
    }

    /// How the function's arrays lie on its devices, if these are several and its shapes are known.
    fn partitioned(&self) -> Option<&Partitioned> {
        match &self.inner.code {
            Code::One(compiled) => compiled.partitioned.as_ref(),
            Code::Buckets(_) | Code::Symbolic(_) => None,
        }
    }

    /// The signature, if the function takes trees.
    fn tree_signature(&self) -> Option<&Signature> {
        self.inner.exported.as_ref().and(self.inner.signature.as_ref())
    }

    fn complete<'a>(&self, binding: Binding<'_, 'a>) -> Result<Vec<Slot<'a>>> {
        if binding.problems.is_empty() {
            return Ok(binding.slots);
        }
        Err(Error::Arguments { program: self.name().to_owned(), problems: binding.problems })
    }

    fn refuse_names(&self, named: &[(&str, &dyn Argument)]) -> Result<()> {
        let Some((name, _)) = named.first() else { return Ok(()) };
        Err(Error::InvalidArgument(format!(
            "`{}` has no named arguments, and `{name}` was given; only jax.export artifacts have them",
            self.name()
        )))
    }

    /// The leaves for a program that takes a plain list: those that are fixed, then those given.
    fn flat_slots<'a>(
        &self,
        fixed: &'a [Option<Array>],
        arguments: &[Option<&'a dyn Argument>],
        named: &[(&str, &'a dyn Argument)],
    ) -> Result<Vec<Slot<'a>>> {
        self.refuse_names(named)?;
        let mut leaves: Vec<LeafArgument<'a>> = fixed.iter().flatten().map(LeafArgument::array).collect();
        arguments.iter().flatten().for_each(|argument| argument.append_leaves(&mut leaves));
        self.check_flat(&leaves, true)?;
        Ok(leaves.into_iter().map(Slot::Given).collect())
    }

    /// Compares the leaves with what the program takes; all of it, or just the first of them.
    fn check_flat(&self, leaves: &[LeafArgument<'_>], is_all: bool) -> Result<()> {
        let Some(signature) = self.signature() else { return Ok(()) };
        let mut binding = Binding::new(signature);
        let count = signature.parameters.len();
        for (slot, leaf) in binding.slots.iter_mut().zip(leaves) {
            *slot = Slot::Given(*leaf);
        }
        binding.check(0..count.min(leaves.len()), self.device(), self.conversion, None);
        self.check_layouts(&mut binding, 0..count.min(leaves.len()));
        for (position, leaf) in leaves.iter().enumerate().skip(count) {
            binding.problems.push(format!(
                "argument {position}: there is no such parameter, the program takes {count}; {} was given",
                leaf.spec()
            ));
        }
        if is_all {
            let missing = signature.parameters.iter().skip(leaves.len());
            binding.problems.extend(missing.map(super::bind::absent));
        }
        self.complete(binding).map(|_| ())
    }

    fn run(&self, slots: &[Slot<'_>], sizes: &Sizes<'_>) -> Result<Outputs> {
        let signature = self.inner.signature.as_ref();
        let arrays = match &self.inner.code {
            Code::One(compiled) => compiled.run(slots, signature)?,
            Code::Buckets(buckets) => buckets.run(slots, sizes, signature)?,
            Code::Symbolic(symbolic) => symbolic.run(slots, signature)?,
        };
        Ok(Outputs::new(arrays, self.inner.out_keys.clone()))
    }
}

/// A function some of whose arguments are fixed: see [`Function::bind`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BoundFunction {
    function: Function,
    /// The fixed leaves, by their position among the parameters.
    fixed: Vec<Option<Array>>,
    /// The arguments that calls give.
    open: Vec<usize>,
    /// Their leaves.
    open_leaves: Vec<usize>,
}

impl BoundFunction {
    /// The function behind it.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Calls the function with the arguments that are not fixed: the positional ones among them, in order. As
    /// [`Function::call`].
    ///
    /// # Errors
    /// As for [`Function::call`].
    pub fn call(&self, arguments: &[&dyn Argument]) -> Result<Outputs> {
        self.call_with(arguments, &[])
    }

    /// Calls the function with the arguments that are not fixed, positional and named. As [`Function::call`].
    ///
    /// # Errors
    /// As for [`Function::call`].
    pub fn call_with(&self, arguments: &[&dyn Argument], named: &[(&str, &dyn Argument)]) -> Result<Outputs> {
        let function = &self.function;
        let arguments: Vec<_> = arguments.iter().copied().map(Some).collect();
        let Some(signature) = function.tree_signature() else {
            let slots = function.flat_slots(&self.fixed, &arguments, named)?;
            return function.run(&slots, &Sizes::new());
        };
        let mut binding = Binding::new(signature);
        for (slot, fixed) in binding.slots.iter_mut().zip(&self.fixed) {
            if let Some(array) = fixed {
                *slot = Slot::Given(LeafArgument::array(array));
            }
        }
        binding.add(&self.open, &arguments, named);
        binding.finish();
        let mut sizes = Sizes::new();
        let (device, conversion) = (function.device(), function.conversion);
        match &function.inner.code {
            Code::One(_) | Code::Symbolic(_) => {
                binding.check(self.open_leaves.iter().copied(), device, conversion, None);
                function.check_layouts(&mut binding, self.open_leaves.iter().copied());
            }
            // Fixed leaves, too, may have dimensions whose size must agree.
            Code::Buckets(_) => binding.check(0..self.fixed.len(), device, conversion, Some(&mut sizes)),
        }
        let slots = function.complete(binding)?;
        function.run(&slots, &sizes).map_err(|error| self.explain(error, signature))
    }

    /// Says which fixed leaves are used up, if that is why a call failed: calls do not check them.
    fn explain(&self, error: Error, signature: &Signature) -> Error {
        let gone = |(array, parameter): (&Option<Array>, &super::signature::Parameter)| {
            let gone = LeafArgument::array(array.as_ref()?).gone()?;
            Some(format!("{}: {gone}", parameter.place))
        };
        let problems: Vec<String> = self.fixed.iter().zip(&signature.parameters).filter_map(gone).collect();
        if problems.is_empty() {
            return error;
        }
        Error::Arguments { program: self.function.name().to_owned(), problems }
    }
}

/// The signature of what one device takes, as that of the whole arrays on several.
fn of_wholes(mut signature: Signature, partitioned: Option<&Partitioned>) -> Signature {
    let laid = partitioned.iter().flat_map(|partitioned| &partitioned.parameters);
    for (parameter, laid) in signature.parameters.iter_mut().zip(laid) {
        parameter.aval = Aval::from(&laid.spec);
        parameter.sharding = Some((*laid.sharding).clone());
    }
    signature
}

/// The signature, with what the compiled program says of donation.
fn donatable(mut signature: Signature, compiled: &Compiled) -> Signature {
    for (leaf, output) in compiled.donations() {
        signature.parameters[leaf].is_donatable = true;
        signature.parameters[leaf].donated_into = Some(output);
    }
    signature
}

/// The tree of the outputs.
fn out_keys(exported: Option<&Exported>, count: usize) -> Result<Arc<KeyMap>> {
    let tuple = || TreeDef::Tuple(vec![TreeDef::LEAF; count]);
    let tree = exported.map_or_else(tuple, |exported| exported.out_tree.clone());
    // Names that clash on disk do not keep a function from being called.
    KeyMap::new(tree).or_else(|_| KeyMap::new(tuple())).map(Arc::new)
}
