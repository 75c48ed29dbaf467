//! Functions exported with symbolic dimensions: called at sizes that JAX was called at, and refused where JAX refuses.
//!
//! The cases are of jax 0.12.0.1; `meta.json` says what each is, and `scripts/symbolic_programs.py` runs many more.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Log, client, data, fails, safejax, succeeds};
use safejax::format::npy;
use safejax::pjrt::Input;
use safejax::{Argument, CompileOptions, Error, Function, HostArray, Params, Program};
use serde_json::Value;

const CASES: [&str; 4] = ["attention", "linear", "pooling", "recurrence"];

fn directory(case: &str) -> PathBuf {
    data("symbolic").join(case)
}

fn meta(case: &str) -> Value {
    serde_json::from_slice(&std::fs::read(directory(case).join("meta.json")).unwrap()).unwrap()
}

fn program(case: &str) -> Program {
    Program::open(directory(case).join(format!("{case}.jaxexport"))).unwrap()
}

fn compiled(case: &str) -> Function {
    client().compile(&program(case)).unwrap()
}

/// An argument of a case: an array or a tree.
enum Given {
    Array(HostArray),
    Tree(Params),
}

fn given(case: &str, run: &Value) -> Vec<Given> {
    let load = |argument: &Value| {
        let path = directory(case).join(argument[1].as_str().unwrap());
        match path.extension().unwrap().to_str().unwrap() {
            "npy" => Given::Array(npy::read(path, None).unwrap()),
            _ => Given::Tree(Params::load(client(), path).unwrap()),
        }
    };
    run["args"].as_array().unwrap().iter().map(load).collect()
}

fn call(function: &Function, given: &[Given]) -> safejax::Result<safejax::program::OutputTransfer> {
    let arguments: Vec<&dyn Argument> = given
        .iter()
        .map(|given| match given {
            Given::Array(array) => array as &dyn Argument,
            Given::Tree(tree) => tree as &dyn Argument,
        })
        .collect();
    function.call(&arguments)?.start_to_host()
}

fn is_close(found: &HostArray, expected: &HostArray) -> bool {
    found.spec() == expected.spec()
        && found
            .to_vec::<f32>()
            .unwrap()
            .iter()
            .zip(expected.to_vec::<f32>().unwrap())
            .all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs()))
}

/// Calls the function of a case at all its sizes, and holds what it gives against what JAX gave.
fn check_at_every_size(case: &str, function: &Function) {
    for run in meta(case)["cases"].as_array().unwrap() {
        let found = call(function, &given(case, run)).unwrap().wait().unwrap();
        let expected = run["outputs"].as_array().unwrap();
        assert_eq!(found.leaves().len(), expected.len());
        for (found, expected) in found.leaves().iter().zip(expected) {
            let path = directory(case).join(expected["file"].as_str().unwrap());
            let expected = npy::read(path, None).unwrap();
            assert!(is_close(found, &expected), "{case} {}: {}", run["sizes"], found.spec());
        }
    }
}

#[test]
fn functions_are_what_jax_says_at_every_size() {
    CASES.into_iter().for_each(|case| check_at_every_size(case, &compiled(case)));
}

#[test]
fn sizes_that_jax_refuses_are_refused_in_its_words() {
    for case in CASES {
        let (meta, function) = (meta(case), compiled(case));
        for run in meta["errors"].as_array().unwrap() {
            let Err(error) = call(&function, &given(case, run)) else { panic!("{case} {}", run["sizes"]) };
            assert!(matches!(error, Error::Arguments { .. }), "{error}");
            // Its own text, with values where JAX's messages have them.
            let python = run["python"].as_str().unwrap().strip_prefix("ValueError: ").unwrap();
            assert!(error.to_string().contains(python), "{error}\nnot\n{python}");
        }
    }
}

#[test]
fn ranks_types_and_fixed_sizes_are_checked_before() {
    let function = compiled("recurrence");
    let ones = |shape: &[usize]| HostArray::from_slice(shape, &vec![1f32; shape.iter().product()]).unwrap();
    let flag = HostArray::from_slice(&[], &[1f32]).unwrap();
    let error = function.call(&[&ones(&[3, 4]), &ones(&[2, 3]), &flag]).unwrap_err().to_string();
    for problem in ["args[0]: float32[3,3]", "args[1]: float32[b,t,3]", "args[2]: bool[]"] {
        assert!(error.contains(problem), "{error}");
    }
}

