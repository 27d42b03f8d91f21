//! `verify` finds what is wrong, says it under the code that it has everywhere, and no more.

use std::fs;
use std::os::unix::fs::symlink;

use rstest::rstest;
use safetensors::Dtype;
use serde_json::Value;
use tempfile::tempdir;

use crate::support::*;

fn codes(found: &Value) -> Vec<(&str, &str)> {
    let findings = found["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap();
            (text("code"), text("severity"))
        })
        .collect()
}

#[rstest]
#[case::strict("strict", 1)]
#[case::default("default", 2)]
#[case::reference("reference", 3)]
fn every_vector_gets_the_verdict_of_the_table(#[case] profile: &str, #[case] column: usize) {
    let folder = root().join("tests/vectors");
    let table = fs::read_to_string(folder.join("verdicts.tsv")).unwrap();
    let mut lines = 0;
    for line in table.lines().skip(1) {
        let fields: Vec<_> = line.split('\t').collect();
        let path = folder.join(format!("{}.safetensors", fields[0]));
        if !path.exists() {
            continue;
        }
        lines += 1;
        let path = path.to_str().unwrap();
        let run = safeshard(["verify", "--json", "--profile", profile, path]);
        let found = run.json();
        let (verdict, code, errors) = match fields[column] {
            "ok" => ("accept", 0, vec![]),
            error => ("reject", 1, vec![(error, "error")]),
        };
        assert_eq!(run.code, Some(code), "{line}");
        assert_eq!(found["verdict"], verdict, "{line}");
        assert_eq!(codes(&found), errors, "{line}");
    }
    assert!(lines > 300, "{lines}");
}

#[test]
fn the_document_has_the_promised_form() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    let shard = bert.join("model-00002-of-00003.safetensors");
    let len = fs::metadata(&shard).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&shard)
        .unwrap()
        .set_len(len - 3)
        .unwrap();
    let run = safeshard(["verify", "--json", bert.to_str().unwrap()]).ended(1);
    let found = run.json();
    assert_eq!(found["version"], 1);
    let finding = &found["findings"][0];
    assert_eq!(finding["code"], "file-truncated");
    assert_eq!(finding["file"], "model-00002-of-00003.safetensors");
    assert_eq!(finding["tensor"], Value::Null);
    assert_eq!(finding["offset"], len - 3);
    let message = finding["message"].as_str().unwrap();
    assert!(message.contains("3 missing"), "{message}");
}

#[test]
fn all_problems_of_a_checkpoint_come_at_once() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    fs::remove_file(bert.join("model-00001-of-00003.safetensors")).unwrap();
    fs::write(
        bert.join("model-00002-of-00003.safetensors"),
        "<!DOCTYPE html>",
    )
    .unwrap();
    let found = safeshard(["verify", "--json", bert.to_str().unwrap()])
        .ended(1)
        .json();
    let expected = [("shard-missing", "error"), ("not-safetensors", "error")];
    assert_eq!(codes(&found), expected);
}

#[test]
fn a_warning_is_no_reason_to_reject() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    write(&bert.join("adapter.safetensors"), &[floats("x", &[1.0])]);
    let index = bert.join("model.safetensors.index.json");
    let text = fs::read_to_string(&index)
        .unwrap()
        .replace("102784", "102785");
    fs::write(&index, text).unwrap();
    let found = safeshard(["verify", "--json", bert.to_str().unwrap()])
        .ended(0)
        .json();
    assert_eq!(found["verdict"], "accept");
    assert_eq!(
        codes(&found),
        [("total-size", "warning"), ("unlisted-file", "warning")]
    );
}

#[rstest]
#[case::text("model.safetensors", "hello, this is no tensor at all")]
#[case::empty("model.safetensors", "")]
#[case::index("model.safetensors.index.json", "{\"weight_map\": {}}")]
#[case::html("model.safetensors.index.json", "<!DOCTYPE html>")]
#[case::other("pytorch_model.bin", "")]
fn what_is_no_checkpoint_is_a_finding(#[case] name: &str, #[case] contents: &str) {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join(name), contents).unwrap();
    for path in [folder.path(), &folder.path().join(name)] {
        let run = safeshard(["verify", "--json", path.to_str().unwrap()]).ended(1);
        assert_eq!(run.json()["findings"].as_array().unwrap().len(), 1);
        assert_eq!(run.stderr, "");
    }
}

