//! What the entry points of adapters take.

use std::path::Path;

use crate::checkpoint::{Checkpoint, LoadOptions, OpenOptions};
use crate::error::Result;

/// A path, or a checkpoint that is open already: what every entry point of an adapter takes.
///
/// A path is opened as by [`Checkpoint::open_with`]. An open checkpoint, wherever its tensors lie, is shared and
/// not opened again, so the options for opening do not count for it.
///
/// Implemented for everything that is a path (`&str`, `&Path`, `PathBuf`, ...), for [`Checkpoint`] and for
/// `&Checkpoint`, and for nothing else.
///
/// ```
/// use safeshard_core::{Checkpoint, IntoCheckpoint, OpenOptions, Result, SaveTensor};
/// # use safeshard_core::Dtype;
///
/// fn count(place: impl IntoCheckpoint) -> Result<usize> {
///     Ok(place.into_checkpoint(&OpenOptions::default())?.names().len())
/// }
///
/// let tensor = SaveTensor::new("w", Dtype::U8, [2], vec![7, 8]);
/// let checkpoint = Checkpoint::from_tensors(vec![tensor])?;
/// assert_eq!(count(&checkpoint)?, 1);
/// assert!(count("no/such/path").is_err());
/// # Ok::<(), safeshard_core::Error>(())
/// ```
pub trait IntoCheckpoint: Sized + sealed::Sealed {
    /// The checkpoint, opened with these options if it is not open yet.
    ///
    /// # Errors
    /// As [`Checkpoint::open_with`].
    fn into_checkpoint(self, options: &OpenOptions) -> Result<Checkpoint>;

    /// The checkpoint, for one tensor or alias: of shards with an index, only the one that holds it is opened.
    ///
    /// # Errors
    /// As [`Checkpoint::open_with`].
    fn into_checkpoint_of(self, name: &str) -> Result<Checkpoint> {
        let mut options = LoadOptions::default().open;
        options.only = Some(vec![name.to_owned()]);
        self.into_checkpoint(&options)
    }
}

impl<P: AsRef<Path>> IntoCheckpoint for P {
    fn into_checkpoint(self, options: &OpenOptions) -> Result<Checkpoint> {
        Checkpoint::open_with(self, options)
    }
}

impl IntoCheckpoint for Checkpoint {
    fn into_checkpoint(self, _: &OpenOptions) -> Result<Checkpoint> {
        Ok(self)
    }
}

impl IntoCheckpoint for &Checkpoint {
    fn into_checkpoint(self, _: &OpenOptions) -> Result<Checkpoint> {
        Ok(self.clone())
    }
}

mod sealed {
    use super::{Checkpoint, Path};

    pub trait Sealed {}

    impl<P: AsRef<Path>> Sealed for P {}
    impl Sealed for Checkpoint {}
    impl Sealed for &Checkpoint {}
}
