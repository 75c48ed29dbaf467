//! A module as text for people: MLIR's generic form, with types as StableHLO writes them.

use std::collections::HashMap;
use std::fmt::Write;

use super::Result;
use super::module::{AttributeId, Block, Module, Operation, TypeId, Value};
use super::schema;
use super::tables::{Shown, Tables};

/// Elements of an array that are shown.
const SHOWN_ELEMENTS: usize = 16;

/// Bytes of elements that are no integers that are shown: one of them.
const SHOWN_BYTES: usize = 8;

/// Characters of a text that are shown.
const SHOWN_CHARS: usize = 160;

/// How deep attributes are followed.
const MAX_DEPTH: usize = 8;

/// The module as text.
///
/// # Errors
/// When its tables are damaged.
pub fn text(module: &Module) -> Result<String> {
    let mut printer =
        Printer { tables: Tables::of(module)?, names: HashMap::new(), next: 0, text: String::new() };
    for operation in &module.body.operations {
        printer.operation(operation, 0)?;
    }
    Ok(printer.text)
}

struct Printer {
    tables: Tables,
    /// The numbers that values are shown by: those of each function from zero on.
    names: HashMap<Value, usize>,
    next: usize,
    text: String,
}

impl Printer {
    fn name(&mut self, value: Value) -> String {
        let next = &mut self.next;
        let number = self.names.entry(value).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        format!("%{number}")
    }

    fn indent(&mut self, depth: usize) {
        self.text.extend(std::iter::repeat_n("  ", depth));
    }

    fn types(&self, types: &[TypeId]) -> String {
        let types: Vec<String> = types.iter().map(|&id| self.tables.type_text(id)).collect();
        types.join(", ")
    }

    fn operation(&mut self, operation: &Operation, depth: usize) -> Result<()> {
        if self.tables.name(operation.name) == Some("func_v1") {
            self.next = 0;
        }
        self.indent(depth);
        let count = operation.results.len() as Value;
        let results: Vec<String> =
            (0..count).map(|result| self.name(operation.first_result + result)).collect();
        if !results.is_empty() {
            let _ = write!(self.text, "{} = ", results.join(", "));
        }
        let operands: Vec<String> = operation.operands.iter().map(|&value| self.name(value)).collect();
        let _ = write!(self.text, "\"{}\"({})", self.tables.full_name(operation.name), operands.join(", "));
        self.properties(operation)?;
        if !operation.regions.is_empty() {
            self.text += " (";
            for (position, region) in operation.regions.iter().enumerate() {
                self.text += if position == 0 { "{\n" } else { ", {\n" };
                for block in &region.blocks {
                    self.block(block, depth + 1)?;
                }
                self.indent(depth);
                self.text += "}";
            }
            self.text += ")";
        }
        if let Some(dictionary) = operation.discardable {
            let _ = write!(self.text, " {}", self.attribute(dictionary, 0));
        }
        if !operation.results.is_empty() {
            let _ = write!(self.text, " -> {}", self.types(&operation.results));
        }
        self.text += "\n";
        Ok(())
    }

    fn properties(&mut self, operation: &Operation) -> Result<()> {
        let names = self.tables.name(operation.name).and_then(schema::attributes);
        // Of an operation that is not known, the properties are not known to be attributes.
        let Some(names) = names.filter(|_| operation.properties.is_some()) else { return Ok(()) };
        let attributes = self.tables.attributes_of(operation)?;
        let shown: Vec<String> = names
            .iter()
            .zip(attributes)
            .map(|(name, attribute)| format!("{name} = {}", self.attribute(attribute, 0)))
            .collect();
        let _ = write!(self.text, " <{{{}}}>", shown.join(", "));
        Ok(())
    }

    fn block(&mut self, block: &Block, depth: usize) -> Result<()> {
        if !block.arguments.is_empty() {
            self.indent(depth);
            let mut arguments = Vec::new();
            for (position, argument) in block.arguments.iter().enumerate() {
                let name = self.name(block.first_argument + position as Value);
                arguments.push(format!("{name}: {}", self.tables.type_text(argument.r#type)));
            }
            let _ = writeln!(self.text, "^({}):", arguments.join(", "));
        }
        block.operations.iter().try_for_each(|operation| self.operation(operation, depth))
    }

    fn attribute(&self, id: AttributeId, depth: usize) -> String {
        if depth > MAX_DEPTH {
            return "…".into();
        }
        let list = |items: Vec<String>| items.join(", ");
        match self.tables.shown(id) {
            Shown::Text(text) => format!("{:?}", shortened(&text)),
            Shown::Number(number) => number.to_string(),
            Shown::Boolean(value) => value.to_string(),
            Shown::Type(id) => self.tables.type_text(id),
            Shown::Array(items) => {
                format!("[{}]", list(items.into_iter().map(|item| self.attribute(item, depth + 1)).collect()))
            }
            Shown::Dictionary(entries) => {
                let entry = |(key, value): (AttributeId, AttributeId)| {
                    let key = self.tables.text(key).unwrap_or("?");
                    format!("{key} = {}", self.attribute(value, depth + 1))
                };
                format!("{{{}}}", list(entries.into_iter().map(entry).collect()))
            }
            Shown::Elements(r#type, elements) => {
                let mut shown: Vec<String> =
                    elements.iter().take(SHOWN_ELEMENTS).map(ToString::to_string).collect();
                if elements.len() > SHOWN_ELEMENTS {
                    shown.push("…".into());
                }
                format!("dense<[{}]> : {}", list(shown), self.tables.type_text(r#type))
            }
            Shown::Bytes(r#type, data) => {
                let shown = if data.len() <= SHOWN_BYTES {
                    // As a number: the highest byte first.
                    let digits: String = data.iter().rev().map(|byte| format!("{byte:02X}")).collect();
                    format!("0x{digits}")
                } else {
                    format!("{} bytes", data.len())
                };
                format!("dense<{shown}> : {}", self.tables.type_text(r#type))
            }
            Shown::Other(name) => name,
        }
    }
}

/// The beginning of a text.
fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
