//! Writing bytecode: the tables as they are, and the operations anew.

use bytes::Bytes;

use super::encoding::Output;
use super::module::{Block, Entry, Module, Operation, Region};
use super::read::{BYTECODE_VERSION, has, section};
use crate::program::version::MLIR_BYTECODE_MAGIC;

impl Module {
    /// The module as bytecode. Of the same module, the same bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut file = Output::default();
        file.bytes(MLIR_BYTECODE_MAGIC);
        file.number(BYTECODE_VERSION);
        file.bytes(self.producer.as_bytes());
        file.byte(0);
        // The order in which MLIR writes them.
        file.section(section::DIALECTS, &self.dialects());
        let (offsets, entries) = self.entries();
        file.section(section::OFFSETS, &offsets);
        file.section(section::ENTRIES, &entries);
        file.section(section::IR, &self.operations());
        for (id, content) in &self.resources {
            file.section(*id, content);
        }
        file.section(section::STRINGS, &self.strings());
        file.section(section::PROPERTIES, &self.properties());
        file.0
    }

    fn strings(&self) -> Vec<u8> {
        let mut output = Output::default();
        output.number(self.strings.len() as u64);
        for text in self.strings.iter().rev() {
            output.number(text.len() as u64 + 1);
        }
        for text in &self.strings {
            output.bytes(text);
            output.byte(0);
        }
        output.0
    }

    fn dialects(&self) -> Vec<u8> {
        let mut output = Output::default();
        output.number(self.dialects.len() as u64);
        for dialect in &self.dialects {
            output.flagged(dialect.name.into(), dialect.version.is_some());
            if let Some(version) = &dialect.version {
                output.section(section::DIALECT_VERSIONS, version);
            }
        }
        output.number(self.names.len() as u64);
        for group in self.names.chunk_by(|a, b| a.dialect == b.dialect) {
            output.number(group[0].dialect.into());
            output.number(group.len() as u64);
            for name in group {
                output.flagged(name.name.into(), name.is_registered);
            }
        }
        output.0
    }

    /// The sizes of the attributes and types, and the entries themselves.
    fn entries(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut offsets, mut data) = (Output::default(), Output::default());
        offsets.number(self.attributes.len() as u64);
        offsets.number(self.types.len() as u64);
        let groups = |table: &[Entry], offsets: &mut Output, data: &mut Output| {
            for group in table.chunk_by(|a, b| a.dialect == b.dialect) {
                offsets.number(group[0].dialect.into());
                offsets.number(group.len() as u64);
                for entry in group {
                    offsets.flagged(entry.bytes.len() as u64, entry.is_encoded);
                    data.bytes(&entry.bytes);
                }
            }
        };
        groups(&self.attributes, &mut offsets, &mut data);
        groups(&self.types, &mut offsets, &mut data);
        (offsets.0, data.0)
    }

    fn properties(&self) -> Vec<u8> {
        let mut output = Output::default();
        output.number(self.properties.len() as u64);
        let write = |properties: &Bytes| {
            output.number(properties.len() as u64);
            output.bytes(properties);
        };
        self.properties.iter().for_each(write);
        output.0
    }

    fn operations(&self) -> Vec<u8> {
        let mut writer =
            IrWriter { numbers: vec![0; self.values as usize], next: 0, output: Output::default() };
        writer.block(&self.body);
        writer.output.0
    }
}

/// Writes operations, and numbers values as the file does: within the nearest isolated region, those of a region before
/// those of the regions in it.
struct IrWriter {
    /// The numbers of values in the file, by those that they have here.
    numbers: Vec<u64>,
    /// The next number in the file.
    next: u64,
    output: Output,
}

impl IrWriter {
    /// Numbers the values of a region, and returns the number after them.
    fn number_values(&mut self, region: &Region) {
        let mut number = |first: u32, count: usize| {
            for value in first as usize..first as usize + count {
                self.numbers[value] = self.next;
                self.next += 1;
            }
        };
        for block in &region.blocks {
            number(block.first_argument, block.arguments.len());
            for operation in &block.operations {
                number(operation.first_result, operation.results.len());
            }
        }
    }

