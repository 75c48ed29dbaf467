//! Calling a compiled program: arguments flattened and checked, outputs left on the device.

use std::ops::Deref;
use std::sync::Arc;

use super::bind::bind;
use super::exported::Exported;
use super::signature::Signature;
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::params::Params;
use crate::pjrt::{Buffer, Client, Input, LoadedExecutable};
use crate::tree::{KeyMap, TreeDef};

/// A compiled program that can be called. Cheap to clone; calls from several threads may overlap.
#[derive(Debug, Clone)]
pub struct Function {
    executable: LoadedExecutable,
    signature: Option<Arc<Signature>>,
    exported: Option<Arc<Exported>>,
    /// The tree of the outputs: the exported one, or a tuple.
    out_keys: Arc<KeyMap>,
}

/// An argument of a call: a buffer, or a tree or list of them, whose leaves follow each other.
pub trait Argument {
    /// Appends the leaves in order, each with its name in the argument, if it has one.
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<(Option<&'a str>, &'a Buffer)>);
}

impl Argument for Buffer {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<(Option<&'a str>, &'a Buffer)>) {
        leaves.push((None, self));
    }
}

impl Argument for Params {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<(Option<&'a str>, &'a Buffer)>) {
        leaves.extend(self.iter().map(|(name, buffer)| (Some(name), buffer)));
    }
}

impl Argument for [Buffer] {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<(Option<&'a str>, &'a Buffer)>) {
        leaves.extend(self.iter().map(|buffer| (None, buffer)));
    }
}

impl Argument for Vec<Buffer> {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<(Option<&'a str>, &'a Buffer)>) {
        self.as_slice().append_leaves(leaves);
    }
}

impl Argument for Outputs {
    fn append_leaves<'a>(&'a self, leaves: &mut Vec<(Option<&'a str>, &'a Buffer)>) {
        let names = self.keys.leaves().iter().map(|leaf| Some(leaf.name.as_str()));
        leaves.extend(names.zip(&self.buffers));
    }
}

/// The outputs of a call, on the device; they can be passed to the next one.
#[derive(Debug, Clone)]
pub struct Outputs {
    buffers: Vec<Buffer>,
    keys: Arc<KeyMap>,
}

impl Outputs {
    /// The outputs as a tree: the one that the exported function returned, or a tuple.
    pub fn to_params(&self) -> Params {
        Params::from_parts((*self.keys).clone(), self.buffers.clone())
    }

    /// The output of this name or path.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the names that look alike.
    pub fn get(&self, name: &str) -> Result<&Buffer> {
        self.keys.index(name).map(|index| &self.buffers[index])
    }

    /// The only output.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is not exactly one.
    pub fn single(&self) -> Result<&Buffer> {
        match &self.buffers[..] {
            [buffer] => Ok(buffer),
            buffers => Err(Error::InvalidArgument(format!(
                "one output was expected, but the program has {}",
                buffers.len()
            ))),
        }
    }

    /// Blocks until every output is there.
    ///
    /// # Errors
    /// The error of the execution.
    pub fn wait(&self) -> Result<()> {
        self.buffers.iter().try_for_each(Buffer::wait)
    }

    /// The buffers, in the program's order.
    pub fn into_buffers(self) -> Vec<Buffer> {
        self.buffers
    }
}

impl Deref for Outputs {
    type Target = [Buffer];
    fn deref(&self) -> &[Buffer] {
        &self.buffers
    }
}

impl Function {
    pub(super) fn new(executable: LoadedExecutable, exported: Option<Arc<Exported>>) -> Result<Function> {
        let signature = Signature::of(&executable).map(Arc::new);
        let out_tree = match &exported {
            Some(exported) => exported.out_tree.clone(),
            None => TreeDef::Tuple(vec![TreeDef::LEAF; executable.outputs().len()]),
        };
        if out_tree.leaf_count() != executable.outputs().len() {
            return Err(Error::InvalidArgument(format!(
                "`{}` has {} outputs, but its tree has {} leaves",
                executable.name(),
                executable.outputs().len(),
                out_tree.leaf_count()
            )));
        }
        // Names that clash on disk do not keep a function from being called.
        let keys = KeyMap::new(out_tree)
            .or_else(|_| KeyMap::new(TreeDef::Tuple(vec![TreeDef::LEAF; executable.outputs().len()])))?;
        Ok(Function { executable, signature, exported, out_keys: Arc::new(keys) })
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        self.executable.name()
    }

    /// The exported function behind this one, if it came from a `jax.export` artifact.
    pub fn exported(&self) -> Option<&Exported> {
        self.exported.as_deref()
    }

    /// What the program takes; `None` where the plugin does not say.
    pub fn signature(&self) -> Option<&Signature> {
        self.signature.as_deref()
    }

    /// The types and shapes of the outputs.
    pub fn outputs(&self) -> &[ArraySpec] {
        self.executable.outputs()
    }

    /// The executable behind the function.
    pub fn executable(&self) -> &LoadedExecutable {
        &self.executable
    }

    /// The client that the function was compiled by.
    pub fn client(&self) -> &Client {
        self.executable.client()
    }

    /// Calls the function. Nothing is donated. Does not wait for the execution to end.
    ///
    /// An exported function takes its positional arguments, and finds the leaves of a tree by their paths,
    /// whatever order they have. Of any other program, the leaves of the arguments, one after another, are what
    /// it takes.
    ///
    /// # Errors
    /// [`Error::Arguments`] listing every argument whose type or shape does not fit, before anything runs;
    /// [`Error::Pjrt`] when the plugin refuses.
    pub fn call(&self, arguments: &[&dyn Argument]) -> Result<Outputs> {
        self.call_with(arguments, &[])
    }

