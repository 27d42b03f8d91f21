//! Loads a sharded encoder that transformers wrote into candle, and compares what it computes.
//!
//! ```text
//! cargo run --release --example quickstart            # the small checkpoint in examples/data
//! cargo run --release --example quickstart -- FOLDER  # any other, with its tokenizer.json
//! ```
//!
//! It takes BERT, RoBERTa and XLM-RoBERTa, with or without a head.
//!
//! Where the folder has an `expected.json` with what transformers computed, the program fails if
//! the two differ by more than 1e-5. In the end it saves the checkpoint in smaller shards, and compares
//! every tensor of both with ndarray.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safeshard::ndarray::dyn_tensor;
use safeshard::{Checkpoint, SaveOptions, ShardSize, Sharding};
use serde::Deserialize;
use tokenizers::{PaddingParams, Tokenizer};

use encoder::Encoder;

mod encoder;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How far two computations of the same numbers may be apart.
const TOLERANCE: f32 = 1e-5;

fn main() -> Result<()> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-bert");
    let folder = std::env::args_os().nth(1).map_or(shipped, PathBuf::from);

    let checkpoint = Checkpoint::open(&folder)?;
    describe(&checkpoint);

    let expected = Expected::read(&folder)?;
    let sentences = expected
        .as_ref()
        .map_or_else(default_sentences, |expected| expected.sentences.clone());
    let encoder = Encoder::load(&folder, &Device::Cpu)?;
    let input = Input::tokenize(&folder, encoder.pad_token_id, &sentences)?;
    let embeddings = embed(&encoder, &input)?;
    match expected {
        Some(expected) => compare(&sentences, &input, &embeddings, &expected)?,
        None => {
            for (sentence, embedding) in sentences.iter().zip(&embeddings) {
                println!("{} {sentence}", preview(embedding));
            }
        }
    }
    reshard(&checkpoint)
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

/// One embedding a sentence, as sentence-transformers computes it: the mean over the tokens that
/// are not padding, of length 1.
fn embed(encoder: &Encoder, input: &Input) -> Result<Vec<Vec<f32>>> {
    let shape = (input.ids.len(), input.ids.first().map_or(0, Vec::len));
    let tensor = |rows: &[Vec<u32>]| Tensor::from_vec(rows.concat(), shape, &Device::Cpu);
    let mask = tensor(&input.mask)?;
    let hidden = encoder.forward(&tensor(&input.ids)?, &tensor(&input.type_ids)?, &mask)?;

    let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
    let mean = hidden
        .broadcast_mul(&mask)?
        .sum(1)?
        .broadcast_div(&mask.sum(1)?)?;
    let length = mean.sqr()?.sum_keepdim(1)?.sqrt()?;
    Ok(mean.broadcast_div(&length)?.to_vec2()?)
}

/// Token ids, token types and the mask of the tokens that are not padding: a row a sentence.
struct Input {
    ids: Vec<Vec<u32>>,
    type_ids: Vec<Vec<u32>>,
    mask: Vec<Vec<u32>>,
}

impl Input {
    fn tokenize(folder: &Path, pad_id: u32, sentences: &[String]) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))
            .map_err(|error| error.to_string())?;
        let padding = PaddingParams {
            pad_id,
            pad_token: tokenizer.id_to_token(pad_id).unwrap_or_default(),
            ..PaddingParams::default()
        };
        tokenizer.with_padding(Some(padding));
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
        "\n{:<39} {:<39} sentence",
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

/// Saves a checkpoint in shards half as large, and looks at both through ndarray.
fn reshard(checkpoint: &Checkpoint) -> Result<()> {
    let shards = 2 * checkpoint.files().len() as u64;
    let options = SaveOptions {
        max_shard_size: ShardSize::new(checkpoint.totals().bytes.div_ceil(shards).max(1))?,
        sharding: Sharding::Greedy,
        ..SaveOptions::like(checkpoint)
    };
    let folder = tempfile::tempdir()?;
    let report = safeshard::save(checkpoint.save_tensors(), folder.path(), &options)?;

    let resharded = Checkpoint::open(folder.path())?;
    for tensor in checkpoint.tensors() {
        if dyn_tensor(checkpoint, tensor.name)? != dyn_tensor(&resharded, tensor.name)? {
            return Err(format!("{} is not the same after re-sharding", tensor.name).into());
        }
    }
    println!(
        "\nre-sharded into {} files: through ndarray, all {} tensors are the same",
        report.files.len(),
        resharded.totals().tensors,
    );
    Ok(())
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
