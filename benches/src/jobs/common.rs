//! What several jobs do alike.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use candle_core::Tensor;
use candle_core::safetensors::MmapedSafetensors;
use memmap2::MmapMut;
use safeshard::{Checkpoint, LoadOptions, OpenOptions, ReadOptions};

use crate::digest::Digest;
use crate::job::Product;
use crate::{Result, memory};

pub(super) const GIB: u64 = 1 << 30;

/// That many reading threads, and everything else as it is by default.
pub(super) fn threads(threads: usize) -> LoadOptions {
    LoadOptions {
        read: ReadOptions {
            threads: NonZero::new(threads),
            ..ReadOptions::default()
        },
        ..LoadOptions::default()
    }
}

/// Tensors, and what must live as long as they do.
pub(super) fn tensors<T: 'static>(tensors: HashMap<String, Tensor>, owner: T) -> Product {
    Box::new(move || {
        let digest = Digest::of_tensors(tensors.iter().map(|(name, tensor)| (&**name, tensor)));
        drop(owner);
        digest
    })
}

/// Names and shapes in some files: a model knows them without looking.
pub(super) fn shapes(files: &[PathBuf]) -> Result<Vec<(String, Vec<usize>)>> {
    let checkpoint = Checkpoint::open_files(files, &OpenOptions::default())?;
    let tensors = checkpoint.tensors().map(|tensor| {
        let shape = tensor.shape.iter().map(|&dim| dim as usize);
        (tensor.name.to_owned(), shape.collect())
    });
    Ok(tensors.collect())
}

/// candle's mapped loader, of one file or several.
pub(super) fn map(files: &[PathBuf]) -> Result<MmapedSafetensors> {
    Ok(match files {
        // SAFETY: nobody writes to the generated files once they have their name.
        [file] => unsafe { MmapedSafetensors::new(file) }?,
        // SAFETY: the same.
        files => unsafe { MmapedSafetensors::multi(files) }?,
    })
}

/// The whole file in fresh memory, read by a few threads, piece by piece.
pub(super) fn read_into_arena(
    file: &File,
    threads: usize,
    piece: usize,
) -> Result<(MmapMut, usize)> {
    let len = usize::try_from(file.metadata()?.len())?;
    // Whole pieces, because direct reads have to be aligned at both ends.
    let mut arena = memory::arena(len.next_multiple_of(piece) as u64)?;
    let pieces = Mutex::new(arena.chunks_mut(piece).enumerate());
    let read = || -> std::io::Result<()> {
        loop {
            let next = pieces.lock().ok().and_then(|mut pieces| pieces.next());
            let Some((position, mut memory)) = next else {
                return Ok(());
            };
            let mut offset = (position * piece) as u64;
            while !memory.is_empty() && offset < len as u64 {
                let read = file.read_at(memory, offset)?;
                offset += read as u64;
                memory = &mut memory[read..];
            }
        }
    };
    thread::scope(|scope| -> Result {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => Ok(result?),
                Err(_) => Err("a reading thread panicked".into()),
            })
    })?;
    Ok((arena, len))
}

/// A file in memory, as a product.
pub(super) fn arena((arena, len): (MmapMut, usize)) -> Product {
    Box::new(move || Digest::of_file(&arena[..len]))
}

/// For closures that outlive the borrowed path.
pub(super) fn owned(path: &Path) -> PathBuf {
    path.to_path_buf()
}
