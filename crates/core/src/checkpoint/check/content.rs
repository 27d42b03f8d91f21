//! What the bytes of tensors say: numbers that are none, tensors that were never written, booleans
//! that are neither 0 nor 1.

use crate::checkpoint::{Checkpoint, ShardFile};
use crate::error::{Code, Error, Finding, Result};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;
use crate::io::engine::ReadOptions;
use crate::io::extent::Extent;
use crate::io::scan::{self, Item};

/// Bytes that a thread looks at before it takes others: whole elements of any dtype.
const PIECE: u64 = 9 << 20;

/// Looks at every tensor; findings come in natural order of names.
pub(super) fn check(checkpoint: &Checkpoint, options: &ReadOptions) -> Result<Vec<Finding>> {
    let tensors: Vec<_> = checkpoint.tensors().collect();
    let mut pieces = Vec::new();
    for (number, tensor) in tensors.iter().enumerate() {
        if let Some(file) = checkpoint.file_of(tensor.name) {
            cut(number, tensor, file, &mut pieces);
        }
    }
    let counts = scan::each(options, &pieces, |piece, reader| {
        let mut counts = Counts::default();
        let mut at = piece.extent.start;
        reader.read(&piece.extent, |block| {
            counts.add(&Counts::of(piece.dtype, block, at));
            at += block.len() as u64;
            Ok(())
        })?;
        Ok(counts)
    })?;
    for file in checkpoint.files() {
        file.source.check_unchanged()?;
    }
    let mut sums = vec![Counts::default(); tensors.len()];
    for (piece, counts) in pieces.iter().zip(&counts) {
        if let Some(sum) = sums.get_mut(piece.tensor) {
            sum.add(counts);
        }
    }
    let mut findings = Vec::new();
    for (tensor, counts) in tensors.iter().zip(&sums) {
        if let Some(file) = checkpoint.file_of(tensor.name) {
            counts.tell(tensor, file, &mut findings);
        }
    }
    Ok(findings)
}

/// Part of a tensor.
struct Piece<'c> {
    /// The position of its tensor.
    tensor: usize,
    dtype: Dtype,
    extent: Extent<'c>,
}

impl Item for Piece<'_> {
    fn extent(&self) -> Extent<'_> {
        self.extent
    }
}

fn cut<'c>(
    number: usize,
    tensor: &TensorInfo<'_>,
    file: &'c ShardFile,
    pieces: &mut Vec<Piece<'c>>,
) {
    let all = file.extent(tensor);
    let starts = (0..all.len).step_by(PIECE as usize);
    pieces.extend(starts.map(|at| Piece {
        tensor: number,
        dtype: tensor.dtype,
        extent: all.part(at, PIECE),
    }));
}

/// What was seen of some elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    nan: Seen,
    infinite: Seen,
    /// Booleans that are neither 0 nor 1.
    invalid: Seen,
    not_zero: bool,
}

/// How many elements, and where in the file the first one is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    count: u64,
    first: Option<u64>,
}

impl Counts {
    /// Of whole elements that begin at this byte of the file.
    fn of(dtype: Dtype, bytes: &[u8], at: u64) -> Self {
        let not_zero = |mask: u8| bytes.iter().fold(0, |all, byte| all | byte & mask) != 0;
        let plain = Self {
            not_zero: not_zero(0xFF),
            ..Self::default()
        };
        match dtype {
            Dtype::Bool => Self {
                invalid: Seen::of(bytes.iter().map(|&byte| byte > 1), 1, at),
                ..plain
            },
            Dtype::F16 => Self::of_words(bytes.as_chunks().0, at, u16::from_le_bytes, 0x7C00),
            Dtype::Bf16 => Self::of_words(bytes.as_chunks().0, at, u16::from_le_bytes, 0x7F80),
            Dtype::F32 | Dtype::C64 => {
                Self::of_words(bytes.as_chunks().0, at, u32::from_le_bytes, 0x7F80_0000)
            }
            Dtype::F64 => {
                let infinity = 0x7FF0_0000_0000_0000;
                Self::of_words(bytes.as_chunks().0, at, u64::from_le_bytes, infinity)
            }
            Dtype::F8E5M2 => Self::of_words(bytes.as_chunks().0, at, u8::from_le_bytes, 0x7C),
            // It has no infinity, and one NaN of either sign.
            Dtype::F8E4M3 => Self {
                nan: Seen::of(bytes.iter().map(|byte| byte & 0x7F == 0x7F), 1, at),
                not_zero: not_zero(0x7F),
                ..plain
            },
            Dtype::F8E4M3Fnuz | Dtype::F8E5M2Fnuz => Self {
                nan: Seen::of(bytes.iter().map(|&byte| byte == 0x80), 1, at),
                ..plain
            },
            Dtype::F8E8M0 => Self {
                nan: Seen::of(bytes.iter().map(|&byte| byte == 0xFF), 1, at),
                // It has no zero.
                not_zero: true,
                ..plain
            },
            Dtype::F4 => Self {
                not_zero: not_zero(0x77),
                ..plain
            },
            _ => plain,
        }
    }

