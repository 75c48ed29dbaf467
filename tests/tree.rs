//! Trees against real JAX, and through files and the device.

mod common;

use std::collections::BTreeMap;

use common::client;
use safejax::convert::Source;
use safejax::load::{Strictness, Structure, Verification};
use safejax::save::{Digests, Record};
use safejax::store::sha256;
use safejax::tree::{DictKey, LeafKind};
use safejax::{
    Checkpoint, DType, Error, Framework, HostArray, KeyMap, LoadOptions, Params, Placement, SaveOptions,
    Tree, TreeDef,
};
use serde_json::Value;

fn on_device(tree: Tree<HostArray>) -> Params {
    let to = Placement::from(&client().device(0).unwrap());
    Params::from_host(client(), &to, tree).unwrap()
}

fn scalar(value: f32) -> HostArray {
    HostArray::from_slice(&[], &[value]).unwrap()
}

/// A tree with one of everything that Python safejax loses.
fn one_of_everything() -> TreeDef {
    let adam = TreeDef::NamedTuple {
        name: "ScaleByAdamState".into(),
        fields: vec![("count".into(), TreeDef::Leaf(LeafKind::Int)), ("mu".into(), TreeDef::LEAF)],
    };
    TreeDef::dict([
        ("list".into(), TreeDef::List(vec![TreeDef::LEAF, TreeDef::None, TreeDef::Dict(vec![])])),
        ("tuple".into(), TreeDef::Tuple(vec![adam, TreeDef::Tuple(vec![])])),
        ("a.dotted".into(), TreeDef::LEAF),
        ("".into(), TreeDef::LEAF),
        (
            "integers".into(),
            TreeDef::dict([(DictKey::Int(10), TreeDef::LEAF), (DictKey::Int(-9), TreeDef::LEAF)]).unwrap(),
        ),
        ("quotes' \" and\nnewlines/::".into(), TreeDef::LEAF),
        (
            "ordered".into(),
            TreeDef::ordered_dict(vec![("z".into(), TreeDef::LEAF), ("a".into(), TreeDef::LEAF)]).unwrap(),
        ),
        ("中文 😀".into(), TreeDef::LEAF),
    ])
    .unwrap()
}

fn everything_on_device() -> Params {
    let def = one_of_everything();
    let count = def.leaf_count();
    on_device(Tree::unflatten(def, (0..count).map(|index| scalar(index as f32))).unwrap())
}

