//! What parsing a header costs: at most twice its length in memory, whatever it says, and a number
//! of allocations that does not grow with it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write;

use rstest::rstest;
use safeshard_core::{Code, Error, Header, HeaderOptions, Limits, Profile};

const MILLION: usize = 1_000_000;

/// For what does not depend on the header: errors, and the first few dimensions.
const SLACK: usize = 1 << 15;

#[rstest]
#[case::scalars(tensors(MILLION, "[]", in_order))]
#[case::realistic_names(realistic(200_000))]
#[case::any_order(tensors(MILLION, "[]", shuffled))]
#[case::rank_8(tensors(200_000, "[1,1,1,1,1,1,1,1]", in_order))]
#[case::names_of_braces(braces(20_000))]
#[case::metadata_of_one_value(metadata(1, &"v".repeat(20 * MILLION)))]
#[case::metadata_of_one_escaped_value(metadata(1, &r"\n".repeat(10 * MILLION)))]
#[case::metadata_of_many_values(metadata(MILLION, ""))]
fn accepted_headers_take_at_most_twice_their_length(#[case] json: Vec<u8>) {
    let cost = cost(&json, &HeaderOptions::default(), Ok(()));
    assert!(cost.calls < 100, "{cost:?}");
}

#[rstest]
#[case::overlapping(tensors(MILLION, "[]", |_| 0), Code::Overlap)]
#[case::same_name(same_name(200_000), Code::DuplicateTensor)]
#[case::rank_16(
    tensors(200_000, "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", in_order),
    Code::LimitDimensions
)]
#[case::one_shape(with_shape(&"1,".repeat(MILLION)), Code::LimitRank)]
#[case::ignored_array(ignored(&"1,".repeat(MILLION)), Code::LimitIgnored)]
#[case::ignored_keys(ignored(&keys(100_000)), Code::LimitIgnored)]
#[case::nested_arrays("[".repeat(MILLION).into(), Code::HeaderNotObject)]
#[case::nested_ignored_arrays(ignored(&"[".repeat(MILLION)), Code::JsonDepth)]
#[case::metadata_of_one_key(metadata_of_one_key(MILLION), Code::DuplicateKey)]
#[case::escaped_name(escaped_name(MILLION), Code::LimitName)]
#[case::only_braces("{".repeat(MILLION).into(), Code::JsonSyntax)]
#[case::only_commas(format!("{{[{}", ",".repeat(MILLION)).into(), Code::JsonSyntax)]
#[case::only_colons(format!(r#"{{"__metadata__":{{{}"#, ":".repeat(MILLION)).into(), Code::JsonSyntax)]
fn refused_headers_take_at_most_twice_their_length(#[case] json: Vec<u8>, #[case] code: Code) {
    let cost = cost(&json, &HeaderOptions::default(), Err(code));
    assert!(cost.calls < 100, "{cost:?}");
}

#[test]
fn raised_limits_do_not_raise_the_cost() {
    let limits = Limits {
        name_bytes: u64::MAX,
        rank: u64::MAX,
        ignored_bytes: u64::MAX,
        ..Limits::default()
    };
    let options = HeaderOptions {
        limits,
        ..HeaderOptions::default()
    };
    cost(&ignored(&"1,".repeat(MILLION)), &options, Ok(()));
    cost(&ignored(&keys(100_000)), &options, Err(Code::LimitIgnored));
    cost(&escaped_name(MILLION), &options, Ok(()));
    let shape = with_shape(&"1,".repeat(MILLION));
    cost(&shape, &options, Err(Code::LimitRank));
}

#[test]
fn a_name_with_escapes_is_one_allocation() {
    let json = String::from_utf8(tensors(100_000, "[]", in_order)).unwrap();
    let json = json.replace("\"t", "\"\\u0074").into_bytes();
    let cost = cost(&json, &HeaderOptions::default(), Ok(()));
    assert!(cost.calls < 100_100, "{cost:?}");
}

#[test]
fn the_last_of_many_entries_of_one_name_costs_no_more() {
    let options = HeaderOptions {
        profile: Profile::Reference,
        ..HeaderOptions::default()
    };
    let cost = cost(&same_name(200_000), &options, Ok(()));
    assert!(cost.calls < 100, "{cost:?}");
}

/// Parses a header, checks the verdict and that it took at most twice its length.
fn cost(json: &[u8], options: &HeaderOptions, expected: Result<(), Code>) -> Cost {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    let (result, cost) = Cost::of(|| Header::parse(&file, None, options));
    let found = result.as_ref().map(drop).map_err(Error::code);
    assert_eq!(found, expected, "{result:?}");
    println!(
        "{:.3} times the header",
        cost.peak as f64 / json.len() as f64
    );
    let most = 2 * json.len() + SLACK;
    assert!(cost.peak <= most as u64, "{cost:?} of {}", json.len());
    cost
}

