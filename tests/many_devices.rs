//! Functions exported for several devices, by two generations of jax and with both of its partitioners, on a CPU client with
//! eight (`scripts/make_spmd.py`).

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::LazyLock;

use common::data;
use safejax::load::{Delivery, ShardingRules, Sharing, Staging, Unmatched};
use safejax::program::Resharding;
use safejax::{
    Argument, Array, Checkpoint, Client, CompileOptions, DType, DeviceMesh, Donate, Error, Function,
    HostArray, LoadOptions, Mesh, NamedSharding, Params, Program, Sharding, Tree,
};

const GENERATIONS: [&str; 3] = ["jax0438", "jax0102", "jax0102gspmd"];
const CASES: [&str; 6] = ["attention", "fsdp", "collectives", "cache", "free", "axes"];

/// A client of eight devices.
fn client() -> &'static Client {
    static CLIENT: LazyLock<Client> = LazyLock::new(|| {
        let plugin = common::client().plugin().clone();
        plugin.client().device_count(8).build().unwrap()
    });
    &CLIENT
}

fn file(name: &str) -> PathBuf {
    data("spmd").join(name)
}

fn cases() -> impl Iterator<Item = String> {
    GENERATIONS.iter().flat_map(|jax| CASES.map(|case| format!("{jax}-{case}")))
}

/// What JAX was given and computed, as wholes; and which slice of each was on which device.
struct Recorded {
    params: Params,
    slices: BTreeMap<String, Vec<Vec<(usize, usize)>>>,
}

fn recorded(case: &str) -> Recorded {
    let path = file(&format!("{case}.safetensors"));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let slices = serde_json::from_str(&checkpoint.metadata()["slices"]).unwrap();
    Recorded { params: Params::load(client(), path).unwrap(), slices }
}

impl Recorded {
    /// The arguments on the host, one tree each.
    fn arguments(&self) -> Vec<Tree<HostArray>> {
        let all = self.params.subtree("args").unwrap();
        let mut positions: Vec<&str> = all.iter().map(|(name, _)| name.split('.').next().unwrap()).collect();
        positions.dedup();
        positions.into_iter().map(|position| all.subtree(position).unwrap().to_host().unwrap()).collect()
    }
}

fn ranges(slice: &[(usize, usize)]) -> Vec<Range<usize>> {
    slice.iter().map(|&(start, end)| start..end).collect()
}

#[track_caller]
fn assert_close(ours: &HostArray, theirs: &HostArray, what: &str) {
    assert_eq!(ours.spec(), theirs.spec(), "{what}");
    if !matches!(ours.spec().dtype, DType::F32 | DType::BF16) {
        return assert_eq!(ours, theirs, "{what}");
    }
    let numbers =
        |array: &HostArray| safejax::cast::convert(array, DType::F32).unwrap().to_vec::<f32>().unwrap();
    for (a, b) in numbers(ours).iter().zip(&numbers(theirs)) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{what}: {a} is not {b}");
    }
}

/// Compares outputs with JAX's: their numbers, and where each slice of them is.
#[track_caller]
fn assert_outputs(outputs: &Params, recorded: &Recorded, case: &str) {
    let theirs = recorded.params.subtree("out").unwrap();
    assert_eq!(outputs.len(), theirs.len(), "{case}");
    for ((name, ours), (their_name, theirs)) in outputs.iter().zip(theirs.iter()) {
        let what = format!("{case}: {name}");
        assert_close(&ours.to_host().unwrap(), &theirs.to_host().unwrap(), &what);
        let name = if their_name.is_empty() { "out".to_owned() } else { format!("out.{their_name}") };
        let slices = &recorded.slices[&name];
        let shards: Vec<_> = ours.addressable_shards().collect();
        assert_eq!(shards.len(), slices.len(), "{what}");
        for (shard, slice) in shards.iter().zip(slices) {
            assert_eq!(shard.slice, ranges(slice), "{what}");
            let lengths: Vec<usize> = shard.slice.iter().map(Range::len).collect();
            assert_eq!(shard.buffer.shape(), lengths, "{what}");
        }
    }
}

fn compiled(case: &str) -> Function {
    client().compile(&Program::open(file(&format!("{case}.jaxexport"))).unwrap()).unwrap()
}

fn call(function: &Function, arguments: &[Tree<HostArray>]) -> Params {
    let arguments: Vec<&dyn Argument> = arguments.iter().map(|argument| argument as &dyn Argument).collect();
    function.call(&arguments).unwrap().to_params()
}