#[test]
fn leaves_are_flattened_as_jax_flattens_them() {
    let text = std::fs::read_to_string(common::data("trees.json")).unwrap();
    let trees: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(trees.len() >= 300);
    for tree in &trees {
        let def = serde_json::from_value::<TreeDef>(tree["record"].clone()).unwrap();
        let strings = |field: &str| -> Vec<&str> {
            tree[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
        };
        let printed: Vec<String> = def.paths().iter().map(ToString::to_string).collect();
        assert_eq!(printed, strings("paths"), "{def}");
        let names: Vec<String> = def.paths().iter().map(|path| path.to_name()).collect();
        assert_eq!(names, strings("names"), "{def}");
        assert_eq!(serde_json::from_str::<TreeDef>(&serde_json::to_string(&def).unwrap()).unwrap(), def);
    }
}

#[test]
fn a_tree_of_everything_survives_the_device_and_the_file() {
    let params = everything_on_device();
    let bytes = safejax::serialize(&params).unwrap();
    let again = safejax::deserialize(client(), &bytes).unwrap();
    assert_eq!(again.keys(), params.keys());
    assert_eq!(again.to_host().unwrap(), params.to_host().unwrap());
    // Found by name and by path alike.
    let by_path = again.get("['tuple'][0].mu").unwrap();
    assert!(by_path.is_same(again.get("tuple.0.mu").unwrap()));
}

#[test]
fn a_single_leaf_is_a_tree() {
    let params = on_device(Tree::unflatten(TreeDef::LEAF, [scalar(2.5)]).unwrap());
    let again = safejax::deserialize(client(), &safejax::serialize(&params).unwrap()).unwrap();
    assert_eq!(again.keys().def(), &TreeDef::LEAF);
    assert_eq!(again.arrays()[0].to_vec::<f32>().unwrap(), [2.5]);
}

#[test]
fn names_only_is_refused_where_it_would_lose_something() {
    let options = SaveOptions::default().record(Record::NamesOnly);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let error = everything_on_device().save_with(&path, &options).unwrap_err().to_string();
    assert!(error.contains("names alone would not bring the tree back"), "{error}");
    assert!(!path.exists());
    let flat = Params::load(client(), common::digits("params.safetensors")).unwrap();
    flat.save_with(&path, &options).unwrap();
    assert!(Checkpoint::open(&path).unwrap().metadata().is_empty());
}

#[test]
fn records_that_do_not_fit_their_file_are_refused_and_can_be_passed_over() {
    let file = |tree: &str, format: &str| {
        let metadata = serde_json::json!({"safejax.format": format, "safejax.tree": tree});
        let header = serde_json::json!({
            "__metadata__": metadata, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
        });
        common::raw_file(&header.to_string(), &[7])
    };
    for (tree, format, expected) in [
        (r#"{"b":"*"}"#, "1", "the leaf ['b'] has no tensor `b`; the tensor `a` has no leaf"),
        (r#"{"a":"*"}"#, "2", "of version 2"),
        ("{", "1", "not JSON"),
        (&"{\"a\":".repeat(100_000), "1", "recursion limit"),
    ] {
        let bytes = file(tree, format);
        let error = safejax::deserialize(client(), &bytes).unwrap_err();
        assert_eq!(error.blame(), safejax::Blame::File);
        assert!(error.to_string().contains(expected), "{error}");
        let checkpoint = Checkpoint::from_bytes(bytes).unwrap();
        let options = LoadOptions::default().structure(Structure::FromNames);
        assert_eq!(Source::new(checkpoint.clone(), &options.selection).unwrap().keys().len(), 1);
    }
}

#[test]
fn a_name_that_nests_for_ever_is_an_error() {
    let deep = vec!["a"; 600_000].join(".");
    assert!(KeyMap::from_names([deep.clone()]).unwrap_err().to_string().contains("nested deeper"));
    assert_eq!(KeyMap::from_names_by(Framework::Objax, [deep.as_str()]).unwrap().len(), 1);
}

#[test]
fn what_is_loaded_can_be_chosen_renamed_and_cast_by_pattern() {
    let options = LoadOptions::default()
        .include("params.Dense_*")
        .exclude("*.bias")
        .rename("params.", "model.")
        .dtype("*Dense_0*", DType::BF16);
    let (params, report) =
        Params::load_with(client(), common::digits("params.safetensors"), &options).unwrap();
    let names: Vec<String> =
        params.iter().map(|(name, buffer)| format!("{name} {}", buffer.spec())).collect();
    assert_eq!(names, ["model.Dense_0.kernel bfloat16[512,64]", "model.Dense_1.kernel float32[64,10]"]);
    assert_eq!((report.tensors, report.cast_tensors, report.framework), (2, 1, Framework::Flax));
    let halves = params.get("model.Dense_0.kernel").unwrap().to_vec::<half::bf16>().unwrap();
    let whole = Params::load(client(), common::digits("params.safetensors")).unwrap();
    let floats = whole.get("params.Dense_0.kernel").unwrap().to_vec::<f32>().unwrap();
    assert!(halves.iter().zip(floats).all(|(half, float)| *half == half::bf16::from_f32(float)));
}

#[test]
fn a_template_reports_everything_that_does_not_fit_at_once() {
    let whole = Params::load(client(), common::digits("params.safetensors")).unwrap();
    let template = whole.subtree("params").unwrap().template();
    // The file has one level more, so nothing fits until it is renamed away.
    let load =
        |options: LoadOptions| Params::load_with(client(), common::digits("params.safetensors"), &options);
    let Err(Error::Template { problems }) = load(LoadOptions::default().template(template.clone())) else {
        panic!("it fitted")
    };
    assert_eq!(problems.len(), 16, "{problems:?}");
    let renamed = LoadOptions::default().rename("params.", "");
    assert_eq!(load(renamed.clone().template(template.clone())).unwrap().0.len(), 8);
    let error =
        load(renamed.clone().template(template.clone()).dtype("*Conv_0.kernel", DType::F16)).unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r"
    the checkpoint does not fit the template:
      mismatched: ['Conv_0']['kernel'] must be float32[3,3,1,16], and is float32[3,3,1,16] (loaded as float16)
    ");
    let dense = whole.subtree("params.Dense_0").unwrap().template();
    let only = LoadOptions::default().rename("params.Dense_0.", "");
    let error = load(only.clone().template(dense.clone())).unwrap_err().to_string();
    assert!(error.contains("unused: the tensor `params.Dense_1.kernel`"), "{error}");
    let (params, _) = load(only.template(dense.strictness(Strictness::AllowUnused))).unwrap();
    assert_eq!(params.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["bias", "kernel"]);
}

#[test]
fn digests_are_recorded_and_a_changed_byte_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let params = Params::load(client(), common::digits("params.safetensors")).unwrap();
    params.save_with(&path, &SaveOptions::default().digests(Digests::Sha256)).unwrap();
    let checked = LoadOptions::default().verification(Verification::Digests);
    Params::load_with(client(), &path, &checked).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let tensor = checkpoint.tensor("params.Dense_0.kernel").unwrap().clone();
    let recorded: BTreeMap<String, String> =
        serde_json::from_str(&checkpoint.metadata()["safejax.sha256"]).unwrap();
    assert_eq!(recorded["params.Dense_0.kernel"], sha256(&checkpoint.bytes(&tensor.name).unwrap()));
    drop(checkpoint);
    let mut file = std::fs::read(&path).unwrap();
    file[tensor.extents()[0].range.start + 5] ^= 1;
    std::fs::write(&path, file).unwrap();
    let error = Params::load_with(client(), &path, &checked).unwrap_err();
    assert_eq!(error.to_string(), "tensor `params.Dense_0.kernel`");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("was recorded"), "{source}");
}

#[test]
fn a_framework_that_is_only_guessed_refuses_no_file() {
    // As NNX names its leaves, but for a level that has both an integer and a name.
    let file = common::official_file(&[
        ("layers.0.kernel", DType::F32, &[2]),
        ("layers.norm.scale", DType::F32, &[2]),
    ]);
    let params = safejax::deserialize(client(), &file).unwrap();
    assert_eq!(params.framework(), Framework::Plain);
    assert!(params.get("layers.0.kernel").is_ok());
    let options = LoadOptions::default().framework(Framework::Nnx);
    let checkpoint = Checkpoint::from_bytes(file).unwrap();
    assert!(
        Params::load_checkpoint(client(), &checkpoint, &options).is_err(),
        "what is asked for is not a guess"
    );
}

#[test]
fn digests_go_by_the_names_of_the_file_whatever_it_is_loaded_as() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.safetensors");
    let params = Params::load(client(), common::digits("params.safetensors")).unwrap();
    params.save_with(&path, &SaveOptions::default().digests(Digests::Sha256)).unwrap();
    let checked = LoadOptions::default().verification(Verification::Digests);
    let renamed = checked
        .clone()
        .rename("params.Dense_0.", "params.Dense_9.")
        .rename("params.Dense_1.", "params.Dense_0.");
    let (_, report) = Params::load_with(client(), &path, &renamed).unwrap();
    assert_eq!(report.checked_tensors, 8);
    let range =
        Checkpoint::open(&path).unwrap().tensor("params.Dense_1.kernel").unwrap().extents()[0].range.clone();
    let mut file = std::fs::read(&path).unwrap();
    file[range.start] ^= 1;
    std::fs::write(&path, file).unwrap();
    let error = Params::load_with(client(), &path, &renamed).unwrap_err();
    assert_eq!(error.to_string(), "tensor `params.Dense_0.kernel`");
    // Without digests there is nothing that could be said to be right.
    let error = Params::load_with(client(), common::digits("params.safetensors"), &checked).unwrap_err();
    assert!(error.to_string().contains("it records no digests"), "{error}");
    let some = serde_json::json!({"a": sha256(&[7])}).to_string();
    let header = serde_json::json!({
        "__metadata__": {"safejax.sha256": some},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
    });
    std::fs::write(&path, common::raw_file(&header.to_string(), &[7, 8])).unwrap();
    let error = Params::load_with(client(), &path, &checked).unwrap_err();
    assert!(error.to_string().contains("no digest of the tensor `b`"), "{error}");
    assert_eq!(Params::load_with(client(), &path, &checked.include("a")).unwrap().1.checked_tensors, 1);
}

