//! Tensors that do not lie in their file as safetensors would hold them: with strides, in another byte
//! order, conjugated or negated.

use std::mem::MaybeUninit;
use std::ops::Range;

use safeshard_core::{Code, Dtype, Error, ReadAt, Result, gather};

use super::storage::Stored;

/// Bytes of a storage that are read at a time.
const WINDOW: u64 = 1 << 20;

/// Bytes between those that are wanted that are worth reading along.
const GAP: u64 = 8 << 10;

/// The elements of a tensor in row-major order, little-endian: a source that computes what is asked for and
/// keeps nothing.
#[derive(Debug)]
pub(super) struct View {
    pub(super) stored: Stored,
    /// Where the first element begins, counted from the beginning of the storage, in bytes.
    pub(super) start: u64,
    /// Of the shape that torch gives it. The last element ends inside the storage.
    pub(super) shape: Vec<u64>,
    /// In bytes.
    pub(super) strides: Vec<u64>,
    /// Bytes of an element.
    pub(super) width: u64,
    pub(super) change: Change,
}

/// What is done to elements on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    /// Bytes of a number: half an element where that is complex.
    pub(super) number: usize,
    /// Whether the bytes of each number are reversed.
    pub(super) is_swapped: bool,
    /// Which numbers of two, first and second, change their signs.
    pub(super) negated: [bool; 2],
    /// Whether a sign is a bit, or numbers are two's complements.
    pub(super) has_sign_bit: bool,
}

impl Change {
    /// Of elements of this type; `None` where such a thing has no sign.
    pub(super) fn new(
        dtype: Dtype,
        width: u64,
        is_big: bool,
        conj: bool,
        neg: bool,
    ) -> Option<Self> {
        let is_complex = dtype == Dtype::C64;
        let has_sign_bit = matches!(
            dtype,
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::C64
        );
        let is_integer = matches!(
            dtype,
            Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8
        );
        if (conj && !is_complex) || (neg && !has_sign_bit && !is_integer) {
            return None;
        }
        let number = if is_complex { width / 2 } else { width };
        Some(Self {
            number: number as usize,
            is_swapped: is_big && number > 1,
            // Of a complex number, the second is the imaginary part.
            negated: [neg, neg != conj],
            has_sign_bit,
        })
    }

    /// Whether elements stay as they are.
    pub(super) fn is_none(&self) -> bool {
        !self.is_swapped && self.negated == [false, false]
    }

    fn apply(&self, bytes: &mut [u8]) {
        if self.is_none() {
            return;
        }
        for (at, number) in bytes.chunks_exact_mut(self.number.max(1)).enumerate() {
            if self.is_swapped {
                number.reverse();
            }
            let [even, odd] = self.negated;
            match if at % 2 == 0 { even } else { odd } {
                true if self.has_sign_bit => {
                    if let Some(last) = number.last_mut() {
                        *last ^= 0x80;
                    }
                }
                true => negate(number),
                false => {}
            }
        }
    }
}

/// The two's complement.
fn negate(number: &mut [u8]) {
    let mut carry = true;
    for byte in number {
        (*byte, carry) = (!*byte).overflowing_add(carry.into());
    }
}

impl View {
    /// The bytes of a box of elements, in row-major order.
    fn read_box(&self, ranges: &[Range<u64>]) -> Result<Vec<u8>> {
        let mut start = self.stored.range.start + self.start;
        let mut len = self.width;
        let mut steps = Vec::new();
        for (range, &stride) in ranges.iter().zip(&self.strides).rev() {
            let count = range.end.saturating_sub(range.start);
            start += range.start * stride;
            steps.push(Step {
                count,
                from: stride,
                to: len,
            });
            len *= count;
        }
        // In the order of the storage.
        steps.retain(|step| step.count > 1);
        steps.sort_by_key(|step| step.from);
        let mut boxed = vec![0; len as usize];
        let windows = Windows::new(self.width, steps);
        let mut room = Vec::new();
        windows.each(|from, to, len, inner| {
            room.resize(len as usize, MaybeUninit::uninit());
            let window = self.stored.source.read_at(start + from, &mut room)?;
            scatter(window, &mut boxed, to, self.width as usize, inner);
            Ok(())
        })?;
        self.change.apply(&mut boxed);
        Ok(boxed)
    }
}

