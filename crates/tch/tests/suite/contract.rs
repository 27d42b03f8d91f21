//! What the core asks of whoever implements its traits.

use safeshard_core::contract::check_data;
use safeshard_tch::tensor_to_save;
use tch::{Kind, Tensor};

use crate::support::{CPU, bytes};

#[test]
fn any_range_of_any_tensor_is_given() {
    let w = Tensor::arange(60_000, (Kind::Float, CPU)).view([200, 300]);
    let large = Tensor::arange(3_000_000, (Kind::Int, CPU)).view([1500, 2000]);
    let complex = Tensor::complex(&w, &(&w + 1.));
    let tensors = [
        w.shallow_clone(),
        w.tr(),
        w.narrow(1, 5, 100),
        w.narrow(0, 5, 100).tr(),
        w.to_kind(Kind::BFloat16).tr(),
        w.get(0).expand([40, 300], false),
        large.tr(),
        complex.conj().tr(),
        Tensor::from(7f64),
        Tensor::zeros([3, 0], (Kind::Uint8, CPU)),
    ];
    for tensor in tensors {
        // What libtorch itself puts in order.
        let expected = bytes(&tensor.resolve_conj().contiguous());
        check_data(&*tensor_to_save("w", &tensor).unwrap().data, &expected);
    }
}
