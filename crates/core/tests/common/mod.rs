//! What a file says, told by us and by the reference in the same words.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::panic;

use safeshard_core::{Code, Header, HeaderOptions, Limits, Profile, Result};
use safetensors::SafeTensors;

pub(crate) const PROFILES: [Profile; 3] = [Profile::Strict, Profile::Default, Profile::Reference];

/// What a reader found in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Sorted.
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tensor {
    pub(crate) offsets: (u64, u64),
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
}

/// What we find in a file, with limits that no small file reaches.
pub(crate) fn ours(file: &[u8], profile: Profile) -> Result<Contents> {
    let header = Header::parse(file, Some(file.len() as u64), &options(profile))?;
    Ok(contents(&header))
}

pub(crate) fn options(profile: Profile) -> HeaderOptions {
    HeaderOptions {
        profile,
        limits: Limits {
            name_bytes: u64::MAX,
            rank: u64::MAX,
            ignored_bytes: u64::MAX,
            ..Limits::default()
        },
        ..HeaderOptions::default()
    }
}

pub(crate) fn contents(header: &Header) -> Contents {
    let tensors = header.tensors().map(|tensor| Tensor {
        offsets: (tensor.start, tensor.end),
        name: tensor.name.to_owned(),
        dtype: tensor.dtype.name().to_owned(),
        shape: tensor.shape.to_vec(),
    });
    let metadata = header.metadata();
    Contents {
        tensors: sorted(tensors),
        metadata: metadata
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// What the reference finds in a file; `None` where it refuses it. Its unchecked additions panic
/// in builds that check arithmetic, which is a refusal too.
pub(crate) fn reference(file: &[u8]) -> Option<Contents> {
    let parsed = panic::catch_unwind(|| SafeTensors::read_metadata(file).ok());
    let (_, metadata) = parsed.ok().flatten()?;
    let tensors = metadata.tensors();
    let tensors = tensors.iter().map(|(name, info)| Tensor {
        offsets: (info.data_offsets.0 as u64, info.data_offsets.1 as u64),
        name: name.clone(),
        dtype: info.dtype.to_string(),
        shape: info.shape.iter().map(|&dim| dim as u64).collect(),
    });
    Some(Contents {
        tensors: sorted(tensors),
        metadata: metadata.metadata().clone().into_iter().flatten().collect(),
    })
}

/// Checks what holds between the profiles and the reference for any bytes.
pub(crate) fn same_verdict(file: &[u8]) {
    let theirs = reference(file);
    let [strict, default, as_reference] = PROFILES.map(|profile| ours(file, profile));
    let shown = || String::from_utf8_lossy(file).into_owned();
    assert_eq!(as_reference.as_ref().ok(), theirs.as_ref(), "{}", shown());
    if let Ok(strict) = &strict {
        assert_eq!(default.as_ref().ok(), Some(strict), "{}", shown());
    }
    match (&default, &as_reference) {
        (Ok(default), Ok(as_reference)) => assert_eq!(default, as_reference, "{}", shown()),
        // The one exception: a zero behind an overflow.
        (Ok(default), Err(error)) => {
            assert_eq!(error.code(), Code::ShapeOverflow, "{}", shown());
            assert!(
                default
                    .tensors
                    .iter()
                    .any(|tensor| tensor.shape.contains(&0))
            );
        }
        (Err(_), _) => {}
    }
}

/// A file with this JSON and so many bytes of data.
pub(crate) fn file(json: &[u8], data_len: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(file.len() + data_len, 0);
    file
}

fn sorted(tensors: impl Iterator<Item = Tensor>) -> Vec<Tensor> {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort();
    tensors
}
