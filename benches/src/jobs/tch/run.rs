//! The contenders that need libtorch.

use std::collections::HashMap;
use std::fs::File;
use std::hint::black_box;
use std::path::Path;

use memmap2::{MmapMut, MmapOptions};
use safeshard::Durability;
use safeshard::tch::{
    Kinds, VarOptions, VarStoreExt, load_with, map_with, save_with, tensor_to_save,
};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::Result;
use crate::data::files;
use crate::digest::Digest;
use crate::job::{Prepared, Product};
use crate::jobs::common::{owned, shapes, threads};
use crate::jobs::save::{fresh_folder, options, saved};

const PAGE: usize = 4096;

pub(super) fn load(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let (loaded, _report) = load_with(path, Device::Cpu, &threads(2))?;
        Ok(tensors(loaded))
    }))
}

pub(super) fn read_safetensors(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let loaded = Tensor::read_safetensors(path)?;
        Ok(tensors(loaded.into_iter().collect()))
    }))
}

pub(super) fn map(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || Ok(tensors(mapped(&path)?))))
}

fn mapped(path: &Path) -> Result<HashMap<String, Tensor>> {
    // SAFETY: nobody writes to the generated files once they have their name.
    let (mapped, report) = unsafe { map_with(path, &threads(2)) }?;
    match report.copied.is_empty() {
        true => Ok(mapped),
        false => Err("something was copied".into()),
    }
}

pub(super) fn raw_map(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let map = raw(&path)?;
        Ok(Box::new(move || Digest::of_file(&map)))
    }))
}

fn raw(path: &Path) -> Result<MmapMut> {
    // SAFETY: nobody writes to the generated files once they have their name.
    Ok(unsafe { MmapOptions::new().map_copy(&File::open(path)?) }?)
}

pub(super) fn map_and_touch(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let mapped = mapped(&path)?;
        for tensor in mapped.values() {
            let len = tensor.numel() * tensor.kind().elt_size_in_bytes();
            let data = tensor.data_ptr().cast_const().cast::<u8>();
            // SAFETY: a contiguous tensor has its bytes there, and nobody writes to them.
            touch(unsafe { std::slice::from_raw_parts(data, len) });
        }
        Ok(tensors(mapped))
    }))
}

pub(super) fn raw_map_and_touch(path: &Path) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let map = raw(&path)?;
        touch(&map);
        Ok(Box::new(move || Digest::of_file(&map)))
    }))
}

fn touch(bytes: &[u8]) {
    for byte in bytes.iter().step_by(PAGE) {
        black_box(*byte);
    }
}

/// A store with a variable for each tensor of the file.
fn variables(path: &Path) -> Result<VarStore> {
    let vars = VarStore::new(Device::Cpu);
    for (name, shape) in shapes(&files(path)?)? {
        let shape: Vec<_> = shape.into_iter().map(|dim| dim as i64).collect();
        let mut place = vars.root();
        let (folders, last) = name.rsplit_once('.').unwrap_or(("", &name));
        for folder in folders.split('.').filter(|folder| !folder.is_empty()) {
            place = place / folder;
        }
        let _in_the_store = place.zeros_no_train(last, &shape);
    }
    Ok(vars)
}

fn var_options() -> VarOptions {
    VarOptions {
        load: threads(2),
        kinds: Kinds::Checkpoint,
        ..VarOptions::default()
    }
}

pub(super) fn adopt(path: &Path) -> Result<Prepared> {
    let (path, mut vars) = (owned(path), variables(path)?);
    Ok(Box::new(move || {
        vars.adopt_checkpoint(path, &var_options())?;
        Ok(tensors(vars.variables()))
    }))
}

pub(super) fn load_variables(path: &Path) -> Result<Prepared> {
    let (path, mut vars) = (owned(path), variables(path)?);
    Ok(Box::new(move || {
        vars.load_checkpoint(path, &var_options())?;
        Ok(tensors(vars.variables()))
    }))
}

pub(super) fn var_store_load(path: &Path) -> Result<Prepared> {
    let (path, mut vars) = (owned(path), variables(path)?);
    Ok(Box::new(move || {
        vars.load(path)?;
        Ok(tensors(vars.variables()))
    }))
}

pub(super) fn save(path: &Path) -> Result<Prepared> {
    let (tensors, _) = load_with(path, Device::Cpu, &threads(2))?;
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        save_with(&tensors, &folder, &options(Durability::Cached))?;
        Ok(saved(folder, tensors))
    }))
}

pub(super) fn write_safetensors(path: &Path) -> Result<Prepared> {
    let (tensors, _) = load_with(path, Device::Cpu, &threads(2))?;
    let tensors: Vec<_> = tensors.into_iter().collect();
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        Tensor::write_safetensors(&tensors, folder.join("model.safetensors"))?;
        Ok(saved(folder, tensors))
    }))
}

/// Tensors as a product.
fn tensors(tensors: HashMap<String, Tensor>) -> Product {
    Box::new(move || {
        let described = tensors
            .iter()
            .map(|(name, tensor)| tensor_to_save(name, tensor));
        Digest::of_described(described.collect::<Result<_, _>>()?)
    })
}
