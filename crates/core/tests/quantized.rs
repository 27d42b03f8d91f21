//! Quantised weights: recognised, refused where a cast would lose their scales, and as floats with the bits
//! of their own libraries (`tests/python/quantized_oracle.py`).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rstest::rstest;
use safeshard_core::{
    Checkpoint, Code, ConvertOptions, Dtype, LoadOptions, ReshardOptions, Role, SaveTensor,
    Severity, Shards, SideFiles, Support, Verification, VerifyOptions, convert, reshard, verify,
};

/// A tensor of zeros.
fn zeros(name: &str, dtype: Dtype, shape: &[u64]) -> SaveTensor<'static> {
    let len = dtype.byte_len(shape).unwrap() as usize;
    SaveTensor::new(name, dtype, shape, vec![0; len])
}

fn checkpoint(tensors: &[(&str, Dtype, &[u64])]) -> Checkpoint {
    let tensors = tensors
        .iter()
        .map(|(name, dtype, shape)| zeros(name, *dtype, shape));
    Checkpoint::from_tensors(tensors.collect()).unwrap()
}

/// Name, dtype and shape.
fn dims<'n>(name: &'n str, dtype: Dtype, shape: &'n [u64]) -> (&'n str, Dtype, &'n [u64]) {
    (name, dtype, shape)
}

use Dtype::{Bf16, F8E4M3, F8E8M0, F16, F32, I8, I32, I64, U8};

type Names<'n> = &'n [(&'n str, Dtype, &'n [u64])];

#[rstest]
#[case("fp8", &[dims("l.weight", F8E4M3, &[4, 4]), dims("l.weight_scale_inv", F32, &[1, 1])])]
#[case("fp8", &[dims("l.weight", F8E4M3, &[4, 4]), dims("l.weight_scale", Bf16, &[4, 1]), dims("l.input_scale", F32, &[])])]
#[case("fp8", &[dims("l.weight", F8E4M3, &[4, 4]), dims("l.scale_weight", F32, &[])])]
#[case("fp8", &[dims("e.down_proj", F8E4M3, &[2, 4, 4]), dims("e.down_proj_scale_inv", F32, &[2, 1, 1])])]
#[case("int8", &[dims("l.weight", I8, &[4, 4]), dims("l.weight_scale", Bf16, &[4, 1]), dims("l.weight_zero_point", I8, &[4, 1])])]
#[case("packed-int", &[dims("l.weight_packed", I32, &[4, 1]), dims("l.weight_scale", Bf16, &[4, 1]), dims("l.weight_shape", I64, &[2]),
    dims("l.weight_zero_point", I32, &[1, 1]), dims("l.weight_g_idx", I32, &[8])])]
#[case("gptq", &[dims("l.qweight", I32, &[4, 8]), dims("l.qzeros", I32, &[1, 1]), dims("l.scales", F16, &[1, 8]), dims("l.g_idx", I32, &[32])])]
#[case("awq", &[dims("l.qweight", I32, &[32, 1]), dims("l.qzeros", I32, &[1, 1]), dims("l.scales", F16, &[1, 8])])]
#[case("bitsandbytes-int8", &[dims("l.weight", I8, &[4, 4]), dims("l.SCB", F32, &[4]), dims("l.weight_format", U8, &[])])]
#[case("bitsandbytes-4bit", &[dims("l.weight", U8, &[32, 1]), dims("l.weight.absmax", U8, &[1]), dims("l.weight.quant_map", F32, &[16]),
    dims("l.weight.nested_absmax", F32, &[1]), dims("l.weight.nested_quant_map", F32, &[256]),
    dims("l.weight.quant_state.bitsandbytes__nf4", U8, &[90])])]
