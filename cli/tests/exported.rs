//! Functions exported by three generations of jax for the CPU, called by tree on the real CPU plugin; or those of a
//! directory, that the jax of this machine exported for its device.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::PathBuf;

use common::{Only, client, fails, is_cpu, is_skipped, on_device, plugin, safejax, succeeds, tolerance};
use safejax::program::Dim;
use safejax::{Argument, Conversion, DType, Donate, Error, HostArray, Params, Program};

/// The environment variable that names a directory of other exports: those that `scripts/make_exports.py` makes as
/// `here`.
const EXPORTS_VARIABLE: &str = "SAFEJAX_TEST_EXPORTS";

/// The names that the exports' begin with; the newest last.
fn generations() -> &'static [&'static str] {
    match std::env::var_os(EXPORTS_VARIABLE) {
        None => &["jax0438", "jax0102", "jax0120"],
        Some(_) => &["here"],
    }
}

/// A case of the newest generation.
fn newest(case: &str) -> String {
    format!("{}-{case}", generations().last().unwrap())
}

const CASES: [&str; 12] = [
    "mlp",
    "mlp_bf16",
    "mlp_gradient",
    "nested",
    "keywords",
    "optimizer",
    "donated",
    "constants",
    "transformer",
    "keys",
    "platforms",
    "cnn",
];

/// Every case of every generation, and those that only one can make.
fn cases() -> Vec<String> {
    let of_all = generations().iter().flat_map(|jax| CASES.map(|case| format!("{jax}-{case}")));
    let of_one = generations().contains(&"jax0438").then(|| "jax0438-resnet".to_owned());
    of_all.chain(of_one).collect()
}

fn file(name: &str) -> PathBuf {
    std::env::var_os(EXPORTS_VARIABLE).map_or_else(|| common::data("exports"), PathBuf::from).join(name)
}

/// The arguments and outputs that JAX was given and computed: trees at `args`, `kwargs` and `out`.
fn recorded(case: &str) -> Params {
    Params::load(client(), file(&format!("{case}.safetensors"))).unwrap()
}

/// The positional or the named arguments, one tree each, by their first key.
fn arguments(recorded: &Params, root: &str) -> Vec<(String, Params)> {
    let Ok(all) = recorded.subtree(root) else { return Vec::new() };
    let mut names: Vec<String> =
        all.iter().map(|(name, _)| name.split('.').next().unwrap().to_owned()).collect();
    names.dedup();
    names.into_iter().map(|name| (name.clone(), all.subtree(&name).unwrap())).collect()
}

#[track_caller]
fn assert_close(ours: &safejax::Array, theirs: &safejax::Array, what: &str) {
    assert_eq!(ours.spec(), theirs.spec(), "{what}");
    let (ours, theirs) = (ours.to_host().unwrap(), theirs.to_host().unwrap());
    let tolerance = match ours.spec().dtype {
        DType::F32 if is_cpu() => 1e-5,
        // Another algorithm may multiply with 10 bits of mantissa.
        DType::F32 => tolerance(),
        DType::BF16 => 1e-2,
        _ => return assert_eq!(ours, theirs, "{what}"),
    };
    let numbers =
        |array: &HostArray| safejax::cast::convert(array, DType::F32).unwrap().to_vec::<f32>().unwrap();
    for (a, b) in numbers(&ours).iter().zip(&numbers(&theirs)) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}: {a} is not {b}");
    }
}

/// Compares outputs with what JAX computed, leaf by leaf; a single leaf has no name to go by.
#[track_caller]
fn assert_outputs(ours: &Params, theirs: &Params, case: &str) {
    assert_eq!(ours.len(), theirs.len(), "{case}");
    if ours.len() == 1 {
        return assert_close(&ours.arrays()[0], &theirs.arrays()[0], case);
    }
    for (name, buffer) in theirs.iter() {
        assert_close(ours.get(name).unwrap(), buffer, &format!("{case}: {name}"));
    }
}