#[test]
fn every_case_has_the_numbers_and_the_shards_that_jax_has() {
    for case in cases() {
        let (function, recorded) = (compiled(&case), recorded(&case));
        assert_outputs(&call(&function, &recorded.arguments()), &recorded, &case);
        assert!(function.device().is_none());
        for (place, device) in function.devices().iter().enumerate() {
            assert_eq!(device.id(), place as i32);
        }
    }
}

#[test]
fn a_function_runs_on_the_devices_that_it_is_given() {
    for case in ["jax0102-attention", "jax0438-attention"] {
        let program = Program::open(file(&format!("{case}.jaxexport"))).unwrap();
        let mut options = CompileOptions::default();
        options.device_assignment = Some(vec![vec![6, 1, 3, 4]]);
        let function = client().compile_with(&program, &options).unwrap();
        let recorded = recorded(case);
        let outputs = call(&function, &recorded.arguments());
        assert_outputs(&outputs, &recorded, case);
        let ids: Vec<i32> = outputs.arrays()[0]
            .addressable_shards()
            .map(|shard| shard.buffer.device().unwrap().id())
            .collect();
        assert_eq!(ids, [6, 1, 3, 4]);
        for wrong in [vec![vec![0, 1]], vec![vec![0, 1, 2, 2]], vec![vec![0, 1, 2, 99]]] {
            options.device_assignment = Some(wrong);
            assert!(client().compile_with(&program, &options).is_err());
        }
    }
}

#[test]
fn what_lies_right_is_used_as_it_is_and_what_does_not_is_refused_or_moved() {
    let case = "jax0102-attention";
    let (function, recorded) = (compiled(case), recorded(case));
    let arguments = recorded.arguments();
    let signature = function.signature().unwrap().clone();
    let deal = |devices: &[safejax::Device]| -> Vec<Array> {
        let leaves = arguments.iter().flat_map(|tree| tree.leaves());
        let laid = leaves.zip(&signature.parameters);
        laid.map(|(array, parameter)| {
            Array::deal(array, parameter.sharding.clone().unwrap(), devices).unwrap()
        })
        .collect()
    };
    let right = deal(&function.devices());
    let outputs = function.call(&[&right[..right.len() - 1].to_vec(), &right[right.len() - 1]]).unwrap();
    assert_outputs(&outputs.to_params(), &recorded, case);
    // Bound, and called again and again.
    let bound = function.bind(&[&right[..right.len() - 1].to_vec()]).unwrap();
    for _ in 0..3 {
        assert_outputs(&bound.call(&[&right[right.len() - 1]]).unwrap().to_params(), &recorded, case);
        assert_outputs(&bound.call(&[&arguments[1]]).unwrap().to_params(), &recorded, case);
    }
    // The same slices on other devices, and another sharding.
    let elsewhere = deal(&client().devices()[4..8]);
    let whole = recorded.params.subtree("args.0").unwrap();
    for wrong in [&elsewhere[..elsewhere.len() - 1].to_vec() as &dyn Argument, &whole] {
        let error = function.call(&[wrong, &arguments[1]]).unwrap_err().to_string();
        assert!(error.contains("args[0]['down']") && error.contains("allow it to be moved"), "{error}");
        assert!(error.contains("P('model', None) over data=2, model=2"), "{error}");
        let moving = function.with_resharding(Resharding::Allow);
        assert_outputs(&moving.call(&[wrong, &arguments[1]]).unwrap().to_params(), &recorded, case);
    }
}

#[test]
fn shards_that_are_donated_are_used_up_on_every_device() {
    for jax in GENERATIONS {
        let case = format!("{jax}-fsdp");
        let (function, recorded) = (compiled(&case), recorded(&case));
        let arguments = recorded.arguments();
        let donatable = function.signature().unwrap().donatable();
        assert_eq!(donatable, [0, 1, 2, 3], "{case}");
        let parameters = &function.signature().unwrap().parameters;
        let dealt = |tree: usize, from: usize| -> Vec<Array> {
            let leaves = arguments[tree].leaves().iter().zip(&parameters[from..]);
            let devices = function.devices();
            leaves
                .map(|(array, parameter)| {
                    Array::deal(array, parameter.sharding.clone().unwrap(), &devices).unwrap()
                })
                .collect()
        };
        let (params, moments) = (dealt(0, 0), dealt(1, 2));
        let outputs =
            function.call(&[&Donate(params.clone()), &moments, &arguments[2], &arguments[3]]).unwrap();
        assert_outputs(&outputs.to_params(), &recorded, &case);
        assert!(params.iter().all(|array| array.is_deleted().unwrap()));
        assert!(moments.iter().all(|array| !array.is_deleted().unwrap()));
        let error = function.call(&[&params, &moments, &arguments[2], &arguments[3]]).unwrap_err();
        assert!(matches!(error, Error::Arguments { .. }), "{error}");
        assert!(error.to_string().contains("was donated to an earlier call"), "{error}");
    }
}

