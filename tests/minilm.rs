//! all-MiniLM-L6-v2 against the embeddings that sentence-transformers computed on torch. Run by
//! `cargo test --release --test minilm -- --ignored`: it fetches 84 MB.

mod common;

#[path = "../examples/sentence_embedding/model.rs"]
mod model;

use common::client;
use safejax::{DType, Params};

/// The sentences and their embeddings, by `scripts/reference_minilm.py`.
fn reference() -> (Vec<String>, Vec<Vec<f32>>) {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sentence_embedding");
    let text = std::fs::read_to_string(directory.join("sentences.txt")).unwrap();
    let recorded = Params::load(client(), directory.join("reference.safetensors")).unwrap();
    let embeddings = recorded.get("embeddings").unwrap();
    let rows = embeddings.to_vec::<f32>().unwrap();
    (
        text.lines().map(str::to_owned).collect(),
        rows.chunks(embeddings.shape()[1]).map(<[f32]>::to_vec).collect(),
    )
}

#[track_caller]
fn assert_same_directions(ours: &[Vec<f32>], theirs: &[Vec<f32>], least: f64) {
    assert_eq!(ours.len(), theirs.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine >= least, "sentence {index}: {cosine}");
    }
}

#[test]
#[ignore = "fetches the weights, 84 MB"]
fn embeddings_are_those_of_the_original() {
    let (sentences, theirs) = reference();
    let embedder = model::Embedder::new(client(), DType::F32).unwrap();
    let ours = embedder.embed(&sentences).unwrap();
    assert_same_directions(&ours, &theirs, 0.9999);
    // One at a time runs other buckets, and more than a batch runs several calls.
    let single: Vec<_> =
        sentences.iter().flat_map(|one| embedder.embed(std::slice::from_ref(one)).unwrap()).collect();
    assert_same_directions(&single, &theirs, 0.9999);
    let many: Vec<String> = sentences.iter().cycle().take(5 * sentences.len()).cloned().collect();
    let expected: Vec<Vec<f32>> = theirs.iter().cycle().take(many.len()).cloned().collect();
    assert_same_directions(&embedder.embed(&many).unwrap(), &expected, 0.9999);
}

#[test]
#[ignore = "fetches the weights, 84 MB"]
fn params_cast_to_bfloat16_on_load_give_nearly_the_same() {
    let (sentences, theirs) = reference();
    let embedder = model::Embedder::new(client(), DType::BF16).unwrap();
    assert_same_directions(&embedder.embed(&sentences).unwrap(), &theirs, 0.999);
}