#[test]
fn a_pattern_that_matches_nothing_is_an_error_with_what_looks_alike() {
    let load = |options: LoadOptions| {
        Params::load_with(client(), common::digits("params.safetensors"), &options).unwrap_err().to_string()
    };
    let options = LoadOptions::default;
    assert_eq!(
        load(options().include("parms.*")),
        "there is no tensor whose name matches `parms.*`; did you mean `params.*`?"
    );
    assert_eq!(load(options().include("")), "there is no tensor whose name matches ``");
    let error = load(options().include("*.bias").exclude("*.kernl"));
    assert_eq!(error, "there is no tensor whose name matches `*.kernl`; did you mean `*.kernel`?");
    let error = load(options().include("kernel"));
    assert_eq!(error, "there is no tensor whose name matches `kernel`; did you mean `*.kernel`?");
    let error = load(options().dtype("*.Dense_0.kernal", DType::BF16));
    assert!(error.contains("`*.Dense_0.kernal`; did you mean `*.Dense_0.kernel`?"), "{error}");
    let error = load(options().rename("parms.", "model."));
    assert_eq!(error, "there is no tensor whose name begins with `parms.`; did you mean `params`?");
    // The second rule sees what the first has made.
    let error = load(options().rename("params.", "model.").rename("params.", "x."));
    assert!(error.contains("begins with `params.`"), "{error}");
    let (params, _) = Params::load_with(
        client(),
        common::digits("params.safetensors"),
        &options().rename("params.", "model.").rename("model.Dense_0.", "dense."),
    )
    .unwrap();
    assert!(params.get("dense.kernel").is_ok());
}

