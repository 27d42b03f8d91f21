//! Many errors, of which not all are kept.

use crate::error::{Code, Error, Result};

/// Errors up to a number: a file of a megabyte can be wrong in a million places.
#[derive(Default)]
pub(super) struct Capped {
    errors: Vec<Error>,
    more: usize,
}

impl Capped {
    const MOST: usize = 1000;

    pub(super) fn push(&mut self, error: impl FnOnce() -> Error) {
        match self.errors.len() {
            Self::MOST.. => self.more += 1,
            _ => self.errors.push(error()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The errors; the last one says how many were left out.
    pub(super) fn into_vec(mut self) -> Vec<Error> {
        if self.more > 0 {
            let last = self.errors.last().map(Error::code);
            let more = Error::new(last.unwrap_or(Code::SeveralProblems));
            let more = more.found(format_args!("{} more like the one before", self.more));
            self.errors.push(more);
        }
        self.errors
    }

    /// An error of all of them, if there are any.
    pub(super) fn into_result(self) -> Result<()> {
        match self.is_empty() {
            true => Ok(()),
            false => Err(Error::all(self.into_vec())),
        }
    }
}
