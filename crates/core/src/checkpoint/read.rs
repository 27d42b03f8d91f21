//! Reading parts of tensors, into new memory or into what is there.

use super::{Checkpoint, Planned};
use crate::error::{Code, Error, Result};
use crate::format::header::TensorInfo;
use crate::format::slice::{DimRange, Slice};
use crate::io::buffer::{Destination, Overwrite, TypedBuffer, TypedVec, UninitVec};
use crate::io::cast::Cast;
use crate::io::engine::{self, Job, ReadOptions};

/// One part of one tensor, and where it goes; see [`Checkpoint::fill`].
#[derive(Debug)]
pub struct Fill<D> {
    /// The tensor's name, or an alias.
    pub name: String,
    /// Which part; `None` for all of it.
    pub ranges: Option<Vec<DimRange>>,
    /// A conversion on the way.
    pub cast: Option<Cast>,
    /// Exactly as long as the part is after the conversion.
    pub destination: D,
}

impl Checkpoint {
    /// The bytes of a tensor, as stored: little-endian, row-major. One copy.
    ///
    /// # Errors
    /// As [`Checkpoint::info`] and [`ReadAt::read_at`](crate::ReadAt::read_at).
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        self.read_slice(name, &[])
    }

    /// The bytes of part of a tensor; dimensions behind the last range are taken whole. Only the
    /// bytes of the part are read, and small gaps between them.
    ///
    /// # Errors
    /// As [`Checkpoint::read`] and [`Slice::new`].
    pub fn read_slice(&self, name: &str, ranges: &[DimRange]) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        let slice = Slice::new(info.dtype, info.shape, ranges).map_err(|e| e.in_tensor(name))?;
        let destination = UninitVec::<u8>::new(slice.byte_len())?;
        let fill = Fill {
            name: name.to_owned(),
            ranges: Some(ranges.to_vec()),
            cast: None,
            destination,
        };
        let mut filled = self.fill(vec![fill], &ReadOptions::default())?;
        Ok(filled.pop().unwrap_or_default())
    }

    /// Reads what was planned, in one go, each tensor into a vector of its elements: what most frameworks make
    /// their tensors of without a copy. Results come in the order of the plan.
    ///
    /// # Errors
    /// As [`Checkpoint::fill`]; `limit-memory`, with the tensor.
    pub fn read_planned(&self, plan: &[Planned], options: &ReadOptions) -> Result<Vec<TypedVec>> {
        let parts = plan.iter().map(|planned| {
            let buffer = TypedBuffer::new(planned.dtype, planned.byte_len)
                .map_err(|error| error.in_tensor(&planned.name))?;
            Ok(planned.fill(buffer))
        });
        let parts = parts.collect::<Result<_>>()?;
        self.fill(parts, options)
    }

    /// Reads many parts into many destinations, in file order, on a few threads; the results come
    /// in the order asked. Each byte is copied once, from the file to its destination; a conversion
    /// goes through a buffer of 96 KiB a thread.
    ///
    /// # Errors
    /// The first one that occurs, with file, tensor and byte; then nothing is handed out. Also
    /// `file-changed` if a file was written to or replaced since the checkpoint was opened.
    pub fn fill<D: Destination>(
        &self,
        parts: Vec<Fill<D>>,
        options: &ReadOptions,
    ) -> Result<Vec<D::Filled>> {
        let mut used = vec![false; self.files.len()];
        let mut jobs = Vec::with_capacity(parts.len());
        for part in parts {
            let (info, slice) = self.part(&part)?;
            let (position, _) = self
                .find(&part.name)
                .ok_or_else(|| self.missing(&part.name))?;
            let Some((file, used)) = self
                .files
                .get(position as usize)
                .zip(used.get_mut(position as usize))
            else {
                return Err(self.missing(&part.name));
            };
            *used = true;
            jobs.push(Job {
                extent: file.extent(&info),
                file: position as usize,
                tensor: info.name,
                slice,
                cast: part.cast,
                destination: part.destination,
            });
        }
        let filled = engine::fill(jobs, options)?;
        for (file, _) in self.files.iter().zip(used).filter(|(_, used)| *used) {
            file.source.check_unchanged()?;
        }
        Ok(filled)
    }

    /// Reads many parts over what is in memory already: as [`Checkpoint::fill`], without the cost of
    /// new memory, which is about a quarter of it.
    ///
    /// # Errors
    /// As [`Checkpoint::fill`]. Where the request is wrong (a name, a length, a cast), nothing has
    /// changed; where reading fails, the destinations hold zeros, or what was read.
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, Fill, ReadOptions};
    ///
    /// # let json = br#"{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    /// # let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    /// # bytes.extend_from_slice(json);
    /// # bytes.extend_from_slice(&[1, 2]);
    /// let checkpoint = Checkpoint::from_bytes(bytes)?;
    /// let mut memory = [0; 2];
    /// let whole = Fill { name: "w".into(), ranges: None, cast: None, destination: &mut memory[..] };
    /// checkpoint.overwrite(vec![whole], &ReadOptions::default())?;
    /// assert_eq!(memory, [1, 2]);
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn overwrite(&self, parts: Vec<Fill<&mut [u8]>>, options: &ReadOptions) -> Result<()> {
        for part in &parts {
            let (_, slice) = self.part(part)?;
            let len = slice.byte_len();
            let len = part.cast.map_or(len, |cast| cast.output_len(len));
            if part.destination.len() as u64 != len {
                return Err(Error::new(Code::BufferSize)
                    .in_tensor(&part.name)
                    .expected(format_args!("{len} bytes"))
                    .found(part.destination.len()));
            }
        }
        let parts = parts.into_iter().map(|part| Fill {
            name: part.name,
            ranges: part.ranges,
            cast: part.cast,
            destination: Overwrite::new(part.destination),
        });
        self.fill(parts.collect(), options)?;
        Ok(())
    }

    /// The tensor and the bytes of it that a request is about.
    fn part<D>(&self, part: &Fill<D>) -> Result<(TensorInfo<'_>, Slice)> {
        let info = self.info(&part.name)?;
        let slice = match &part.ranges {
            None => Slice::whole(info.shape, info.byte_len()),
            Some(ranges) => Slice::new(info.dtype, info.shape, ranges)
                .map_err(|error| error.in_tensor(&part.name))?,
        };
        match part.cast {
            Some(cast) if cast.from() != info.dtype => Err(Error::new(Code::UnsupportedCast)
                .in_tensor(&part.name)
                .expected(info.dtype)
                .found(format_args!("a cast from {}", cast.from()))),
            _ => Ok((info, slice)),
        }
    }
}
