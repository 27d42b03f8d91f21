//! Tensors that could be saved as a checkpoint that is there already: how they pass from one framework to
//! another, in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::ties::{Resolved, resolve};
use super::{SaveTensor, Ties};
use crate::checkpoint::{Checkpoint, CheckpointKind, ShardFile};
use crate::format::write::{NewHeader, NewTensor};
use crate::io::buffer::fill_all;
use crate::io::source::copy_at;
use crate::{Code, DataAlignment, Error, Header, HeaderOptions, ReadAt, Result, TensorData};

impl Checkpoint {
    /// Tensors in memory, of any framework, as a checkpoint: every adapter can load from it, with all its
    /// options, and without a file.
    ///
    /// Nothing is copied until something is read; then each byte is copied once, from the tensor's memory
    /// to its destination, by the threads of the read. A tensor that does not lie in memory as a file holds
    /// it (strides, another device) is first put in order as a whole, when it is first read, and stays
    /// so as long as the checkpoint. Tied tensors are read once and tied again where they go to.
    ///
    /// Whoever changes a tensor afterwards may or may not find the change in what is read.
    ///
    /// # Errors
    /// `name-collision`, `reserved-name`; `buffer-size` where there are more or fewer bytes than dtype and
    /// shape say; what no file could hold, such as `shape-overflow`.
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, Dtype, SaveTensor};
    ///
    /// let bytes: &[u8] = &[1, 2, 3, 4, 5, 6];
    /// let tensor = SaveTensor::new("w", Dtype::U8, [2, 3], bytes);
    /// let checkpoint = Checkpoint::from_tensors(vec![tensor])?;
    /// assert_eq!(checkpoint.info("w")?.shape, [2, 3]);
    /// assert_eq!(checkpoint.read_slice("w", &[(1u64..2).into()])?, [4, 5, 6]);
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn from_tensors(tensors: Vec<SaveTensor<'static>>) -> Result<Self> {
        let Resolved { stored, aliases } = resolve(&tensors, Ties::Dedup)?;
        let mut tensors: Vec<_> = tensors.into_iter().map(Some).collect();
        let stored = stored.into_iter();
        let mut stored: Vec<_> = stored
            .map(|position| tensors.get_mut(position).and_then(Option::take))
            .collect();
        let described: Vec<NewTensor<'_>> =
            stored.iter().flatten().map(SaveTensor::described).collect();
        // As huggingface_hub records them.
        let metadata: BTreeMap<_, _> = aliases.into_iter().collect();
        let new = NewHeader::new(&described, &metadata, DataAlignment::default())?;
        let order = new.order().to_vec();
        let mut memory = Memory {
            start: new.bytes().to_vec(),
            tensors: Vec::with_capacity(stored.len()),
            len: new.file_len(),
        };
        let header = Header::parse(new.bytes(), Some(new.file_len()), &HeaderOptions::default())?;
        let mut at = memory.start.len() as u64;
        for position in order {
            let Some(tensor) = stored.get_mut(position).and_then(Option::take) else {
                continue;
            };
            let end = at + checked_len(&tensor)?;
            memory.tensors.push(Held::new(at..end, tensor));
            at = end;
        }
        let file = ShardFile {
            name: "memory".into(),
            path: None,
            source: Arc::new(memory),
            header,
        };
        Ok(Self::new(CheckpointKind::File, vec![file], None, None))
    }
}

/// Bytes of a tensor, which its data must agree with.
fn checked_len(tensor: &SaveTensor<'_>) -> Result<u64> {
    let len = tensor.described().byte_len();
    let len = len.map_err(|error| error.in_tensor(&tensor.name))?;
    match tensor.data.byte_len() {
        Some(found) if found != len => Err(Error::new(Code::BufferSize)
            .in_tensor(&tensor.name)
            .expected(format_args!("{len} bytes"))
            .found(found)),
        _ => Ok(len),
    }
}

/// A file that is nowhere: a header, and behind it the tensors where they lie.
struct Memory {
    start: Vec<u8>,
    /// In the order of the file.
    tensors: Vec<Held>,
    len: u64,
}

