//! What the matrix asks of a framework.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use safeshard_core::{Checkpoint, Dtype, Durability, Error, SaveOptions, ShardSize};
use tempfile::TempDir;

use crate::case::{Case, Found, Layout, SHARD_BYTES};
use crate::{candle, ndarray, python, tch};

/// Frameworks in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Framework {
    Torch,
    Numpy,
    Candle,
    Tch,
    Ndarray,
}

impl Framework {
    pub(crate) const ALL: [Self; 5] = [
        Self::Torch,
        Self::Numpy,
        Self::Candle,
        Self::Tch,
        Self::Ndarray,
    ];

    /// Makes the tensors of a case, and puts them with the anchors where others can load them from.
    pub(crate) fn save(
        self,
        python: &mut python::Process,
        case: &Case,
        way: Way,
    ) -> Result<Saved, Refusal> {
        let folder = tempfile::tempdir().unwrap();
        let tensors = match self {
            Self::Torch | Self::Numpy => {
                python.save(self, case, folder.path(), way)?;
                return Ok(Saved::Folder(folder));
            }
            Self::Candle => candle::tensors(case)?,
            Self::Tch => tch::tensors(case)?,
            Self::Ndarray => ndarray::tensors(case)?,
        };
        if way == Way::Memory {
            return Ok(Saved::Memory(Checkpoint::from_tensors(tensors)?));
        }
        safeshard_core::save(tensors, folder.path(), &way.options())?;
        Ok(Saved::Folder(folder))
    }

    /// All tensors of a checkpoint, under all their names.
    pub(crate) fn load(
        self,
        python: &mut python::Process,
        saved: &Saved,
    ) -> Result<BTreeMap<String, Found>, Refusal> {
        let load = match self {
            Self::Torch | Self::Numpy => {
                let folder = saved.folder().expect("Python loads from files");
                return python.load(self, folder);
            }
            Self::Candle => candle::load,
            Self::Tch => tch::load,
            Self::Ndarray => ndarray::load,
        };
        match saved {
            Saved::Folder(folder) => load(&Checkpoint::open(folder.path())?),
            Saved::Memory(checkpoint) => load(checkpoint),
        }
    }

    /// Whether it can pass tensors on in memory.
    pub(crate) fn is_in_this_process(self) -> bool {
        !matches!(self, Self::Torch | Self::Numpy)
    }

    /// The name of the error that saving a case must be, because the framework cannot hold it.
    pub(crate) fn refuses_to_save(self, dtype: Dtype, layout: Layout) -> Option<&'static str> {
        match self {
            Self::Torch => python::torch_refuses_to_save(dtype, layout),
            Self::Numpy => python::numpy_refuses_to_save(dtype),
            Self::Candle => candle::refuses_to_save(dtype, layout),
            Self::Tch => tch::refuses_to_save(dtype, layout),
            Self::Ndarray => ndarray::refuses_to_save(dtype, layout),
        }
    }

    /// The name of the error that loading a file with this dtype must be.
    pub(crate) fn refuses_to_load(self, dtype: Dtype) -> Option<&'static str> {
        match self {
            Self::Torch => python::torch_refuses_to_load(dtype),
            Self::Numpy => python::numpy_refuses_to_load(dtype),
            Self::Candle => candle::refuses_to_load(dtype),
            Self::Tch => tch::refuses_to_load(dtype),
            Self::Ndarray => None,
        }
    }
}

impl fmt::Display for Framework {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torch => "Python torch",
            Self::Numpy => "Python numpy",
            Self::Candle => "candle",
            Self::Tch => "tch",
            Self::Ndarray => "ndarray",
        })
    }
}

/// How tensors get from one framework to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    File,
    Shards,
    /// Without a file, between those that are in this process.
    Memory,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::File, Self::Shards, Self::Memory];

    /// Whether it leads from one framework to another.
    pub(crate) fn connects(self, writer: Framework, reader: Framework) -> bool {
        self != Self::Memory || (writer.is_in_this_process() && reader.is_in_this_process())
    }

    fn options(self) -> SaveOptions {
        SaveOptions {
            max_shard_size: match self {
                Self::Shards => ShardSize::new(SHARD_BYTES).unwrap(),
                Self::File | Self::Memory => ShardSize::default(),
            },
            // The medium is not what is tested.
            durability: Durability::Cached,
            ..SaveOptions::default()
        }
    }
}

/// What others can load from.
pub(crate) enum Saved {
    Folder(TempDir),
    Memory(Checkpoint),
}

impl Saved {
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder.path()),
            Self::Memory(_) => None,
        }
    }
}

/// Why a framework did not do it, under a name that does not change: a code of safeshard's, or an
/// exception of Python's.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) name: String,
    pub(crate) message: String,
}

impl Refusal {
    /// Of what there is no call for.
    pub(crate) fn no_such_view(message: &str) -> Self {
        Self {
            name: NO_SUCH_VIEW.to_owned(),
            message: message.to_owned(),
        }
    }
}

/// The framework has no view like that, so nothing can be asked to save it.
pub(crate) const NO_SUCH_VIEW: &str = "no such view";

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        // Several tensors that cannot be held for the same reason are one refusal.
        let first = error.problems().first().unwrap_or(&error);
        let alike = |problem: &Error| problem.code() == first.code();
        let code = if error.problems().iter().all(alike) {
            first.code()
        } else {
            error.code()
        };
        Self {
            name: code.as_str().to_owned(),
            message: error.to_string(),
        }
    }
}

/// Whether elements share bytes.
pub(crate) fn is_packed(dtype: Dtype) -> bool {
    dtype.size().is_none()
}
