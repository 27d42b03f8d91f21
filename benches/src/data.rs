//! The files that are measured: made once, the same everywhere, with contents that differ.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_transformers::models::{bert, llama};
use safetensors::tensor::{Dtype, View};
use serde_json::{Map, json};

use crate::Result;
use crate::random::Random;

/// Part of every seed and file name: another one makes everything anew.
const GENERATION: &str = "1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dataset {
    /// A Llama of 1.1 billion parameters: 300 tensors, BF16, norms in F32, 2.1 GiB.
    Llama,
    /// The same tensors in four shards with an index.
    LlamaShards,
    /// BERT-large: 389 tensors in F32, 1.2 GiB.
    Bert,
    /// 100 shards of 20 tensors of 0.5 MiB, with an index.
    HundredShards,
    /// Four tensors of three dimensions, as a layer's experts are kept: 0.6 GB in BF16.
    Experts,
    /// 16 matrices in F32: 1 GiB.
    Matrices,
    /// 16 matrices in F32: 16 MiB.
    SmallMatrices,
    /// 16 matrices in BF16: 1 GiB.
    Bf16Matrices,
    /// 64 matrices in BF16: 4 GiB.
    FourGib,
    /// The same tensors in four shards with an index.
    FourGibShards,
    /// The matrices of 1 GiB, in two equal files.
    Twins,
    /// Small tensors: what counts is the header, of 130 kB.
    Header1k,
    /// The same with a header of 1.3 MB.
    Header10k,
    /// The same with a header of 26 MB.
    Header200k,
}

impl Dataset {
    /// The file, or the folder of shards.
    pub(crate) fn path(self, data: &Path) -> PathBuf {
        let name = match self {
            Self::Llama => "llama.safetensors",
            Self::LlamaShards => "llama-shards",
            Self::Bert => "bert.safetensors",
            Self::HundredShards => "hundred-shards",
            Self::Experts => "experts.safetensors",
            Self::Matrices => "matrices.safetensors",
            Self::SmallMatrices => "small-matrices.safetensors",
            Self::Bf16Matrices => "bf16-matrices.safetensors",
            Self::FourGib => "4-gib.safetensors",
            Self::FourGibShards => "4-gib-shards",
            Self::Twins => "twins",
            Self::Header1k => "header-1k.safetensors",
            Self::Header10k => "header-10k.safetensors",
            Self::Header200k => "header-200k.safetensors",
        };
        data.join(GENERATION).join(name)
    }

    /// Makes it unless it is there; returns its path.
    pub(crate) fn make(self, data: &Path) -> Result<PathBuf> {
        let path = self.path(data);
        if path.exists() {
            return Ok(path);
        }
        eprintln!("bench: making {}", path.display());
        let partial = path.with_extension("partial");
        let _none = fs::remove_dir_all(&partial).or_else(|_| fs::remove_file(&partial));
        fs::create_dir_all(path.parent().ok_or("the data has no folder")?)?;
        match self {
            Self::Llama => write_file(&partial, llama_tensors())?,
            Self::LlamaShards => write_shards(&partial, llama_tensors(), 4)?,
            Self::Bert => write_file(&partial, bert_tensors())?,
            Self::HundredShards => write_shards(&partial, small_tensors(2000, &[512, 512]), 100)?,
            Self::Experts => write_file(&partial, expert_tensors())?,
            Self::Matrices => write_file(&partial, matrices(16, Dtype::F32, 4096, 4096))?,
            Self::SmallMatrices => write_file(&partial, matrices(16, Dtype::F32, 512, 512))?,
            Self::Bf16Matrices => write_file(&partial, matrices(16, Dtype::BF16, 8192, 4096))?,
            Self::FourGib => write_file(&partial, four_gib())?,
            Self::FourGibShards => write_shards(&partial, four_gib(), 4)?,
            Self::Twins => {
                fs::create_dir_all(&partial)?;
                for twin in ["a.safetensors", "b.safetensors"] {
                    write_file(&partial.join(twin), matrices(16, Dtype::F32, 4096, 4096))?;
                }
            }
            Self::Header1k => write_file(&partial, small_tensors(1000, &[2, 4]))?,
            Self::Header10k => write_file(&partial, small_tensors(10_000, &[2, 4]))?,
            Self::Header200k => write_file(&partial, small_tensors(200_000, &[2, 4]))?,
        }
        fs::rename(&partial, &path)?;
        Ok(path)
    }
}

