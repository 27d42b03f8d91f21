//! Little memory and little room: errors, with nothing left behind, and never the end by a signal.

use std::fs;
use std::path::Path;

use rstest::rstest;
use tempfile::tempdir;

use crate::support::*;

/// Runs a line under a limit of so many KiB of memory.
fn with_memory(folder: &Path, limit: usize, line: &str) -> Run {
    shell(
        folder,
        &format!("ulimit -c 0; ulimit -v {limit}; exec {line}"),
    )
}

/// The least limit, in KiB, under which the binary is loaded and begins.
fn least_memory(folder: &Path) -> usize {
    let starts = |limit: &usize| {
        let run = with_memory(folder, *limit, "safeshard --version 2> /dev/null");
        run.code == Some(0)
    };
    let mut limits = (4_000..500_000).step_by(250);
    limits.find(starts).expect("a limit under which it starts")
}

/// Whether the standard library or the system's gave up, for which there is no error: where a thread that
/// begins has no room for what is its own, or a few bytes are not to be had any more.
fn ended_by_the_language(stderr: &str) -> bool {
    /// Less is no buffer.
    const FEW: usize = 2048;
    let failed = stderr.split_once("memory allocation of ");
    let bytes = failed.and_then(|(_, rest)| rest.split(' ').next()?.parse::<usize>().ok());
    assert!(bytes.is_none_or(|bytes| bytes < FEW), "{stderr}");
    let systems = ["library/std/src/sys/", "Fatal glibc error"];
    bytes.is_some() || systems.iter().any(|sign| stderr.contains(sign))
}

/// The names in a folder that may not be there.
fn names_if_there(folder: &Path) -> Vec<String> {
    match folder.is_dir() {
        true => names(folder),
        false => Vec::new(),
    }
}

/// So much more than starting takes, in KiB, is needed for a command to come as far as its buffers.
const FLOOR: usize = 2_000;

#[rstest]
#[case::convert("convert a.safetensors out --dtype F16", FLOOR)]
#[case::reshard("reshard a.safetensors out --max-shard-size 3MB", FLOOR)]
#[case::digest("digest a.safetensors", FLOOR)]
#[case::blake3("digest a.safetensors --algorithm blake3", FLOOR)]
#[case::diff("diff a.safetensors b.safetensors", FLOOR)]
#[case::verify("verify a.safetensors --level content", FLOOR)]
#[case::inspect("inspect a.safetensors", FLOOR)]
#[case::json("inspect --json a.safetensors", FLOOR)]
#[case::meta("meta m.safetensors set key=$(printf %05000d 7)", FLOOR)]
fn too_little_memory_is_an_error(#[case] command: &str, #[case] floor: usize) {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensors: Vec<_> = (0..6).map(|at| format!("layer.{at}.weight")).collect();
    for (file, value) in [("a.safetensors", 1.0), ("b.safetensors", 1.5)] {
        let values = vec![value; 1 << 18];
        let tensors = tensors.iter().map(|name| floats(name, &values));
        write(&at(file), &tensors.collect::<Vec<_>>());
    }
    let least = least_memory(folder.path()) + floor;
    // Buffers first, then threads, whose stacks and arenas take 2 and 64 MiB each.
    let near = (least..least + 16_000).step_by(1_000);
    let far = (least + 16_000..least + 250_000).step_by(26_000);
    let (mut fine, mut refused) = (0, 0);
    for limit in near.chain(far) {
        let _none_yet = fs::remove_dir_all(at("out"));
        fs::copy(at("a.safetensors"), at("m.safetensors")).unwrap();
        let run = with_memory(folder.path(), limit, &format!("safeshard {command}"));
        if ended_by_the_language(&run.stderr) {
            continue;
        }
        match run.code {
            Some(0 | 1) => fine += 1,
            Some(2) => {
                assert!(run.stderr.starts_with("error["), "{limit}: {run:#?}");
                refused += 1;
            }
            _ => panic!("{limit}: {run:#?}"),
        }
        let mut left = names_if_there(folder.path());
        left.extend(names_if_there(&at("out")));
        let is_whole = |name: &String| !name.ends_with(".partial");
        assert!(left.iter().all(is_whole), "{limit}: {left:?}");
    }
    assert!(fine > 0, "{refused} were refused");
}

#[rstest]
#[case::reshard("reshard bert out", "out")]
#[case::single("reshard bert out.safetensors --single", ".")]
#[case::in_place("reshard bert bert --single --with-files", "bert")]
#[case::convert("convert bert out --dtype BF16", "out")]
#[case::index("index bare --write", "bare")]
#[case::meta_of_an_index("meta bert set a=b", "bert")]
#[case::meta_of_a_file(
    "meta bert/model-00001-of-00003.safetensors set a=$(printf %09000d 7)",
    "bert"
)]
#[case::digest("digest bert --output SUMS", ".")]
fn a_limit_of_file_sizes_is_an_error(#[case] command: &str, #[case] writes_into: &str) {
    let folder = tempdir().unwrap();
    bert_in(folder.path());
    shell(folder.path(), "cp -r bert bare && rm bare/*.index.json").ended(0);
    let writes_into = folder.path().join(writes_into);
    let before = names_if_there(&writes_into);
    let line = format!("ulimit -c 0; ulimit -f 0; safeshard {command}");
    let run = shell(folder.path(), &line).ended(2);
    assert!(run.stderr.starts_with("error[io]: "), "{}", run.stderr);
    assert!(run.stderr.contains("File too large"), "{}", run.stderr);
    assert_eq!(names_if_there(&writes_into), before);
    safeshard(["verify".as_ref(), folder.path().join("bert").as_os_str()]).ended(0);
}

#[test]
fn a_limit_in_the_middle_of_a_file_leaves_nothing_of_it() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    // Blocks of 512 bytes: the first of the shards fits, another one does not.
    let line = "ulimit -c 0; ulimit -f 69; safeshard convert bert bert --dtype F64";
    let before = names(&bert);
    let run = shell(folder.path(), line).ended(2);
    assert!(run.stderr.contains("File too large"), "{}", run.stderr);
    assert_eq!(names(&bert), before);
    let line = "ulimit -f 0; safeshard inspect bert > shown";
    let run = shell(folder.path(), line).ended(2);
    assert!(
        run.stderr.contains("standard output: File too large"),
        "{}",
        run.stderr
    );
}