#[rstest]
#[case::shard("model-00002-of-00003.safetensors", &["not-a-regular-file"])]
#[case::index("model.safetensors.index.json", &["not-a-regular-file"])]
fn a_link_that_leads_to_itself_is_a_finding(#[case] name: &str, #[case] expected: &[&str]) {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    fs::remove_file(bert.join(name)).unwrap();
    symlink(name, bert.join(name)).unwrap();
    let found = safeshard(["verify", "--json", bert.to_str().unwrap()]).ended(1);
    let found = found.json();
    assert_eq!(found["findings"][0]["file"], name);
    let codes = codes(&found).into_iter().map(|(code, _)| code);
    assert_eq!(codes.collect::<Vec<_>>(), expected);
    // It is all that was to be read.
    let link = bert.join(name);
    let run = safeshard(["verify", link.to_str().unwrap()]).ended(2);
    assert!(
        run.stderr.contains("a link that leads to itself"),
        "{}",
        run.stderr
    );
}

#[test]
fn whatever_a_manifest_names_is_a_finding_at_most() {
    let folder = tempdir().unwrap();
    let bert = bert_in(folder.path());
    symlink("loop", bert.join("loop")).unwrap();
    fs::create_dir(bert.join("folder")).unwrap();
    shell(
        &bert,
        "mkfifo fifo && sha256sum *.safetensors *.index.json > ../SUMS",
    )
    .ended(0);
    let manifest = folder.path().join("SUMS");
    let right = fs::read_to_string(&manifest).unwrap();
    for (name, code) in [
        ("nul\0.safetensors", "manifest-name"),
        ("\0", "manifest-name"),
        ("loop", "not-a-regular-file"),
        ("loop/below", "not-a-regular-file"),
        ("folder", "not-a-regular-file"),
        ("fifo", "not-a-regular-file"),
        ("config.json/below", "digest-missing"),
        (&"long".repeat(100), "digest-missing"),
        (&"x/".repeat(3000), "digest-missing"),
    ] {
        fs::write(&manifest, format!("{right}{:064}  {name}\n", 0)).unwrap();
        let args = ["verify", "--json", "--manifest", manifest.to_str().unwrap()];
        let run = safeshard(args.into_iter().chain([bert.to_str().unwrap()]));
        assert_eq!(codes(&run.ended(1).json()), [(code, "error")], "{name:?}");
    }
}

#[test]
fn what_cannot_be_read_at_all_could_not_be_verified() {
    let run = safeshard(["verify", "--json", "/nonexistent"]).ended(2);
    assert_eq!(run.stdout, "");
    assert_eq!(
        run.stderr,
        "error[not-found]: /nonexistent: no such file or folder; check the path\n"
    );
}