/// The safetensors files at a dataset's path, in the order of their names.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| {
        file.extension()
            .is_some_and(|extension| extension == "safetensors")
    });
    files.sort();
    Ok(files)
}

pub(crate) fn llama_config() -> llama::Config {
    llama::Config {
        hidden_size: 1536,
        intermediate_size: 4608,
        vocab_size: 64_000,
        num_hidden_layers: 33,
        num_attention_heads: 24,
        num_key_value_heads: 8,
        ..llama::Config::config_7b_v2(false)
    }
}

pub(crate) fn bert_config() -> bert::Config {
    bert::Config {
        hidden_size: 1024,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        intermediate_size: 4096,
        ..bert::Config::default()
    }
}

/// A name, and the tensor that will be made for it when it is written.
type Tensors = Vec<(String, Made)>;

fn llama_tensors() -> Tensors {
    let config = llama_config();
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let key_value = hidden / config.num_attention_heads * config.num_key_value_heads;
    let mut tensors = vec![
        made(
            "model.embed_tokens.weight",
            Dtype::BF16,
            &[config.vocab_size, hidden],
        ),
        made("lm_head.weight", Dtype::BF16, &[config.vocab_size, hidden]),
        made("model.norm.weight", Dtype::F32, &[hidden]),
    ];
    for layer in 0..config.num_hidden_layers {
        for (name, dtype, shape) in [
            ("self_attn.q_proj", Dtype::BF16, &[hidden, hidden][..]),
            ("self_attn.k_proj", Dtype::BF16, &[key_value, hidden]),
            ("self_attn.v_proj", Dtype::BF16, &[key_value, hidden]),
            ("self_attn.o_proj", Dtype::BF16, &[hidden, hidden]),
            ("mlp.gate_proj", Dtype::BF16, &[inner, hidden]),
            ("mlp.up_proj", Dtype::BF16, &[inner, hidden]),
            ("mlp.down_proj", Dtype::BF16, &[hidden, inner]),
            ("input_layernorm", Dtype::F32, &[hidden]),
            ("post_attention_layernorm", Dtype::F32, &[hidden]),
        ] {
            tensors.push(made(
                &format!("model.layers.{layer}.{name}.weight"),
                dtype,
                shape,
            ));
        }
    }
    tensors
}

fn bert_tensors() -> Tensors {
    let config = bert_config();
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push(made(&name, Dtype::F32, shape));
    for (name, rows) in [
        ("word_embeddings", config.vocab_size),
        ("position_embeddings", config.max_position_embeddings),
        ("token_type_embeddings", config.type_vocab_size),
    ] {
        add(format!("embeddings.{name}.weight"), &[rows, hidden]);
    }
    let mut affine = |name: String, shape: &[usize]| {
        add(format!("{name}.weight"), shape);
        add(format!("{name}.bias"), &shape[..1]);
    };
    affine("embeddings.LayerNorm".into(), &[hidden]);
    for layer in 0..config.num_hidden_layers {
        for (name, shape) in [
            ("attention.self.query", &[hidden, hidden][..]),
            ("attention.self.key", &[hidden, hidden]),
            ("attention.self.value", &[hidden, hidden]),
            ("attention.output.dense", &[hidden, hidden]),
            ("attention.output.LayerNorm", &[hidden]),
            ("intermediate.dense", &[inner, hidden]),
            ("output.dense", &[hidden, inner]),
            ("output.LayerNorm", &[hidden]),
        ] {
            affine(format!("encoder.layer.{layer}.{name}"), shape);
        }
    }
    tensors
}

