//! What `config.json` beside a checkpoint says of its quantisation.

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::io::source::{FileSource, ReadAt, read_vec};

/// Longer files are no configuration.
const LONGEST: u64 = 16 << 20;

/// The method's name; `None` where there is no such file, or it says nothing of that.
pub(super) fn method(checkpoint: &Checkpoint) -> Option<String> {
    let path = checkpoint.folder()?.join("config.json");
    let file = FileSource::open(path).ok()?;
    let bytes = read_vec(&file, 0, Some(file.len()).filter(|len| *len <= LONGEST)?).ok()?;
    let config: Value = serde_json::from_slice(&bytes).ok()?;
    // Of models with several parts, the language model's counts.
    let texts = [Some(&config), config.get("text_config")];
    let mut texts = texts.into_iter().flatten();
    let entry =
        texts.find_map(|config| QUANTIZATION_KEYS.iter().find_map(|key| config.get(key)))?;
    let method = entry.get("quant_method").and_then(Value::as_str);
    Some(method.unwrap_or("unknown").to_owned())
}

/// What the entry of the quantisation is called.
pub(in crate::checkpoint) const QUANTIZATION_KEYS: [&str; 2] =
    ["quantization_config", "compression_config"];

/// Whether weights of 8 bits have scales by that method, so that one without is half a weight.
pub(super) fn is_scaled(method: &str) -> bool {
    ["fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"].contains(&method)
}