/// How often something was compiled for new sizes meanwhile, by any of so many threads.
fn compilations(threads: usize, work: impl Fn() + Sync) -> usize {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = Arc::new(tracing_subscriber::fmt().with_writer(move || writer.clone()).finish());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let subscriber = subscriber.clone();
            let work = &work;
            scope.spawn(move || tracing::subscriber::with_default(subscriber, work));
        }
    });
    let text = log.text();
    text.matches("compiled for new sizes").count()
}

fn linear_inputs(rows: usize) -> (Params, HostArray) {
    let params = Params::load(client(), directory("linear").join("0.safetensors")).unwrap();
    (params, HostArray::from_slice(&[rows, 3], &vec![1f32; rows * 3]).unwrap())
}

#[test]
fn each_size_is_compiled_once_and_the_last_ones_are_kept() {
    let mut options = CompileOptions::default();
    options.kept_sizes = 2;
    let function = client().compile_with(&program("linear"), &options).unwrap();
    let call = |rows: usize| {
        let (params, x) = linear_inputs(rows);
        let output = function.call(&[&params, &x]).unwrap();
        assert_eq!(output.single().unwrap().spec().shape, [rows, 2]);
    };
    // Several threads want one size, and compile it once.
    assert_eq!(compilations(4, || call(5)), 1);
    assert_eq!(compilations(1, || function.prepare(&[("b", 6)]).unwrap()), 1);
    assert_eq!(compilations(1, || (5..7).for_each(&call)), 0);
    // A third one takes the place of the one that was used the longest time ago.
    assert_eq!(compilations(1, || [7, 6, 7].into_iter().for_each(&call)), 1);
    assert_eq!(compilations(1, || call(5)), 1);
    let error = function.prepare(&[("c", 6)]).unwrap_err().to_string();
    assert!(error.contains("there is no dimension variable `c`; `<lambda>` has b"), "{error}");
    assert!(
        function
            .prepare(&[])
            .unwrap_err()
            .to_string()
            .contains("no size is given for the dimension variable `b`")
    );
    // What is refused takes nobody's place.
    assert!(function.prepare(&[("b", 0)]).unwrap_err().to_string().contains("Expected value >= 1"));
    assert_eq!(compilations(1, || call(5)), 0);
}

/// A case whose variables are padded to these sizes.
fn padded(case: &str, sizes: &[(&str, &[usize])]) -> safejax::Result<Function> {
    let mut options = CompileOptions::default();
    options.padded_sizes = sizes.iter().map(|(name, sizes)| ((*name).to_owned(), sizes.to_vec())).collect();
    client().compile_with(&program(case), &options)
}

#[test]
fn padded_calls_share_executables_and_give_what_others_give() {
    // A causal mask and rows that do not mix: padding changes nothing.
    let function = padded("attention", &[("b", &[4, 2]), ("t", &[16])]).unwrap();
    assert_eq!(compilations(1, || function.compile_buckets().unwrap()), 2);
    assert_eq!(compilations(1, || check_at_every_size("attention", &function)), 0);
    let x = |rows: usize, length: usize| {
        HostArray::from_slice(&[rows, length, 6], &vec![1f32; rows * length * 6]).unwrap()
    };
    let table = HostArray::from_slice(&[16, 6], &[0f32; 96]).unwrap();
    let refused = |rows, length, other| {
        function.call(&[&table, &x(rows, length), &x(other, length)]).unwrap_err().to_string()
    };
    assert!(refused(5, 3, 5).contains("`b` is 5, and the largest size that it is padded to is 4"));
    // What the function says of sizes, it says of those that were given.
    assert!(refused(1, 17, 1).contains("symbolic shape constraint t<=16"));
    assert!(refused(2, 3, 3).contains("Found inconsistency between dimension size"));
    let error = padded("attention", &[("n", &[4])]).unwrap_err().to_string();
    assert!(
        error.contains("`n` is to be padded, and `f` has no such dimension variable; it has b, t"),
        "{error}"
    );
    for sizes in [&[][..], &[0, 4]] {
        assert!(
            padded("attention", &[("b", sizes)]).unwrap_err().to_string().contains("from 1 to 2147483647")
        );
    }
    // The size that is padded to is not the caller's.
    let function = padded("attention", &[("t", &[32])]).unwrap();
    let error = function.call(&[&table, &x(2, 3), &x(2, 3)]).unwrap_err().to_string();
    assert!(error.contains("the sizes that are padded to are not among those of the function"), "{error}");
    // The other variable has any size, and an argument is of two of it.
    let function = padded("pooling", &[("b", &[3])]).unwrap();
    check_at_every_size("pooling", &function);
}