#[test]
fn params_can_be_edited_joined_and_taken_apart() {
    let mut params = Params::load(client(), common::digits("params.safetensors")).unwrap();
    let bias = params.get("params.Dense_0.bias").unwrap().clone();
    let (weights, biases) = params.partition(|name, _| name.ends_with(".kernel")).unwrap();
    assert_eq!((weights.len(), biases.len()), (4, 4));
    let joined = weights.merge(&biases).unwrap();
    assert_eq!(joined.keys(), params.keys());
    assert!(weights.merge(&params).unwrap_err().to_string().contains("cannot be joined"));

    assert!(params.insert("params.Dense_0.bias", bias.clone()).unwrap().is_some());
    assert!(params.insert("params.new.deep.bias", bias.clone()).unwrap().is_none());
    assert_eq!(params.len(), 9);
    let before = params.keys().clone();
    for name in ["params.Dense_0", "params.Dense_0.bias.x"] {
        let error = params.insert(name, bias.clone()).unwrap_err().to_string();
        assert!(error.contains("['params']['Dense_0']"), "{error}");
    }
    assert_eq!(params.keys(), &before, "a refused insertion changes nothing");
    params.remove("params.new.deep.bias").unwrap();
    assert!(params.keys().range("params.new").is_err(), "empty dictionaries go");
    *params.get_mut("params.Dense_1.bias").unwrap() = bias.clone();
    assert!(params.get("params.Dense_1.bias").unwrap().is_same(&bias));
    assert_eq!(params.parameter_count(), 38_282 - 10 + 64);
    assert_eq!(params.total_bytes(), 4 * params.parameter_count());
    assert!(params.to_string().contains("├── Conv_0  (160 parameters, 640 B in 2 leaves)"), "{params}");
}

#[test]
fn objax_names_keep_their_types_through_the_device() {
    let file = common::official_file(&[
        ("(Sequential)[0](Linear).w::TrainVar", DType::F32, &[2, 2]),
        ("(Sequential)[0](Linear).b::TrainVar", DType::F32, &[2]),
        ("(Sequential)[1](Dropout).keygen(Generator).key::RandomState", DType::U32, &[2]),
    ]);
    let params = safejax::deserialize(client(), &file).unwrap();
    assert_eq!(params.framework(), Framework::Objax);
    assert!(params.get("(Sequential)[0](Linear).w").is_ok());
    let copy = Checkpoint::from_bytes(safejax::serialize(&params).unwrap()).unwrap();
    let mut names: Vec<&str> = copy.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "(Sequential)[0](Linear).b::TrainVar",
            "(Sequential)[0](Linear).w::TrainVar",
            "(Sequential)[1](Dropout).keygen(Generator).key::RandomState"
        ]
    );
    let again = safejax::deserialize(client(), &safejax::serialize(&params).unwrap()).unwrap();
    assert_eq!(again.keys(), params.keys());
}

#[test]
fn keys_that_are_long_or_strange_survive() {
    let long = "k".repeat(1_000_000);
    let def =
        TreeDef::dict([(long.as_str().into(), TreeDef::LEAF), ("\u{0}".into(), TreeDef::LEAF)]).unwrap();
    let params = on_device(Tree::unflatten(def, [scalar(1.0), scalar(2.0)]).unwrap());
    let again = safejax::deserialize(client(), &safejax::serialize(&params).unwrap()).unwrap();
    assert_eq!(again.keys(), params.keys());
    assert_eq!(again.get(&long).unwrap().to_vec::<f32>().unwrap(), [2.0]);
}

