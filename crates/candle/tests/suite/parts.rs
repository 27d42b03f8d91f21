//! Slices over every dimension, and the parts of tensor-parallel ranks.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::var_builder::Shard;
use candle_nn::{Init, VarMap};
use rstest::rstest;
use safeshard_candle::{DimRange, Fit, LoadOptions, VarMapExt};
use safeshard_core::Code;
use safetensors::Dtype;

use crate::support::{Probe, Stored, bytes};

const CPU: &Device = &Device::Cpu;
const SHAPE: [usize; 4] = [4, 6, 8, 2];

fn whole() -> (Stored, Tensor) {
    let stored = Stored::f32("w", &SHAPE);
    let values = (0..384).map(|i| 119. + i as f32).collect();
    let tensor = Tensor::from_vec(values, &SHAPE[..], CPU).unwrap();
    assert_eq!(bytes(&tensor), stored.bytes);
    (stored, tensor)
}

#[rstest]
fn a_slice_is_what_candle_narrows_to(
    #[values(0, 1, 2, 3)] dim: usize,
    #[values((0, 1), (1, 1), (0, 2), (2, 0))] part: (usize, usize),
) {
    let (stored, tensor) = whole();
    let weights = Probe::new(&[stored]).weights(&LoadOptions::default());
    let (start, len) = part;
    let mut ranges: Vec<_> = SHAPE[..dim].iter().map(|&size| 0..size).collect();
    ranges.push(start..start + len);
    let expected = tensor
        .narrow(dim, start, len)
        .unwrap()
        .contiguous()
        .unwrap();
    let slice = weights.slice("w", &ranges, None, CPU).unwrap();
    assert_eq!(slice.dims(), expected.dims());
    assert_eq!(
        bytes(&slice),
        bytes(&expected.force_contiguous().unwrap())[..len * 384 * 4 / SHAPE[dim]]
    );
}

#[test]
fn a_slice_of_all_dimensions_with_a_cast() {
    let (stored, tensor) = whole();
    let weights = Probe::new(&[stored]).weights(&LoadOptions::default());
    let mut expected = tensor.to_dtype(DType::BF16).unwrap();
    for dim in 0..4 {
        expected = expected.narrow(dim, 1, 1).unwrap();
    }
    let slice = weights
        .slice("w", &[1..2, 1..2, 1..2, 1..2], Some(DType::BF16), CPU)
        .unwrap();
    assert_eq!(slice.dims(), [1; 4]);
    assert_eq!(
        bytes(&slice),
        bytes(&expected.force_contiguous().unwrap())[..2]
    );
}

#[test]
fn slices_of_half_bytes_end_on_whole_ones() {
    let stored = Stored::new("w", Dtype::F4, &[2, 4], [1, 2, 3, 4]);
    let weights = Probe::new(&[stored]).weights(&LoadOptions::default());
    let columns = weights.slice("w", &[0..2, 2..4], None, CPU).unwrap();
    assert_eq!((columns.dims(), bytes(&columns)), (&[2, 2][..], vec![2, 4]));
    let error = weights.slice("w", &[0..2, 1..3], None, CPU).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::SliceSubByte, Some("w"))
    );
}

#[rstest]
#[case(&[0..1, 0..1, 0..1, 0..1, 0..1], Code::SliceRank)]
#[case(&[0..1, 0..7], Code::SliceRange)]
#[case(&[0..1, Range { start: 2, end: 1 }], Code::SliceReversed)]
fn slices_outside_the_tensor_are_refused(#[case] ranges: &[Range<usize>], #[case] code: Code) {
    let weights = Probe::new(&[whole().0]).weights(&LoadOptions::default());
    let error = weights.slice("w", ranges, None, CPU).unwrap_err();
    assert_eq!((error.code(), error.tensor()), (code, Some("w")));
}

#[rstest]
fn ranks_read_their_part_and_no_more(
    #[values(0, 1, 2)] dim: usize,
    #[values(1, 2)] world_size: usize,
) {
    // Large enough that the parts lie further apart than what is worth reading along.
    let shape = [2, 2, 64 << 10];
    let probe = Probe::new(&[Stored::f32("w", &shape)]);
    let weights = probe.weights(&LoadOptions::default());
    let whole = weights.tensor("w", None, CPU).unwrap();
    let before = probe.bytes_read();
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    let parts = (0..world_size).map(|rank| {
        let shard = Shard {
            dim,
            rank,
            world_size,
        };
        vb.get_with_hints((), "w", shard).unwrap()
    });
    let parts: Vec<_> = parts.collect();
    assert_eq!(parts[0].dims()[dim], shape[dim] / world_size);
    let together = Tensor::cat(&parts, dim)
        .unwrap()
        .force_contiguous()
        .unwrap();
    assert_eq!(bytes(&together), bytes(&whole));
    assert_eq!(
        probe.bytes_read() - before,
        4 * shape.iter().product::<usize>() as u64
    );
}

#[rstest]
#[case(&[], true)]
#[case(&[4, 6, 8, 2], true)]
#[case(&[4, 3, 8, 2], true)]
#[case(&[2, 6, 8, 2], false)]
#[case(&[384], false)]
fn a_rank_may_ask_by_the_shape_of_its_part_or_of_the_whole(
    #[case] shape: &[usize],
    #[case] fine: bool,
) {
    let weights = Probe::new(&[whole().0]).weights(&LoadOptions::default());
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    let half = Shard {
        dim: 1,
        rank: 1,
        world_size: 2,
    };
    assert_eq!(vb.get_with_hints(shape, "w", half).is_ok(), fine);
    assert_eq!(weights.report().mismatched.is_empty(), fine);
}

