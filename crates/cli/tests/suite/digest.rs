//! Digests are those of everybody else, and whatever is changed is found.

use std::fs;
use std::path::Path;

use rstest::rstest;
use tempfile::tempdir;

use crate::support::*;

const MIB: usize = 1 << 20;

/// A file of exactly so many bytes, whose data are all different.
fn file_of(path: &Path, len: usize) {
    let header = |data: usize| {
        format!(r#"{{"w":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#)
    };
    let mut data = len - 8 - header(len).len();
    // The number of digits may differ.
    while 8 + header(data).len() + data < len {
        data += 1;
    }
    let bytes: Vec<u8> = (0..data as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8)
        .collect();
    write_by_hand(path, &header(data), &bytes);
    assert_eq!(fs::metadata(path).unwrap().len(), len as u64);
}

#[rstest]
fn blake3_is_the_blake3_crates(
    #[values(200, 1024, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB + 1, 24 * MIB, 43 * MIB + 777)]
    len: usize,
    #[values("1", "3")] threads: &str,
    #[values("pread", "mmap")] io: &str,
) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    file_of(&path, len);
    let args = [
        "digest",
        "--algorithm",
        "blake3",
        "--threads",
        threads,
        "--io",
        io,
    ];
    let text = safeshard(args.into_iter().chain([path.to_str().unwrap()]))
        .ended(0)
        .stdout;
    let expected = blake3::hash(&fs::read(&path).unwrap());
    assert_eq!(text, format!("{expected}  model.safetensors\n"));
}

#[test]
fn sha256sum_reads_what_we_write_and_we_read_what_it_writes() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    shell(
        &bert,
        "safeshard digest . --output SUMS && sha256sum --strict --check SUMS",
    )
    .ended(0);
    for line in [
        "sha256sum *.safetensors *.index.json > SUMS",
        "sha256sum --binary *.safetensors *.index.json > SUMS",
        "sha256sum --tag *.safetensors *.index.json > SUMS",
        "sha256sum ./*.safetensors ./*.index.json config.json > SUMS",
    ] {
        shell(&bert, line).ended(0);
        let run = shell(&bert, "safeshard verify . --manifest SUMS --json").ended(0);
        assert_eq!(
            run.json()["findings"].as_array().unwrap().len(),
            0,
            "{line}"
        );
    }
}