#[test]
fn every_case_of_every_generation_gives_jaxs_numbers() {
    for case in cases() {
        let program = Program::open(file(&format!("{case}.jaxexport"))).unwrap();
        let function = client().compile(&program).unwrap_or_else(|error| panic!("{case}: {error}"));
        let recorded = recorded(&case);
        let (args, kwargs) = (arguments(&recorded, "args"), arguments(&recorded, "kwargs"));
        let positional: Vec<&dyn Argument> = args.iter().map(|(_, params)| params as &dyn Argument).collect();
        let named: Vec<(&str, &dyn Argument)> =
            kwargs.iter().map(|(name, params)| (name.as_str(), params as &dyn Argument)).collect();
        let outputs =
            function.call_with(&positional, &named).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_outputs(&outputs.to_params(), &recorded.subtree("out").unwrap(), &case);
    }
}

#[test]
fn every_case_runs_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.safetensors");
    for case in cases() {
        let recorded = recorded(&case);
        let mut command = safejax();
        command.arg("run").arg(file(&format!("{case}.jaxexport"))).args(on_device()).arg("--out").arg(&out);
        for root in ["args", "kwargs"] {
            for (name, argument) in arguments(&recorded, root) {
                let path = directory.path().join(format!("{root}-{name}.safetensors"));
                argument.save(&path).unwrap();
                command.arg("--arg").arg(format!("{name}={}", path.display()));
            }
        }
        succeeds(&mut command);
        assert_outputs(&Params::load(client(), &out).unwrap(), &recorded.subtree("out").unwrap(), &case);
    }
}

#[test]
fn an_artifact_says_what_it_takes_and_returns() {
    for jax in generations() {
        let program = Program::open(file(&format!("{jax}-keywords.jaxexport"))).unwrap();
        insta::allow_duplicates! {
            insta::assert_snapshot!(program.signature_text().unwrap(), @r"
              args[0]  float32[2]
              kwargs['shift']['by'][0]  float32[2]
              kwargs['shift']['by'][1]  float32[2]  (not used)
              kwargs['unused']  int32[]  (not used)
            returns
              float32[2]
            ");
        }
        let program = Program::open(file(&format!("{jax}-nested.jaxexport"))).unwrap();
        let exported = program.exported().unwrap();
        assert_eq!(exported.out_tree.to_string(), "{'empty': {}, 'pair': (*, [*, None]), 'sum': *}");
        assert_eq!(
            (exported.platforms.join(","), exported.device_count),
            (client().platform_name().into(), 1)
        );
        let program = Program::open(file(&format!("{jax}-optimizer.jaxexport"))).unwrap();
        let out = program.exported().unwrap().out_tree.to_string();
        assert_eq!(out, "({'b': *, 'w': *}, State(count=*, mu={'b': *, 'w': *}))");
    }
    if std::env::var_os(EXPORTS_VARIABLE).is_none() {
        let program = Program::open(file("jax0120-mlp.jaxexport")).unwrap();
        assert_eq!(program.exported().unwrap().jax_version.as_deref(), Some("0.12.0.1"));
    }
    let oldest = generations()[0];
    let printed = succeeds(safejax().arg("inspect").arg(file(&format!("{oldest}-mlp.jaxexport"))));
    assert!(printed.contains("args[0]['layer_0']['kernel']  float32[4,8]"), "{printed}");
    let json = succeeds(safejax().arg("inspect").arg(file(&newest("mlp.jaxexport"))).arg("--json"));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["function"], "mlp");
}