    /// Of floats with the exponents and signs of IEEE 754.
    fn of_words<const N: usize, W: Word>(
        elements: &[[u8; N]],
        at: u64,
        word: impl Fn([u8; N]) -> W,
        infinity: W,
    ) -> Self {
        let magnitude = |element: &[u8; N]| word(*element).without_sign();
        let magnitudes = || elements.iter().map(magnitude);
        let largest = magnitudes().fold(W::default(), Ord::max);
        let mut counts = Self {
            not_zero: largest != W::default(),
            ..Self::default()
        };
        // Mostly there is nothing to count.
        if largest >= infinity {
            let size = N as u64;
            counts.nan = Seen::of(magnitudes().map(|word| word > infinity), size, at);
            counts.infinite = Seen::of(magnitudes().map(|word| word == infinity), size, at);
        }
        counts
    }

    fn add(&mut self, other: &Self) {
        self.nan.add(other.nan);
        self.infinite.add(other.infinite);
        self.invalid.add(other.invalid);
        self.not_zero |= other.not_zero;
    }

    /// Adds what is to be said of a tensor.
    fn tell(&self, tensor: &TensorInfo<'_>, file: &ShardFile, findings: &mut Vec<Finding>) {
        let elements = match tensor.dtype {
            // Both parts of a complex number count.
            Dtype::C64 => tensor.elements().saturating_mul(2),
            _ => tensor.elements(),
        };
        let about = |code| {
            let problem = Error::new(code).at_path(file.place());
            problem.in_tensor(tensor.name)
        };
        let kinds = [
            (Code::Nan, self.nan),
            (Code::Infinity, self.infinite),
            (Code::BoolValue, self.invalid),
        ];
        for (code, seen) in kinds {
            if let Some(first) = seen.first {
                let found = format!("{} of {elements}, the first here", seen.count);
                findings.push(Finding::error(about(code).at_offset(first).found(found)));
            }
        }
        let looked_at = tensor.byte_len() > 0;
        if looked_at && !self.not_zero && tensor.dtype != Dtype::Bool {
            let found = format!("{} {:?}", tensor.dtype, tensor.shape);
            findings.push(Finding::warning(about(Code::AllZero).found(found)));
        }
    }
}

impl Seen {
    /// Those elements of so many bytes, from this byte of the file on, of which it is true.
    fn of(elements: impl Iterator<Item = bool> + Clone, size: u64, at: u64) -> Self {
        let count = elements.clone().map(u64::from).sum();
        let position = match count {
            0 => None,
            _ => elements.clone().position(|is_one| is_one),
        };
        Self {
            count,
            first: position.map(|position| at + position as u64 * size),
        }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.first = match (self.first, other.first) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// The bits of a float.
trait Word: Copy + Default + Ord {
    fn without_sign(self) -> Self;
}

macro_rules! words {
    ($($word:ty)*) => {
        $(impl Word for $word {
            fn without_sign(self) -> Self {
                self & (Self::MAX >> 1)
            }
        })*
    };
}

words! { u8 u16 u32 u64 }
