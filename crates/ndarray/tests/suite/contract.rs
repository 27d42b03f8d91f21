//! What the core asks of whoever implements its traits.

use ndarray::{Array2, ArrayViewD, arr0, s};
use safeshard_core::contract::check_data;
use safeshard_ndarray::tensor_to_save;

use crate::support::bytes;

#[test]
fn any_range_of_any_array_is_given() {
    let w = Array2::from_shape_fn((200, 300), |(i, j)| (i * 1009 + j) as f32);
    let large = Array2::from_shape_fn((1500, 2000), |(i, j)| (i * 2000 + j) as u32);
    let check = |array: ArrayViewD<'_, f32>| {
        check_data(&*tensor_to_save("w", array.view()).data, &bytes(&array));
    };
    check(w.view().into_dyn());
    check(w.t().into_dyn());
    check(w.slice(s![.., 5..;3]).into_dyn());
    check(w.slice(s![..;-1, 5..]).into_dyn());
    check(arr0(7f32).view().into_dyn());
    check(w.slice(s![.., ..0]).into_dyn());
    check_data(
        &*tensor_to_save("large", large.t()).data,
        &bytes(&large.t()),
    );
}
