//! What the matrix asks of a framework.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use safeshard_core::{Dtype, Durability, Error, SaveOptions, ShardSize};

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

    /// Makes the tensors of a case and saves them, with the anchors, as a checkpoint in `folder`.
    pub(crate) fn save(
        self,
        python: &mut python::Process,
        case: &Case,
        folder: &Path,
        files: Files,
    ) -> Result<(), Refusal> {
        match self {
            Self::Torch => python.save("torch", case, folder, files),
            Self::Numpy => python.save("numpy", case, folder, files),
            Self::Candle => candle::save(case, folder, files),
            Self::Tch => tch::save(case, folder, files),
            Self::Ndarray => ndarray::save(case, folder, files),
        }
    }

    /// All tensors of the checkpoint in `folder`, under all their names.
    pub(crate) fn load(
        self,
        python: &mut python::Process,
        folder: &Path,
    ) -> Result<BTreeMap<String, Found>, Refusal> {
        match self {
            Self::Torch => python.load("torch", folder),
            Self::Numpy => python.load("numpy", folder),
            Self::Candle => candle::load(folder),
            Self::Tch => tch::load(folder),
            Self::Ndarray => ndarray::load(folder),
        }
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

/// How many files a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Files {
    One,
    Shards,
}

impl Files {
    pub(crate) const ALL: [Self; 2] = [Self::One, Self::Shards];

    /// For those who save with safeshard.
    pub(crate) fn options(self) -> SaveOptions {
        SaveOptions {
            max_shard_size: match self {
                Self::One => ShardSize::default(),
                Self::Shards => SHARD_BYTES.to_string().parse().unwrap(),
            },
            // The medium is not what is tested.
            durability: Durability::Cached,
            ..SaveOptions::default()
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
