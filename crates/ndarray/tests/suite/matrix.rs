//! Every element type in every layout: what the reference wrote is read, what is saved the reference
//! reads, and both are the same bytes.

use ndarray::{Array1, ArrayD, ArrayView, ArrayViewD, Axis, Ix0, Ix1, Ix2, IxDyn, Slice, s};
use rstest::rstest;
use safeshard_ndarray::{
    CheckpointExt, Dtype, DynArray, Element, PackedArray, dyn_tensor, load, save, slice, tensor,
};
use safetensors::SafeTensors;

use crate::support::{Stored, bytes, in_memory, reference, with_element, write};

#[derive(Clone, Copy, Debug)]
enum Layout {
    Scalar,
    Empty,
    LengthOneAxis,
    Ordinary,
    Fortran,
    NegativeStrides,
    Broadcast,
    SliceOfFused,
    EverySecond,
}

impl Layout {
    const ALL: [Self; 9] = [
        Self::Scalar,
        Self::Empty,
        Self::LengthOneAxis,
        Self::Ordinary,
        Self::Fortran,
        Self::NegativeStrides,
        Self::Broadcast,
        Self::SliceOfFused,
        Self::EverySecond,
    ];

    /// Shows a view of a buffer of 24 elements.
    fn apply<A>(self, buffer: &Array1<A>, show: impl FnOnce(ArrayViewD<'_, A>)) {
        let shaped = |dims: &[usize]| {
            let view = buffer.view().into_shape_with_order(IxDyn(dims));
            view.unwrap()
        };
        let row = buffer.slice(s![3..7]);
        show(match self {
            Self::Scalar => shaped(&[24]).index_axis_move(Axis(0), 5),
            Self::Empty => ArrayView::from_shape(IxDyn(&[3, 0, 2]), &[]).unwrap(),
            Self::LengthOneAxis => shaped(&[4, 1, 6]),
            Self::Ordinary => shaped(&[2, 3, 4]),
            Self::Fortran => shaped(&[4, 6]).reversed_axes(),
            Self::NegativeStrides => {
                let mut view = shaped(&[2, 3, 4]);
                view.invert_axis(Axis(0));
                view.invert_axis(Axis(2));
                view
            }
            Self::Broadcast => row.broadcast(IxDyn(&[3, 4])).unwrap(),
            Self::SliceOfFused => shaped(&[6, 4]).slice_axis_move(Axis(0), Slice::from(2..5)),
            Self::EverySecond => shaped(&[4, 6]).slice_axis_move(Axis(1), Slice::new(1, None, 2)),
        });
    }

    /// Whether a file holds the view as memory does.
    fn is_standard(self) -> bool {
        use Layout::{Broadcast, EverySecond, Fortran, NegativeStrides};
        !matches!(self, Fortran | NegativeStrides | Broadcast | EverySecond)
    }
}

fn typed() -> impl Iterator<Item = Dtype> {
    let dtypes = Dtype::ALL.iter().copied();
    dtypes.filter(|dtype| dtype.size().is_some())
}

fn round_trip<A: Element + bytemuck::NoUninit>(layout: Layout) {
    let folder = tempfile::tempdir().unwrap();
    let (theirs, ours) = (
        folder.path().join("a.safetensors"),
        folder.path().join("b.safetensors"),
    );
    let stored = Stored::new("buffer", A::DTYPE, &[24]);
    write(&theirs, std::slice::from_ref(&stored));
    let buffer = tensor::<A, Ix1>(&theirs, "buffer").unwrap();
    assert_eq!(bytes(&buffer.view()), stored.bytes, "{}", A::DTYPE);

    layout.apply(&buffer, |view| {
        let expected = bytes(&view);
        let report = save([("w", &view)], &ours).unwrap();
        let materialised = report.materialised.contains(&"w".to_owned());
        assert_eq!(materialised, !layout.is_standard());

        let saved = std::fs::read(&ours).unwrap();
        let saved = SafeTensors::deserialize(&saved).unwrap();
        let saved = saved.tensor("w").unwrap();
        assert_eq!(saved.dtype(), reference(A::DTYPE));
        assert_eq!(saved.shape(), view.shape());
        assert_eq!(saved.data(), expected);

        let loaded = tensor::<A, IxDyn>(&ours, "w").unwrap();
        assert_eq!(loaded.shape(), view.shape());
        assert_eq!(bytes(&loaded.view()), expected);
        let loaded: ArrayD<A> = load(&ours)
            .unwrap()
            .remove("w")
            .unwrap()
            .try_into()
            .unwrap();
        assert_eq!(bytes(&loaded.view()), expected);
    });
}

#[rstest]
fn arrays_of_every_type_and_layout_are_the_references(
    #[values(
        Dtype::Bool,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8E5M2,
        Dtype::F8E4M3,
        Dtype::F8E8M0,
        Dtype::F8E4M3Fnuz,
        Dtype::F8E5M2Fnuz,
        Dtype::I16,
        Dtype::U16,
        Dtype::F16,
        Dtype::Bf16,
        Dtype::I32,
        Dtype::U32,
        Dtype::F32,
        Dtype::C64,
        Dtype::F64,
        Dtype::I64,
        Dtype::U64
    )]
    dtype: Dtype,
) {
    for layout in Layout::ALL {
        with_element!(dtype, round_trip(layout));
    }
}