#[test]
fn bound_and_converted_arguments_are_given_at_any_size() {
    let (params, x) = linear_inputs(4);
    let bound = compiled("linear").with_conversion(safejax::Conversion::Convert).bind(&[&params]).unwrap();
    let expected = compiled("linear").call(&[&params, &x]).unwrap().single().unwrap().to_host().unwrap();
    let bits: Vec<f64> = vec![1.0; 12];
    let wide = HostArray::from_slice(&[4, 3], &bits).unwrap();
    assert_eq!(bound.call(&[&wide]).unwrap().single().unwrap().to_host().unwrap(), expected);
}

fn opened(name: &str) -> Program {
    Program::open(data("symbolic").join(format!("{name}.jaxexport"))).unwrap()
}

#[test]
fn of_several_platforms_the_devices_own_is_run() {
    let x = HostArray::from_slice(&[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let function = client().compile(&opened("platforms")).unwrap();
    if common::is_cpu() {
        let sum = function.call(&[&x]).unwrap().single().unwrap().to_host().unwrap();
        assert_eq!(sum.to_vec::<f32>().unwrap(), [10.0, 14.0, 18.0]);
    }
    // Of a static one, too: the compiler does not get the other platforms' code.
    let long = HostArray::from_slice(&[2, 40], &[1f32; 80]).unwrap();
    let sums = client().compile(&opened("static_platforms")).unwrap().call(&[&long]).unwrap();
    let sums = sums.single().unwrap().to_host().unwrap().to_vec::<f32>().unwrap();
    assert_eq!((sums[39], sums[40]), (40.0, 1.0));
    let cuda = opened("platforms").refined(&[("b", 2)], Some("cuda")).unwrap();
    assert_eq!(cuda.exported().unwrap().platforms, ["cuda"]);
    let error = opened("platforms").refined(&[("b", 2)], Some("rocm")).unwrap_err().to_string();
    assert!(error.contains("was exported for tpu, cpu, cuda, not for rocm"), "{error}");
}

#[test]
fn donated_arguments_and_arrays_without_elements_are_given_as_to_any_function() {
    let function = client().compile(&opened("donated")).unwrap();
    let x = HostArray::from_slice(&[3, 2], &[1f32; 6]).unwrap();
    let (a, b) = (client().put(&x).unwrap(), client().put(&x).unwrap());
    let sum = function.call(&[&safejax::Donate(a.clone()), &b]).unwrap();
    assert_eq!(sum.single().unwrap().to_host().unwrap().to_vec::<f32>().unwrap(), [7.0; 6]);
    assert!(a.to_host().is_err() || !common::is_cpu());
    let function = client().compile(&opened("zero")).unwrap();
    for rows in [0, 1, 2] {
        let x = HostArray::from_slice(&[rows, 2], &vec![1f32; 2 * rows]).unwrap();
        let outputs = function.call(&[&x]).unwrap().start_to_host().unwrap().wait().unwrap();
        assert_eq!(outputs.leaves()[0].spec().shape, [rows, 2]);
        assert_eq!(outputs.leaves()[1].to_vec::<f32>().unwrap(), [2.0 * rows as f32]);
    }
}

#[test]
fn at_known_sizes_it_runs_on_several_devices() {
    if !common::is_cpu() {
        return;
    }
    let client = client().plugin().client().device_count(2).build().unwrap();
    let program = opened("sharded").refined(&[("b", 2)], None).unwrap();
    let function = client.compile(&program).unwrap();
    let shard = |index: usize, values: &[f32]| {
        let array = HostArray::from_slice(&[2, 3], values).unwrap();
        vec![Input::Donate(client.put_on(&array, client.device(index).unwrap()).unwrap())]
    };
    let (first, second) = ([1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [7f32, 8.0, 9.0, 10.0, 11.0, 12.0]);
    let run = function.executable().unwrap().execute(&[shard(0, &first), shard(1, &second)]).unwrap();
    let values = |device: usize, output: usize| {
        run.outputs[device][output].to_host().unwrap().to_vec::<f32>().unwrap()
    };
    assert_eq!(values(0, 0), [-4.5, -4.5, -4.5, -1.5, -1.5, -1.5]);
    assert_eq!(values(1, 0), [1.5, 1.5, 1.5, 4.5, 4.5, 4.5]);
    assert_eq!((values(0, 1), values(1, 1)), (vec![78.0], vec![78.0]));
    // A call takes the whole, deals it out, and finds the sizes.
    let x = HostArray::from_slice(&[4, 3], &(1..13).map(|one| one as f32).collect::<Vec<_>>()).unwrap();
    for function in [&function, &client.compile(&opened("sharded")).unwrap()] {
        let outputs = function.call(&[&x]).unwrap();
        let all: Vec<f32> = outputs.iter().flat_map(|output| output.to_vec::<f32>().unwrap()).collect();
        assert_eq!(all, [-4.5, -4.5, -4.5, -1.5, -1.5, -1.5, 1.5, 1.5, 1.5, 4.5, 4.5, 4.5, 78.0]);
    }
}

#[test]
fn the_command_line_shows_variables_constraints_and_refined_programs() {
    let file = directory("attention").join("attention.jaxexport");
    let inspect = |options: &[&str]| {
        let mut command = safejax();
        command.arg("inspect").arg(&file).args(options);
        command
    };
    let shown = succeeds(&mut inspect(&[]));
    assert!(shown.contains("dimension variables: b, t\nconstraints: t<=16\n"), "{shown}");
    let shown = succeeds(&mut inspect(&["--sizes", "b=2,t=5"]));
    assert!(shown.contains("float32[2,5,6]") && !shown.contains("[b,t,6]"), "{shown}");
    let text = succeeds(&mut inspect(&["--sizes", "b=2,t=5", "--text"]));
    assert!(text.contains("\"vhlo.dot_general_v2\"") && text.contains("tensor<2x5x6xf32>"), "{text}");
    assert!(!text.contains('?'), "{text}");
    assert!(succeeds(&mut inspect(&["--text"])).contains("tensor<?x?x6xf32>"));
    assert!(fails(&mut inspect(&["--sizes", "b=2,t=17"])).contains("symbolic shape constraint t<=16"));
    assert!(
        fails(&mut inspect(&["--sizes", "b=2"]))
            .contains("no size is given for the dimension variable `t`; `f` has b, t")
    );
    assert!(fails(&mut inspect(&["--sizes", "b=2,t=5,b=3"])).contains("`b` is given twice"));
    assert!(succeeds(&mut inspect(&["--sizes", "b = 2, t=5"])).contains("float32[2,5,6]"));
    let several = data("symbolic").join("platforms.jaxexport");
    let mut command = safejax();
    command.arg("inspect").arg(several).args(["--sizes", "b=2", "--platform", "cuda"]);
    assert!(succeeds(&mut command).contains("for cuda on 1 device"));
    let json: Value = serde_json::from_str(&succeeds(&mut inspect(&["--json"]))).unwrap();
    assert_eq!(json["dimension_variables"], serde_json::json!(["b", "t"]));
    assert_eq!(json["constraints"], serde_json::json!(["t<=16"]));
    let json: Value =
        serde_json::from_str(&succeeds(&mut inspect(&["--json", "--sizes", "b=2,t=5"]))).unwrap();
    assert_eq!((&json["sizes"]["t"], &json["in_avals"][1]), (&5.into(), &"float32[2,5,6]".into()));
}

/// Reads a changed artifact, and refines it where it can be read.
fn refine_changed(bytes: Vec<u8>) {
    let Ok(program) = Program::from_bytes(bytes) else { return };
    let Some(exported) = program.exported() else { return };
    let sizes: Vec<(String, usize)> =
        exported.dimension_variables().into_iter().map(|name| (name, 4)).collect();
    let sizes: Vec<(&str, usize)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let _ = program.refined(&sizes, None);
    let _ = program.stablehlo_text();
    let _ = program.constraints();
}

#[test]
fn a_damaged_artifact_is_refused_or_refined_and_never_more() {
    let files = CASES.map(|case| directory(case).join(format!("{case}.jaxexport")));
    let others = ["platforms", "donated"].map(|name| data("symbolic").join(format!("{name}.jaxexport")));
    for file in files.iter().chain(&others) {
        let whole = std::fs::read(Path::new(file)).unwrap();
        for position in 0..whole.len() {
            for change in [1u8, 0x80] {
                let mut changed = whole.clone();
                changed[position] ^= change;
                refine_changed(changed);
            }
        }
        for length in (0..whole.len()).step_by(7) {
            refine_changed(whole[..length].to_vec());
        }
    }
}
