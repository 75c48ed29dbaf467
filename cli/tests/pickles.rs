//! Pickles and archives that JAX users really have, written by the real libraries (`scripts/make_pickles.py`).

#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use common::{data, fails, safejax, stderr, succeeds};
use safejax::Checkpoint;
use safejax::convert::{Source, open};
use safejax::load::Selection;

/// The arrays of a source by name, as text and bytes.
fn arrays(source: &Source) -> BTreeMap<String, (String, Vec<u8>)> {
    let leaves = source.keys().leaves().iter().zip(source.specs()).enumerate();
    leaves
        .map(|(index, (leaf, spec))| {
            (leaf.path.to_name(), (spec.to_string(), source.read(index).unwrap().to_vec()))
        })
        .collect()
}

#[test]
fn every_array_of_every_pickle_is_read_as_python_reads_it() {
    let expected_structures = [
        ("protocol0", r#"{'big': *, "it's": *, 'n': *, 'none': None, 'text': "né\n\\", 'w': *, 'yes': *}"#),
        ("protocol1", r#"{'big': *, "it's": *, 'n': *, 'none': None, 'text': "né\n\\", 'w': *, 'yes': *}"#),
        (
            "jax",
            "{'c': *, 'config': \"two layers\", 'counts': {'steps': *}, 'half': *, 'opt': (ScaleByAdamState(count=*, \
             mu={'w': *}, nu={'w': *}), EmptyState()), 'order': OrderedDict({'z': *, 'a': *}), 'params': {'dense': \
             {'bias': *, 'kernel': *}}, 'raw': <2 bytes>}",
        ),
        (
            "train_state",
            "flax.training.train_state.TrainState(step=*, params={'w': *}, opt_state=(ScaleByAdamState(count=*, \
             mu={'w': *}, nu={'w': *}), EmptyState()))",
        ),
        ("haiku", "{'mlp/~/linear_0': {'b': *, 'w': *}}"),
        ("joblib", "{'model': {'f': *, 'half': *, 'w': *}, 'n': *, 'name': \"x\"}"),
        ("joblib_zlib", "{'model': {'f': *, 'half': *, 'w': *}, 'n': *, 'name': \"x\"}"),
        ("joblib_gzip", "{'model': {'f': *, 'half': *, 'w': *}, 'n': *, 'name': \"x\"}"),
        ("odd", "{'w': *}"),
    ];
    for (name, structure) in expected_structures {
        let pickle = open(data(&format!("pickles/{name}.pkl")), &Selection::default()).unwrap();
        assert_eq!(pickle.keys().def().to_string(), structure, "{name}");
        let expected = Checkpoint::open(data(&format!("pickles/{name}.safetensors"))).unwrap();
        let expected: BTreeMap<_, _> = expected
            .tensors()
            .iter()
            .map(|tensor| {
                let bytes = expected.bytes(&tensor.name).unwrap().to_vec();
                (tensor.name.clone(), (tensor.spec.to_string(), bytes))
            })
            .collect();
        assert_eq!(arrays(&pickle), expected, "{name}");
    }
}

#[test]
fn what_is_no_array_is_kept_left_out_with_a_warning_or_refused_with_its_path() {
    let (odd, refused) = (data("pickles/odd.pkl"), data("pickles/refused.pkl"));
    let output = safejax().arg("inspect").arg(&odd).output().unwrap();
    let warnings = stderr(&output);
    for name in ["`large`", "`names`", "`objects`"] {
        assert!(warnings.contains(name), "{warnings}");
    }
    let error = fails(safejax().args(["inspect", "--strict"]).arg(&odd));
    assert!(error.contains("cannot be kept") && error.contains("--exclude"), "{error}");
    succeeds(
        safejax()
            .args(["inspect", "--strict", "--exclude", "names", "--exclude", "la*", "--exclude", "objects"])
            .arg(&odd),
    );

    // An object that is not known is refused if there are arrays in it, and else no loss.
    let error = fails(safejax().arg("inspect").arg(&refused));
    assert!(error.contains("['deep'][2] is an object of types.SimpleNamespace"), "{error}");
    let output = safejax().args(["inspect", "--exclude", "deep.2"]).arg(&refused).output().unwrap();
    let warnings = stderr(&output);
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("w  float32[2,3]"),
        "{warnings}"
    );
    assert!(warnings.contains("`deep.0.seen`") && warnings.contains("it is an object of set"), "{warnings}");
    assert!(warnings.contains("`deep.1`") && warnings.contains("the function or class optax"), "{warnings}");
}

#[test]
fn an_archive_with_other_things_in_it_is_read_and_says_what_it_leaves_out() {
    let archive = data("pickles/odd.npz");
    let source = open(&archive, &Selection::default()).unwrap();
    assert_eq!(source.keys().def().to_string(), "{'description': \"né\", 'w': *}");
    let left_out: Vec<&str> = source.left_out().iter().map(|part| part.name.as_str()).collect();
    assert_eq!(left_out, ["names", "objects", "readme.txt"]);
    assert!(fails(safejax().args(["inspect", "--strict"]).arg(&archive)).contains("cannot be kept"));
}

#[test]
fn text_and_bytes_survive_every_format_that_has_a_place_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let steps = [
        (data("pickles/jax.pkl"), at("a.msgpack")),
        (at("a.msgpack"), at("b.safetensors")),
        (at("b.safetensors"), at("c.msgpack")),
    ];
    for (from, to) in steps {
        succeeds(safejax().arg("convert").args([from, to]));
    }
    let def = |name: &str| open(at(name), &Selection::default()).unwrap().keys().def().to_string();
    assert_eq!(def("a.msgpack"), def("c.msgpack"));
    assert!(
        def("b.safetensors").contains("'config': \"two layers\"")
            && def("b.safetensors").contains("'raw': <2 bytes>")
    );
    succeeds(safejax().arg("diff").args([at("a.msgpack"), at("c.msgpack")]));
}
