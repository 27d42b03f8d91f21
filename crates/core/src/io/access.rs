//! What reading a source costs, and so how it is read.

use std::num::NonZeroUsize;

/// How a source wants to be read: [`ReadAt::access`](crate::ReadAt::access) says it, and the engine obeys.
///
/// The default is what a local disk wants, but for `together`. For a server whose answers take long, begin
/// with many streams, a piece of 8 MiB, a gap of 1 MiB and a first read of 256 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Access {
    /// How many reads should be under way at once; `None` for as many as there are cores, at most 8, and no
    /// more than pay for starting a thread.
    pub streams: Option<NonZeroUsize>,
    /// How many bytes a call should ask for at most, where they go to one place.
    pub piece: u64,
    /// How many bytes are asked for at most where they go to several places: they are read into a buffer of
    /// this length, one for each thread, and copied from there.
    pub together: u64,
    /// How many bytes that nobody asked for are worth reading along rather than making another call: what
    /// a call costs, in bytes.
    pub gap: u64,
    /// How many bytes of a file are read at first, so that most headers take one call.
    pub first_read: u64,
}

impl Access {
    /// That of files on a local disk.
    pub(crate) const LOCAL: Self = Self {
        streams: None,
        // Large enough that the call costs nothing, small enough that the threads finish together.
        piece: 8 << 20,
        // Ten times as much as fits into a core's cache, and the kernel copies it in 0.8 of the time.
        together: 1 << 20,
        gap: 8 << 10,
        first_read: 16 << 10,
    };

    /// The same, with lengths that make sense, whatever a source says: pieces of whole elements, and none so
    /// short that there are too many, or so long that there is no memory for them.
    pub(crate) fn bounded(self) -> Self {
        const SHORTEST: u64 = 128 << 10;
        const LONGEST: u64 = 1 << 30;
        let whole = |len: u64| len.clamp(SHORTEST, LONGEST).next_multiple_of(SHORTEST);
        Self {
            streams: self.streams,
            piece: whole(self.piece),
            together: whole(self.together),
            gap: self.gap.min(LONGEST),
            first_read: self.first_read.min(LONGEST),
        }
    }

    /// With so many streams.
    #[must_use]
    pub fn streams(self, streams: NonZeroUsize) -> Self {
        let streams = Some(streams);
        Self { streams, ..self }
    }

    /// With gaps of at most so many bytes.
    #[must_use]
    pub fn gap(self, gap: u64) -> Self {
        Self { gap, ..self }
    }

    /// With pieces of so many bytes, wherever they go to.
    #[must_use]
    pub fn piece(self, piece: u64) -> Self {
        Self {
            piece,
            together: piece,
            ..self
        }
    }

    /// With a first read of so many bytes.
    #[must_use]
    pub fn first_read(self, first_read: u64) -> Self {
        Self { first_read, ..self }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::LOCAL.piece(8 << 20)
    }
}