#[rstest]
#[case(Shard { dim: 0, rank: 0, world_size: 3 }, "a multiple of 3 in dimension 0, found 4")]
#[case(Shard { dim: 4, rank: 0, world_size: 2 }, "dimension 4")]
#[case(Shard { dim: 0, rank: 2, world_size: 2 }, "a rank below 2, found 2")]
#[case(Shard { dim: 0, rank: 0, world_size: 0 }, "a rank below 0")]
fn parts_that_do_not_exist_are_refused(#[case] shard: Shard, #[case] expected: &str) {
    let weights = Probe::new(&[whole().0]).weights(&LoadOptions::default());
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    let message = vb.get_with_hints((), "w", shard).unwrap_err().to_string();
    assert!(
        message.contains("`w`") && message.contains(expected),
        "{message}"
    );
}

#[test]
fn a_parallel_model_gets_whole_tensors_and_a_report_too() {
    let (stored, tensor) = whole();
    let probe = Probe::new(&[stored, Stored::f32("scale", &[]), Stored::f32("x", &[1])]);
    let weights = probe.weights(&LoadOptions::default());
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    assert_eq!(bytes(&vb.get(&SHAPE[..], "w").unwrap()), bytes(&tensor));
    assert_eq!(vb.get((), "scale").unwrap().dims(), [0_usize; 0]);
    assert_eq!(vb.get_unchecked("w").unwrap().dims(), SHAPE);
    assert!(vb.contains_tensor("x") && !vb.contains_tensor("y"));
    assert!(vb.get(1, "y").is_err());
    let report = weights.report();
    assert_eq!(
        (report.unused, report.missing),
        (vec!["x".to_owned()], vec!["y".to_owned()])
    );
}

/// The second half of the columns of whatever has columns.
fn right_half() -> LoadOptions {
    LoadOptions {
        part: Some(Arc::new(|_, shape| match *shape {
            [rows, columns] => vec![DimRange::all(rows), DimRange::from(columns / 2..columns)],
            _ => vec![],
        })),
        ..LoadOptions::default()
    }
}

#[test]
fn a_share_of_every_tensor_is_loaded_at_once() {
    let stored = [
        Stored::f32("bias", &[3]),
        Stored::f32("w", &[2, 4]),
        Stored::f32("x", &[3, 6]),
    ];
    let probe = Probe::new(&stored);
    let options = right_half();
    let weights = probe.weights(&options);
    let (tensors, report) = weights.load(CPU).unwrap();
    assert_eq!(report.loaded, ["bias", "w", "x"]);
    assert_eq!(bytes(&tensors["bias"]), stored[0].bytes);
    for (name, stored, half) in [("w", &stored[1], 2), ("x", &stored[2], 3)] {
        let whole = Tensor::from_raw_buffer(&stored.bytes, DType::F32, &stored.shape, CPU).unwrap();
        let expected = whole.narrow(1, half, half).unwrap().contiguous().unwrap();
        assert_eq!(tensors[name].dims(), expected.dims());
        assert_eq!(bytes(&tensors[name]), bytes(&expected));
    }

    let cast = LoadOptions {
        dtype: LoadOptions::floats_as(safeshard_core::Dtype::F64).dtype,
        ..options.clone()
    };
    let (wide, _) = probe.weights(&cast).load(CPU).unwrap();
    assert_eq!(
        bytes(&wide["x"]),
        bytes(&tensors["x"].to_dtype(DType::F64).unwrap())
    );

    // One tensor that is asked for comes whole, and a builder knows its parts itself.
    assert_eq!(weights.tensor("w", None, CPU).unwrap().dims(), [2, 4]);
    let shard = Shard {
        dim: 1,
        rank: 1,
        world_size: 2,
    };
    let vb = weights.sharded_var_builder(DType::F32, CPU);
    let w = vb.get_with_hints((2, 4), "w", shard).unwrap();
    assert_eq!(bytes(&w), bytes(&tensors["w"]));
}

#[test]
fn variables_and_tensors_of_a_share_are_loaded_into() {
    let stored = Stored::new("w", Dtype::U8, &[2, 4], [1, 2, 3, 4, 5, 6, 7, 8]);
    let expected = [3, 4, 7, 8];
    let weights = Probe::new(&[stored]).weights(&right_half());
    let vars = VarMap::new();
    let var = vars
        .get((2, 2), "w", Init::Const(0.), DType::U8, CPU)
        .unwrap();
    vars.load_weights(&weights, Fit::Exact).unwrap();
    assert_eq!(bytes(&var), expected);
    let tensor = Tensor::zeros((2, 2), DType::U8, CPU).unwrap();
    weights.load_into([("w", &tensor)]).unwrap();
    assert_eq!(bytes(&tensor), expected);
}

#[test]
fn a_share_that_there_is_not_is_named_with_its_tensor() {
    let stored = [Stored::f32("w", &[2, 4]), Stored::f32("x", &[3])];
    let options = LoadOptions {
        part: Some(Arc::new(|_, _| vec![DimRange::from(0u64..3)])),
        ..LoadOptions::default()
    };
    let error = Probe::new(&stored).weights(&options).load(CPU).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::SliceRange, Some("w"))
    );
}
