//! A whole model of candle-transformers.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;
use candle_transformers::models::llama::Llama;
use safeshard::candle::Weights;

use super::common::{GIB, owned, shapes, threads};
use crate::Result;
use crate::data::{Dataset, bert_config, files, llama_config};
use crate::digest::Digest;
use crate::job::{Cache, Contender, Job, Opens, Prepared, Product, Target};

pub(super) const BERT: Job = Job {
    name: "var-builder-bert",
    title: "A BERT built through a `VarBuilder`",
    about: "`BertModel` of candle-transformers in the size of BERT-large, F32, 1.2 GiB: opening the \
            file and building the model.",
    data: Dataset::Bert,
    cache: Cache::Warm,
    touch: 2 * GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours(
            "safeshard-2",
            "safeshard `var_builder`, 2 threads",
            |path| safeshard(path, DType::F32, bert),
        ),
        Contender::rival("candle-mmap", "candle `from_mmaped_safetensors`", |path| {
            candle_mmap(path, DType::F32, bert)
        }),
    ],
    targets: TARGETS,
};

pub(super) const LLAMA: Job = Job {
    name: "var-builder-llama",
    title: "A Llama built through a `VarBuilder`",
    about: "`Llama` of candle-transformers with 1.1 billion parameters in four shards, BF16, \
            2.1 GiB: opening them and building the model.",
    data: Dataset::LlamaShards,
    touch: 3 * GIB,
    contenders: &[
        Contender::ours(
            "safeshard-2",
            "safeshard `var_builder`, 2 threads",
            |path| safeshard(path, DType::BF16, llama),
        ),
        Contender::rival("candle-mmap", "candle `from_mmaped_safetensors`", |path| {
            candle_mmap(path, DType::BF16, llama)
        }),
    ],
    ..BERT
};

const TARGETS: &[Target] = &[
    Target::time("safeshard-2", "candle-mmap", 0.50, 0.39),
    Target::memory("safeshard-2"),
];

/// Builds a model.
type Build<M> = fn(VarBuilder<'static>) -> candle_core::Result<M>;

fn bert(vb: VarBuilder<'static>) -> candle_core::Result<BertModel> {
    BertModel::load(vb, &bert_config())
}

fn llama(vb: VarBuilder<'static>) -> candle_core::Result<Llama> {
    Llama::load(vb, &llama_config())
}

fn safeshard<M: 'static>(path: &Path, dtype: DType, build: Build<M>) -> Result<Prepared> {
    let (path, files) = (owned(path), files(path)?);
    Ok(Box::new(move || {
        let vb = Weights::open_with(path, &threads(2))?.var_builder(dtype, &Device::Cpu);
        let model = build(vb.clone())?;
        Ok(product(model, vb, files))
    }))
}

fn candle_mmap<M: 'static>(path: &Path, dtype: DType, build: Build<M>) -> Result<Prepared> {
    let files = files(path)?;
    Ok(Box::new(move || {
        // SAFETY: nobody writes to the generated files once they have their name.
        let vb = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &Device::Cpu) }?;
        let model = build(vb.clone())?;
        Ok(product(model, vb, files))
    }))
}

/// A model does not hand out its tensors, so what is compared is what its builder gives for every
/// name in the files.
fn product<M: 'static>(model: M, vb: VarBuilder<'static>, files: Vec<PathBuf>) -> Product {
    Box::new(move || {
        drop(model);
        let mut tensors = Vec::new();
        for (name, _) in shapes(&files)? {
            let tensor = vb.get_unchecked(&name)?;
            tensors.push((name, tensor));
        }
        Digest::of_tensors(tensors.iter().map(|(name, tensor)| (&**name, tensor)))
    })
}
