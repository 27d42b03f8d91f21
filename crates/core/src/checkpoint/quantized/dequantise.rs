//! Quantised weights as floats: computed when they are read, any range of them, piece by piece.
//!
//! Numbers of 8 bits times their scales, as the libraries compute it on a CPU: in `F32`, rounded once to
//! the dtype that is wanted (transformers' `Fp8Dequantize`); of compressed-tensors, whose scales may be
//! `BF16` or `F16`, rounded to the scale's dtype first.

use std::ops::Range;
use std::sync::Arc;

use super::{QuantizedTensor, Role, Scheme, incomplete};
use crate::checkpoint::capped::Capped;
use crate::checkpoint::load::unknown_dtype;
use crate::checkpoint::save::SaveTensor;
use crate::checkpoint::{Checkpoint, ShardFile};
use crate::error::{Code, Error, Result};
use crate::format::dtype::Dtype;
use crate::format::header::TensorInfo;
use crate::io::cast::Cast;
use crate::io::data::{Located, TensorData, WriteBytes};
use crate::io::gather::Window;

/// Elements that are computed at a time: with what they become, they stay in a core's cache.
const PIECE: u64 = 128 << 10;

/// The size of a block where it does not follow from the shapes: every writer's.
const USUAL_BLOCK: u64 = 128;

impl Checkpoint {
    /// The same checkpoint with every quantised weight as floats of `dtype` (`F32`, `BF16` or `F16`), and
    /// without scales and whatever else the weights were read with. Reads nothing: values are computed
    /// when they are asked for, any part of them, on the threads of the read, in 2 MiB a thread. All
    /// else is as it was.
    ///
    /// Values have the bits that the scheme's own library gives on a CPU. Offered are FP8 and the int8 of
    /// compressed-tensors, with a scale for the tensor, the channel or the block.
    ///
    /// # Errors
    /// Every weight of which that cannot be had, in one error: `quantized-weight` for another scheme,
    /// `quantized-incomplete`, `quantized-shape`; `unsupported-cast` for another dtype; `unknown-dtype`.
    ///
    /// ```
    /// use safeshard_core::{Checkpoint, Dtype, SaveTensor};
    ///
    /// let tensors = vec![
    ///     SaveTensor::new("l.weight", Dtype::F8E4M3, [1, 2], vec![0x40, 0x44]), // 2 and 3
    ///     SaveTensor::new("l.weight_scale_inv", Dtype::F32, [1, 1], 0.5f32.to_le_bytes().to_vec()),
    /// ];
    /// let checkpoint = Checkpoint::from_tensors(tensors)?.dequantised(Dtype::F32)?;
    /// assert_eq!(checkpoint.names(), ["l.weight"]);
    /// let bytes = checkpoint.read("l.weight")?;
    /// assert_eq!(bytes, [1.0f32.to_le_bytes(), 1.5f32.to_le_bytes()].concat());
    /// # Ok::<(), safeshard_core::Error>(())
    /// ```
    pub fn dequantised(&self, dtype: Dtype) -> Result<Self> {
        let quantization = self.quantization();
        let mut tensors = Vec::new();
        let mut problems = Capped::default();
        for tensor in self.tensors() {
            if quantization.companion(tensor.name).is_some() {
                continue;
            }
            let added = match quantization.weight(tensor.name) {
                Some(weight) => Dequantised::new(self, weight, dtype)
                    .map(|data| SaveTensor::new(tensor.name, dtype, tensor.shape, data)),
                None => located(self, &tensor)
                    .map(|data| SaveTensor::new(tensor.name, tensor.dtype, tensor.shape, data)),
            };
            match added {
                Ok(tensor) => tensors.push(tensor),
                Err(error) => problems.push(|| error),
            }
        }
        for tensor in self.unsupported() {
            problems.push(|| unknown_dtype(tensor.name, tensor.dtype));
        }
        problems.into_result()?;
        let mut checkpoint = Self::from_tensors(tensors)?;
        checkpoint.path.clone_from(&self.path);
        let aliases = self.aliases.iter();
        let kept = aliases.filter(|(_, kept)| checkpoint.find(kept).is_some());
        let kept = kept.map(|(a, b)| (a.clone(), b.clone()));
        checkpoint.aliases = Arc::new(kept.collect());
        Ok(checkpoint)
    }
}

/// Whether weights of that scheme can be had as floats.
pub(super) fn is_offered(weight: &QuantizedTensor) -> bool {
    let has = |role| weight.companions.iter().any(|it| it.role == role);
    match weight.scheme {
        Scheme::Fp8 => !has(Role::ZeroPoint) && !has(Role::GroupIndex),
        Scheme::Int8 => !has(Role::GroupIndex),
        _ => false,
    }
}

