//! What the core asks of whoever implements its traits.

use candle_core::{DType, Device, Tensor};
use safeshard_candle::tensor_to_save;
use safeshard_core::contract::check_data;

use crate::support::bytes;

const CPU: &Device = &Device::Cpu;

#[test]
fn any_range_of_any_tensor_is_given() {
    let numbers = Tensor::arange(0f32, 60_000., CPU).unwrap();
    let w = numbers.reshape((200, 300)).unwrap();
    let large = Tensor::arange(0u32, 3_000_000, CPU).unwrap();
    let tensors = [
        w.clone(),
        w.t().unwrap(),
        w.narrow(1, 5, 100).unwrap(),
        w.narrow(0, 5, 100).unwrap().t().unwrap(),
        w.to_dtype(DType::BF16).unwrap().t().unwrap(),
        large.reshape((1500, 2000)).unwrap().t().unwrap(),
        Tensor::new(7f64, CPU).unwrap(),
        Tensor::zeros((3, 0), DType::U8, CPU).unwrap(),
    ];
    for tensor in tensors {
        let saved = tensor_to_save("w", &tensor).unwrap();
        // What candle itself puts in order.
        let expected = bytes(&tensor.force_contiguous().unwrap());
        check_data(&*saved.data, &expected);
    }
}
