//! Tensors that lie in a private mapping of their file: nothing is read or copied.

use std::collections::HashMap;
use std::sync::Arc;

use safeshard_core::{
    Checkpoint, Code, Error, Extent, IntoCheckpoint, Io, LoadOptions, LoadReport, Planned,
    PrivateMap, Result,
};
use tch::{Device, Tensor};

use crate::blob;
use crate::dtype::{Layout, support};
use crate::load::read;

/// What a mapping did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapReport {
    /// What a load would report.
    pub load: LoadReport,
    /// Tensors that were read into memory of their own all the same: they begin at a byte at which
    /// libtorch cannot use their elements, or were asked for in another dtype.
    pub copied: Vec<String>,
}

/// All tensors of a checkpoint, where they lie in their files. Takes the time of opening the
/// checkpoint, whatever its size, but for `BOOL`, where every byte is looked at; what is used of a tensor comes
/// from the page cache, which other processes share.
///
/// The mapping is private and copy-on-write: tensors can be trained and changed in place, each page that
/// is written to becomes memory of this process, and the files never change. Each tensor has a storage of
/// its own, outlives everything else and can be dropped by any thread; the mapping of a file goes away
/// with the last view of its tensors. A checkpoint that is saved over the mapped one leaves the
/// tensors as they are, because it replaces the files.
///
/// A tensor that does not lie as libtorch needs it is copied; [`map_with`] says which.
///
/// # Safety
/// As [`Io::mmap`]: nobody may write to or truncate the files as long as a tensor of them is alive. A file
/// that is cut off kills the process that touches what is gone. Replacing files, as every save of this
/// library does, is fine; so is a file system that loses nothing.
///
/// # Errors
/// As [`load`](crate::load()).
///
/// ```
/// use tch::{Device, Kind, Tensor};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model");
/// # safeshard_tch::save([("w", Tensor::ones([2, 3], (Kind::Float, Device::Cpu)))], &path)?;
/// // SAFETY: nobody writes to these files; new checkpoints replace them.
/// let mut tensors = unsafe { safeshard_tch::map(&path) }?;
/// let w = tensors.get_mut("w").unwrap();
/// let _ = w.fill_(7); // changes the tensor, not the file
/// assert_eq!(safeshard_tch::tensor(&path, "w", Device::Cpu)?.double_value(&[0, 0]), 1.);
/// # Ok::<(), safeshard_tch::Error>(())
/// ```
#[allow(unsafe_code)]
pub unsafe fn map(checkpoint: impl IntoCheckpoint) -> Result<HashMap<String, Tensor>> {
    // SAFETY: the caller's promise is the same.
    let (tensors, _) = unsafe { map_with(checkpoint, &LoadOptions::default()) }?;
    Ok(tensors)
}

/// As [`map`], with options and a report. What is asked for in another dtype, or in part, is read.
///
/// # Safety
/// As [`map`].
///
/// # Errors
/// As [`load_with`](crate::load_with).
#[allow(unsafe_code)]
pub unsafe fn map_with(
    checkpoint: impl IntoCheckpoint,
    options: &LoadOptions,
) -> Result<(HashMap<String, Tensor>, MapReport)> {
    let mut open = options.open.clone();
    // SAFETY: the caller's promise is the same.
    open.io = unsafe { Io::mmap() };
    map_from(&checkpoint.into_checkpoint(&open)?, options)
}

/// As [`map_with`], of a checkpoint that was opened with [`Io::mmap`], whose caller has promised that the
/// files stay as they are: safe, therefore.
///
/// # Errors
/// As [`load_with`](crate::load_with); `not-in-memory` of a checkpoint that reads its files.
pub fn map_from(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<(HashMap<String, Tensor>, MapReport)> {
    let plan = checkpoint.plan(options, support)?;
    let (tensors, copied) = mapped(checkpoint, &plan.tensors, options)?;
    let tensors = plan.named(tensors, Tensor::shallow_clone);
    let report = MapReport {
        load: plan.report,
        copied,
    };
    Ok((tensors, report))
}

/// Tensors of what was planned, in its order, and the names of those that had to be read.
pub(crate) fn mapped(
    checkpoint: &Checkpoint,
    plan: &[Planned],
    options: &LoadOptions,
) -> Result<(Vec<Tensor>, Vec<String>)> {
    let mut maps = Maps::default();
    let (mut tensors, mut to_read) = (Vec::with_capacity(plan.len()), Vec::new());
    for planned in plan {
        let tensor = maps.tensor(checkpoint, planned);
        let tensor = tensor.map_err(|error| error.in_tensor(&planned.name))?;
        if tensor.is_none() {
            to_read.push(planned.clone());
        }
        tensors.push(tensor);
    }
    let mut read = read(checkpoint, &to_read, Device::Cpu, &options.read)?.into_iter();
    let tensors = tensors
        .into_iter()
        .filter_map(|tensor| tensor.or_else(|| read.next()));
    let copied = to_read.into_iter().map(|planned| planned.name);
    Ok((tensors.collect(), copied.collect()))
}

/// One mapping a source. By the address of the source, which the checkpoint holds meanwhile.
#[derive(Default)]
struct Maps(HashMap<usize, Arc<PrivateMap>>);

impl Maps {
    /// `None` if it has to be read.
    fn tensor(&mut self, checkpoint: &Checkpoint, planned: &Planned) -> Result<Option<Tensor>> {
        if planned.cast.is_some() || !planned.ranges.is_empty() {
            return Ok(None);
        }
        let info = checkpoint.info(&planned.stored)?;
        let layout = Layout::new(info.dtype, info.shape)?;
        let extent = checkpoint.extent(&planned.stored)?;
        blob::mapped(self.of(&extent)?, extent.range(), &layout)
    }

    fn of(&mut self, extent: &Extent<'_>) -> Result<&Arc<PrivateMap>> {
        use std::collections::hash_map::Entry;
        match self.0.entry(Arc::as_ptr(extent.source).addr()) {
            Entry::Occupied(map) => Ok(map.into_mut()),
            Entry::Vacant(place) => match extent.source.map_private()? {
                Some(map) => Ok(place.insert(Arc::new(map))),
                None => Err(Error::new(Code::NotInMemory)),
            },
        }
    }
}