/// Checks that a weight and its scales fit together, as far as that is known of the scheme.
///
/// # Errors
/// `quantized-shape`.
pub(super) fn check(checkpoint: &Checkpoint, weight: &QuantizedTensor) -> Result<()> {
    match is_offered(weight) {
        true => Dequantised::new(checkpoint, weight, Dtype::F32).map(drop),
        false => Ok(()),
    }
}

/// A quantised weight as floats.
#[derive(Clone)]
pub(in crate::checkpoint) struct Dequantised {
    numbers: Located,
    /// What each of the 256 numbers stands for.
    values: [f32; 256],
    grid: Grid,
    scales: Scales,
    zero_points: Option<Located>,
    elements: u64,
    dtype: Dtype,
}

#[derive(Clone)]
struct Scales {
    data: Located,
    dtype: Dtype,
    /// The dtype that products are rounded to before they become what is wanted.
    through: Option<Dtype>,
}

impl Dequantised {
    /// # Errors
    /// `quantized-incomplete`, `quantized-weight`, `quantized-shape`, `unsupported-cast`.
    pub(in crate::checkpoint) fn new(
        checkpoint: &Checkpoint,
        weight: &QuantizedTensor,
        dtype: Dtype,
    ) -> Result<Self> {
        let tensor = checkpoint.info(&weight.name)?;
        if !weight.missing.is_empty() {
            return Err(incomplete(weight));
        }
        if !is_offered(weight) {
            return Err(Error::new(Code::QuantizedWeight)
                .in_tensor(&weight.name)
                .found(weight.scheme.description())
                .help("its values cannot be computed here: leave it out, or take it as stored"));
        }
        if !matches!(dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16) {
            return Err(Error::new(Code::UnsupportedCast)
                .in_tensor(&weight.name)
                .expected("F32, BF16 or F16")
                .found(dtype));
        }
        let scale =
            companion(checkpoint, weight, Role::Scale)?.ok_or_else(|| incomplete(weight))?;
        let grid = Grid::new(&tensor, &scale)?;
        let is_wide = matches!(scale.dtype, Dtype::F32 | Dtype::Bf16 | Dtype::F16);
        if !is_wide && scale.dtype != Dtype::F8E8M0 {
            return Err(misfit(
                &tensor,
                &scale,
                "a scale of F32, BF16, F16 or F8_E8M0",
            ));
        }
        let zero_points = companion(checkpoint, weight, Role::ZeroPoint)?;
        if let Some(zero) = &zero_points
            && (zero.dtype != Dtype::I8 || zero.elements() != scale.elements())
        {
            return Err(misfit(&tensor, zero, "as many zero points of I8 as scales"));
        }
        let method = checkpoint.quantization().method.as_deref();
        let rounds = matches!(scale.dtype, Dtype::Bf16 | Dtype::F16)
            && (weight.scheme == Scheme::Int8 || method == Some("compressed-tensors"));
        Ok(Self {
            numbers: located(checkpoint, &tensor)?,
            values: values(tensor.dtype)?,
            grid,
            scales: Scales {
                data: located(checkpoint, &scale)?,
                dtype: scale.dtype,
                through: rounds.then_some(scale.dtype),
            },
            zero_points: match zero_points {
                Some(zero) => Some(located(checkpoint, &zero)?),
                None => None,
            },
            elements: tensor.elements(),
            dtype,
        })
    }

    fn size(&self) -> u64 {
        self.dtype.bits() / 8
    }

    /// The values of some elements.
    fn compute(&self, elements: Range<u64>, room: &mut Room) -> Result<()> {
        read(&self.numbers, elements.clone(), &mut room.numbers)?;
        let scales = self.grid.range(&elements);
        self.scales.read(scales.clone(), room)?;
        room.zero_points.clear();
        if let Some(zero_points) = &self.zero_points {
            read(zero_points, scales.clone(), &mut room.zero_points)?;
        }
        room.products.clear();
        let mut numbers = room.numbers.as_slice();
        let mut at = elements.start;
        while let Some((run, rest)) =
            numbers.split_at_checked(self.grid.run(at).min(numbers.len() as u64) as usize)
            && !run.is_empty()
        {
            let place = (self.grid.scale(at) - scales.start) as usize;
            let scale = room.scales.get(place).copied().unwrap_or(f32::NAN);
            let zero = room.zero_points.get(place).copied().unwrap_or_default();
            let zero = f32::from(zero.cast_signed());
            let products = run.iter().map(|number| {
                let value = self.values.get(usize::from(*number)).copied();
                (value.unwrap_or_default() - zero) * scale
            });
            room.products.extend(products);
            at += run.len() as u64;
            numbers = rest;
        }
        put_bytes(&room.products, &mut room.bytes);
        if let Some(through) = self.scales.through {
            cast(Dtype::F32, through, &room.bytes, &mut room.results)?;
            cast(through, Dtype::F32, &room.results, &mut room.bytes)?;
        }
        cast(Dtype::F32, self.dtype, &room.bytes, &mut room.results)
    }
}

