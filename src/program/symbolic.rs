//! Functions with symbolic dimensions: refined and compiled once for every set of sizes that they are called with.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::artifact::Program;
use super::bind::{Slot, given};
use super::compile::compile_exported;
use super::compiled::{Compiled, cut_back, platform_position};
use super::exported::{Aval, Dim, Exported};
use super::padding::{Padding, Placed};
use super::recent::Recent;
use super::signature::Signature;
use super::stablehlo::{MatrixWork, Module, Refined, Refusal, refine};
use super::{dim, stablehlo};
use crate::device_array::Array;
use crate::error::{Error, Result};
use crate::pjrt::{Client, CompileOptions, Device};

/// The sizes of the arguments that a program takes.
pub type Shapes = Vec<Vec<usize>>;

/// An exported function with symbolic dimensions, and the executables for the sizes that it was called with last.
#[derive(Debug)]
pub struct Symbolic {
    exported: Arc<Exported>,
    module: Module,
    origin: String,
    client: Client,
    device: Option<Device>,
    options: CompileOptions,
    padding: Option<Padding>,
    compiled: Mutex<Recent<Arc<Executable>>>,
}

/// The executable for one set of sizes.
#[derive(Debug, Default)]
struct Executable {
    compiled: OnceLock<Compiled>,
    /// Held while it is compiled, so that calls from several threads do not compile it twice.
    compiling: Mutex<()>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Symbolic {
    /// Reads the module. Nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the module cannot be read; [`Error::InvalidArgument`] for sizes that it cannot be padded to.
    pub fn new(
        client: &Client,
        program: &Program,
        exported: Arc<Exported>,
        options: &CompileOptions,
    ) -> Result<Symbolic> {
        let origin = program.origin().to_owned();
        let module = read_module(&exported.module, &origin)?;
        let device = if exported.device_count == 1 { Some(options.first_device(client)?) } else { None };
        let padding = Padding::new(&options.padded_sizes, &exported)?;
        if padding.is_some() && exported.device_count.max(options.partitions) > 1 {
            return Err(Error::InvalidArgument(format!(
                "`{}` runs on several devices, where nothing is padded: leave the padded sizes out (--pad)",
                exported.function_name
            )));
        }
        let compiled = Mutex::new(Recent::new(options.kept_sizes));
        let (client, options) = (client.clone(), options.clone());
        Ok(Symbolic { exported, module, origin, client, device, options, padding, compiled })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Runs the function on leaves that were checked, but for the sizes of symbolic dimensions. Does not wait for it to end,
    /// unless outputs have to be cut back.
    ///
    /// # Errors
    /// [`Error::Arguments`] for sizes that it was not exported for.
    pub fn run(&self, slots: &[Slot<'_>], signature: Option<&Signature>) -> Result<Vec<Array>> {
        let shapes = self.shapes_of(slots)?;
        let Some(padding) = &self.padding else {
            return self.compiled(&self.executable(&shapes), &shapes)?.run(slots, signature);
        };
        let Placed { padded, outputs } = &*self.placed(padding, &shapes)?;
        let executable = self.executable(padded);
        let compiled =
            self.compiled(&executable, padded).map_err(|error| of_padding(error, padded != &shapes))?;
        let padded_outputs = compiled.run(slots, signature)?;
        cut_back(padded_outputs, outputs.iter().cloned())
    }

    /// What a call with these sizes becomes by padding. The sizes themselves are checked as those without padding are.
    fn placed(&self, padding: &Padding, shapes: &Shapes) -> Result<Arc<Placed>> {
        padding.place(shapes, || {
            let (exported, variables) = self.refined(shapes)?;
            let padded = |(name, size): &(String, i64)| {
                Ok((name.clone(), padding.padded(name, usize::try_from(*size).unwrap_or(0))?))
            };
            let padded = variables.iter().map(padded).collect::<Result<Vec<_>>>()?;
            let sizes: Vec<(&str, usize)> =
                padded.iter().map(|(name, size)| (name.as_str(), *size)).collect();
            let outputs = exported.out_avals.iter().map(Aval::to_spec).collect();
            Ok(Placed { padded: shapes_at(&self.exported, &sizes)?, outputs })
        })
    }

    /// Compiles the function for leaves of these sizes, if it was not yet.
    ///
    /// # Errors
    /// As for [`Symbolic::run`].
    pub fn prepare_call(&self, slots: &[Slot<'_>]) -> Result<()> {
        self.prepare_shapes(&self.shapes_of(slots)?)
    }

    /// The sizes of what was given.
    fn shapes_of(&self, slots: &[Slot<'_>]) -> Result<Shapes> {
        let shape = |&index: &usize| {
            let leaf = slots.get(index).and_then(given);
            leaf.map(|leaf| leaf.spec().shape.clone()).ok_or_else(|| {
                Error::InvalidArgument(format!("nothing was given for the argument at position {index}"))
            })
        };
        self.exported.kept.iter().map(shape).collect()
    }

    /// Compiles the function for dimension variables of these sizes, if it was not yet.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a variable without a size, or one that there is not; those of compiling.
    pub fn prepare(&self, sizes: &[(&str, usize)]) -> Result<()> {
        self.prepare_shapes(&shapes_at(&self.exported, sizes)?)
    }

    fn prepare_shapes(&self, shapes: &Shapes) -> Result<()> {
        let padded = self.padding.as_ref().map(|padding| self.placed(padding, shapes)).transpose()?;
        let wanted = padded.as_ref().map_or(shapes, |placed| &placed.padded);
        let compiled = self.compiled(&self.executable(wanted), wanted).map(drop);
        compiled.map_err(|error| of_padding(error, wanted != shapes))
    }

    /// Compiles the function for every combination of the sizes that its variables are padded to, if all of them are.
    ///
    /// # Errors
    /// Those of compiling, and of sizes that the function was not exported for.
    pub fn prepare_all(&self) -> Result<()> {
        let variables = self.exported.dimension_variables();
        let combinations = self.padding.as_ref().and_then(|padding| padding.combinations(&variables));
        for sizes in combinations.unwrap_or_default() {
            let sizes: Vec<(&str, usize)> = variables.iter().map(String::as_str).zip(sizes).collect();
            self.prepare(&sizes)?;
        }
        Ok(())
    }

    /// The place of an executable. The one that was used the longest time ago makes room for a new one.
    fn executable(&self, shapes: &Shapes) -> Arc<Executable> {
        let mut executables = lock(&self.compiled);
        executables.get(shapes).unwrap_or_else(|| {
            let executable = Arc::<Executable>::default();
            executables.insert(shapes, Arc::clone(&executable));
            executable
        })
    }

    /// What is compiled, after it was compiled if nobody did yet. Calls at other sizes go on meanwhile.
    fn compiled<'a>(&self, executable: &'a Executable, shapes: &Shapes) -> Result<&'a Compiled> {
        if let Some(compiled) = executable.compiled.get() {
            return Ok(compiled);
        }
        let _guard = lock(&executable.compiling);
        if let Some(compiled) = executable.compiled.get() {
            return Ok(compiled);
        }
        let compiled = self.compile(shapes).inspect_err(|_| {
            // Sizes that are refused take nobody's place.
            lock(&self.compiled).remove(shapes);
        })?;
        Ok(executable.compiled.get_or_init(|| compiled))
    }

    fn compile(&self, shapes: &Shapes) -> Result<Compiled> {
        let start = Instant::now();
        let (exported, variables) = self.refined(shapes)?;
        let refined = start.elapsed();
        let executable = compile_exported(&self.client, &exported, &self.origin, &self.options)?;
        let sizes: Vec<String> = variables.iter().map(|(name, size)| format!("{name}={size}")).collect();
        tracing::info!(
            function = self.exported.function_name,
            sizes = sizes.join(", "),
            ?refined,
            total = ?start.elapsed(),
            "compiled for new sizes"
        );
        Compiled::new(executable, Some(&exported))
    }

    /// The function for arguments of these sizes, and its dimension variables.
    fn refined(&self, shapes: &Shapes) -> Result<(Exported, Vec<(String, i64)>)> {
        let platform = platform_position(&self.exported, self.client.platform_name());
        refine_exported(&self.exported, &self.module, shapes, platform)
            .map_err(|refusal| about(refusal, &self.exported, &self.origin))
    }
}

impl Program {
    /// The program with sizes in the place of its dimension variables: `refined(&[("b", 8), ("t", 64)], Some("cpu"))`. Of a
    /// function that was exported for several platforms, the part of the one that is named, or of the first. Of a bundle, the
    /// bucket of these sizes. Of StableHLO that is no artifact, the sizes are those of its arguments.
    ///
    /// A [`Function`](crate::Function) does this by itself; what it gets is seen by this.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a variable without a size, or one that there is not, for a platform or sizes that it was
    /// not exported for, and for operations that are not known; [`Error::Malformed`] for what is no StableHLO bytecode.
    pub fn refined(&self, sizes: &[(&str, usize)], platform: Option<&str>) -> Result<Program> {
        if let Some(bundle) = self.bundle() {
            let bucket = bundle.at(sizes).map_err(Error::InvalidArgument)?;
            return Ok(Program::of_exported(
                self.origin().to_owned(),
                Exported::clone(&bucket.exported),
                sizes,
            ));
        }
        let module = read_module(self.code(), self.origin())?;
        let refuse = |refusal| about_module(refusal, self.origin());
        let Some(exported) = self.exported() else {
            let arguments = stablehlo::declared_sizes(&module).map_err(refuse)?;
            let refined = refine(&module, &arguments, None, true).map_err(refuse)?;
            return Program::from_bytes(refined.module.write());
        };
        let named = platform.map(|name| position_of(exported, name)).transpose()?;
        let platform = (exported.platforms.len() > 1).then(|| named.unwrap_or(0));
        let shapes = shapes_at(exported, sizes)?;
        let (exported, _) = refine_exported(exported, &module, &shapes, platform).map_err(refuse)?;
        Ok(Program::of_exported(self.origin().to_owned(), exported, sizes))
    }

    /// The program's StableHLO as text, in MLIR's generic form: for people, not for compilers.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what is no StableHLO.
    pub fn stablehlo_text(&self) -> Result<String> {
        if let Ok(text) = std::str::from_utf8(self.code()) {
            return Ok(text.to_owned());
        }
        let text = stablehlo::text(&read_module(self.code(), self.origin())?);
        text.map_err(|problem| damaged(self.origin(), problem))
    }

    /// The floating point operations of the program's matrix products and convolutions, as its sizes tell; `None` for what is
    /// no StableHLO bytecode.
    pub fn matrix_work(&self) -> Option<MatrixWork> {
        matrix_work_of(self.code())
    }

    /// The constraints on dimension variables that the program asserts beside those of its arguments, such as `t<=16`; none
    /// where they cannot be read.
    pub fn constraints(&self) -> Vec<String> {
        const MARK: &str = "Input shapes do not match the symbolic shape constraint ";
        let module = Module::read(self.code()).ok();
        let strings = module.iter().flat_map(|module| &module.strings);
        let constraint = |text: &bytes::Bytes| {
            let text = std::str::from_utf8(text).ok()?.strip_prefix(MARK)?;
            Some(text.split_once(". Expected ")?.0.to_owned())
        };
        let mut found: Vec<String> = strings.filter_map(constraint).collect();
        found.dedup();
        found
    }
}

/// The work of a module's matrix products and convolutions, if it can be read.
pub fn matrix_work_of(code: &bytes::Bytes) -> Option<MatrixWork> {
    stablehlo::matrix_work(&Module::read(code).ok()?).ok()
}

/// The position of a platform among those of a function.
fn position_of(exported: &Exported, platform: &str) -> Result<usize> {
    let position = exported.platforms.iter().position(|known| known == platform);
    position.ok_or_else(|| {
        Error::InvalidArgument(format!(
            "`{}` was exported for {}, not for {platform}",
            exported.function_name,
            exported.platforms.join(", ")
        ))
    })
}

fn read_module(code: &bytes::Bytes, origin: &str) -> Result<Module> {
    Module::read(code).map_err(|problem| damaged(origin, problem))
}

fn damaged(origin: &str, problem: String) -> Error {
    Error::Malformed { origin: origin.to_owned(), format: "StableHLO module", problem }
}

/// The error over sizes that arguments were padded to, which are not the caller's.
fn of_padding(error: Error, is_padded: bool) -> Error {
    match error {
        Error::Arguments { problems, .. } if is_padded => Error::InvalidArgument(format!(
            "the sizes that are padded to are not among those of the function: {}",
            problems.join("; ")
        )),
        other => other,
    }
}

/// The error for what was refused of a call.
fn about(refusal: Refusal, exported: &Exported, origin: &str) -> Error {
    match refusal {
        Refusal::Assertion(text) => {
            Error::Arguments { program: exported.function_name.clone(), problems: vec![text] }
        }
        module => about_module(module, origin),
    }
}

/// The error for what was refused of a module that is no artifact.
fn about_module(refusal: Refusal, origin: &str) -> Error {
    match refusal {
        Refusal::Assertion(text) => {
            Error::InvalidArgument(format!("{origin} does not take these sizes: {text}"))
        }
        Refusal::Module(problem) => {
            Error::InvalidArgument(format!("{origin} cannot be made for these sizes: {problem}"))
        }
    }
}

/// The function for arguments of these sizes on one of its platforms, and its dimension variables.
pub fn refine_exported(
    exported: &Exported,
    module: &Module,
    shapes: &Shapes,
    platform: Option<usize>,
) -> Result<(Exported, Vec<(String, i64)>), Refusal> {
    let arguments: Vec<Option<Vec<usize>>> = shapes.iter().cloned().map(Some).collect();
    let Refined { module, outputs, variables } =
        refine(module, &arguments, platform, exported.has_check(Exported::SHAPE_CHECK))?;
    let mut result = Exported { module: module.write().into(), vjp: None, ..exported.clone() };
    if let Some(platform) = platform {
        result.platforms = vec![exported.platforms[platform].clone()];
    }
    let sized = |aval: &mut Aval, sizes: &[usize]| {
        aval.shape = sizes.iter().map(|&size| Dim::Size(size)).collect();
    };
    for (&leaf, sizes) in exported.kept.iter().zip(shapes) {
        sized(&mut result.in_avals[leaf], sizes);
    }
    for (aval, sizes) in result.out_avals.iter_mut().zip(&outputs) {
        if let Some(sizes) = sizes {
            sized(aval, sizes);
        }
    }
    Ok((result, variables))
}

/// The largest size of a dimension variable: programs compute with sizes in 32 bits, unless JAX had 64-bit types.
pub const MAX_SIZE: usize = i32::MAX as usize;

/// The sizes of the arguments where dimension variables have these.
///
/// # Errors
/// [`Error::InvalidArgument`] for a variable without a size, or one that there is not.
fn shapes_at(exported: &Exported, sizes: &[(&str, usize)]) -> Result<Shapes> {
    let known = exported.dimension_variables();
    let of_function = || {
        let names = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("`{}` has {names}", exported.function_name)
    };
    let refuse = |problem: String| Err(Error::InvalidArgument(format!("{problem}; {}", of_function())));
    for (position, (name, size)) in sizes.iter().enumerate() {
        if !known.iter().any(|known| known == name) {
            return refuse(format!("there is no dimension variable `{name}`"));
        }
        if *size > MAX_SIZE {
            return refuse(format!("`{name}` is {size}, and a size is at most {MAX_SIZE}"));
        }
        if sizes[..position].iter().any(|(other, _)| other == name) {
            return refuse(format!("the dimension variable `{name}` is given twice"));
        }
    }
    if let Some(name) = known.iter().find(|known| !sizes.iter().any(|(name, _)| name == known)) {
        return refuse(format!("no size is given for the dimension variable `{name}`"));
    }
    let size = |dim: &Dim| match dim {
        Dim::Size(size) => Ok(*size),
        Dim::Symbolic(expression) => dim::evaluate(expression, sizes)
            .map_err(|problem| Error::InvalidArgument(format!("the dimension `{expression}`: {problem}"))),
    };
    let shape = |&leaf: &usize| exported.in_avals[leaf].shape.iter().map(size).collect();
    exported.kept.iter().map(shape).collect()
}