impl ReadAt for View {
    fn len(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.width
    }

    fn read_at<'b>(&self, offset: u64, buf: &'b mut [MaybeUninit<u8>]) -> Result<&'b mut [u8]> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        if range.end > self.len() {
            return Err(Error::new(Code::FileTruncated)
                .at_offset(self.len())
                .expected(format_args!("{} bytes at {offset}", buf.len())));
        }
        let mut bytes = Vec::with_capacity(buf.len());
        gather(
            &self.shape,
            self.width,
            range,
            |ranges, write| write(&self.read_box(ranges)?),
            &mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            },
        )?;
        Ok(buf.write_copy_of_slice(&bytes))
    }

    fn check_unchanged(&self) -> Result<()> {
        self.stored.source.check_unchanged()
    }
}

/// A dimension of a box.
#[derive(Clone, Copy)]
struct Step {
    count: u64,
    /// What a step along it is in the storage, in bytes.
    from: u64,
    /// And in the box.
    to: u64,
}

/// A box as windows of its storage: what is read in one call.
struct Windows {
    /// Bytes of the storage that a window without `cut` has.
    span: u64,
    /// Dimensions that lie within a window.
    inner: Vec<Step>,
    /// The one of which so many steps lie within a window.
    cut: Step,
    steps: u64,
    outer: Vec<Step>,
}

impl Windows {
    /// Of dimensions in the order of the storage.
    fn new(width: u64, steps: Vec<Step>) -> Self {
        let mut steps = steps.into_iter().peekable();
        let (mut span, mut inner) = (width, Vec::new());
        let is_dense = |span: u64, step: &Step| step.from <= span + GAP;
        let with = |span: u64, step: &Step| span + (step.count - 1) * step.from;
        while let Some(step) =
            steps.next_if(|step| is_dense(span, step) && with(span, step) <= WINDOW)
        {
            span = with(span, &step);
            inner.push(step);
        }
        let one = Step {
            count: 1,
            from: 0,
            to: 0,
        };
        let cut = steps.next().unwrap_or(one);
        let fitting = (WINDOW.saturating_sub(span))
            .checked_div(cut.from)
            .map_or(1, |steps| steps + 1);
        Self {
            steps: if is_dense(span, &cut) { fitting } else { 1 },
            span,
            inner,
            cut,
            outer: steps.collect(),
        }
    }

    /// Tells of each window where in the storage and where in the box it begins, how many bytes it has, and
    /// the dimensions within it.
    fn each(&self, mut visit: impl FnMut(u64, u64, u64, &[Step]) -> Result<()>) -> Result<()> {
        let mut inner = self.inner.clone();
        inner.push(self.cut);
        walk(&self.outer, |from, to| {
            let mut done = 0;
            while done < self.cut.count {
                let count = self.steps.min(self.cut.count - done);
                if let Some(cut) = inner.last_mut() {
                    cut.count = count;
                }
                let len = self.span + (count - 1) * self.cut.from;
                let (from, to) = (from + done * self.cut.from, to + done * self.cut.to);
                visit(from, to, len, &inner)?;
                done += count;
            }
            Ok(())
        })
    }
}

/// Copies the elements of a window to their places in the box.
fn scatter(window: &[u8], boxed: &mut [u8], to: u64, width: usize, steps: &[Step]) {
    // Elements that lie side by side in both are copied together.
    let (run, steps) = match steps.split_first() {
        Some((first, rest)) if first.from == width as u64 && first.to == width as u64 => {
            (first.count as usize * width, rest)
        }
        _ => (width, steps),
    };
    let copied = walk(steps, |from, step| {
        let (from, to) = (from as usize, (to + step) as usize);
        let parts = window
            .get(from..from + run)
            .zip(boxed.get_mut(to..to + run));
        if let Some((from, to)) = parts {
            to.copy_from_slice(from);
        }
        Ok(())
    });
    debug_assert!(copied.is_ok());
}