/// Elements that are wrong, how often, and where in the data the first one is.
#[rstest]
#[case::f32_nan(Dtype::F32, &[0, 0, 0x80, 0x3F, 1, 0, 0x80, 0x7F, 0, 0, 0xC0, 0xFF], "nan", 2, 3, 4)]
#[case::f32_inf(Dtype::F32, &[0, 0, 0x80, 0x3F, 0, 0, 0x80, 0xFF, 0, 0, 0, 0], "infinity", 1, 3, 4)]
#[case::f64_nan(Dtype::F64, &[0, 0, 0, 0, 0, 0, 0xF8, 0x7F], "nan", 1, 1, 0)]
#[case::f16_inf(Dtype::F16, &[0, 0x3C, 0, 0x7C], "infinity", 1, 2, 2)]
#[case::f16_nan(Dtype::F16, &[0, 0x3C, 1, 0x7C], "nan", 1, 2, 2)]
#[case::bf16_nan(Dtype::BF16, &[0x80, 0x3F, 0xC0, 0xFF], "nan", 1, 2, 2)]
#[case::bf16_inf(Dtype::BF16, &[0x80, 0x7F], "infinity", 1, 1, 0)]
#[case::e5m2_nan(Dtype::F8_E5M2, &[0x3C, 0x7D], "nan", 1, 2, 1)]
#[case::e5m2_inf(Dtype::F8_E5M2, &[0xFC], "infinity", 1, 1, 0)]
#[case::e4m3_nan(Dtype::F8_E4M3, &[0x7E, 0xFF], "nan", 1, 2, 1)]
#[case::e8m0_nan(Dtype::F8_E8M0, &[0, 0xFF], "nan", 1, 2, 1)]
#[case::boolean(Dtype::BOOL, &[0, 1, 2, 0xFF], "bool-value", 2, 4, 2)]
fn content_is_counted(
    #[case] dtype: Dtype,
    #[case] bytes: &[u8],
    #[case] code: &str,
    #[case] count: u64,
    #[case] elements: usize,
    #[case] first: u64,
) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("w", dtype, vec![elements], bytes.to_vec())]);
    let path = path.to_str().unwrap();
    let data_start = 8 + safeshard(["inspect", "--json", path]).json()["files"][0]["header_bytes"]
        .as_u64()
        .unwrap();
    safeshard(["verify", path]).ended(0);
    let found = safeshard(["verify", "--json", "--level", "content", path])
        .ended(1)
        .json();
    assert_eq!(codes(&found), [(code, "error")]);
    let finding = &found["findings"][0];
    assert_eq!(finding["tensor"], "w");
    assert_eq!(finding["offset"], data_start + first);
    let message = finding["message"].as_str().unwrap();
    assert!(
        message.contains(&format!("{count} of {elements}")),
        "{message}"
    );
}

#[test]
fn zeros_are_worth_a_warning_and_negative_ones_are_zeros_too() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(
        &path,
        &[
            floats("bias", &[0.0, -0.0]),
            floats("empty", &[]),
            floats("weight", &[0.0, 1e-45]),
            ("mask", Dtype::BOOL, vec![2], vec![0, 0]),
            ("ids", Dtype::I64, vec![1], vec![0; 8]),
        ],
    );
    let path = path.to_str().unwrap();
    let found = safeshard(["verify", "--json", "--level", "content", path])
        .ended(0)
        .json();
    let tensors: Vec<_> = found["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| &finding["tensor"])
        .collect();
    assert_eq!(tensors, ["bias", "ids"]);
    assert_eq!(codes(&found), [("all-zero", "warning"); 2]);
}

#[test]
fn a_large_tensor_is_counted_over_all_its_pieces() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut values = vec![1.0; 7 << 20];
    for at in [3, 5 << 20, (7 << 20) - 1] {
        values[at] = f32::NAN;
    }
    write(&path, &[floats("w", &values)]);
    let path = path.to_str().unwrap();
    for threads in ["1", "2", "7"] {
        let args = [
            "verify",
            "--json",
            "--level",
            "content",
            "--threads",
            threads,
            path,
        ];
        let found = safeshard(args).ended(1).json();
        let message = found["findings"][0]["message"].as_str().unwrap();
        assert!(message.contains("3 of 7340032"), "{message}");
        let mapped = safeshard(args.into_iter().chain(["--io", "mmap"])).ended(1);
        assert_eq!(mapped.json(), found);
    }
}

#[test]
fn every_code_can_be_explained() {
    let text = safeshard(["verify", "--explain", "nan"]).ended(0).stdout;
    assert!(
        text.starts_with("nan: elements are not a number\n"),
        "{text}"
    );
    let run = safeshard(["verify", "--explain", "nonsense"]).ended(2);
    assert!(run.stderr.contains("`nonsense`"), "{}", run.stderr);
}

#[test]
fn quiet_says_nothing_about_what_is_fine() {
    let run = safeshard(["verify", "--quiet", bert().to_str().unwrap()]).ended(0);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
}