    /// Calls an exported function with positional and named arguments. As [`Function::call`].
    ///
    /// # Errors
    /// As for [`Function::call`].
    pub fn call_with(&self, arguments: &[&dyn Argument], named: &[(&str, &dyn Argument)]) -> Result<Outputs> {
        if let Some(exported) = &self.exported {
            return self.call_exported(exported, arguments, named);
        }
        if let Some((name, _)) = named.first() {
            return Err(Error::InvalidArgument(format!(
                "`{}` has no named arguments, and `{name}` was given; only jax.export artifacts have them",
                self.name()
            )));
        }
        let mut leaves = Vec::new();
        arguments.iter().for_each(|argument| argument.append_leaves(&mut leaves));
        self.check(&leaves)?;
        self.execute(leaves.into_iter().map(|(_, buffer)| Input::Borrow(buffer)).collect())
    }

    fn call_exported(
        &self,
        exported: &Exported,
        arguments: &[&dyn Argument],
        named: &[(&str, &dyn Argument)],
    ) -> Result<Outputs> {
        let leaves = bind(exported, arguments, named)
            .map_err(|problems| Error::Arguments { program: exported.function_name.clone(), problems })?;
        let mut inputs = Vec::with_capacity(exported.kept.len() + 1);
        // A program for several platforms is told first which one it is on.
        let index = self.platform_index(exported)?;
        inputs.extend(index.iter().map(Input::Borrow));
        inputs.extend(exported.kept.iter().map(|&position| Input::Borrow(leaves[position])));
        self.execute(inputs)
    }

    /// The position of this platform among those that the program was lowered for, on the device; `None` for a
    /// program of one platform.
    fn platform_index(&self, exported: &Exported) -> Result<Option<Buffer>> {
        if exported.platforms.len() < 2 {
            return Ok(None);
        }
        let platform = self.client().platform_name();
        let position = exported.platforms.iter().position(|known| known == platform).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "`{}` was exported for {}, and this device is {platform}",
                exported.function_name,
                exported.platforms.join(", ")
            ))
        })?;
        let device = self.executable.devices().first().ok_or_else(|| Error::NoDevice {
            platform: platform.to_owned(),
            reason: "the program runs on none".into(),
        })?;
        let spec = ArraySpec::new(DType::I32, []);
        self.client().buffer_from_slice(&spec, &(position as i32).to_le_bytes(), &device.into()).map(Some)
    }

    /// Calls the function with one input a parameter, some of which may be donated. Does not wait for the
    /// execution to end.
    ///
    /// # Errors
    /// As for [`Function::call`].
    pub fn call_inputs(&self, inputs: Vec<Input<'_>>) -> Result<Outputs> {
        self.check(&inputs.iter().map(|input| (None, input.buffer())).collect::<Vec<_>>())?;
        self.execute(inputs)
    }

    fn execute(&self, inputs: Vec<Input<'_>>) -> Result<Outputs> {
        let devices = self.executable.devices().len();
        if devices != 1 {
            return Err(Error::InvalidArgument(format!(
                "`{}` runs on {devices} devices; call its executable() with a list of arguments for each",
                self.name()
            )));
        }
        let mut execution = self.executable.execute(&[inputs])?;
        Ok(Outputs { buffers: execution.outputs.pop().unwrap_or_default(), keys: self.out_keys.clone() })
    }

    /// Compares the arguments with what the program takes.
    fn check(&self, leaves: &[(Option<&str>, &Buffer)]) -> Result<()> {
        let Some(signature) = self.signature() else { return Ok(()) };
        let given: Vec<_> = leaves.iter().map(|(name, buffer)| (*name, buffer.spec())).collect();
        let problems = mismatches(&signature.parameters, &given);
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Arguments { program: self.name().to_owned(), problems })
    }
}

/// One sentence for every argument that does not fit.
fn mismatches(expected: &[ArraySpec], given: &[(Option<&str>, &ArraySpec)]) -> Vec<String> {
    let label = |position: usize, name: Option<&str>| match name {
        Some(name) => format!("argument {position} (`{name}`)"),
        None => format!("argument {position}"),
    };
    let mut problems = Vec::new();
    for (position, (spec, (name, found))) in expected.iter().zip(given).enumerate() {
        if spec != *found {
            problems.push(format!("{}: {spec} was expected, but {found} was given", label(position, *name)));
        }
    }
    for (position, (name, found)) in given.iter().enumerate().skip(expected.len()) {
        problems.push(format!(
            "{}: there is no such parameter, the program takes {}; {found} was given",
            label(position, *name),
            expected.len()
        ));
    }
    for (position, spec) in expected.iter().enumerate().skip(given.len()) {
        problems.push(format!("{}: {spec} was expected, but nothing was given", label(position, None)));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn every_argument_that_does_not_fit_is_listed() {
        let f32x3 = ArraySpec::new(DType::F32, [3]);
        let i32x3 = ArraySpec::new(DType::I32, [3]);
        let scalar = ArraySpec::new(DType::F32, []);
        let expected = [f32x3.clone(), f32x3.clone(), scalar];
        assert_eq!(
            mismatches(&expected, &[(Some("w"), &i32x3), (None, &f32x3)]),
            [
                "argument 0 (`w`): float32[3] was expected, but int32[3] was given",
                "argument 2: float32[] was expected, but nothing was given"
            ]
        );
        assert_eq!(
            mismatches(&expected[..1], &[(None, &f32x3), (Some("b"), &f32x3)]),
            ["argument 1 (`b`): there is no such parameter, the program takes 1; float32[3] was given"]
        );
    }
}