#[rstest]
#[case::sha256(&[])]
#[case::blake3(&["--algorithm", "blake3"])]
#[case::tensors(&["--tensors"])]
#[case::tensors_blake3(&["--tensors", "--algorithm", "blake3"])]
fn a_bit_that_is_flipped_is_found(#[case] flags: &[&str]) {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    let manifest = folder.path().join("SUMS");
    let digest = [
        "digest",
        bert.to_str().unwrap(),
        "--output",
        manifest.to_str().unwrap(),
    ];
    safeshard(digest.iter().chain(flags)).ended(0);
    let verify = [
        "verify",
        "--json",
        "--level",
        "digest",
        "--manifest",
        manifest.to_str().unwrap(),
    ];
    let verify = || safeshard(verify.iter().chain([&bert.to_str().unwrap()]));
    assert_eq!(verify().ended(0).json()["verdict"], "accept");

    let shard = bert.join("model-00003-of-00003.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 0x10;
    fs::write(&shard, bytes).unwrap();
    let found = verify().ended(1).json();
    let findings = found["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0]["code"], "digest-mismatch");
    assert_eq!(findings[0]["file"], "model-00003-of-00003.safetensors");
    assert_eq!(
        findings[0]["tensor"].is_string(),
        flags.contains(&"--tensors")
    );
}

#[test]
fn a_manifest_of_tensors_fits_whatever_the_sharding() {
    let folder = tempdir().unwrap();
    let (one, two) = (
        folder.path().join("one.safetensors"),
        folder.path().join("two.safetensors"),
    );
    write(&one, &[floats("a", &[1.0]), floats("b", &[2.0, 3.0])]);
    write_with(
        &two,
        &[floats("b", &[2.0, 3.0]), floats("a", &[1.0])],
        &[("format", "pt")],
    );
    let line = "safeshard digest --tensors one.safetensors -o SUMS; \
                safeshard verify two.safetensors --manifest SUMS";
    shell(folder.path(), line).ended(0);
    write(
        &two,
        &[
            floats("b", &[2.0, 3.0]),
            ("a", safetensors::Dtype::I32, vec![1], vec![0; 4]),
        ],
    );
    let run = shell(
        folder.path(),
        "safeshard verify two.safetensors --manifest SUMS",
    )
    .ended(1);
    assert!(
        run.stdout.contains("error[dtype-mismatch]"),
        "{}",
        run.stdout
    );
}

/// Of a tensor with lines of both digests, one was compared with the other's.
#[test]
fn lines_of_both_digests_fit_the_same_bytes() {
    let folder = tempdir().unwrap();
    write(&folder.path().join("a.safetensors"), &[floats("a", &[1.0])]);
    let lines = "safeshard digest --tensors a.safetensors > SUMS
        safeshard digest --tensors --algorithm blake3 a.safetensors >> SUMS
        safeshard digest a.safetensors >> SUMS
        sha256sum --tag ./a.safetensors >> SUMS
        safeshard verify . --manifest SUMS";
    shell(folder.path(), lines).ended(0);
    let wrong = "sed '2s/ [0-9a-f]\\{8\\}/ 00000000/' SUMS > WRONG
        safeshard verify . --manifest WRONG";
    let run = shell(folder.path(), wrong).ended(1);
    assert!(
        run.stdout.contains("expected blake3 00000000"),
        "{}",
        run.stdout
    );
}

#[test]
fn what_is_missing_or_unlisted_is_found_and_nothing_outside_is_read() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    let zeros = "0".repeat(64);
    let manifest = format!(
        "{zeros}  model-00001-of-00003.safetensors\n{zeros}  ../bert/config.json\n{zeros}  gone.bin\n"
    );
    fs::write(folder.path().join("SUMS"), manifest).unwrap();
    let run = shell(
        folder.path(),
        "safeshard verify bert --json --manifest SUMS",
    )
    .ended(1);
    let found = run.json();
    let findings = found["findings"].as_array().unwrap().iter();
    let found: Vec<_> = findings
        .map(|f| {
            (
                f["code"].as_str().unwrap(),
                f["severity"].as_str().unwrap(),
                f["file"].as_str(),
            )
        })
        .collect();
    let folder = Some(bert.file_name().unwrap().to_str().unwrap());
    assert_eq!(
        found,
        [
            ("manifest-name", "error", folder),
            ("digest-missing", "error", Some("gone.bin")),
            (
                "digest-mismatch",
                "error",
                Some("model-00001-of-00003.safetensors")
            ),
            (
                "digest-unlisted",
                "error",
                Some("model-00002-of-00003.safetensors")
            ),
            (
                "digest-unlisted",
                "error",
                Some("model-00003-of-00003.safetensors")
            ),
            (
                "digest-unlisted",
                "warning",
                Some("model.safetensors.index.json")
            ),
        ]
    );
}

#[test]
fn a_manifest_that_is_not_understood_is_refused() {
    let folder = tempdir().unwrap();
    for text in [
        "nonsense",
        &format!("{}  ", "0".repeat(63)),
        "# tensor sha256 00 F32 [1] \"a\"",
    ] {
        fs::write(folder.path().join("SUMS"), text).unwrap();
        let line = format!("safeshard verify {} --manifest SUMS", bert().display());
        let run = shell(folder.path(), &line).ended(2);
        assert!(
            run.stderr.starts_with("error[manifest-syntax]: SUMS: "),
            "{}",
            run.stderr
        );
    }
    let run = shell(
        folder.path(),
        &format!("safeshard verify {} --level digest", bert().display()),
    );
    assert!(run.ended(2).stderr.contains("--manifest"));
}