#[case("mxfp4", &[dims("e.gate_up_proj_blocks", U8, &[2, 4, 1, 16]), dims("e.gate_up_proj_scales", U8, &[2, 4, 1])])]
#[case("nvfp4", &[dims("l.weight_packed", U8, &[4, 8]), dims("l.weight_scale", F8E4M3, &[4, 1]), dims("l.weight_global_scale", F32, &[1]),
    dims("l.input_global_scale", F32, &[1])])]
#[case("nvfp4", &[dims("l.weight", U8, &[4, 8]), dims("l.weight_scale", F8E4M3, &[4, 1]), dims("l.weight_scale_2", F32, &[]), dims("l.input_scale", F32, &[])])]
#[case("torchao", &[dims("l._weight_qdata", F8E4M3, &[4, 4]), dims("l._weight_scale", F32, &[4, 1])])]
fn every_scheme_is_known_by_names_and_dtypes_and_no_float_rule_casts_it(
    #[case] scheme: &str,
    #[case] tensors: Names<'_>,
) {
    let quantised = checkpoint(tensors);
    let found = quantised.quantization();
    assert_eq!(found.tensors.len(), 1, "{found:?}");
    let (weight, name) = (&found.tensors[0], tensors[0].0);
    assert_eq!((weight.scheme.name(), &*weight.name), (scheme, name));
    let mut companions: Vec<_> = weight.companions.iter().map(|it| &*it.name).collect();
    companions.sort_unstable();
    let mut others: Vec<_> = tensors[1..].iter().map(|(name, ..)| *name).collect();
    others.sort_unstable();
    assert_eq!(
        companions, others,
        "each of the others is known for what it is"
    );

    for dtype in [F32, Bf16, F16] {
        let options = LoadOptions::floats_as(dtype);
        let error = quantised.plan(&options, |_| Support::Native).unwrap_err();
        assert_eq!(
            (error.code(), error.tensor()),
            (Code::QuantizedWeight, Some(name))
        );
        assert!(
            error.to_string().contains(weight.scale().unwrap()),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let error =
            convert(&quantised, folder.path(), &ConvertOptions::floats_as(dtype)).unwrap_err();
        assert_eq!(
            (error.code(), error.tensor()),
            (Code::QuantizedWeight, Some(name))
        );
    }
    // As stored, or by its own dtype, everything comes.
    let stored = weight.name.clone();
    let by_name = LoadOptions {
        dtype: Some(Arc::new(move |name, dtype| match name == stored {
            true => Some(dtype),
            false => Some(F32),
        })),
        ..LoadOptions::default()
    };
    for options in [LoadOptions::default(), by_name] {
        let plan = quantised.plan(&options, |_| Support::Native).unwrap();
        assert_eq!(plan.tensors.len(), tensors.len());
        assert!(plan.report.cast.is_empty(), "scales keep their dtype");
    }
}

#[rstest]
#[case(&[dims("a.weight", Bf16, &[4, 4]), dims("ids", I64, &[4])])]
#[case(&[dims("a.weight", F8E4M3, &[4, 4]), dims("scale", F8E4M3, &[2])])]
#[case(&[dims("a.weight", U8, &[4, 4]), dims("mask", U8, &[4, 1]), dims("n", I32, &[4])])]
#[case(&[dims("a.weight_scale", F32, &[4]), dims("a.scales", F8E8M0, &[4])])]
fn what_has_no_scales_is_not_quantised(#[case] tensors: Names<'_>) {
    let plain = checkpoint(tensors);
    assert!(
        plain.quantization().is_empty(),
        "{:?}",
        plain.quantization()
    );
}

/// Saves a checkpoint, and says what verifying finds.
fn verified(tensors: &[(&str, Dtype, &[u64])]) -> Verification {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("model.safetensors");
    convert(&checkpoint(tensors), &to, &ConvertOptions::default()).unwrap();
    verify(&to, &VerifyOptions::default()).unwrap()
}

#[rstest]
#[case(Code::QuantizedIncomplete, &[dims("a.weight", F8E4M3, &[4, 4]), dims("b.weight", F8E4M3, &[4, 4]), dims("b.weight_scale", F32, &[1])])]
#[case(Code::QuantizedIncomplete, &[dims("a.qweight", I32, &[4, 8]), dims("a.qzeros", I32, &[1, 1])])]
#[case(Code::QuantizedIncomplete, &[dims("a.weight_packed", I32, &[4, 8])])]
#[case(Code::QuantizedIncomplete, &[dims("a.weight", U8, &[32, 1]), dims("a.weight.quant_map", F32, &[16])])]
#[case(Code::QuantizedIncomplete, &[dims("a_blocks", U8, &[2, 4, 1, 16])])]
#[case(Code::QuantizedShape, &[dims("a.weight", F8E4M3, &[4, 6]), dims("a.weight_scale_inv", F32, &[3, 1])])]
#[case(Code::QuantizedShape, &[dims("a.weight", F8E4M3, &[4, 6]), dims("a.weight_scale_inv", I64, &[1, 1])])]
#[case(Code::QuantizedShape, &[dims("a.weight", F8E4M3, &[2, 4, 6]), dims("a.weight_scale_inv", F32, &[3, 1, 1])])]
fn half_a_scheme_is_a_finding(#[case] code: Code, #[case] tensors: Names<'_>) {
    let found = verified(tensors);
    let finding = &found.findings[0];
    assert_eq!(
        (finding.problem.code(), finding.severity),
        (code, Severity::Error)
    );
    assert!(finding.problem.tensor().unwrap().starts_with('a'));
    assert_eq!(found.findings.len(), 1);
}

#[test]
fn one_scale_asked_for_by_name_may_become_wider_but_not_narrower() {
    let quantised = checkpoint(&[
        dims("l.weight", F8E4M3, &[4, 4]),
        dims("l.weight_scale", F32, &[1]),
        dims("k.weight", F8E4M3, &[4, 4]),
        dims("k.weight_scale", Bf16, &[1]),
    ]);
    let plan = |name, dtype| {
        let unsupported = Default::default();
        quantised.plan_one(name, &[], Some(dtype), unsupported, |_| Support::Native)
    };
    assert_eq!(
        plan("l.weight_scale", Bf16).unwrap_err().code(),
        Code::QuantizedCompanion
    );
    assert_eq!(
        plan("l.weight", F32).unwrap_err().code(),
        Code::QuantizedWeight
    );
    assert_eq!(plan("k.weight_scale", F32).unwrap().dtype, F32);
    assert_eq!(plan("l.weight", F8E4M3).unwrap().dtype, F8E4M3);
    assert_eq!(
        quantised.quantization().companion("k.weight_scale"),
        Some(Role::Scale)
    );
}

/// Folders with a quantised checkpoint, and what its library makes of it.
fn folders() -> Vec<PathBuf> {
    let fixtures = std::env::var_os("SAFESHARD_FIXTURES");
    let fixtures =
        fixtures.expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`");
    let folders = fs::read_dir(PathBuf::from(fixtures).join("quantized")).unwrap();
    let folders: Vec<_> = folders.map(|folder| folder.unwrap().path()).collect();
    assert_eq!(folders.len(), 6);
    folders
}

#[test]
fn dequantised_weights_have_the_bits_of_their_library_read_or_converted_whole_or_in_part() {
    for folder in folders() {
        let quantised = Checkpoint::open(folder.join("model.safetensors")).unwrap();
        let values = Checkpoint::open(folder.join("values.safetensors")).unwrap();
        for dtype in [F32, Bf16, F16] {
            let read = quantised.dequantised(dtype).unwrap();
            let to = tempfile::tempdir().unwrap();
            let options = ConvertOptions {
                dequantise: Some(dtype),
                reshard: ReshardOptions {
                    side_files: SideFiles::Carry,
                    ..ReshardOptions::default()
                },
                ..ConvertOptions::default()
            };
            convert(&quantised, to.path(), &options).unwrap();
            let config = fs::read_to_string(to.path().join("config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            assert_eq!(
                config,
                serde_json::json!({"model_type": "llama", "vocab_size": 7})
            );
            let converted = Checkpoint::open(to.path().join("model.safetensors")).unwrap();
            assert_eq!(converted.metadata_value("format"), Some("pt"));
            assert_eq!(converted.names(), read.names(), "scales are consumed");
            let weights = &quantised.quantization().tensors;
            assert_eq!(read.totals().tensors as usize, weights.len() + 1);
            for weight in weights {
                let name = &*weight.name;
                let expected = values.read(&format!("{dtype}:{name}")).unwrap();
                assert!(
                    read.read(name).unwrap() == expected,
                    "{folder:?} {name} {dtype}"
                );
                assert!(
                    converted.read(name).unwrap() == expected,
                    "{folder:?} {name} {dtype}"
                );
                assert_eq!(
                    converted.info(name).unwrap().shape,
                    quantised.info(name).unwrap().shape
                );
                let shape = read.info(name).unwrap().shape.to_vec();
                // A tensor-parallel part: the second half of the columns.
                let last = shape[shape.len() - 1];
                let mut part: Vec<_> = shape.iter().map(|dim| (0..*dim).into()).collect();
                *part.last_mut().unwrap() = (last / 2..last).into();
                let values = values
                    .read_slice(&format!("{dtype}:{name}"), &part)
                    .unwrap();
                assert!(
                    read.read_slice(name, &part).unwrap() == values,
                    "{folder:?} {name}"
                );
            }
        }
    }
}

#[test]
fn what_cannot_be_dequantised_is_refused_by_name() {
    let gptq = checkpoint(&[
        dims("l.qweight", I32, &[4, 8]),
        dims("l.qzeros", I32, &[1, 1]),
        dims("l.scales", F16, &[1, 8]),
    ]);
    let error = gptq.dequantised(F32).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::QuantizedWeight, Some("l.qweight"))
    );
}

#[test]
fn a_configuration_never_says_of_floats_that_they_are_quantised() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["model.safetensors", "config.json"];
    for name in names {
        let from = folders()[0].join(name);
        fs::copy(from, folder.path().join(name)).unwrap();
    }
    let bytes = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let before = names.map(bytes);
    let options = ConvertOptions {
        dequantise: Some(Bf16),
        ..ConvertOptions::default()
    };
    let quantised = Checkpoint::open(folder.path()).unwrap();
    let single = folder.path().join("other.safetensors");
    for to in [folder.path(), &single] {
        let error = convert(&quantised, to, &options).unwrap_err();
        assert_eq!(error.code(), Code::QuantizedConfig, "{error}");
    }
    assert_eq!(names.map(bytes), before);
    assert!(!single.exists());
}

#[test]
fn shards_are_dequantised_as_one_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let quantised = Checkpoint::open(folders()[0].join("model.safetensors")).unwrap();
    let [shards, to] = ["shards", "to"].map(|name| folder.path().join(name));
    let options = ReshardOptions {
        shards: Shards::Limit("1 KB".parse().unwrap()),
        ..ReshardOptions::default()
    };
    assert!(
        reshard(&quantised, &shards, &options)
            .unwrap()
            .saved
            .files
            .len()
            > 1
    );
    let sharded = Checkpoint::open(shards).unwrap();
    let options = ConvertOptions {
        dequantise: Some(F32),
        ..ConvertOptions::default()
    };
    convert(&sharded, &to, &options).unwrap();
    let (converted, whole) = (
        Checkpoint::open(to).unwrap(),
        quantised.dequantised(F32).unwrap(),
    );
    assert!(converted.files().len() > 1);
    assert_eq!(converted.names(), whole.names());
    for name in whole.names() {
        assert!(
            converted.read(name).unwrap() == whole.read(name).unwrap(),
            "{name}"
        );
    }
}
