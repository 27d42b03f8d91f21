//! Parts read from a file are what ndarray makes of the whole.

use ndarray::{Ix1, Ix2, Ix3, IxDyn, NewAxis, SliceInfo, SliceInfoElem, s};
use proptest::prelude::*;
use safeshard_ndarray::{Code, Dtype, Result, slice, tensor};

use crate::support::{Stored, in_memory};

/// An element of a slice that ndarray takes for an axis of this size.
fn element(size: usize) -> impl Strategy<Value = SliceInfoElem> {
    let bounds = (0..=size, 0..=size, any::<[bool; 3]>(), 1..4isize);
    let slice = bounds.prop_map(move |(a, b, [back, open, negative], step)| {
        let (start, end) = (a.min(b) as isize, a.max(b) as isize);
        // 0 counted from the back would be the front.
        let behind = |at: isize| {
            if back && at < size as isize {
                at - size as isize
            } else {
                at
            }
        };
        SliceInfoElem::Slice {
            start: behind(start),
            end: (!open).then(|| behind(end)),
            step: if negative { -step } else { step },
        }
    });
    let index = (0..size.max(1), any::<bool>()).prop_map(move |(at, back)| {
        SliceInfoElem::Index(at as isize - if back { size as isize } else { 0 })
    });
    match size {
        0 => slice.boxed(),
        _ => prop_oneof![4 => slice, 1 => index].boxed(),
    }
}

fn slices() -> impl Strategy<Value = (Vec<usize>, Vec<SliceInfoElem>)> {
    prop::collection::vec(0..6usize, 0..4).prop_flat_map(|shape| {
        let elements: Vec<_> = shape.iter().map(|&size| element(size)).collect();
        let inserted = prop::collection::vec(any::<bool>(), shape.len());
        (Just(shape), elements, inserted).prop_map(|(shape, elements, inserted)| {
            let mut all = Vec::new();
            for (element, inserted) in elements.into_iter().zip(inserted) {
                if inserted {
                    all.push(SliceInfoElem::NewAxis);
                }
                all.push(element);
            }
            (shape, all)
        })
    })
}

proptest! {
    #[test]
    fn a_part_is_the_slice_of_the_whole((shape, elements) in slices()) {
        let checkpoint = in_memory(&[Stored::new("w", Dtype::I16, &shape)]);
        let whole = tensor::<i16, IxDyn>(&checkpoint, "w").unwrap();
        let part = slice::<i16, IxDyn>(&checkpoint, "w", &elements[..]);
        let part = part.unwrap();
        let info: SliceInfo<_, IxDyn, IxDyn> = SliceInfo::try_from(&elements[..]).unwrap();
        prop_assert_eq!(part, whole.slice(info));
    }
}

#[test]
fn axes_that_are_not_named_are_taken_whole() {
    let checkpoint = in_memory(&[Stored::new("w", Dtype::U8, &[3, 4, 5])]);
    let whole = tensor::<u8, Ix3>(&checkpoint, "w").unwrap();
    let part = slice::<u8, Ix2>(&checkpoint, "w", s![-1]).unwrap();
    assert_eq!(part, whole.slice(s![2, .., ..]));
    let part = slice::<u8, Ix3>(&checkpoint, "w", s![NewAxis, 0, ..2]).unwrap();
    assert_eq!(part, whole.slice(s![NewAxis, 0, ..2, ..]));
}

#[test]
fn what_ndarray_would_panic_at_is_an_error() {
    let checkpoint = in_memory(&[Stored::new("w", Dtype::U8, &[3, 4])]);
    let code = |elements: &[SliceInfoElem]| {
        let part: Result<_> = slice::<u8, IxDyn>(&checkpoint, "w", elements);
        part.unwrap_err().code()
    };
    let range = |start, end, step| SliceInfoElem::Slice { start, end, step };
    assert_eq!(code(&[range(0, Some(4), 1)]), Code::SliceRange);
    assert_eq!(code(&[range(-4, None, 1)]), Code::SliceRange);
    assert_eq!(code(&[range(4, None, -1)]), Code::SliceReversed);
    assert_eq!(code(&[range(isize::MIN, None, 1)]), Code::SliceRange);
    assert_eq!(
        code(&[range(0, Some(isize::MAX), isize::MIN)]),
        Code::SliceRange
    );
    assert_eq!(code(&[range(0, None, 0)]), Code::SliceStep);
    assert_eq!(code(&[range(2, Some(1), 1)]), Code::SliceReversed);
    assert_eq!(code(&[SliceInfoElem::Index(3)]), Code::SliceRange);
    assert_eq!(code(&[SliceInfoElem::Index(-4)]), Code::SliceRange);
    assert_eq!(code(&[SliceInfoElem::Index(0); 3]), Code::SliceRank);
    let rank = slice::<u8, Ix2>(&checkpoint, "w", s![0]).unwrap_err();
    assert_eq!(rank.code(), Code::RankMismatch);
    assert_eq!(slice::<u8, Ix1>(&checkpoint, "w", s![0]).unwrap().len(), 4);
}
