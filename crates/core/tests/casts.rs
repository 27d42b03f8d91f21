//! Casts of floats against torch: `tests/python/cast_oracle.py` wrote what goes in and comes out.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use safeshard_core::{Cast, Dtype};
use safetensors::SafeTensors;

#[test]
fn every_number_becomes_torchs_bits_and_nans_stay_nans() {
    let mut seen = BTreeSet::new();
    for file in fs::read_dir(fixtures()).unwrap() {
        let path = file.unwrap().path();
        let cast = cast_of(&path);
        let bytes = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let input = tensors.tensor("input").unwrap();
        let output = tensors.tensor("output").unwrap();

        let mut ours = vec![0; output.data().len()];
        cast.run(input.data(), &mut ours).unwrap();
        compare(cast, input.data(), &ours, output.data());
        seen.insert((cast.from(), cast.to()));
    }

    use Dtype::{Bf16, F8E4M3, F8E5M2, F16, F32, F64};
    for from in [F8E4M3, F8E5M2, F16, Bf16, F32, F64] {
        for to in [F16, Bf16, F32, F64] {
            assert!(from == to || seen.contains(&(from, to)), "{from} to {to}");
        }
    }
}

fn fixtures() -> PathBuf {
    let folder = env::var_os("SAFESHARD_FIXTURES")
        .expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`");
    Path::new(&folder).join("casts")
}

/// The cast that a file's name tells, such as `F32-to-BF16.safetensors`.
fn cast_of(path: &Path) -> Cast {
    let (from, to) = path
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .split_once("-to-")
        .unwrap();
    let dtype = |name| Dtype::from_name(name).unwrap();
    Cast::new(dtype(from), dtype(to)).unwrap()
}

fn compare(cast: Cast, input: &[u8], ours: &[u8], torchs: &[u8]) {
    assert_eq!(ours.len(), torchs.len());
    let size = |dtype: Dtype| dtype.size().unwrap() as usize;
    let inputs = input.chunks(size(cast.from()));
    let pairs = ours
        .chunks(size(cast.to()))
        .zip(torchs.chunks(size(cast.to())));
    for (input, (ours, torchs)) in inputs.zip(pairs) {
        let same = ours == torchs || is_nan(cast.to(), ours) && is_nan(cast.to(), torchs);
        assert!(
            same,
            "{} {:#x} to {}: {:#x}, but torch says {:#x}",
            cast.from(),
            bits(input),
            cast.to(),
            bits(ours),
            bits(torchs)
        );
    }
}

fn is_nan(dtype: Dtype, bytes: &[u8]) -> bool {
    let infinity = match dtype {
        Dtype::F16 => 0x7C00,
        Dtype::Bf16 => 0x7F80,
        Dtype::F32 => 0x7F80_0000,
        Dtype::F64 => 0x7FF0 << 48,
        other => panic!("{other} is no target"),
    };
    let sign = 1 << (dtype.bits() - 1);
    bits(bytes) & !sign > infinity
}

fn bits(little_endian: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..little_endian.len()].copy_from_slice(little_endian);
    u64::from_le_bytes(wide)
}
