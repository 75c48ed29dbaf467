//! What lays leaves over a tree: an exported function, or a template.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;

use common::{data, fails, safejax, succeeds};
use safejax::Checkpoint;

#[test]
fn leaves_without_names_are_laid_over_what_a_function_takes() {
    let at = |name: &str| data("equinox").join(name);
    let call = |model: &Path| {
        let (value, x) = (format!("0={}", model.display()), format!("1={}", at("x.npy").display()));
        let mut command = safejax();
        command.arg("run").arg(at("mlp.jaxexport")).args(["--arg", &value, "--arg", &x]);
        command.args(["--tolerance", &common::tolerance().to_string(), "--expect"]).arg(at("y.npy"));
        command
    };
    succeeds(&mut call(&at("mlp.eqx")));
    let others = fails(&mut call(&at("model.eqx")));
    assert!(others.contains("19 leaves were given, and it has 6"), "{others}");
}

#[test]
fn a_template_names_them_for_other_files() {
    let at = |name: &str| data("equinox").join(name);
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("named.safetensors");
    let template = format!("{}#0", at("mlp.jaxexport").display());
    let convert = |from: &Path, template: &str| {
        let mut command = safejax();
        command.arg("convert").arg(from).arg(&out).args(["--template", template]);
        command
    };
    succeeds(&mut convert(&at("mlp.eqx"), &template));
    let named = Checkpoint::open(&out).unwrap();
    let numbered = Checkpoint::open(at("mlp.eqx")).unwrap();
    assert_eq!(named.read("layer_1.a_weight").unwrap(), numbered.read("2").unwrap());
    // A checkpoint is a template too, and so is a part of one.
    let of_file = out.with_file_name("template.safetensors");
    std::fs::rename(&out, &of_file).unwrap();
    succeeds(&mut convert(&at("mlp.eqx"), of_file.to_str().unwrap()));
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&of_file).unwrap());
    let part = fails(&mut convert(&at("mlp.eqx"), &format!("{}#layer_1", of_file.display())));
    assert!(part.contains("2 in the template, and 6 in the file"), "{part}");
    let other = fails(&mut convert(&at("model.eqx"), &template));
    assert!(other.contains("6 in the template, and 19 in the file"), "{other}");
    let missing = fails(&mut convert(&at("mlp.eqx"), &template.replace("#0", "#7")));
    assert!(missing.contains("args[7]"), "{missing}");
}
