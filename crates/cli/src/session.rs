//! What holds for one run of a command.

use std::num::NonZeroUsize;
use std::path::Path;

use safeshard_core::{
    Cancel, Checkpoint, Io, Limits, OpenOptions, Prefer, Profile, ReadOptions, Result,
};
use safeshard_import::{ImportOptions, open_with};

use crate::args::{Common, IoArg, LimitArg, PreferArg};
use crate::interrupt::cancel_on_signal;
use crate::progress::{Bar, Show};

/// The flags that every command takes, as what they mean.
#[derive(Debug)]
pub(crate) struct Session {
    common: Common,
}

impl Session {
    pub(crate) fn new(common: Common) -> Self {
        Self { common }
    }

    /// Whether nothing is to be said that only confirms.
    pub(crate) fn is_quiet(&self) -> bool {
        self.common.quiet
    }

    /// How many threads were asked for.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.common.threads
    }

    /// How checkpoints are opened.
    pub(crate) fn open_options(&self, profile: Profile) -> OpenOptions {
        OpenOptions {
            io: self.io(),
            limits: self.limits(),
            prefer: match self.common.prefer {
                None => Prefer::default(),
                Some(PreferArg::Index) => Prefer::Index,
                Some(PreferArg::Single) => Prefer::Single,
            },
            profile,
            ..OpenOptions::default()
        }
    }

    /// Opens what is at a path, whatever its format.
    pub(crate) fn open(&self, path: &Path) -> Result<Checkpoint> {
        let options = self.open_options(Profile::default());
        open_with(path, &options, &ImportOptions::default())
    }

    fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for &(what, many) in &self.common.limits {
            *match what {
                LimitArg::Header => &mut limits.header_bytes,
                LimitArg::Index => &mut limits.index_bytes,
                LimitArg::Tensors => &mut limits.tensors,
                LimitArg::Shards => &mut limits.shards,
                LimitArg::Name => &mut limits.name_bytes,
                LimitArg::Rank => &mut limits.rank,
                LimitArg::Metadata => &mut limits.metadata_bytes,
                LimitArg::Ignored => &mut limits.ignored_bytes,
            } = many;
        }
        limits
    }

    /// A bar, unless nobody wants to see it.
    pub(crate) fn bar(&self, label: &'static str, show: Show) -> Bar {
        match self.common.quiet {
            true => Bar::new(label, Show::Never),
            false => Bar::new(label, show),
        }
    }

    /// How bytes are read: with this bar, until a signal comes.
    pub(crate) fn read_options(&self, bar: &Bar) -> ReadOptions {
        ReadOptions {
            threads: self.threads(),
            progress: bar.callback(),
            cancel: Some(self.cancel()),
        }
    }

    /// What the first signal stops; it says for what the command waits, even where it says nothing else.
    pub(crate) fn cancel(&self) -> Cancel {
        cancel_on_signal()
    }

    /// How files are read.
    pub(crate) fn io(&self) -> Io {
        match self.common.io {
            IoArg::Pread => Io::pread(),
            // SAFETY: nobody writes to the files: whoever passes `--io mmap` says so, as its help
            // demands. Without it, nothing is mapped.
            #[allow(unsafe_code)]
            IoArg::Mmap => unsafe { Io::mmap() },
        }
    }
}
