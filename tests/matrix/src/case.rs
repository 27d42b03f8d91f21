//! The tensors of a cell, and the bytes that every framework must make of them.

use std::collections::BTreeMap;
use std::fmt;

use safeshard_core::Dtype;

/// Elements of the buffer that the tensors of a cell are views of.
pub(crate) const ELEMENTS: usize = 24;

/// Bytes of tensors in a shard: each checkpoint has two anchors of that size, and so several shards.
pub(crate) const SHARD_BYTES: u64 = 8;

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layout {
    Scalar,
    Empty,
    LengthOneAxis,
    Ordinary,
    Fortran,
    NegativeStrides,
    Broadcast,
    SlicesOfFused,
    TiedPair,
}

impl Layout {
    pub(crate) const ALL: [Self; 9] = [
        Self::Scalar,
        Self::Empty,
        Self::LengthOneAxis,
        Self::Ordinary,
        Self::Fortran,
        Self::NegativeStrides,
        Self::Broadcast,
        Self::SlicesOfFused,
        Self::TiedPair,
    ];

    /// The tensors, as views of the buffer.
    fn views(self) -> Vec<View> {
        let x = |offset, dims: &[usize], strides: &[isize]| View::new("x", offset, dims, strides);
        let y = |offset, dims: &[usize], strides: &[isize]| View::new("y", offset, dims, strides);
        match self {
            Self::Scalar => vec![x(5, &[], &[])],
            Self::Empty => vec![x(0, &[3, 0, 2], &[2, 2, 1])],
            Self::LengthOneAxis => vec![x(0, &[4, 1, 6], &[6, 6, 1])],
            Self::Ordinary => vec![x(0, &[2, 3, 4], &[12, 4, 1])],
            Self::Fortran => vec![x(0, &[6, 4], &[1, 6])],
            Self::NegativeStrides => vec![x(15, &[2, 3, 4], &[-12, 4, -1])],
            Self::Broadcast => vec![x(4, &[3, 4], &[0, 1])],
            Self::SlicesOfFused => vec![x(0, &[2, 4], &[4, 1]), y(8, &[4, 4], &[4, 1])],
            Self::TiedPair => {
                let (dims, strides) = (&[2, 3, 4], &[12, 4, 1]);
                vec![x(0, dims, strides), y(0, dims, strides)]
            }
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "0-d",
            Self::Empty => "empty",
            Self::LengthOneAxis => "axis of length 1",
            Self::Ordinary => "ordinary",
            Self::Fortran => "Fortran order",
            Self::NegativeStrides => "negative strides",
            Self::Broadcast => "broadcast",
            Self::SlicesOfFused => "slices of a fused buffer",
            Self::TiedPair => "tied pair",
        })
    }
}

/// A tensor as part of the buffer; everything is counted in elements.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) name: &'static str,
    pub(crate) offset: usize,
    pub(crate) dims: Vec<usize>,
    pub(crate) strides: Vec<isize>,
}

impl View {
    fn new(name: &'static str, offset: usize, dims: &[usize], strides: &[isize]) -> Self {
        Self {
            name,
            offset,
            dims: dims.to_vec(),
            strides: strides.to_vec(),
        }
    }

    /// Which elements of the buffer, in row-major order.
    fn elements(&self) -> Vec<usize> {
        let mut positions = vec![self.offset as isize];
        for (&dim, &stride) in self.dims.iter().zip(&self.strides) {
            let steps = positions.iter().flat_map(|&position| {
                let step = move |i| position + i as isize * stride;
                (0..dim).map(step)
            });
            positions = steps.collect();
        }
        positions
            .iter()
            .map(|&position| position as usize)
            .collect()
    }
}

/// The tensors of a cell.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) dtype: Dtype,
    pub(crate) layout: Layout,
    /// As many elements as [`ELEMENTS`], as a file holds them.
    pub(crate) buffer: Vec<u8>,
    pub(crate) views: Vec<View>,
}

impl Case {
    pub(crate) fn new(dtype: Dtype, layout: Layout) -> Self {
        Self {
            dtype,
            layout,
            buffer: buffer(dtype),
            views: layout.views(),
        }
    }

    /// What whoever loads the checkpoint must find in it, under which name.
    pub(crate) fn expected(&self) -> BTreeMap<String, Found> {
        let found = self.views.iter().map(|view| {
            let found = Found {
                dtype: self.dtype.name().to_owned(),
                shape: view.dims.clone(),
                bytes: gather(&self.buffer, self.dtype.bits() as usize, &view.elements()),
            };
            (view.name.to_owned(), found)
        });
        found
            .chain(anchors().map(|(name, bytes)| (name.to_owned(), Found::anchor(bytes))))
            .collect()
    }
}

/// What every checkpoint holds besides: `U8`, eight elements each.
pub(crate) fn anchors() -> impl Iterator<Item = (&'static str, [u8; 8])> {
    [("a", 1), ("z", 101)].into_iter().map(|(name, first)| {
        let bytes = std::array::from_fn(|i| first + i as u8);
        (name, bytes)
    })
}

/// A tensor that was loaded.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Found {
    fn anchor(bytes: [u8; 8]) -> Self {
        Self {
            dtype: Dtype::U8.name().to_owned(),
            shape: vec![8],
            bytes: bytes.to_vec(),
        }
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} ", self.dtype, self.shape)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes of every kind, NaNs and subnormal numbers among them; those of `BOOL` are 0 and 1.
fn buffer(dtype: Dtype) -> Vec<u8> {
    let mut state = dtype.name().bytes().fold(0x9e37_79b9_u32, |state, byte| {
        (state ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let byte = (state >> 24) as u8;
        if dtype == Dtype::Bool { byte & 1 } else { byte }
    };
    (0..ELEMENTS * dtype.bits() as usize / 8)
        .map(|_| byte())
        .collect()
}

/// Elements of a buffer one after the other, bit by bit from the lowest: too simple to be wrong.
fn gather(buffer: &[u8], bits: usize, elements: &[usize]) -> Vec<u8> {
    let mut bytes = vec![0; (elements.len() * bits).div_ceil(8)];
    for (to, &from) in elements.iter().enumerate() {
        for bit in 0..bits {
            let (from, to) = (from * bits + bit, to * bits + bit);
            bytes[to / 8] |= (buffer[from / 8] >> (from % 8) & 1) << (to % 8);
        }
    }
    bytes
}

#[test]
fn the_expected_bytes_are_those_of_the_elements() {
    let expected = |layout| {
        let mut case = Case::new(Dtype::U16, layout);
        case.buffer = (0..ELEMENTS as u16).flat_map(u16::to_le_bytes).collect();
        let found = case.expected().remove("x").unwrap();
        let elements = found.bytes.chunks_exact(2);
        let elements = elements.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        elements.collect::<Vec<_>>()
    };
    assert_eq!(expected(Layout::Scalar), [5]);
    assert_eq!(expected(Layout::Empty), [0; 0]);
    assert_eq!(expected(Layout::Ordinary), (0..24).collect::<Vec<_>>());
    assert_eq!(expected(Layout::Fortran)[..6], [0, 6, 12, 18, 1, 7]);
    assert_eq!(
        expected(Layout::Broadcast),
        [4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7]
    );
    assert_eq!(
        expected(Layout::NegativeStrides)[..8],
        [15, 14, 13, 12, 19, 18, 17, 16]
    );
    assert_eq!(
        gather(&[0x21, 0x43], 4, &[3, 0]),
        [0x14],
        "the low half first"
    );
}
