//! Hashing stretches of files, several at a time.

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use sha2::{Digest as _, Sha256};

use super::{Algorithm, Digest};
use crate::error::Result;
use crate::io::engine::ReadOptions;
use crate::io::extent::Extent;
use crate::io::scan::{self, Item};

/// Bytes of a subtree of BLAKE3 that one thread hashes; a power of two.
const SUBTREE: u64 = 8 << 20;

/// The digest of every extent, in order.
pub(super) fn each(
    extents: &[Extent<'_>],
    algorithm: Algorithm,
    options: &ReadOptions,
) -> Result<Vec<Digest>> {
    match algorithm {
        Algorithm::Sha256 => scan::each(options, extents, |extent, reader| {
            let mut hasher = Sha256::new();
            reader.read(extent, |block| {
                hasher.update(block);
                Ok(())
            })?;
            Ok(Digest(hasher.finalize().into()))
        }),
        Algorithm::Blake3 => blake3_of_each(extents, options),
    }
}

/// BLAKE3 is a tree, whose subtrees are hashed side by side.
fn blake3_of_each(extents: &[Extent<'_>], options: &ReadOptions) -> Result<Vec<Digest>> {
    let mut subtrees = Vec::new();
    for whole in extents {
        // Of no bytes there is a digest too.
        let starts = (0..whole.len.max(1)).step_by(SUBTREE as usize);
        subtrees.extend(starts.map(|start| Subtree { whole, start }));
    }
    let hashed = scan::each(options, &subtrees, |subtree, reader| {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(subtree.start);
        reader.read(&subtree.extent(), |block| {
            hasher.update(block);
            Ok(())
        })?;
        Ok(match subtree.whole.len <= SUBTREE {
            true => *hasher.finalize().as_bytes(),
            false => hasher.finalize_non_root(),
        })
    })?;
    let mut rest = hashed.as_slice();
    let digests = extents.iter().map(|extent| {
        let (own, others) = rest.split_at(subtree_count(extent.len).min(rest.len()));
        rest = others;
        Digest(root(own, extent.len))
    });
    Ok(digests.collect())
}

/// What one thread hashes by itself.
struct Subtree<'e> {
    whole: &'e Extent<'e>,
    start: u64,
}

impl Item for Subtree<'_> {
    fn extent(&self) -> Extent<'_> {
        self.whole.part(self.start, SUBTREE)
    }
}

fn subtree_count(len: u64) -> usize {
    len.max(1).div_ceil(SUBTREE) as usize
}

fn root(subtrees: &[ChainingValue], len: u64) -> [u8; 32] {
    match subtrees {
        [] => [0; 32],
        [only] => *only,
        _ => {
            let [left, right] = halves(subtrees, len);
            *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
        }
    }
}

fn inner(subtrees: &[ChainingValue], len: u64) -> ChainingValue {
    match subtrees {
        [] => ChainingValue::default(),
        [only] => *only,
        _ => {
            let [left, right] = halves(subtrees, len);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

/// The two halves of a tree of several subtrees: the left one is a power of two.
fn halves(subtrees: &[ChainingValue], len: u64) -> [ChainingValue; 2] {
    let left_len = left_subtree_len(len);
    let (left, right) = subtrees.split_at(subtree_count(left_len).min(subtrees.len()));
    [inner(left, left_len), inner(right, len - left_len)]
}
