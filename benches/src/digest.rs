//! What a contender has produced, in a line that every contender must agree on.

use std::fs;
use std::path::PathBuf;

use candle_core::Tensor;
use safetensors::tensor::View;
use serde::{Deserialize, Serialize};

use crate::Result;

/// Tensors, their bytes, and a checksum over names, dtypes, shapes and contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) tensors: u64,
    pub(crate) bytes: u64,
    pub(crate) crc32: u32,
}

/// One tensor in words, and its bytes. `python/rivals.py` writes the same.
struct Line {
    text: String,
    bytes: u64,
}

impl Line {
    fn new(name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> Self {
        let crc32 = crc32fast::hash(bytes);
        Self {
            text: format!("{name} {dtype} {shape:?} {crc32:08x}\n"),
            bytes: bytes.len() as u64,
        }
    }
}

impl Digest {
    /// Of tensors in any order.
    pub(crate) fn of_tensors<'t>(
        tensors: impl IntoIterator<Item = (&'t str, &'t Tensor)>,
    ) -> Result<Self> {
        let lines = tensors.into_iter().map(|(name, tensor)| {
            let dtype = View::dtype(&tensor).to_string();
            Line::new(name, &dtype, tensor.dims(), &View::data(&tensor))
        });
        Ok(Self::of_lines(lines.collect()))
    }

    /// Of arrays of `F32`: name, shape, elements.
    pub(crate) fn of_arrays<'t>(
        arrays: impl IntoIterator<Item = (&'t str, &'t [usize], &'t [f32])>,
    ) -> Self {
        let lines = arrays.into_iter().map(|(name, shape, elements)| {
            Line::new(name, "F32", shape, bytemuck::cast_slice(elements))
        });
        Self::of_lines(lines.collect())
    }

    /// Of a whole safetensors file in memory.
    pub(crate) fn of_file(file: &[u8]) -> Result<Self> {
        let parsed = safetensors::SafeTensors::deserialize(file)?;
        let lines = parsed.iter().map(|(name, view)| {
            Line::new(name, &view.dtype().to_string(), view.shape(), view.data())
        });
        Ok(Self::of_lines(lines.collect()))
    }

    /// Of files, together.
    pub(crate) fn of_files(files: &[PathBuf]) -> Result<Self> {
        let mut lines = Vec::new();
        for file in files {
            let file = fs::read(file)?;
            let parsed = safetensors::SafeTensors::deserialize(&file)?;
            lines.extend(parsed.iter().map(|(name, view)| {
                Line::new(name, &view.dtype().to_string(), view.shape(), view.data())
            }));
        }
        Ok(Self::of_lines(lines))
    }

    /// Of headers: name, dtype, shape, first and last byte of each tensor.
    pub(crate) fn of_entries<'t>(
        entries: impl IntoIterator<Item = (&'t str, String, Vec<u64>, u64, u64)>,
    ) -> Self {
        let lines = entries
            .into_iter()
            .map(|(name, dtype, shape, start, end)| Line {
                text: format!("{name} {dtype} {shape:?} {start} {end}\n"),
                bytes: end - start,
            });
        Self::of_lines(lines.collect())
    }

    fn of_lines(mut lines: Vec<Line>) -> Self {
        lines.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        let mut crc32 = crc32fast::Hasher::new();
        for line in &lines {
            crc32.update(line.text.as_bytes());
        }
        Self {
            tensors: lines.len() as u64,
            bytes: lines.iter().map(|line| line.bytes).sum(),
            crc32: crc32.finalize(),
        }
    }
}