#[test]
fn inspect_says_whether_a_plugin_reads_the_program() {
    let artifact = file(&newest("mlp.jaxexport"));
    let inspect = |path: &std::path::Path| {
        let mut command = safejax();
        command.arg("inspect").arg(path).args(["--plugin", &plugin()]);
        command
    };
    let printed = succeeds(&mut inspect(&artifact));
    assert!(printed.contains("it is among those that the plugin reads"), "{printed}");
    let json = succeeds(inspect(&artifact).arg("--json"));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["plugin"]["reads_this_version"], true);
    assert!(printed.contains("donates nothing"), "{printed}");
    let printed = succeeds(&mut inspect(&file(&newest("donated.jaxexport"))));
    let donated: Vec<&str> = printed.lines().filter(|line| line.starts_with("donates ")).collect();
    assert_eq!(donated.len(), 5, "{printed}");
    assert_eq!(donated[4], "donates args[1].mu['w'] to the output [1].mu['w']");

    // The same program (and its gradient) as a StableHLO of the future.
    let mut bytes = std::fs::read(&artifact).unwrap();
    let producer = b"StableHLO_v";
    for at in 0..bytes.len() - producer.len() {
        if bytes[at..].starts_with(producer) {
            bytes[at + producer.len()] = b'9';
        }
    }
    let newer = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(newer.path(), bytes).unwrap();
    let printed = succeeds(&mut inspect(newer.path()));
    assert!(printed.contains("it is not among those that the plugin reads"), "{printed}");

    let error = fails(&mut inspect(&file(&newest("mlp.safetensors"))));
    assert!(error.contains("is no program"), "{error}");
}