#[test]
fn what_was_exported_for_one_device_runs_on_each_of_several() {
    let program = Program::open(data("exports/jax0102-mlp.jaxexport")).unwrap();
    let mut options = CompileOptions::default();
    options.partitions = 4;
    let recorded = Params::load(client(), data("exports/jax0102-mlp.safetensors")).unwrap();
    let function = client().compile_with(&program, &options).unwrap();
    let (params, x) =
        (recorded.subtree("args.0").unwrap(), recorded.get("args.1").unwrap().to_host().unwrap());
    let outputs = function.call(&[&params.to_host().unwrap(), &x]).unwrap();
    let output = outputs.single().unwrap();
    assert!(output.is_fully_replicated() && output.addressable_shards().count() == 4);
    assert_close(&output.to_host().unwrap(), &recorded.get("out").unwrap().to_host().unwrap(), "replicated");
    // Every platform's part of a program of several knows which it is, on every device.
    let program = Program::open(data("exports/jax0120-platforms.jaxexport")).unwrap();
    client().compile_with(&program, &options).unwrap();
}

#[test]
fn arrays_are_dealt_out_resharded_gathered_and_saved() {
    let numbers: Vec<f32> = (0..8 * 6 * 4).map(|number| number as f32).collect();
    let whole = HostArray::from_slice(&[8, 6, 4], &numbers).unwrap();
    let mesh = DeviceMesh::new(client(), "data=2,model=4".parse().unwrap()).unwrap();
    let sharding =
        |spec: &str| Sharding::from(NamedSharding::new(mesh.mesh().clone(), spec.parse().unwrap()).unwrap());
    let specs =
        ["P()", "P('data')", "P(('model', 'data'))", "P(None, 'data', 'model')", "P('model', None, 'data')"];
    let directory = tempfile::tempdir().unwrap();
    for from in specs {
        let array = Array::deal(&whole, sharding(from), mesh.devices()).unwrap();
        assert_eq!(array.to_host().unwrap(), whole, "{from}");
        assert_eq!(array.to_vec::<f32>().unwrap(), numbers);
        assert_eq!(array.is_fully_replicated(), from == "P()");
        for to in specs {
            let again = array.reshard(sharding(to), mesh.devices()).unwrap();
            assert_eq!(again.to_host().unwrap(), whole, "{from} to {to}");
            let same: Vec<bool> = array
                .addressable_shards()
                .zip(again.addressable_shards())
                .map(|(one, other)| one.buffer.is_same(other.buffer))
                .collect();
            // What is where it should be stays.
            assert_eq!(same.iter().all(|same| *same), from == to, "{from} to {to}");
        }
        let path = directory.path().join("saved.safetensors");
        Params::from_arrays([("w".to_owned(), array.clone())]).unwrap().save(&path).unwrap();
        let saved = Params::load(client(), &path).unwrap();
        assert_eq!(saved.get("w").unwrap().to_host().unwrap(), whole);
        assert_eq!(array.copy_to(client().device(7).unwrap()).unwrap().to_host().unwrap(), whole);
        let moved = array.reshard(Sharding::Replicated, &[client().device(5).unwrap()]).unwrap();
        assert_eq!(moved.buffer().unwrap().device().unwrap().id(), 5);
    }
    let uneven = Array::deal(&whole, sharding("P(None, 'model')"), mesh.devices()).unwrap_err().to_string();
    assert!(
        uneven.contains("dimension 1 would be cut into 4 parts, and its size 6 is no multiple"),
        "{uneven}"
    );
    let shards =
        client().devices()[..2].iter().map(|device| client().put_on(&whole, device).unwrap()).collect();
    let mesh = Mesh::new([("x", 2)]).unwrap();
    let halves = NamedSharding::new(mesh, "P('x')".parse().unwrap()).unwrap();
    let wrong = Array::from_shards(whole.spec().clone(), halves.into(), shards).unwrap_err().to_string();
    assert!(wrong.contains("is to be float32[4,6,4], and float32[8,6,4] was given"), "{wrong}");
    assert!(
        DeviceMesh::new(client(), "x=9".parse().unwrap())
            .unwrap_err()
            .to_string()
            .contains("the client has 8")
    );
}

