//! Calling a compiled program: arguments flattened and checked, outputs left on the device.

use std::ops::Deref;

use super::signature::Signature;
use crate::array::ArraySpec;
use crate::error::{Error, Result};
use crate::params::Params;
use crate::pjrt::{Buffer, Client, Input, LoadedExecutable};

/// A compiled program that can be called. Cheap to clone; calls from several threads may overlap.
#[derive(Debug, Clone)]
pub struct Function {
    executable: LoadedExecutable,
    signature: Option<std::sync::Arc<Signature>>,
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
        self.buffers.as_slice().append_leaves(leaves);
    }
}

/// The outputs of a call, on the device; they can be passed to the next one.
#[derive(Debug, Clone)]
pub struct Outputs {
    buffers: Vec<Buffer>,
}

impl Outputs {
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
    pub(super) fn new(executable: LoadedExecutable) -> Result<Function> {
        let signature = Signature::of(&executable).map(std::sync::Arc::new);
        Ok(Function { executable, signature })
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        self.executable.name()
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

    /// Calls the function with buffers and trees; their leaves, one after another, are its arguments.
    /// Nothing is donated. Does not wait for the execution to end.
    ///
    /// # Errors
    /// [`Error::Arguments`] listing every argument whose type or shape does not fit, before anything runs;
    /// [`Error::Pjrt`] when the plugin refuses.
    pub fn call(&self, arguments: &[&dyn Argument]) -> Result<Outputs> {
        let mut leaves = Vec::new();
        arguments.iter().for_each(|argument| argument.append_leaves(&mut leaves));
        self.check(&leaves)?;
        self.execute(leaves.into_iter().map(|(_, buffer)| Input::Borrow(buffer)).collect())
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
        Ok(Outputs { buffers: execution.outputs.pop().unwrap_or_default() })
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