#[test]
fn what_does_not_fit_is_listed_with_key_paths() {
    let program = Program::open(file(&newest("mlp.jaxexport"))).unwrap();
    let function = client().compile(&program).unwrap();
    let recorded = recorded(&newest("mlp"));
    let x = recorded.get("args.1").unwrap();
    let mut params = recorded.subtree("args.0").unwrap();
    let kernel = params.remove("layer_1.kernel").unwrap();
    params.insert("layer_2.kernel", kernel).unwrap();
    *params.get_mut("layer_0.bias").unwrap() = x.clone();
    let error = function.call(&[&params, x, x]).unwrap_err();
    assert!(matches!(error, Error::Arguments { .. }));
    insta::assert_snapshot!(error.to_string(), @r"
    the arguments do not fit `mlp`:
      args[0]['layer_1']['kernel']: float32[8,3] was expected, but nothing was given; did you mean `layer_2.kernel`?
      args[0]: the leaf `layer_2.kernel` was given, and there is no such one
      args[2]: the function takes 2 positional arguments
      args[0]['layer_0']['bias']: float32[8] was expected, but float32[5,4] was given
    ");
    let error = function.call_with(&[&params, x], &[("y", x)]).unwrap_err().to_string();
    assert!(
        error.contains(
            "kwargs['y']: there is no such argument; arguments are given by their positions, 0 to 1"
        ),
        "{error}"
    );
}

#[test]
fn outputs_feed_the_next_call_by_tree() {
    let program = Program::open(file(&newest("optimizer.jaxexport"))).unwrap();
    let step = client().compile(&program).unwrap();
    let recorded = recorded(&newest("optimizer"));
    let grads = recorded.subtree("args.2").unwrap();
    let mut params = recorded.subtree("args.0").unwrap();
    let mut state = recorded.subtree("args.1").unwrap();
    for _ in 0..3 {
        let outputs = step.call(&[&params, &state, &grads]).unwrap().to_params();
        params = outputs.subtree("0").unwrap();
        state = outputs.subtree("1").unwrap();
    }
    assert_eq!(state.get("count").unwrap().to_vec::<i32>().unwrap(), [4]);
}

#[test]
fn outputs_are_fetched_while_the_next_call_runs() {
    let program = Program::open(file(&newest("optimizer.jaxexport"))).unwrap();
    let step = client().compile(&program).unwrap();
    let recorded = recorded(&newest("optimizer"));
    let grads = step.bind_with(&[None, None, Some(&recorded.subtree("args.2").unwrap())], &[]).unwrap();
    let mut outputs = grads
        .call(&[&recorded.subtree("args.0").unwrap(), &recorded.subtree("args.1").unwrap()])
        .unwrap()
        .to_params();
    for count in 2..20 {
        let next = grads
            .call(&[&outputs.subtree("0").unwrap(), &outputs.subtree("1").unwrap()])
            .unwrap()
            .to_params();
        // Neither call was waited for: what the first one returned is read while the second has it as input.
        assert_eq!(outputs.get("1.count").unwrap().to_vec::<i32>().unwrap(), [count]);
        outputs = next;
    }
}

#[test]
fn what_the_function_donates_is_used_up_only_if_it_is_given_away() {
    for jax in generations() {
        let case = format!("{jax}-donated");
        let step = client().compile(&Program::open(file(&format!("{case}.jaxexport"))).unwrap()).unwrap();
        let recorded = recorded(&case);
        let part = |name: &str| recorded.subtree(name).unwrap().copy_to(client().device(0).unwrap()).unwrap();
        let (params, state, grads) = (part("args.0"), part("args.1"), part("args.2"));
        let expected = recorded.subtree("out").unwrap();
        // Lent arguments outlive any number of calls.
        for _ in 0..2 {
            assert_outputs(&step.call(&[&params, &state, &grads]).unwrap().to_params(), &expected, &case);
        }
        let given = (Donate(params.clone()), Donate(state.clone()));
        assert_outputs(&step.call(&[&given.0, &given.1, &grads]).unwrap().to_params(), &expected, &case);
        assert!(params.arrays().iter().chain(state.arrays()).all(|buffer| buffer.is_deleted().unwrap()));
        assert!(!grads.arrays()[0].is_deleted().unwrap());
        let error = step.call(&[&params, &state, &grads]).unwrap_err().to_string();
        assert!(error.contains("args[0]['b']") && error.contains("donated"), "{error}");
    }
}

#[test]
fn what_runs_on_several_devices_is_shown_and_called() {
    if is_skipped(Only::Devices(2), "it is exported on two devices") {
        return;
    }
    for jax in generations() {
        let program = Program::open(file(&format!("{jax}-sharded.jaxexport"))).unwrap();
        let exported = program.exported().unwrap();
        assert_eq!(exported.device_count, 2);
        let shown = exported.in_shardings[0].as_ref().unwrap().to_string();
        assert!(["in tiles [2, 1]", "P('x', None) over x=2"].contains(&shown.as_str()), "{shown}");
        let x = HostArray::from_slice(&[4, 3], &[1f32; 12]).unwrap();
        let outputs = client().compile(&program).unwrap().call(&[&x]).unwrap();
        assert!(outputs.iter().all(|output| output.addressable_shards().count() == 2));
        outputs.to_host().unwrap();
    }
}

#[test]
fn a_gradient_is_part_of_the_artifact() {
    for jax in generations() {
        let whole = Program::open(file(&format!("{jax}-mlp.jaxexport"))).unwrap();
        let alone = Program::open(file(&format!("{jax}-mlp_gradient.jaxexport"))).unwrap();
        let vjp = whole.exported().unwrap().vjp.as_ref().unwrap();
        assert_eq!(vjp.in_avals, alone.exported().unwrap().in_avals);
        assert_eq!(vjp.out_avals, alone.exported().unwrap().out_avals);
    }
}

#[test]
fn bound_arguments_need_not_be_given_again() {
    let function = client().compile(&Program::open(file(&newest("mlp.jaxexport"))).unwrap()).unwrap();
    let recorded = recorded(&newest("mlp"));
    let (params, x) = (recorded.subtree("args.0").unwrap(), recorded.get("args.1").unwrap());
    let expected = &recorded.subtree("out").unwrap().arrays()[0].clone();
    let by_params = function.bind(&[&params]).unwrap();
    let by_x = function.bind_with(&[None, Some(x)], &[]).unwrap();
    for _ in 0..3 {
        assert_close(&by_params.call(&[x]).unwrap()[0], expected, "params are bound");
        assert_close(&by_x.call(&[&params]).unwrap()[0], expected, "x is bound");
    }
    let on_host = x.to_host().unwrap();
    assert_close(&by_params.call(&[&on_host]).unwrap()[0], expected, "from the host");
    let error = by_params.call(&[&params, x]).unwrap_err();
    assert!(matches!(error, Error::Arguments { .. }), "{error}");
    assert!(matches!(by_params.call(&[]).unwrap_err(), Error::Arguments { .. }));
    assert!(matches!(function.bind(&[x]).unwrap_err(), Error::Arguments { .. }));
}

#[test]
fn a_fixed_leaf_that_was_used_up_elsewhere_is_named_by_its_path() {
    let (program, recorded) =
        (Program::open(file(&newest("mlp.jaxexport"))).unwrap(), recorded(&newest("mlp")));
    let function = client().compile(&program).unwrap();
    let args = arguments(&recorded, "args");
    let bound = function.bind(&[&args[0].1]).unwrap();
    args[0].1.arrays()[0].delete().unwrap();
    let error = bound.call(&[&args[1].1]).unwrap_err().to_string();
    assert!(error.contains("args[0]") && error.contains("was deleted"), "{error}");
}

#[test]
fn several_threads_call_one_function() {
    let function = client().compile(&Program::open(file(&newest("mlp.jaxexport"))).unwrap()).unwrap();
    let recorded = recorded(&newest("mlp"));
    let bound = function.bind(&[&recorded.subtree("args.0").unwrap()]).unwrap();
    let (x, expected) =
        (recorded.get("args.1").unwrap(), &recorded.subtree("out").unwrap().arrays()[0].clone());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..50).for_each(|_| assert_close(&bound.call(&[x]).unwrap()[0], expected, "thread"))
            });
        }
    });
}

