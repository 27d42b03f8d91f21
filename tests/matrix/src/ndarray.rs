//! ndarray, with safeshard's adapter.

use std::collections::BTreeMap;

use bytemuck::AnyBitPattern;
use ndarray::{Array1, ArrayD, ArrayViewD, Axis, IxDyn, Slice};
use safeshard_core::{Checkpoint, Dtype, LoadOptions, SaveTensor};
use safeshard_ndarray::{
    Complex32, DynArray, Element, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, PackedArray,
    bf16, f16, load_with, tensor_to_save,
};

use crate::case::{Case, Found, Layout, View, anchors};
use crate::framework::{NO_SUCH_VIEW, Refusal, is_packed};

/// Calls a macro with the element types: dtype, type.
macro_rules! for_each_element {
    ($macro:ident) => {
        $macro! {
            U8 u8; I8 i8; F8E5M2 F8E5M2; F8E4M3 F8E4M3; F8E8M0 F8E8M0; F8E4M3Fnuz F8E4M3Fnuz;
            F8E5M2Fnuz F8E5M2Fnuz; I16 i16; U16 u16; F16 f16; Bf16 bf16; I32 i32; U32 u32; F32 f32;
            C64 Complex32; F64 f64; I64 i64; U64 u64;
        }
    };
}

macro_rules! make_and_look {
    ($($dtype:ident $type:ident;)*) => {
        fn views(case: &Case) -> Result<Vec<SaveTensor<'static>>, Refusal> {
            match case.dtype {
                Dtype::Bool => {
                    let elements = case.buffer.iter().map(|&byte| byte == 1);
                    Ok(typed_views::<bool>(case, elements.collect()))
                }
                $(Dtype::$dtype => Ok(typed_views::<$type>(case, elements(&case.buffer))),)*
                _ => packed_views(case),
            }
        }

        fn found(array: &DynArray) -> Found {
            let bytes = match array {
                DynArray::Bool(array) => array.iter().map(|&element| u8::from(element)).collect(),
                $(DynArray::$dtype(array) => {
                    let elements = array.iter();
                    elements.flat_map(|element| bytemuck::bytes_of(element).to_vec()).collect()
                })*
                DynArray::Packed(array) => array.bytes().to_vec(),
                array => panic!("{array:?} is newer than this test"),
            };
            Found {
                dtype: array.dtype().name().to_owned(),
                shape: array.shape().to_vec(),
                bytes,
            }
        }
    };
}

for_each_element!(make_and_look);

/// The tensors of a case and the anchors.
pub(crate) fn tensors(case: &Case) -> Result<Vec<SaveTensor<'static>>, Refusal> {
    let mut tensors = views(case)?;
    let anchors = anchors().map(|(name, bytes)| tensor_to_save(name, Array1::from_iter(bytes)));
    tensors.extend(anchors);
    Ok(tensors)
}

pub(crate) fn load(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Found>, Refusal> {
    let (arrays, _) = load_with(checkpoint, &LoadOptions::default())?;
    let found = arrays
        .into_iter()
        .map(|(name, array)| (name, found(&array)));
    Ok(found.collect())
}

pub(crate) fn refuses_to_save(dtype: Dtype, layout: Layout) -> Option<&'static str> {
    use Layout::{Broadcast, Fortran, NegativeStrides, Scalar};
    match layout {
        Scalar if is_packed(dtype) => Some("buffer-size"),
        Fortran | NegativeStrides | Broadcast if is_packed(dtype) => Some(NO_SUCH_VIEW),
        _ => None,
    }
}

fn elements<A: AnyBitPattern>(bytes: &[u8]) -> Array1<A> {
    let elements = bytes.chunks_exact(size_of::<A>());
    elements.map(bytemuck::pod_read_unaligned).collect()
}

/// The tensors of a case, as ndarray makes such views.
fn typed_views<A: Element>(case: &Case, buffer: Array1<A>) -> Vec<SaveTensor<'static>> {
    // What views borrow has to outlive the checkpoint; a few bytes are not worth an owner.
    let buffer: &'static Array1<A> = Box::leak(Box::new(buffer));
    let names = case.views.iter().map(|view| view.name);
    let tensors = names.zip(laid_out(case.layout, buffer));
    let to_save = tensors.map(|(name, view)| tensor_to_save(name, view));
    to_save.collect()
}

fn laid_out<A>(layout: Layout, buffer: &Array1<A>) -> Vec<ArrayViewD<'_, A>> {
    let shaped = |dims: &[usize]| {
        let view = buffer.view().into_shape_with_order(IxDyn(dims));
        view.unwrap()
    };
    match layout {
        Layout::Scalar => vec![shaped(&[24]).index_axis_move(Axis(0), 5)],
        Layout::Empty => {
            let none = buffer.slice_axis(Axis(0), Slice::from(..0));
            vec![none.into_shape_with_order(IxDyn(&[3, 0, 2])).unwrap()]
        }
        Layout::LengthOneAxis => vec![shaped(&[4, 1, 6])],
        Layout::Ordinary => vec![shaped(&[2, 3, 4])],
        Layout::Fortran => vec![shaped(&[4, 6]).reversed_axes()],
        Layout::NegativeStrides => {
            let mut view = shaped(&[2, 3, 4]);
            view.invert_axis(Axis(0));
            view.invert_axis(Axis(2));
            vec![view]
        }
        Layout::Broadcast => {
            let rows = buffer.broadcast(IxDyn(&[3, 24])).unwrap();
            vec![rows.slice_axis_move(Axis(1), Slice::from(4..8))]
        }
        Layout::SlicesOfFused => {
            let (first, second) = shaped(&[6, 4]).split_at(Axis(0), 2);
            vec![first, second]
        }
        Layout::TiedPair => vec![shaped(&[2, 3, 4]), shaped(&[2, 3, 4])],
    }
}

/// Elements that share bytes have no views: who wants a part takes it of the bytes.
fn packed_views(case: &Case) -> Result<Vec<SaveTensor<'static>>, Refusal> {
    let mut arrays: Vec<DynArray> = Vec::new();
    for view in &case.views {
        let array = match arrays.first() {
            Some(first) if case.layout == Layout::TiedPair => first.clone(),
            _ => packed(case, view)?.into(),
        };
        arrays.push(array);
    }
    let names = case.views.iter().map(|view| view.name);
    let tensors = names.zip(arrays);
    Ok(tensors
        .map(|(name, array)| tensor_to_save(name, array))
        .collect())
}

fn packed(case: &Case, view: &View) -> Result<PackedArray, Refusal> {
    let bits = case.dtype.bits() as usize;
    let count: usize = view.dims.iter().product();
    let is_row_major = {
        let whole = ArrayD::<()>::default(view.dims.clone());
        count == 0 || whole.strides() == view.strides
    };
    if !is_row_major {
        return Err(Refusal::no_such_view("`PackedArray` has no strides"));
    }
    let start = view.offset * bits / 8;
    let bytes = case.buffer[start..][..(count * bits).div_ceil(8)].to_vec();
    Ok(PackedArray::new(case.dtype, &view.dims, bytes)?)
}