    fn region(&mut self, region: &Region) {
        self.output.number(region.blocks.len() as u64);
        if region.blocks.is_empty() {
            return;
        }
        self.output.number(region.own_values() as u64);
        let outer = self.next;
        self.number_values(region);
        region.blocks.iter().for_each(|block| self.block(block));
        self.next = outer;
    }

    fn block(&mut self, block: &Block) {
        let output = &mut self.output;
        output.flagged(block.operations.len() as u64, !block.arguments.is_empty());
        if !block.arguments.is_empty() {
            output.number(block.arguments.len() as u64);
            for argument in &block.arguments {
                output.flagged(argument.r#type.into(), argument.location.is_some());
                if let Some(location) = argument.location {
                    output.number(location.into());
                }
            }
            // No orders of uses.
            output.byte(0);
        }
        block.operations.iter().for_each(|operation| self.operation(operation));
    }

    fn operation(&mut self, operation: &Operation) {
        let Operation { discardable, properties, results, operands, regions, .. } = operation;
        let output = &mut self.output;
        let parts = [
            (has::ATTRIBUTES, discardable.is_some()),
            (has::PROPERTIES, properties.is_some()),
            (has::RESULTS, !results.is_empty()),
            (has::OPERANDS, !operands.is_empty()),
            (has::REGIONS, !regions.is_empty()),
        ];
        output.number(operation.name.into());
        output.byte(parts.iter().fold(0, |mask, &(bit, has)| if has { mask | bit } else { mask }));
        output.number(operation.location.into());
        discardable.iter().chain(properties).for_each(|&index| output.number(index.into()));
        if !results.is_empty() {
            output.number(results.len() as u64);
            results.iter().for_each(|&index| output.number(index.into()));
        }
        if !operands.is_empty() {
            output.number(operands.len() as u64);
            operands.iter().for_each(|&value| output.number(self.numbers[value as usize]));
        }
        if regions.is_empty() {
            return;
        }
        output.flagged(regions.len() as u64, operation.is_isolated);
        if !operation.is_isolated {
            regions.iter().for_each(|region| self.region(region));
            return;
        }
        let outer = (std::mem::take(&mut self.output), std::mem::take(&mut self.next));
        regions.iter().for_each(|region| self.region(region));
        let content = std::mem::replace(&mut self.output, outer.0);
        self.next = outer.1;
        self.output.section(section::IR, &content.0);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::program::artifact::Program;

    /// Modules of a directory that the variable names, such as JAX's own for its tests of compatibility.
    #[test]
    fn other_modules_are_written_as_they_were_read() {
        let Some(directory) = std::env::var_os("SAFEJAX_TEST_MODULES") else { return };
        let (mut same, mut other, mut refused) = (0, Vec::new(), Vec::new());
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let file = Bytes::from(std::fs::read(&path).unwrap());
            match Module::read(&file) {
                Ok(module) if module.write() == file => same += 1,
                Ok(module) => {
                    let again = Module::read(&module.write().into()).unwrap();
                    assert!(again.write() == module.write(), "{}", path.display());
                    other.push(path);
                }
                Err(problem) => refused.push(format!("{}: {problem}", path.display())),
            }
        }
        println!("{same} are the same, {} differ, and {} are refused", other.len(), refused.len());
        println!("{other:#?} {refused:#?}");
    }

    #[test]
    fn modules_are_written_as_they_were_read() {
        let exports = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/exports");
        let mut counts = [0, 0];
        for entry in std::fs::read_dir(exports).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "jaxexport") {
                continue;
            }
            let program = Program::open(&path).unwrap();
            let module = Module::read(program.code()).unwrap();
            let written = Bytes::from(module.write());
            let is_same = written == program.code();
            counts[usize::from(is_same)] += 1;
            // jax 0.4 wrote the orders of uses, too.
            assert!(is_same || path.to_str().unwrap().contains("jax0438"), "{}", path.display());
            let again = Module::read(&written).unwrap();
            assert!(again.write() == written, "{}", path.display());
        }
        assert!(counts[1] > 20, "{counts:?}");
    }
}