fn expert_tensors() -> Tensors {
    let name = |layer| format!("model.layers.{layer}.mlp.experts.gate_proj.weight");
    let tensors = (0..4).map(|layer| made(&name(layer), Dtype::BF16, &[32, 1536, 1536]));
    tensors.collect()
}

fn four_gib() -> Tensors {
    matrices(64, Dtype::BF16, 8192, 4096)
}

fn matrices(count: usize, dtype: Dtype, rows: usize, columns: usize) -> Tensors {
    let name = |layer| format!("layers.{layer}.weight");
    let tensors = (0..count).map(|layer| made(&name(layer), dtype, &[rows, columns]));
    tensors.collect()
}

fn small_tensors(count: usize, shape: &[usize]) -> Tensors {
    let name = |tensor| {
        let (layer, expert) = (tensor / 100, tensor % 100);
        format!("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight")
    };
    let tensors = (0..count).map(|tensor| made(&name(tensor), Dtype::BF16, shape));
    tensors.collect()
}

/// A tensor that exists only while it is written.
struct Made {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

fn made(name: &str, dtype: Dtype, shape: &[usize]) -> (String, Made) {
    let name = name.to_owned();
    let made = Made {
        name: name.clone(),
        dtype,
        shape: shape.to_vec(),
    };
    (name, made)
}

impl View for Made {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Any sign and mantissa, and exponents of small ordinary numbers, as weights are.
        let (any, fixed) = match self.dtype {
            Dtype::F32 => (0x81ff_ffff_81ff_ffff, 0x3a00_0000_3a00_0000),
            _ => (0x81ff_81ff_81ff_81ff, 0x3a00_3a00_3a00_3a00),
        };
        let mut random = Random::of(&format!("{GENERATION} {}", self.name));
        let mut bytes = vec![0; self.data_len()];
        for chunk in bytes.chunks_mut(8) {
            let word: u64 = random.next() & any | fixed;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Written by the reference writer, in its order.
fn write_file(path: &Path, tensors: Tensors) -> Result {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(tensors, Some(metadata), path)?;
    File::open(path)?.sync_all()?;
    Ok(())
}

/// Shards of about the same size, tensors in the order given, named as Hugging Face names them.
fn write_shards(folder: &Path, tensors: Tensors, shards: usize) -> Result {
    fs::create_dir_all(folder)?;
    let total: usize = tensors.iter().map(|(_, tensor)| tensor.data_len()).sum();
    let mut tensors = tensors.into_iter().peekable();
    let mut weight_map = Map::new();
    let mut written = 0;
    for shard in 1..=shards {
        let name = format!("model-{shard:05}-of-{shards:05}.safetensors");
        let mut part = Tensors::new();
        while written < total * shard / shards
            && let Some((tensor, made)) = tensors.next()
        {
            written += made.data_len();
            weight_map.insert(tensor.clone(), name.clone().into());
            part.push((tensor, made));
        }
        write_file(&folder.join(name), part)?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let path = folder.join("model.safetensors.index.json");
    fs::write(path, serde_json::to_string_pretty(&index)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_has_the_same_small_finite_numbers_every_time() {
        for dtype in [Dtype::BF16, Dtype::F32] {
            let (_, made) = made("w", dtype, &[5, 7]);
            let bytes = made.data();
            assert_eq!(bytes, made.data());
            let step = dtype.bitsize() / 8;
            for number in bytes.chunks(step) {
                let mut wide = [0; 4];
                wide[4 - step..].copy_from_slice(number);
                let number = f32::from_le_bytes(wide).abs();
                assert!((0.0001..0.01).contains(&number), "{number}");
            }
        }
    }

    #[test]
    fn the_llama_is_as_large_as_promised() {
        let tensors = llama_tensors();
        assert_eq!(tensors.len(), 300);
        let bytes: usize = tensors.iter().map(|(_, tensor)| tensor.data_len()).sum();
        assert!((2_000 << 20..2_200 << 20).contains(&bytes), "{bytes}");
    }
}
