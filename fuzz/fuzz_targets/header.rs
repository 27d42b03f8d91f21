//! Any bytes get one verdict from us and from the reference, and whatever is accepted is in bounds.
//!
//! The conformance suite is the seed corpus:
//! `cargo +nightly fuzz run header fuzz/corpus/header tests/vectors`

#![no_main]

#[path = "../../crates/core/tests/common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;
use safeshard_core::{Code, Header, Profile, UnknownDtype};

fuzz_target!(|file: &[u8]| {
    for profile in common::PROFILES {
        for unknown_dtype in [UnknownDtype::Refuse, UnknownDtype::Keep] {
            let mut options = common::options(profile);
            options.unknown_dtype = unknown_dtype;
            if let Ok(header) = Header::parse(file, None, &options) {
                check_bounds(&header);
            }
        }
    }
    // There, the reference's additions overflow, and it panics.
    let ours = common::ours(file, Profile::Reference);
    if ours.is_err_and(|error| error.code() == Code::OffsetsOverflow) {
        return;
    }
    common::same_verdict(file);
});

/// Tensors lie one behind the other and fill the data section; each is found under its name.
fn check_bounds(header: &Header) {
    let mut spans: Vec<_> = header.tensors().map(|t| (t.start, t.end)).collect();
    spans.extend(header.unsupported().map(|t| (t.start, t.end)));
    spans.sort_unstable();
    let mut end = 0;
    for (start, stop) in spans {
        assert_eq!(start, end);
        assert!(start <= stop);
        end = stop;
    }
    assert_eq!(end, header.data_len());
    assert_eq!(header.file_len() - header.data_start(), end);
    for tensor in header.tensors() {
        assert_eq!(header.tensor(tensor.name), Some(tensor));
        assert_eq!(tensor.dtype.byte_len(tensor.shape), Some(tensor.byte_len()));
    }
    for (key, value) in header.metadata() {
        assert_eq!(header.metadata_value(key), Some(value));
    }
}