/// Loads a file over a mesh of four, by a rule for each tensor's name.
fn load(
    path: &std::path::Path,
    rules: &[(&str, &str)],
    options: LoadOptions,
) -> (Params, safejax::LoadReport) {
    let mesh = DeviceMesh::new(client(), "data=2,model=2".parse().unwrap()).unwrap();
    let rules = rules
        .iter()
        .fold(ShardingRules::default(), |rules, (pattern, spec)| rules.rule(*pattern, spec.parse().unwrap()));
    Params::load_with(client(), path, &options.sharded(&mesh, rules)).unwrap()
}

const RULES: [(&str, &str); 3] = [
    ("*Dense_0.kernel", "P(None, 'model')"),
    ("*Dense_1.kernel", "P(('model', 'data'))"),
    ("*Dense_0.bias", "P('data')"),
];

#[test]
fn a_checkpoint_is_loaded_in_shards_by_every_route_and_comes_back() {
    let path = common::digits("params.safetensors");
    let whole = Params::load(client(), &path).unwrap();
    let deliveries = [Delivery::Auto, Delivery::Stream, Delivery::Whole];
    for (delivery, sharing) in
        deliveries.into_iter().flat_map(|one| [(one, Sharing::Allowed), (one, Sharing::Never)])
    {
        let staging = Staging::new(2, 64 << 10);
        let options = LoadOptions::default().delivery(delivery).sharing(sharing).staging(staging);
        let (params, report) = load(&path, &RULES, options);
        assert_eq!(params.to_host().unwrap(), whole.to_host().unwrap(), "{delivery:?} {sharing:?}");
        // Every byte is read once, whoever wants it.
        assert_eq!((report.tensors, report.bytes), (whole.len(), whole.total_bytes()));
        let kernel = params.get("params.Dense_0.kernel").unwrap();
        let shards: Vec<_> = kernel.addressable_shards().collect();
        let width = kernel.shape()[1];
        for (place, shard) in shards.iter().enumerate() {
            assert_eq!(shard.buffer.device().unwrap().id(), place as i32);
            assert_eq!(shard.slice[1], place % 2 * width / 2..(place % 2 + 1) * width / 2);
        }
        let file = tempfile::tempdir().unwrap();
        let saved = file.path().join("saved.safetensors");
        params.save(&saved).unwrap();
        assert_eq!(
            common::read_tensors(&std::fs::read(&saved).unwrap()),
            common::read_tensors(&std::fs::read(&path).unwrap())
        );
    }
}

#[test]
fn what_has_no_parts_in_the_file_is_dealt_out_and_types_are_cast() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let whole = Params::load(client(), common::digits("params.safetensors")).unwrap();
    for name in ["a.npz", "a.msgpack"] {
        let source =
            safejax::convert::open(common::digits("params.safetensors"), &Default::default()).unwrap();
        safejax::convert::convert(&source, &file(name), &Default::default()).unwrap();
        let (params, _) = load(&file(name), &RULES, LoadOptions::default());
        let arrays = |params: &Params| -> Vec<HostArray> {
            params.arrays().iter().map(|array| array.to_host().unwrap()).collect()
        };
        assert_eq!(arrays(&params), arrays(&whole), "{name}");
        let (half, _) = load(&file(name), &RULES, LoadOptions::default().dtype("*", DType::BF16));
        let cast = Params::load_with(client(), file(name), &LoadOptions::default().dtype("*", DType::BF16))
            .unwrap()
            .0;
        assert_eq!(arrays(&half), arrays(&cast), "{name}");
    }
}

