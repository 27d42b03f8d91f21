//! From a folder to a model: candle's own, the one that `config.json` names.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::bert::BertModel;
use candle_transformers::models::xlm_roberta::XLMRobertaModel;
use safeshard::LoadOptions;
use safeshard::candle::Weights;
use serde_json::{Map, Value, from_value};

use crate::Result;

pub(crate) struct Encoder {
    model: Model,
    /// The token that fills up short sentences.
    pub(crate) pad_token_id: u32,
}

enum Model {
    Bert(BertModel),
    /// XLM-RoBERTa too: the two differ in their tokenizers only.
    Roberta(XLMRobertaModel),
}

impl Encoder {
    pub(crate) fn load(folder: &Path, device: &Device) -> Result<Self> {
        let config = read_config(folder)?;
        let pad_token_id = from_value(config["pad_token_id"].clone())?;

        // The one call that replaces index parsing, unsafe mmap and `to_dtype`.
        let weights = Weights::open_with(folder, &as_candle_names_them())?;
        let builder = weights.var_builder(DType::F32, device);
        let model = match config["model_type"].as_str() {
            Some("bert") => Model::Bert(BertModel::load(builder, &from_value(config)?)?),
            Some("roberta" | "xlm-roberta") => {
                Model::Roberta(XLMRobertaModel::new(&from_value(config)?, builder)?)
            }
            // Refused rather than wrong: where transformers computes gelu, candle 0.11's
            // DistilBERT computes its approximation by tanh, which is more than 1e-5 away.
            other => {
                let found = other.unwrap_or("no model_type");
                return Err(format!("wanted bert, roberta or xlm-roberta, found {found}").into());
            }
        };
        println!("{}", weights.report());
        Ok(Self {
            model,
            pad_token_id,
        })
    }

    /// One hidden state a token.
    pub(crate) fn forward(&self, ids: &Tensor, type_ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        Ok(match &self.model {
            Model::Bert(model) => model.forward(ids, type_ids, Some(mask))?,
            Model::Roberta(model) => model.forward(ids, mask, type_ids, None, None, None)?,
        })
    }
}

/// `config.json`, completed: what older and newer files leave out has a default in transformers,
/// and none in candle.
fn read_config(folder: &Path) -> Result<Value> {
    let json = fs::read(folder.join("config.json"))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&json)?;
    let is_bert = config.get("model_type").is_some_and(|kind| kind == "bert");
    for (key, default) in [
        ("layer_norm_eps", 1e-12.into()),
        ("pad_token_id", u32::from(!is_bert).into()),
        ("position_embedding_type", "absolute".into()),
        ("is_decoder", false.into()),
    ] {
        config.entry(key).or_insert(default);
    }
    // candle would compute something else without a word.
    if config["position_embedding_type"] != "absolute" || config["is_decoder"] != false {
        return Err("only encoders with absolute positions are taken".into());
    }
    Ok(config.into())
}

/// A model that was saved with a head has its kind before every name, and the first BERTs call a
/// layer norm's numbers by Greek letters.
fn as_candle_names_them() -> LoadOptions {
    LoadOptions {
        rename: Some(Arc::new(|name| {
            ["bert.", "roberta."]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))
                .unwrap_or(name)
                .replace("LayerNorm.gamma", "LayerNorm.weight")
                .replace("LayerNorm.beta", "LayerNorm.bias")
        })),
        ..LoadOptions::default()
    }
}
