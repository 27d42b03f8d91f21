//! Tensors that lie anywhere as a checkpoint that is there already: how they pass from one framework to
//! another, in memory, and how files of other formats become checkpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::checkpoint::save::ties::{Resolved, resolve};
use crate::checkpoint::save::{SaveTensor, Ties};
use crate::checkpoint::scattered::Scattered;
use crate::checkpoint::{Checkpoint, CheckpointKind, ShardFile};
use crate::error::{Code, Error, Finding, Result};
use crate::format::header::{Header, HeaderOptions};
use crate::format::write::{DataAlignment, NewHeader};
use crate::io::folder::DiskFolder;
use crate::io::source::{MEMORY, ReadAt};

impl Checkpoint {
    /// Tensors that lie anywhere as a checkpoint: in memory, of any framework, or [`Located`](crate::Located)
    /// in a source. Every adapter can load from it, with all its options, and it can be saved, re-sharded and
    /// converted.
    ///
    /// Nothing is copied until something is read; then each byte is copied once, from where it lies to its
    /// destination, by the threads of the read. Of a tensor that does not lie in memory as a file holds it
    /// (strides, another device), only what is asked for is put in order, in pieces of at most 8 MiB, and
    /// nothing of it is kept. Bytes in a file are copied by the system where the checkpoint is saved. Tied
    /// tensors, which have one place in memory or one extent, are read once and tied again where they go
    /// to.
    ///
    /// Whoever changes a tensor afterwards may or may not find the change in what is read.
    ///
    /// # Errors
    /// `name-collision`, `reserved-name`; `buffer-size` where there are more or fewer bytes than dtype and
    /// shape say; `file-truncated` where a source is too short for an extent; what no file could hold, such
    /// as `shape-overflow`.
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, Dtype, SaveTensor};
    ///
    /// let tensor = SaveTensor::new("w", Dtype::U8, [2, 3], vec![1, 2, 3, 4, 5, 6]);
    /// let checkpoint = Checkpoint::from_tensors(vec![tensor])?;
    /// assert_eq!(checkpoint.info("w")?.shape, [2, 3]);
    /// assert_eq!(checkpoint.read_slice("w", &[(1u64..2).into()])?, [4, 5, 6]);
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn from_tensors(tensors: Vec<SaveTensor<'static>>) -> Result<Self> {
        let file = assembled(MEMORY, tensors, BTreeMap::new())?;
        Ok(Self::new(CheckpointKind::File, vec![file], None, None))
    }

    /// A file of another format as the checkpoint that it is, with its name and what is odd about it.
    ///
    /// # Errors
    /// As [`Checkpoint::from_tensors`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use safeshard_core::{Checkpoint, Dtype, ForeignFile, Located, MemorySource, SaveTensor};
    ///
    /// let source = Arc::new(MemorySource::new(b"head\x01\x02tail".to_vec()));
    /// let mut file = ForeignFile::new("model.bin", source.clone());
    /// let data = Located::new(source, "model.bin", 4..6);
    /// file.tensors.push(SaveTensor::new("w", Dtype::U8, [2], data));
    /// let checkpoint = Checkpoint::from_foreign(file)?;
    /// assert_eq!(checkpoint.files()[0].name(), "model.bin");
    /// assert_eq!(checkpoint.read("w")?, [1, 2]);
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn from_foreign(file: ForeignFile) -> Result<Self> {
        let ForeignFile {
            path,
            source,
            tensors,
            metadata,
            warnings,
        } = file;
        let name = path.file_name().unwrap_or(path.as_os_str());
        let file = assembled(&name.to_string_lossy(), tensors, metadata);
        let file = file.map_err(|error| error.at_path(&path))?;
        let (folder, _) = DiskFolder::of_file(&path);
        let file = file.foreign(source).in_folder(&folder, path.clone());
        let mut checkpoint = Self::new(CheckpointKind::File, vec![file], None, None);
        checkpoint.folder = Some(Arc::new(folder));
        checkpoint.path = Some(path.into());
        checkpoint.warnings = warnings.into();
        Ok(checkpoint)
    }
}

/// A file of another format, as what it holds: for whoever reads such a format.
#[non_exhaustive]
pub struct ForeignFile {
    /// Where it is.
    pub path: PathBuf,
    /// All its bytes.
    pub source: Arc<dyn ReadAt>,
    /// Its tensors, [`Located`](crate::Located) in it where they lie as safetensors would hold them.
    pub tensors: Vec<SaveTensor<'static>>,
    /// What a safetensors file of the same tensors would say under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// What is unusual about it but stops nothing.
    pub warnings: Vec<Finding>,
}