/// A file of one float a name.
fn file_of(names: &[&str]) -> Vec<u8> {
    let tensors: Vec<_> = names.iter().map(|name| (*name, safejax::DType::F32, &[1usize][..])).collect();
    common::official_file(&tensors)
}

#[test]
fn names_that_are_no_tree_are_a_flat_dictionary_that_is_kept() {
    let names = ["m.weight", "m.weight.absmax", "m.weight.quant_map"];
    let checkpoint = Checkpoint::from_bytes(file_of(&names)).unwrap();
    let (params, report) = Params::load_checkpoint(client(), &checkpoint, &LoadOptions::default()).unwrap();
    assert_eq!(report.framework, Framework::Flat);
    assert_eq!(
        params.keys().def().to_string(),
        "{'m.weight': *, 'm.weight.absmax': *, 'm.weight.quant_map': *}"
    );
    let again = safejax::deserialize(client(), &safejax::serialize(&params).unwrap()).unwrap();
    assert_eq!(again.keys(), params.keys());
    assert_eq!(again.framework(), Framework::Flat);
    // What is asked for is not guessed.
    let plain = LoadOptions::default().framework(Framework::Plain);
    assert!(Params::load_checkpoint(client(), &checkpoint, &plain).is_err());
}

#[test]
fn flat_names_of_jax_models_become_trees() {
    let structure = |names: &[&str], options: LoadOptions| {
        let checkpoint = Checkpoint::from_bytes(file_of(names)).unwrap();
        let (params, _) = Params::load_checkpoint(client(), &checkpoint, &options).unwrap();
        // What is saved is read back as the same tree, without options.
        let again = safejax::deserialize(client(), &safejax::serialize(&params).unwrap()).unwrap();
        assert_eq!(again.keys(), params.keys());
        params.keys().def().to_string()
    };
    let by = |framework| LoadOptions::default().framework(framework);
    assert_eq!(
        structure(&["T/b_0/kernel", "T/b_0/bias"], by(Framework::Vit)),
        "{'T': {'b_0': {'bias': *, 'kernel': *}}}"
    );
    assert_eq!(structure(&["a/b//w"], by(Framework::AlphaFold)), "{'a/b': {'w': *}}");
    assert_eq!(structure(&["params:a/~/b:w"], by(Framework::GraphCast)), "{'params': {'a/~/b': {'w': *}}}");
    assert_eq!(
        structure(&["a/b//w"], LoadOptions::default().split("//").split("/")),
        "{'a': {'b': {'w': *}}}"
    );
}

#[test]
fn two_variables_of_one_key_are_both_named() {
    let header = r#"{"__metadata__":{"safejax.format":"1","safejax.tree":"{\"(A).w\":\"*\"}","safejax.framework":"objax"},
        "(A).w::TrainVar":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "(A).w::StateVar":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let error = safejax::deserialize(client(), &common::raw_file(header, &[0, 1])).unwrap_err().to_string();
    assert!(error.contains("`(A).w::TrainVar` and `(A).w::StateVar` are of one variable"), "{error}");
}

#[test]
fn a_template_and_an_exported_function_know_names_that_are_split_otherwise() {
    let digits = |name: &str| common::digits(name);
    let whole = Params::load(client(), digits("params.safetensors")).unwrap();
    let slashed = whole.iter().map(|(name, buffer)| (name.replace('.', "/"), buffer.clone()));
    let slashed = Params::from_arrays(slashed).unwrap();
    assert_eq!(slashed.keys().def().children().len(), 8, "names without dots are one level");
    let checkpoint = Checkpoint::from_bytes(safejax::serialize(&slashed).unwrap()).unwrap();
    let options = LoadOptions::default().template(whole.template());
    let (fitted, _) = Params::load_checkpoint(client(), &checkpoint, &options).unwrap();
    assert_eq!(fitted.keys().def(), whole.keys().def());
    for (name, buffer) in whole.iter() {
        assert_eq!(fitted.get(name).unwrap().to_host().unwrap(), buffer.to_host().unwrap(), "{name}");
    }
    let program = safejax::Program::open(digits("forward.jaxexport")).unwrap();
    let forward = client().compile(&program).unwrap();
    let x = safejax::format::npy::read(digits("images.npy"), None).unwrap();
    let expected = forward.call(&[&whole, &x]).unwrap().single().unwrap().to_host().unwrap();
    assert_eq!(forward.call(&[&slashed, &x]).unwrap().single().unwrap().to_host().unwrap(), expected);
}
