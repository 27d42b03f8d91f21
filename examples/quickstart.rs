//! Loads a sharded BERT that transformers wrote into candle, and compares what it computes.
//!
//! ```text
//! cargo run --release --example quickstart            # the small checkpoint in examples/data
//! cargo run --release --example quickstart -- FOLDER  # any BERT checkpoint with its tokenizer.json
//! ```
//!
//! Where the folder has an `expected.json` with what transformers computed, the program fails if
//! the two differ by more than 1e-5.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::{BertModel, Config};
use safeshard::candle::Weights;
use safeshard::{Checkpoint, LoadOptions};
use serde::Deserialize;
use tokenizers::{PaddingParams, Tokenizer};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How far two computations of the same numbers may be apart.
const TOLERANCE: f32 = 1e-5;

fn main() -> Result<()> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-bert");
    let folder = std::env::args_os().nth(1).map_or(shipped, PathBuf::from);

    describe(&Checkpoint::open(&folder)?);

    let expected = Expected::read(&folder)?;
    let sentences = expected
        .as_ref()
        .map_or_else(default_sentences, |expected| expected.sentences.clone());
    let input = Input::tokenize(&folder, &sentences)?;
    let embeddings = embed(&folder, &input)?;
    match expected {
        Some(expected) => compare(&sentences, &input, &embeddings, &expected),
        None => {
            for (sentence, embedding) in sentences.iter().zip(&embeddings) {
                println!("{} {sentence}", preview(embedding));
            }
            Ok(())
        }
    }
}

/// What is in the checkpoint: nothing but headers has been read for this.
fn describe(checkpoint: &Checkpoint) {
    let totals = checkpoint.totals();
    println!(
        "{} tensors, {} parameters, {} bytes in {} files",
        totals.tensors,
        totals.parameters,
        totals.bytes,
        checkpoint.files().len()
    );
    for file in checkpoint.files() {
        println!("  {}: {} tensors", file.name(), file.header().len());
    }
    for warning in checkpoint.warnings() {
        println!("  {warning}");
    }
}

/// Builds the model and computes one normalised embedding a sentence.
fn embed(folder: &Path, input: &Input) -> Result<Vec<Vec<f32>>> {
    let device = Device::Cpu;
    let config: Config = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
    if config.model_type.as_deref() != Some("bert") {
        return Err(format!("a BERT model is wanted, this is {:?}", config.model_type).into());
    }

    // The one call that replaces index parsing, unsafe mmap and `to_dtype`.
    let weights = Weights::open_with(folder, &without_prefix())?;
    let model = BertModel::load(weights.var_builder(DType::F32, &device), &config)?;
    println!("{}", weights.report());

    let shape = (input.ids.len(), input.ids.first().map_or(0, Vec::len));
    let tensor = |rows: &[Vec<u32>]| Tensor::from_vec(rows.concat(), shape, &device);
    let mask = tensor(&input.mask)?;
    let hidden = model.forward(&tensor(&input.ids)?, &tensor(&input.type_ids)?, Some(&mask))?;

    // As sentence-transformers: the mean over the tokens that are not padding, of length 1.
    let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
    let mean = hidden
        .broadcast_mul(&mask)?
        .sum(1)?
        .broadcast_div(&mask.sum(1)?)?;
    let length = mean.sqr()?.sum_keepdim(1)?.sqrt()?;
    Ok(mean.broadcast_div(&length)?.to_vec2()?)
}

/// A BERT that was saved as part of a larger model has `bert.` before every name.
fn without_prefix() -> LoadOptions {
    LoadOptions {
        rename: Some(std::sync::Arc::new(|name| {
            name.strip_prefix("bert.").unwrap_or(name).to_owned()
        })),
        ..LoadOptions::default()
    }
}

/// Token ids, token types and the mask of the tokens that are not padding: a row a sentence.
struct Input {
    ids: Vec<Vec<u32>>,
    type_ids: Vec<Vec<u32>>,
    mask: Vec<Vec<u32>>,
}

impl Input {
    fn tokenize(folder: &Path, sentences: &[String]) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))
            .map_err(|error| error.to_string())?;
        tokenizer.with_padding(Some(PaddingParams::default()));
        let encodings = tokenizer
            .encode_batch(sentences.to_vec(), true)
            .map_err(|error| error.to_string())?;
        let rows = |of: fn(&tokenizers::Encoding) -> &[u32]| {
            encodings
                .iter()
                .map(|encoding| of(encoding).to_vec())
                .collect()
        };
        Ok(Self {
            ids: rows(tokenizers::Encoding::get_ids),
            type_ids: rows(tokenizers::Encoding::get_type_ids),
            mask: rows(tokenizers::Encoding::get_attention_mask),
        })
    }
}

/// What transformers computed, beside the checkpoint.
#[derive(Deserialize)]
struct Expected {
    writer: String,
    sentences: Vec<String>,
    input_ids: Vec<Vec<u32>>,
    embeddings: Vec<Vec<f32>>,
}

impl Expected {
    fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("expected.json");
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
    }
}

fn compare(
    sentences: &[String],
    input: &Input,
    embeddings: &[Vec<f32>],
    expected: &Expected,
) -> Result<()> {
    if input.ids != expected.input_ids {
        return Err("the tokenizer gives other ids than transformers'".into());
    }
    println!(
        "\n{:<34} {:<34} sentence",
        "safeshard + candle", expected.writer
    );
    let mut largest = 0.0f32;
    for ((sentence, ours), theirs) in sentences.iter().zip(embeddings).zip(&expected.embeddings) {
        println!("{} {} {sentence}", preview(ours), preview(theirs));
        if ours.len() != theirs.len() {
            return Err("the embeddings have another length than transformers'".into());
        }
        for (a, b) in ours.iter().zip(theirs) {
            // NaN must not pass as equal.
            let difference = (a - b).abs();
            largest = if difference.is_nan() {
                f32::INFINITY
            } else {
                largest.max(difference)
            };
        }
    }
    println!("largest difference: {largest:.1e}");
    if embeddings.len() == expected.embeddings.len() && largest <= TOLERANCE {
        return Ok(());
    }
    Err(format!("the embeddings differ from transformers' by more than {TOLERANCE:e}").into())
}

fn preview(embedding: &[f32]) -> String {
    let first: Vec<_> = embedding
        .iter()
        .take(4)
        .map(|value| format!("{value:+.4}"))
        .collect();
    format!("[{}, …]", first.join(", "))
}

fn default_sentences() -> Vec<String> {
    [
        "A checkpoint is a set of named tensors.",
        "It lives in one file, or in shards.",
    ]
    .map(str::to_owned)
    .to_vec()
}