impl ReadAt for Memory {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        fill_all(buf, |filled, rest| {
            let at = offset + filled as u64;
            let header_left = (self.start.len() as u64).saturating_sub(at);
            if header_left > 0 {
                let len = rest.len().min(header_left as usize);
                return copy_at(&self.start, at, rest.get_mut(..len).unwrap_or_default());
            }
            let next = self.tensors.partition_point(|held| held.range.end <= at);
            let end = || Error::new(Code::FileTruncated).at_offset(self.len);
            self.tensors.get(next).ok_or_else(end)?.read(at, rest)
        })
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} tensors)", self.tensors.len())
    }
}

/// A tensor of such a file.
struct Held {
    /// In the file.
    range: Range<u64>,
    data: Box<dyn TensorData>,
    /// Its bytes, once they had to be put in order.
    ordered: Mutex<Option<Vec<u8>>>,
}

impl Held {
    fn new(range: Range<u64>, tensor: SaveTensor<'static>) -> Self {
        Self {
            range,
            data: tensor.data,
            ordered: Mutex::default(),
        }
    }

    /// Fills a beginning of `buf` with the bytes from this place in the file on.
    fn read<'b>(&self, at: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let from = at - self.range.start;
        let left = usize::try_from(self.range.end - at).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let buf = buf.get_mut(..len).unwrap_or_default();
        // What has a place is lent where it lies, as often as one likes.
        if self.data.place().is_some() && !self.data.is_materialised() {
            return self.copy_lent(from, buf);
        }
        // Nobody but a panicking source leaves it half-made, and then it is `None`.
        let mut ordered = self.ordered.lock().unwrap_or_else(PoisonError::into_inner);
        if ordered.is_none() {
            let mut bytes = Vec::new();
            let room = usize::try_from(self.range.end - self.range.start).ok();
            let room = room.and_then(|room| bytes.try_reserve_exact(room).ok());
            room.ok_or_else(|| Error::new(Code::LimitMemory))?;
            self.data.write_to(&mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })?;
            *ordered = Some(bytes);
        }
        copy_at(ordered.as_deref().unwrap_or_default(), from, buf)
    }

    /// Copies from the first part of the data that reaches behind `from`.
    fn copy_lent<'b>(&self, from: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let (mut at, mut buf, mut copied) = (0, Some(buf), None);
        self.data.write_to(&mut |part| {
            let len = part.len() as u64;
            if (at..at + len).contains(&from)
                && let Some(buf) = buf.take()
            {
                let len = (at + len - from).min(buf.len() as u64) as usize;
                let buf = buf.get_mut(..len).unwrap_or_default();
                copied = Some(copy_at(part, from - at, buf)?);
            }
            at += len;
            Ok(())
        })?;
        copied.ok_or_else(|| Error::new(Code::BufferSize).found(format_args!("{at} bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    /// Bytes that come in parts, as of a tensor with strides.
    struct Parts(Vec<u8>, usize);

    impl TensorData for Parts {
        fn byte_len(&self) -> Option<u64> {
            None
        }

        fn is_materialised(&self) -> bool {
            true
        }

        fn write_to(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
            self.0.chunks(self.1).try_for_each(write)
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
    fn data_that_are_not_what_they_say_are_refused() {
        let short = tensor("w", &[5], bytes(4));
        let error = Checkpoint::from_tensors(vec![short]).unwrap_err();
        assert_eq!(
            (error.code(), error.tensor()),
            (Code::BufferSize, Some("w"))
        );
        let short = tensor("w", &[5], Parts(vec![0; 4], 3));
        let checkpoint = Checkpoint::from_tensors(vec![short]).unwrap();
        assert_eq!(
            checkpoint.read("w").unwrap_err().code(),
            Code::FileTruncated
        );
        let twice = vec![tensor("w", &[4], bytes(4)), tensor("w", &[4], bytes(4))];
        let error = Checkpoint::from_tensors(twice).unwrap_err();
        assert_eq!(error.code(), Code::NameCollision);
    }
}