#[test]
fn the_matrix_has_every_dtype_that_has_elements() {
    assert_eq!(typed().count(), 19);
    assert_eq!(
        Dtype::ALL.len() - typed().count(),
        3,
        "F4 and both F6 are packed"
    );
}

fn viewed<A: Element + bytemuck::NoUninit>() {
    let stored = [
        Stored::new("w", A::DTYPE, &[3, 4]),
        Stored::new("none", A::DTYPE, &[2, 0]),
        Stored::new("scalar", A::DTYPE, &[]),
    ];
    let checkpoint = in_memory(&stored);
    let w = checkpoint.view::<A, Ix2>("w").unwrap();
    assert_eq!(bytes(&w), stored[0].bytes);
    assert_eq!(
        bytes(&checkpoint.mapped::<A, Ix2>("w").unwrap().view()),
        stored[0].bytes
    );
    assert_eq!(checkpoint.view::<A, Ix2>("none").unwrap().shape(), [2, 0]);
    assert_eq!(
        bytes(&checkpoint.view::<A, Ix0>("scalar").unwrap()),
        stored[2].bytes
    );
    let part = slice::<A, Ix2>(&checkpoint, "w", s![1..3, ..]).unwrap();
    assert_eq!(bytes(&part.view()), bytes(&w.slice(s![1..3, ..])));
    let part = slice::<A, Ix2>(&checkpoint, "w", s![.., 1..4; 2]).unwrap();
    assert_eq!(bytes(&part.view()), bytes(&w.slice(s![.., 1..4; 2])));
    let array = dyn_tensor(&checkpoint, "w").unwrap();
    assert_eq!((array.dtype(), array.shape()), (A::DTYPE, &[3, 4][..]));
    assert_eq!(bytes(&array.view::<A, Ix2>().unwrap()), stored[0].bytes);
}

#[test]
fn tensors_of_every_type_are_viewed_and_sliced() {
    for dtype in typed() {
        with_element!(dtype, viewed());
    }
}

#[rstest]
#[case(Dtype::F4)]
#[case(Dtype::F6E2M3)]
#[case(Dtype::F6E3M2)]
fn packed_elements_keep_their_bytes(#[case] dtype: Dtype) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let stored = Stored::new("w", dtype, &[2, 4]);
    write(&path, std::slice::from_ref(&stored));
    let arrays = load(&path).unwrap();
    let DynArray::Packed(packed) = &arrays["w"] else {
        panic!("{:?}", arrays["w"]);
    };
    assert_eq!((packed.dtype(), packed.shape()), (dtype, &[2, 4][..]));
    assert_eq!(packed.bytes().to_vec(), stored.bytes);
    let made = PackedArray::new(dtype, &[2, 4], stored.bytes.clone()).unwrap();
    assert_eq!(DynArray::from(made), arrays["w"]);

    let again = folder.path().join("again.safetensors");
    save(&arrays, &again).unwrap();
    let saved = std::fs::read(&again).unwrap();
    let saved = SafeTensors::deserialize(&saved).unwrap();
    assert_eq!(saved.tensor("w").unwrap().data(), stored.bytes);
    assert_eq!(saved.tensor("w").unwrap().shape(), [2, 4]);
}

#[test]
fn a_whole_checkpoint_of_every_dtype_comes_back() {
    let stored = Dtype::ALL
        .iter()
        .map(|&dtype| Stored::new(dtype.name(), dtype, &[2, 4]));
    let stored: Vec<_> = stored.collect();
    let folder = tempfile::tempdir().unwrap();
    let (theirs, ours) = (
        folder.path().join("a.safetensors"),
        folder.path().join("b.safetensors"),
    );
    write(&theirs, &stored);
    let arrays = load(&theirs).unwrap();
    assert_eq!(arrays.len(), 22);
    save(&arrays, &ours).unwrap();
    let (a, b) = (
        std::fs::read(&theirs).unwrap(),
        std::fs::read(&ours).unwrap(),
    );
    let (a, b) = (
        SafeTensors::deserialize(&a).unwrap(),
        SafeTensors::deserialize(&b).unwrap(),
    );
    for name in a.names() {
        assert_eq!(a.tensor(name).unwrap(), b.tensor(name).unwrap());
    }
    assert_eq!(a.len(), b.len());
}