impl TensorData for Dequantised {
    fn byte_len(&self) -> Option<u64> {
        self.elements.checked_mul(self.size())
    }

    fn is_materialised(&self) -> bool {
        true
    }

    fn write_range(&self, range: Range<u64>, write: &mut WriteBytes<'_>) -> Result<()> {
        let size = self.size();
        let end = range.end.div_ceil(size).min(self.elements);
        let mut at = range.start / size;
        let mut window = Window::new(at.saturating_mul(size), range);
        let mut room = Room::default();
        while at < end {
            let next = end.min(at.saturating_add(PIECE));
            self.compute(at..next, &mut room)?;
            window.show(&room.results, write)?;
            at = next;
        }
        Ok(())
    }
}

/// Memory that is used again for each piece.
#[derive(Default)]
struct Room {
    numbers: Vec<u8>,
    stored_scales: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<u8>,
    products: Vec<f32>,
    /// Of the products.
    bytes: Vec<u8>,
    results: Vec<u8>,
}

impl Scales {
    fn read(&self, range: Range<u64>, room: &mut Room) -> Result<()> {
        let size = self.dtype.bits() / 8;
        let bytes = range.start * size..range.end * size;
        read(&self.data, bytes, &mut room.stored_scales)?;
        cast(self.dtype, Dtype::F32, &room.stored_scales, &mut room.bytes)?;
        put_floats(&room.bytes, &mut room.scales);
        Ok(())
    }
}

/// Which scale is whose: rows and columns of a matrix, or of each of several, cut into blocks.
#[derive(Clone, Copy)]
struct Grid {
    columns: u64,
    /// Rows of one matrix.
    rows: u64,
    block_rows: u64,
    block_columns: u64,
    scale_columns: u64,
    /// Scales of one matrix; none where all matrices have the same.
    of_matrix: u64,
}

impl Grid {
    /// # Errors
    /// `quantized-shape`.
    fn new(weight: &TensorInfo<'_>, scale: &TensorInfo<'_>) -> Result<Self> {
        let (matrices, [rows, columns]) = match weight.shape {
            [] => (&[][..], [1, 1]),
            [columns] => (&[][..], [1, *columns]),
            [matrices @ .., rows, columns] => (matrices, [*rows, *columns]),
        };
        let whole = |of_matrix| Self {
            columns: columns.max(1),
            rows: rows.max(1),
            block_rows: rows.max(1),
            block_columns: columns.max(1),
            scale_columns: 1,
            of_matrix,
        };
        if scale.elements() == 1 {
            return Ok(whole(0));
        }
        let [scale_rows, scale_columns] = match scale.shape {
            // One for each channel.
            [channels] if matrices.is_empty() && *channels == rows => [rows, 1],
            [of, scale_rows, scale_columns @ ..]
                if matrices.is_empty() && scale_columns.is_empty() =>
            {
                [*of, *scale_rows]
            }
            [of @ .., scale_rows, scale_columns] if of == matrices => [*scale_rows, *scale_columns],
            _ => {
                return Err(misfit(
                    weight,
                    scale,
                    "a scale for the tensor, each row or each block",
                ));
            }
        };
        let blocks = (
            block(rows, scale_rows),
            block(columns, scale_columns),
            scale_rows.checked_mul(scale_columns),
        );
        match blocks {
            (Some(block_rows), Some(block_columns), Some(of_matrix)) => Ok(Self {
                block_rows,
                block_columns,
                scale_columns,
                ..whole(of_matrix)
            }),
            _ => Err(misfit(
                weight,
                scale,
                "scales of blocks that make up the weight",
            )),
        }
    }

    /// The place of an element's scale.
    fn scale(&self, element: u64) -> u64 {
        let (row, column) = (element / self.columns, element % self.columns);
        let (matrix, row) = (row / self.rows, row % self.rows);
        let in_matrix = row / self.block_rows * self.scale_columns + column / self.block_columns;
        matrix * self.of_matrix + in_matrix
    }