impl ForeignFile {
    /// A file without tensors.
    pub fn new(path: impl Into<PathBuf>, source: Arc<dyn ReadAt>) -> Self {
        Self {
            path: path.into(),
            source,
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }
}

impl fmt::Debug for ForeignFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignFile")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// A file that is nowhere, of tensors that lie anywhere.
fn assembled(
    name: &str,
    tensors: Vec<SaveTensor<'static>>,
    mut metadata: BTreeMap<String, String>,
) -> Result<ShardFile> {
    let Resolved { stored, aliases } = resolve(&tensors, Ties::Dedup)?;
    let mut tensors: Vec<_> = tensors.into_iter().map(Some).collect();
    let stored = stored.iter();
    let mut stored: Vec<_> = stored
        .map(|position| tensors.get_mut(position as usize).and_then(Option::take))
        .collect();
    let described = |at: usize| stored.get(at)?.as_ref().map(SaveTensor::described);
    // As huggingface_hub records them.
    metadata.extend(aliases);
    let new = NewHeader::new(stored.len(), described, &metadata, DataAlignment::default())?;
    let order = new.order().to_vec();
    let header = Header::parse(new.bytes(), Some(new.file_len()), &HeaderOptions::default())?;
    let mut file = Scattered::new(new.bytes().to_vec());
    for position in order {
        if let Some(tensor) = stored.get_mut(position as usize).and_then(Option::take) {
            let len = checked_len(&tensor)?;
            file.push(tensor.data, len);
        }
    }
    Ok(ShardFile::scattered(name.to_owned(), header, file))
}

/// Bytes of a tensor, which its data must agree with.
fn checked_len(tensor: &SaveTensor<'_>) -> Result<u64> {
    let len = tensor.described().byte_len();
    let len = len.map_err(|error| error.in_tensor(&tensor.name))?;
    let extent = tensor.data.extent();
    let lengths = [tensor.data.byte_len(), extent.map(|extent| extent.len)];
    if let Some(found) = lengths.into_iter().flatten().find(|found| *found != len) {
        return Err(Error::new(Code::BufferSize)
            .in_tensor(&tensor.name)
            .expected(format_args!("{len} bytes"))
            .found(found));
    }
    let end = |start: u64, there: u64| start.checked_add(len).filter(|end| *end <= there);
    match extent.map(|extent| (extent, extent.source.len())) {
        Some((extent, there)) if end(extent.start, there).is_none() => {
            Err(Error::new(Code::FileTruncated)
                .at_path(extent.path)
                .in_tensor(&tensor.name)
                .at_offset(there)
                .expected(format_args!("{len} bytes at {}", extent.start)))
        }
        _ => Ok(len),
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::format::dtype::Dtype;
    use crate::io::data::{Located, TensorData, WriteBytes};
    use crate::io::source::MemorySource;

    /// Bytes that come in parts, as of a tensor with strides.
    struct Parts(Vec<u8>, usize);

    impl TensorData for Parts {
        fn byte_len(&self) -> Option<u64> {
            None
        }

        fn is_materialised(&self) -> bool {
            true
        }

        fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
            let end = self.0.len().min(range.end as usize);
            let part = &self.0[end.min(range.start as usize)..end];
            part.chunks(self.1).try_for_each(write)
        }
    }

    fn bytes(len: usize) -> &'static [u8] {
        let bytes: Vec<_> = (0..len).map(|i| i as u8).collect();
        bytes.leak()
    }

