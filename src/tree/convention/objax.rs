//! Objax: variables are named by the path through modules' classes and attributes, all on one level.

/// What separates a name from the variable's type, where Python safejax wrote it.
const TYPE_SEPARATOR: &str = "::";

/// The types that a variable can have in `objax.variable`.
const TYPES: [&str; 6] = ["BaseVar", "BaseState", "RandomState", "TrainRef", "StateVar", "TrainVar"];

/// Whether this looks like the name of an Objax variable.
pub fn is_name(name: &str) -> bool {
    name.starts_with('(') && name.contains(')')
        || name.rsplit_once(TYPE_SEPARATOR).is_some_and(|(_, kind)| TYPES.contains(&kind))
}

/// The name of the variable without its type: what stands before the first `::`.
pub fn without_type(name: &str) -> &str {
    name.split_once(TYPE_SEPARATOR).map_or(name, |(variable, _)| variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_variable_is_cut_off() {
        for kind in TYPES {
            let name = format!("(Net).x(Linear).w::{kind}");
            assert!(is_name(&name));
            assert_eq!(without_type(&name), "(Net).x(Linear).w");
        }
        assert!(is_name("a.b::TrainVar"));
        assert!(!is_name("a::b") && !is_name("params.kernel"));
    }
}