    /// How many elements from this one on have the same scale, in this row.
    fn run(&self, element: u64) -> u64 {
        let column = element % self.columns;
        (self.block_columns - column % self.block_columns).min(self.columns - column)
    }

    /// The scales that some elements may have.
    fn range(&self, elements: &Range<u64>) -> Range<u64> {
        let (first, last) = (elements.start, elements.end.saturating_sub(1));
        if first / self.columns == last / self.columns {
            return self.scale(first)..self.scale(last) + 1;
        }
        // From the beginning of a row of scales to the end of one.
        let row = |element: u64| element / self.columns * self.columns;
        let end = self.scale(row(last) + self.columns - 1) + 1;
        self.scale(row(first))..end
    }
}

/// The length of a block, of which there are so many along a dimension; as transformers has it, and
/// where the last one is cut off, the usual one.
fn block(dim: u64, blocks: u64) -> Option<u64> {
    if dim == 0 || blocks == 0 {
        return None;
    }
    if dim.is_multiple_of(blocks) {
        return Some(dim / blocks);
    }
    (dim.div_ceil(USUAL_BLOCK) == blocks).then_some(USUAL_BLOCK)
}

/// What each number of 8 bits stands for.
fn values(dtype: Dtype) -> Result<[f32; 256]> {
    let mut values = [0.0; 256];
    let numbers: Vec<u8> = (0..=u8::MAX).collect();
    if dtype == Dtype::I8 {
        for (value, number) in values.iter_mut().zip(numbers) {
            *value = f32::from(number.cast_signed());
        }
        return Ok(values);
    }
    let (mut bytes, mut floats) = (Vec::new(), Vec::new());
    cast(dtype, Dtype::F32, &numbers, &mut bytes)?;
    put_floats(&bytes, &mut floats);
    for (value, float) in values.iter_mut().zip(floats) {
        *value = float;
    }
    Ok(values)
}

/// The first companion of that role.
fn companion<'c>(
    checkpoint: &'c Checkpoint,
    weight: &QuantizedTensor,
    role: Role,
) -> Result<Option<TensorInfo<'c>>> {
    let mut companions = weight.companions.iter();
    let found = companions.find(|companion| companion.role == role);
    found
        .map(|companion| checkpoint.info(&companion.name))
        .transpose()
}

fn located(checkpoint: &Checkpoint, tensor: &TensorInfo<'_>) -> Result<Located> {
    let file: &ShardFile = checkpoint
        .file_of(tensor.name)
        .ok_or_else(|| checkpoint.missing(tensor.name))?;
    let extent = file.extent(tensor);
    let range = extent.range();
    Ok(Located::new(extent.source.clone(), extent.path, range))
}

fn misfit(weight: &TensorInfo<'_>, other: &TensorInfo<'_>, expected: &str) -> Error {
    Error::new(Code::QuantizedShape)
        .in_tensor(weight.name)
        .expected(format_args!(
            "for {} {:?} {expected}",
            weight.dtype, weight.shape
        ))
        .found(format_args!(
            "`{}` of {} {:?}",
            other.name, other.dtype, other.shape
        ))
}

/// Some bytes of a tensor, in place of what was there.
fn read(data: &Located, range: Range<u64>, into: &mut Vec<u8>) -> Result<()> {
    into.clear();
    data.write_range(range, &mut |part| {
        into.extend_from_slice(part);
        Ok(())
    })
}

/// Casts whole elements, or copies them where there is nothing to cast.
fn cast(from: Dtype, to: Dtype, bytes: &[u8], into: &mut Vec<u8>) -> Result<()> {
    let Some(cast) = Cast::new(from, to) else {
        into.clear();
        into.extend_from_slice(bytes);
        return Ok(());
    };
    into.resize(cast.output_len(bytes.len() as u64) as usize, 0);
    let ran = cast.run(bytes, into);
    ran.map_err(|error| Error::new(Code::CastValue).found(error))
}

fn put_bytes(floats: &[f32], into: &mut Vec<u8>) {
    into.resize(size_of_val(floats), 0);
    for (bytes, float) in into.as_chunks_mut().0.iter_mut().zip(floats) {
        *bytes = float.to_le_bytes();
    }
}

fn put_floats(bytes: &[u8], into: &mut Vec<f32>) {
    let floats = bytes.as_chunks().0.iter();
    into.clear();
    into.extend(floats.map(|float| f32::from_le_bytes(*float)));
}