    fn tensor(name: &str, shape: &[u64], data: impl TensorData + 'static) -> SaveTensor<'static> {
        SaveTensor::new(name, Dtype::U8, shape, data)
    }

    #[test]
    fn what_lies_in_memory_and_what_does_not_is_read_alike() {
        let lent = bytes(1 << 20);
        let parts = Parts(lent.to_vec(), 1000);
        let tensors = vec![
            tensor("lent", &[1 << 20], lent),
            tensor("parts", &[1 << 10, 1 << 10], parts),
            tensor("nothing", &[0, 3], bytes(0)),
            tensor("tied", &[1 << 20], lent),
        ];
        let checkpoint = Checkpoint::from_tensors(tensors).unwrap();
        assert_eq!(checkpoint.names(), ["lent", "nothing", "parts", "tied"]);
        assert_eq!(checkpoint.totals().tensors, 3);
        assert_eq!(checkpoint.aliases()["tied"], "lent");
        for name in ["lent", "parts", "tied"] {
            assert!(checkpoint.read(name).unwrap() == lent, "{name}");
        }
        assert!(checkpoint.read("nothing").unwrap().is_empty());
        let column = checkpoint.read_slice("parts", &[(0u64..1024).into(), (5u64..6).into()]);
        assert!(column.unwrap().iter().all(|byte| *byte == 5));
    }

    #[test]
    fn it_is_the_file_that_a_save_writes() {
        let source = bytes(24);
        let tensors = || {
            vec![
                SaveTensor::new("i", Dtype::I64, [1], &source[..8]),
                SaveTensor::new("b", Dtype::U8, [16], &source[8..]),
            ]
        };
        let checkpoint = Checkpoint::from_tensors(tensors()).unwrap();
        let memory = checkpoint.files()[0].source();
        let mut whole = vec![MaybeUninit::uninit(); memory.len() as usize];
        let whole = memory.read_at(0, &mut whole).unwrap();
        let reference = safetensors::SafeTensors::deserialize(whole).unwrap();
        assert_eq!(reference.tensor("i").unwrap().data(), &source[..8]);
        assert_eq!(reference.tensor("b").unwrap().data(), &source[8..]);
        let mut beyond = [MaybeUninit::uninit(); 2];
        let error = memory.read_at(memory.len() - 1, &mut beyond).unwrap_err();
        assert_eq!(error.code(), Code::FileTruncated);
    }

    #[test]
    fn what_lies_in_a_source_is_read_from_there_and_tied_by_where_it_lies() {
        let source: Arc<dyn ReadAt> = Arc::new(MemorySource::new(bytes(100)));
        let at = |range| Located::new(source.clone(), "there", range);
        let tensors = vec![
            tensor("w", &[64], at(10..74)),
            tensor("tied", &[64], at(10..74)),
            tensor("overlaps", &[64], at(11..75)),
            tensor("nothing", &[0], at(99..99)),
        ];
        let checkpoint = Checkpoint::from_tensors(tensors).unwrap();
        assert_eq!(checkpoint.aliases()["w"], "tied");
        for (name, first) in [("w", 10), ("overlaps", 11)] {
            let part = checkpoint.read_slice(name, &[(3u64..5).into()]).unwrap();
            assert_eq!(part, [first + 3, first + 4]);
            let extent = checkpoint.extent(name).unwrap();
            assert!(Arc::ptr_eq(extent.source, &source));
            assert_eq!(extent.range(), u64::from(first)..u64::from(first) + 64);
            assert_eq!(extent.path, std::path::Path::new("there"));
        }
        assert!(checkpoint.read("nothing").unwrap().is_empty());
        for wrong in [10..73, 10..75, std::ops::Range { start: 74, end: 10 }] {
            let error = Checkpoint::from_tensors(vec![tensor("w", &[64], at(wrong))]).unwrap_err();
            assert_eq!(error.code(), Code::BufferSize);
        }
        for beyond in [37..101, u64::MAX - 64..u64::MAX] {
            let error = Checkpoint::from_tensors(vec![tensor("w", &[64], at(beyond))]).unwrap_err();
            assert_eq!(error.code(), Code::FileTruncated);
        }
    }

    /// A tensor that is computed, and counts the bytes that it was asked for.
    struct Lazy(Arc<AtomicU64>);

    impl TensorData for Lazy {
        fn byte_len(&self) -> Option<u64> {
            Some(64 << 20)
        }

        fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
            self.0.fetch_add(range.end - range.start, Ordering::Relaxed);
            let bytes: Vec<_> = range.map(|at| (at >> 20) as u8).collect();
            write(&bytes)
        }
    }

    #[test]
    fn one_row_of_a_lazy_tensor_computes_one_row() {
        let asked = Arc::new(AtomicU64::new(0));
        let lazy = tensor("w", &[64, 1 << 20], Lazy(asked.clone()));
        let checkpoint = Checkpoint::from_tensors(vec![lazy]).unwrap();
        let row = checkpoint.read_slice("w", &[(5u64..6).into()]).unwrap();
        assert!(row.len() == 1 << 20 && row.iter().all(|byte| *byte == 5));
        assert_eq!(asked.load(Ordering::Relaxed), 1 << 20);
    }

    #[test]
    fn data_that_are_not_what_they_say_are_refused() {
        let short = tensor("w", &[5], bytes(4));
        let error = Checkpoint::from_tensors(vec![short]).unwrap_err();
        assert_eq!(
            (error.code(), error.tensor()),
            (Code::BufferSize, Some("w"))
        );
        let short = tensor("w", &[5], Parts(vec![0; 4], 3));
        let checkpoint = Checkpoint::from_tensors(vec![short]).unwrap();
        let error = checkpoint.read("w").unwrap_err();
        assert_eq!(
            (error.code(), error.tensor()),
            (Code::BufferSize, Some("w"))
        );
        let twice = vec![tensor("w", &[4], bytes(4)), tensor("w", &[4], bytes(4))];
        let error = Checkpoint::from_tensors(twice).unwrap_err();
        assert_eq!(error.code(), Code::NameCollision);
    }
}