#[test]
fn other_types_are_refused_or_converted_as_asked() {
    let function = client().compile(&Program::open(file(&newest("mlp.jaxexport"))).unwrap()).unwrap();
    let recorded = recorded(&newest("mlp"));
    let (params, x) = (recorded.subtree("args.0").unwrap(), recorded.get("args.1").unwrap());
    let whole = safejax::HostArray::from_slice(&[5, 4], &[2i32; 20]).unwrap();
    let error = function.call(&[&params, &whole]).unwrap_err().to_string();
    assert!(error.contains("args[1]") && error.contains("int32[5,4]"), "{error}");
    let twos = safejax::HostArray::from_slice(&[5, 4], &[2f32; 20]).unwrap();
    let converting = function.with_conversion(Conversion::Convert);
    let ours = converting.call(&[&params, &whole]).unwrap();
    assert_close(&ours[0], &function.call(&[&params, &twos]).unwrap()[0], "converted");
    // What is not donated by the program is not used up.
    function.call(&[&Donate(params.clone()), x]).unwrap();
    assert!(!params.arrays()[0].is_deleted().unwrap());
}

#[test]
fn a_bundle_pads_to_the_smallest_bucket_and_cuts_back() {
    let program = Program::open(file(&newest("pooled.bundle"))).unwrap();
    let function = client().compile(&program).unwrap();
    function.compile_buckets().unwrap();
    let recorded = recorded(&newest("pooled"));
    let (params, x) = (recorded.subtree("args.0").unwrap(), recorded.get("args.1").unwrap());
    let mask = recorded.get("args.2").unwrap();
    let bound = function.bind(&[&params]).unwrap();
    // On the device and from the host, given and bound: 3 rows of 5 in a bucket of 4 by 8.
    let on_host = (x.to_host().unwrap(), mask.to_host().unwrap());
    let calls = [
        function.call(&[&params, x, mask]).unwrap(),
        function.call(&[&params, &on_host.0, &on_host.1]).unwrap(),
        bound.call(&[x, mask]).unwrap(),
    ];
    for outputs in &calls {
        for (name, expected) in recorded.subtree("out").unwrap().iter() {
            assert_close(outputs.get(name).unwrap(), expected, name);
        }
    }
    let ones =
        |shape: &[usize]| safejax::HostArray::from_slice(shape, &vec![1f32; shape.iter().product()]).unwrap();
    let exact = function.call(&[&params, &ones(&[1, 2, 4]), &ones(&[1, 2])]).unwrap();
    assert_eq!(exact.get("rows").unwrap().shape(), [1, 2, 3]);
    let error = function.call(&[&params, &ones(&[5, 5, 4]), &ones(&[5, 5])]).unwrap_err().to_string();
    assert!(error.contains("no bucket holds batch=5 length=5; the largest is batch=4 length=8"), "{error}");
    let error = function.call(&[&params, &ones(&[3, 5, 4]), &ones(&[2, 5])]).unwrap_err().to_string();
    assert!(error.contains("args[2]") && error.contains("batch"), "{error}");
}