#[test]
fn a_tensor_whose_parts_are_single_bytes_is_read_whole_and_dealt_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fine.safetensors");
    let bytes: Vec<u8> = (0..280_000u32).map(|byte| (byte % 251) as u8).collect();
    let fine = HostArray::from_slice(&[70_000, 4], &bytes).unwrap();
    let params = Params::from_arrays([("fine".to_owned(), client().put(&fine).unwrap())]).unwrap();
    params.save(&path).unwrap();
    let (params, report) = load(&path, &[("fine", "P(None, ('data', 'model'))")], LoadOptions::default());
    assert_eq!(params.get("fine").unwrap().to_host().unwrap(), fine);
    assert_eq!(report.bytes, 280_000);
    let shards = params.get("fine").unwrap();
    assert!(shards.addressable_shards().all(|shard| shard.buffer.shape() == [70_000, 1]));
}

#[test]
fn an_argument_is_loaded_to_where_the_function_takes_it() {
    let directory = tempfile::tempdir().unwrap();
    for case in ["jax0102-attention", "jax0438-axes", "jax0102gspmd-attention", "jax0102-axes"] {
        let (function, recorded) = (compiled(case), recorded(case));
        let path = directory.path().join("argument.safetensors");
        recorded.params.subtree("args.0").unwrap().save(&path).unwrap();
        let (params, _) = Params::load_for(&function, 0, &path, &LoadOptions::default()).unwrap();
        let rest = recorded.arguments();
        let mut arguments: Vec<&dyn Argument> = vec![&params];
        arguments.extend(rest[1..].iter().map(|argument| argument as &dyn Argument));
        let outputs = function.call(&arguments).unwrap();
        assert_outputs(&outputs.to_params(), &recorded, case);
        for (name, array) in params.iter() {
            for (shard, slice) in array.addressable_shards().zip(&recorded.slices[&format!("args.0.{name}")])
            {
                assert_eq!(shard.slice, ranges(slice), "{case}: {name}");
            }
        }
        let error = Params::load_for(&function, 7, &path, &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("has no args[7]; it has args[0]"), "{error}");
    }
}

#[test]
fn rules_that_cannot_be_are_told_with_the_tensor() {
    let mesh = DeviceMesh::new(client(), "data=2,model=2".parse().unwrap()).unwrap();
    let fails = |rules: ShardingRules, options: LoadOptions| -> String {
        let path = common::digits("params.safetensors");
        let mut error =
            Params::load_with(client(), path, &options.sharded(&mesh, rules)).unwrap_err().to_string();
        if let Some(source) = error.strip_prefix("tensor ") {
            error = source.to_owned();
        }
        error
    };
    let rules = |pattern: &str, spec: &str| ShardingRules::default().rule(pattern, spec.parse().unwrap());
    let none = fails(rules("*.kernle", "P('data')"), LoadOptions::default());
    assert!(none.contains("*.kernle") && none.contains("did you mean"), "{none}");
    fails(rules("*.bias", "P('data', None, None)"), LoadOptions::default());
    fails(rules("*.bias", "P('seq')"), LoadOptions::default());
    let unmatched = ShardingRules::default().unmatched(Unmatched::Refuse);
    assert!(fails(unmatched, LoadOptions::default()).contains("no sharding rule matches"));
    let device = client().device(0).unwrap();
    let both = fails(rules("*.bias", "P('data')"), LoadOptions::default().to(device));
    assert!(both.contains("not both"), "{both}");
    let other = common::other_client();
    let path = common::digits("params.safetensors");
    let options = LoadOptions::default().sharded(&mesh, ShardingRules::default());
    let error = Params::load_with(&other, path, &options).unwrap_err().to_string();
    assert!(error.contains("another client"), "{error}");
}