/// Visits each position of some dimensions, the first of them fastest, by its places in the storage and the
/// box.
fn walk(steps: &[Step], mut visit: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    let Some((fastest, others)) = steps.split_first() else {
        return visit(0, 0);
    };
    let mut at = vec![0; others.len()];
    let (mut from, mut to) = (0, 0);
    loop {
        for step in 0..fastest.count {
            visit(from + step * fastest.from, to + step * fastest.to)?;
        }
        let mut is_done = true;
        for (at, step) in at.iter_mut().zip(others) {
            if *at + 1 < step.count {
                *at += 1;
                (from, to) = (from + step.from, to + step.to);
                is_done = false;
                break;
            }
            (from, to) = (from - *at * step.from, to - *at * step.to);
            *at = 0;
        }
        if is_done {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use safeshard_core::{MemorySource, contract};

    use super::*;

    /// Element by element.
    fn naive(view: &View, bytes: &[u8]) -> Vec<u8> {
        let mut places = vec![(view.stored.range.start + view.start) as usize];
        for (&count, &stride) in view.shape.iter().zip(&view.strides) {
            let along = |place: usize| (0..count).map(move |at| place + (at * stride) as usize);
            places = places.into_iter().flat_map(along).collect();
        }
        let element = |place: usize| &bytes[place..place + view.width as usize];
        places.into_iter().flat_map(element).copied().collect()
    }

    const UNCHANGED: Change = Change {
        number: 1,
        is_swapped: false,
        negated: [false, false],
        has_sign_bit: true,
    };

    fn bytes(len: u64) -> Vec<u8> {
        (0..len)
            .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Of strides that overlap, that leave gaps small and large, of windows of one element and of many.
        #[test]
        fn it_is_what_one_element_after_the_other_is(
            dims in prop::collection::vec((1u64..12, prop_oneof![0u64..40, 0u64..30_000]), 0..4),
            width in prop::sample::select(&[1u64, 2, 4, 8][..]),
            start in 0u64..9,
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
            let strides: Vec<_> = strides.into_iter().map(|stride: u64| stride * width).collect();
            let last: u64 = shape.iter().zip(&strides).map(|(count, stride)| (count - 1) * stride).sum();
            let bytes = bytes(3 + start + last + width);
            let source = Arc::new(MemorySource::new(bytes.clone()));
            let range = 3..bytes.len() as u64;
            let stored = Stored { source, range };
            let view = View { stored, start, shape, strides, width, change: UNCHANGED };
            contract::check_source(&view, &naive(&view, &bytes));
        }
    }

    #[test]
    fn windows_are_cut_where_they_are_too_long() {
        let bytes = bytes(9 << 20);
        for (shape, strides) in [
            (vec![3000, 5], vec![3000, 4]),
            (vec![5, 3000], vec![4, 3000]),
            (vec![700, 600, 2], vec![4, 4096, 2048]),
            (vec![1 << 18, 3], vec![32, 8]),
        ] {
            let source = Arc::new(MemorySource::new(bytes.clone()));
            let stored = Stored {
                source,
                range: 0..bytes.len() as u64,
            };
            let view = View {
                stored,
                start: 4,
                shape,
                strides,
                width: 4,
                change: UNCHANGED,
            };
            let expected = naive(&view, &bytes);
            let mut room = vec![MaybeUninit::uninit(); expected.len()];
            assert!(view.read_at(0, &mut room).unwrap() == expected);
            let at = expected.len() / 3;
            let part = view.read_at(at as u64, &mut room[at..]).unwrap();
            assert!(part == &expected[at..]);
        }
    }

    #[test]
    fn signs_are_changed_as_torch_does() {
        let changed = |dtype, width, is_big, conj, neg, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            Change::new(dtype, width, is_big, conj, neg)
                .unwrap()
                .apply(&mut bytes);
            bytes
        };
        let minus_one = changed(Dtype::I16, 2, false, false, true, &[1, 0, 0, 0, 0, 0x80]);
        assert_eq!(minus_one, [0xff, 0xff, 0, 0, 0, 0x80]);
        let swapped = changed(Dtype::C64, 8, true, true, false, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(swapped, [4, 3, 2, 1, 8, 7, 6, 5 ^ 0x80]);
        assert!(Change::new(Dtype::Bool, 1, false, false, true).is_none());
        assert!(Change::new(Dtype::F32, 4, false, true, false).is_none());
    }
}
