//! Parsing a header of many tensors.

use std::fs;
use std::path::Path;

use safeshard::{Header, HeaderOptions};
use safetensors::SafeTensors;

use crate::Result;
use crate::data::Dataset;
use crate::digest::Digest;
use crate::job::{Cache, Contender, Job, Opens, Prepared, Target};

pub(super) const OF_10K: Job = Job {
    name: "header-10k",
    title: "A header of 10,000 tensors",
    about: "The file is in memory; what is measured is parsing and checking its header, up to a \
            table that finds tensors by name. `read_metadata` gives no such table.",
    data: Dataset::Header10k,
    cache: Cache::Warm,
    touch: 256 << 20,
    samples_times: 3,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::Header::parse`", safeshard),
        Contender::rival("deserialize", "`SafeTensors::deserialize`", deserialize),
        Contender::rival(
            "read-metadata",
            "`SafeTensors::read_metadata`",
            read_metadata,
        ),
    ],
    targets: &[Target::time("safeshard", "deserialize", 0.25, 0.18)],
};

pub(super) const OF_200K: Job = Job {
    name: "header-200k",
    title: "A header of 200,000 tensors",
    data: Dataset::Header200k,
    samples_times: 1,
    targets: &[Target::time("safeshard", "deserialize", 0.20, 0.14)],
    ..OF_10K
};

fn safeshard(path: &Path) -> Result<Prepared> {
    let file = fs::read(path)?;
    Ok(Box::new(move || {
        let header = Header::parse(&file, Some(file.len() as u64), &HeaderOptions::default())?;
        Ok(Box::new(move || {
            Ok(Digest::of_entries(header.tensors().map(|tensor| {
                let dtype = tensor.dtype.to_string();
                (
                    tensor.name,
                    dtype,
                    tensor.shape.to_vec(),
                    tensor.start,
                    tensor.end,
                )
            })))
        }))
    }))
}

fn deserialize(path: &Path) -> Result<Prepared> {
    // What is parsed borrows from the file, and the process ends soon.
    let file: &'static [u8] = fs::read(path)?.leak();
    Ok(Box::new(move || {
        let parsed = SafeTensors::deserialize(file)?;
        Ok(Box::new(move || {
            // Views do not say where they are, but their bytes lie inside the file.
            let (header_len, _) = SafeTensors::read_metadata(file)?;
            let base = file.as_ptr() as usize + 8 + header_len;
            Ok(Digest::of_entries(parsed.iter().map(|(name, view)| {
                let start = (view.data().as_ptr() as usize - base) as u64;
                let end = start + view.data().len() as u64;
                (
                    name,
                    view.dtype().to_string(),
                    shape(view.shape()),
                    start,
                    end,
                )
            })))
        }))
    }))
}

fn read_metadata(path: &Path) -> Result<Prepared> {
    let file = fs::read(path)?;
    Ok(Box::new(move || {
        let (_, metadata) = SafeTensors::read_metadata(&file)?;
        Ok(Box::new(move || {
            let names = metadata.offset_keys();
            let infos = names
                .iter()
                .filter_map(|name| Some((name, metadata.info(name)?)));
            Ok(Digest::of_entries(infos.map(|(name, info)| {
                let (start, end) = info.data_offsets;
                let dtype = info.dtype.to_string();
                (&**name, dtype, shape(&info.shape), start as u64, end as u64)
            })))
        }))
    }))
}

fn shape(dims: &[usize]) -> Vec<u64> {
    dims.iter().map(|&dim| dim as u64).collect()
}