#[test]
fn shards_of_another_type_or_shape_are_refused_before_they_are_read_wrongly() {
    use safejax::pjrt::Input;
    let function = compiled("jax0102-attention");
    let executable = function.executable().unwrap();
    let recorded = recorded("jax0102-attention");
    let leaves: Vec<HostArray> =
        recorded.arguments().iter().flat_map(|tree| tree.leaves().to_vec()).collect();
    let parameters = &function.signature().unwrap().parameters;
    let arrays: Vec<Array> = leaves
        .iter()
        .zip(parameters)
        .map(|(leaf, parameter)| {
            Array::deal(leaf, parameter.sharding.clone().unwrap(), &function.devices()).unwrap()
        })
        .collect();
    let lists = |wrong: Option<&safejax::Buffer>| -> Vec<Vec<safejax::Buffer>> {
        let shards: Vec<Vec<_>> = arrays
            .iter()
            .map(|array| array.addressable_shards().map(|shard| shard.buffer.clone()).collect())
            .collect();
        let mut lists: Vec<Vec<safejax::Buffer>> =
            (0..4).map(|place| shards.iter().map(|shards| shards[place].clone()).collect()).collect();
        if let Some(wrong) = wrong {
            lists[2][1] = wrong.clone();
        }
        lists
    };
    let run = |lists: &[Vec<safejax::Buffer>]| {
        let inputs: Vec<Vec<_>> = lists.iter().map(|list| list.iter().map(Input::Borrow).collect()).collect();
        executable.execute(&inputs).map(|execution| execution.outputs.len())
    };
    assert_eq!(run(&lists(None)).unwrap(), 4);
    let right = lists(None)[2][1].spec().clone();
    let device = client().device(2).unwrap();
    // As many bytes, so that the plugin would not notice.
    let count = right.element_count().unwrap();
    let other_type = HostArray::from_slice(&right.shape, &vec![0i32; count]).unwrap();
    let other_shape = HostArray::from_slice(&[count], &vec![0f32; count]).unwrap();
    for wrong in [other_type, other_shape] {
        let buffer = client().put_on(&wrong, &device).unwrap();
        let error = run(&lists(Some(&buffer))).unwrap_err().to_string();
        assert!(error.contains("was expected, but") && error.contains(&wrong.spec().to_string()), "{error}");
    }
}

#[test]
fn the_plugin_says_how_arrays_are_laid_out_and_the_program_says_the_same() {
    let function = compiled("jax0102-free");
    let compiled = function.executable().unwrap().compiled();
    // An extension of newer plugins; the oldest have only the program.
    let (parameters, outputs) =
        (compiled.parameter_shardings().unwrap(), compiled.output_shardings().unwrap());
    let version = client().plugin().api_version();
    assert_eq!(parameters.is_some(), version.minor >= 91, "{version}");
    if let (Some(parameters), Some(outputs)) = (parameters, outputs) {
        assert_eq!((parameters.len(), outputs.len()), (2, 3));
        // A scalar is on every device, which takes no bytes to say.
        assert!(outputs[2].is_empty() && !parameters[0].is_empty());
    }
}

#[test]
fn stablehlo_text_for_several_devices_takes_wholes_and_never_pads() {
    let text = "module @twice attributes {mhlo.num_partitions = 4 : i32} {\n  func.func public @main(%arg0: tensor<8xf32> \
                {mhlo.sharding = \"{devices=[4]<=[4]}\"}) -> (tensor<8xf32> {mhlo.sharding = \"{devices=[4]<=[4]}\"}) {\n    \
                %0 = stablehlo.add %arg0, %arg0 : tensor<8xf32>\n    return %0 : tensor<8xf32>\n  }\n}\n";
    let program = Program::from_bytes(text.as_bytes().to_vec()).unwrap();
    let error = client().compile(&program).unwrap_err().to_string();
    assert!(error.contains("is a module for 4 devices, and was to be compiled for 1"), "{error}");
    let mut options = CompileOptions::default();
    options.partitions = 4;
    let function = client().compile_with(&program, &options).unwrap();
    let numbers: Vec<f32> = (0..8).map(|number| number as f32).collect();
    let x = HostArray::from_slice(&[8], &numbers).unwrap();
    let outputs = function.call(&[&x]).unwrap();
    let doubled: Vec<f32> = numbers.iter().map(|number| number * 2.0).collect();
    assert_eq!(outputs.single().unwrap().to_vec::<f32>().unwrap(), doubled);
    let shard = HostArray::from_slice(&[2], &[1f32, 2.0]).unwrap();
    let error = function.call(&[&shard]).unwrap_err().to_string();
    assert!(error.contains("float32[8] was expected, but float32[2] was given"), "{error}");
}

#[test]
fn nothing_is_padded_on_several_devices() {
    let program = Program::open(data("exports/jax0120-symbolic.jaxexport")).unwrap();
    let mut options = CompileOptions::default();
    options.partitions = 2;
    options.padded_sizes.insert("b".into(), vec![4, 8]);
    let error = client().compile_with(&program, &options).unwrap_err().to_string();
    assert!(error.contains("where nothing is padded"), "{error}");
    options.padded_sizes.clear();
    let function = client().compile_with(&program, &options).unwrap();
    let x = HostArray::from_slice(&[5, 3], &[1.5f32; 15]).unwrap();
    assert_eq!(function.call(&[&x]).unwrap().single().unwrap().to_vec::<f32>().unwrap(), [3f32; 15]);
}