// ---- headers

/// U8 tensors of one byte, where `place` says.
fn tensors(count: usize, shape: &str, place: fn(usize) -> usize) -> Vec<u8> {
    object(count, |json, at| {
        let start = place(at);
        let end = start + 1;
        write!(
            json,
            r#""t{at}":{{"dtype":"U8","shape":{shape},"data_offsets":[{start},{end}]}}"#
        )
    })
}

fn in_order(at: usize) -> usize {
    at
}

/// A permutation of 0..1,000,000, because the factor is prime and no divisor.
fn shuffled(at: usize) -> usize {
    at * 7919 % MILLION
}

fn realistic(count: usize) -> Vec<u8> {
    object(count, |json, at| {
        let (layer, part) = (at / 8, at % 8);
        let (kind, shape, len) = match part % 2 {
            0 => ("weight", "4096,4096", 1 << 25),
            _ => ("bias", "4096", 1 << 13),
        };
        let start = at.div_ceil(2) * (1 << 25) + at / 2 * (1 << 13);
        let end = start + len;
        write!(
            json,
            r#""model.layers.{layer}.self_attn.proj_{part}.{kind}":{{"dtype":"BF16","shape":[{shape}],"data_offsets":[{start},{end}]}}"#
        )
    })
}

fn braces(count: usize) -> Vec<u8> {
    let braces = "{".repeat(100);
    object(count, |json, at| {
        write!(
            json,
            r#""{at}{braces}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#
        )
    })
}

fn same_name(count: usize) -> Vec<u8> {
    object(count, |json, _| {
        write!(
            json,
            r#""":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#
        )
    })
}

fn escaped_name(len: usize) -> Vec<u8> {
    let name = r"\u0061".repeat(len);
    format!(r#"{{"{name}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#).into()
}

fn with_shape(ones: &str) -> Vec<u8> {
    format!(r#"{{"w":{{"dtype":"U8","shape":[{ones}1],"data_offsets":[0,1]}}}}"#).into()
}

fn ignored(items: &str) -> Vec<u8> {
    format!(r#"{{"w":{{"x":[{items}1],"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#).into()
}

/// An object of many keys, and a comma.
fn keys(count: usize) -> String {
    let object = object(count, |json, at| write!(json, r#""{at}":0"#));
    String::from_utf8(object).unwrap() + ","
}

fn metadata(count: usize, value: &str) -> Vec<u8> {
    let pairs = object(count, |json, at| write!(json, r#""{at}":"{value}""#));
    [br#"{"__metadata__":"#, pairs.as_slice(), b"}"].concat()
}

fn metadata_of_one_key(count: usize) -> Vec<u8> {
    let pairs = object(count, |json, _| write!(json, r#""":"""#));
    [br#"{"__metadata__":"#, pairs.as_slice(), b"}"].concat()
}

fn object(count: usize, member: impl Fn(&mut String, usize) -> std::fmt::Result) -> Vec<u8> {
    let mut json = String::from("{");
    for at in 0..count {
        if at > 0 {
            json.push(',');
        }
        member(&mut json, at).unwrap();
    }
    json.push('}');
    json.into_bytes()
}

// ---- counting

/// What a function allocated on its thread.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Bytes now.
    live: u64,
    /// Bytes at most at any moment.
    peak: u64,
    /// Calls of the allocator that gave memory.
    calls: u64,
}

impl Cost {
    fn of<T>(work: impl FnOnce() -> T) -> (T, Self) {
        COST.set(Self::default());
        let result = work();
        (result, COST.get())
    }

    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.live += bytes as u64;
        self.peak = self.peak.max(self.live);
    }

    fn remove(&mut self, bytes: usize) {
        // What is freed may be older than the measurement.
        self.live = self.live.saturating_sub(bytes as u64);
    }
}

thread_local! {
    static COST: Cell<Cost> = const { Cell::new(Cost { live: 0, peak: 0, calls: 0 }) };
}

fn count(change: impl FnOnce(&mut Cost)) {
    let mut cost = COST.get();
    change(&mut cost);
    COST.set(cost);
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|cost| cost.add(layout.size()));
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(|cost| cost.add(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(|cost| cost.remove(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(|cost| {
            // Growing may have to copy, and then both blocks exist for a moment; shrinking is in
            // place.
            if size > layout.size() {
                cost.add(size);
                cost.remove(layout.size());
            } else {
                cost.remove(layout.size() - size);
            }
        });
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