#[test]
fn a_damaged_bundle_is_an_error() {
    let whole = std::fs::read(file(&newest("pooled.bundle"))).unwrap();
    for position in (0..whole.len()).step_by(3) {
        let _ = Program::from_bytes(whole[..position].to_vec());
        let mut changed = whole.clone();
        changed[position] ^= 0x15;
        let _ = Program::from_bytes(changed);
    }
}

#[test]
fn symbolic_dimensions_are_shown_and_take_any_size() {
    let program = Program::open(file(&newest("symbolic.jaxexport"))).unwrap();
    let shape = &program.exported().unwrap().in_avals[0].shape;
    assert_eq!(shape[..], [Dim::Symbolic("b".into()), Dim::Size(3)]);
    let function = client().compile(&program).unwrap();
    let ones = HostArray::from_slice(&[5, 3], &[1f32; 15]).unwrap();
    let doubled = function.call(&[&ones]).unwrap().single().unwrap().to_host().unwrap();
    assert_eq!(doubled.to_vec::<f32>().unwrap(), [2.0; 15]);
}

#[test]
fn a_damaged_artifact_is_an_error_and_never_more() {
    for name in [format!("{}-optimizer", generations()[0]), newest("nested")] {
        let whole = std::fs::read(file(&format!("{name}.jaxexport"))).unwrap();
        for length in 0..whole.len() {
            let _ = Program::from_bytes(whole[..length].to_vec());
        }
        let mut changed = whole.clone();
        for position in 0..whole.len() {
            for value in [0x00, 0x01, 0x7f, 0xff] {
                changed[position] = value;
                let _ = Program::from_bytes(changed.clone());
            }
            changed[position] = whole[position];
        }
    }
}

#[test]
fn run_binds_files_by_position_name_and_path() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.safetensors");
    let part = |name: &str, pattern: &str, from: &str| {
        let path = directory.path().join(name);
        let mut command = safejax();
        command.arg("convert").arg(file(&newest("mlp.safetensors"))).arg(&path);
        succeeds(command.args(["--include", pattern, "--rename", &format!("{from}=")]));
        path.display().to_string()
    };
    let layer_0 = part("a.safetensors", "args.0.layer_0.*", "args.0.layer_0.");
    let layer_1 = part("b.safetensors", "args.0.layer_1.*", "args.0.");
    let x = directory.path().join("x.npy");
    let params = recorded(&newest("mlp"));
    safejax::format::npy::write(&x, &params.get("args.1").unwrap().to_host().unwrap()).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = safejax();
        command.arg("run").arg(file(&newest("mlp.jaxexport"))).args(on_device()).arg("--out").arg(&out);
        arguments.iter().for_each(|argument| {
            command.args(["--arg", argument]);
        });
        command
    };
    let x = format!("1={}", x.display());
    let (a, b) = (format!("0.layer_0={layer_0}"), format!("0={layer_1}"));
    succeeds(&mut run(&[&a, &b, &x]));
    let ours = Params::load(client(), &out).unwrap();
    assert_close(&ours.arrays()[0], params.get("out").unwrap(), "mlp");
    let error = fails(&mut run(&[&a, &x]));
    assert!(error.contains("args[0]['layer_1']['kernel']: float32[8,3] was expected"), "{error}");
    assert!(
        fails(&mut run(&[&a, &b, &x, &format!("y={layer_0}")]))
            .contains("kwargs['y']: there is no such argument")
    );
    let whole = directory.path().join("whole.npy");
    safejax::format::npy::write(&whole, &HostArray::from_slice(&[5, 4], &[2i32; 20]).unwrap()).unwrap();
    let whole = format!("1={}", whole.display());
    let error = fails(&mut run(&[&a, &b, &whole]));
    assert!(error.contains("args[1]: float32[5,4] was expected, but int32[5,4] was given"), "{error}");
    succeeds(run(&[&a, &b, &whole]).arg("--cast"));
}
