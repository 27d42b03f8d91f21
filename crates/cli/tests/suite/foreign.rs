//! Files of torch, wherever a checkpoint can be named.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::tempdir;

use crate::strace;
use crate::support::*;

/// A file that torch wrote; see `tests/python/make_torch.py`.
fn torch(name: &str) -> PathBuf {
    let folder = env::var_os("SAFESHARD_FIXTURES");
    let folder =
        folder.expect("SAFESHARD_FIXTURES is not set: run the tests with `cargo xtask test`");
    Path::new(&folder).join("torch").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_of_torch_is_inspected_verified_and_converted() {
    let folder = tempdir().unwrap();
    let from = torch("state-dict-zip.pt");
    let to = folder.path().join("model.safetensors");
    let inspected = safeshard(["inspect", "--json", text(&from)])
        .ended(0)
        .json();
    assert_eq!(inspected["kind"], "file");
    assert_eq!(inspected["files"][0]["name"], "state-dict-zip.pt");
    assert_eq!(
        inspected["files"][0]["bytes"],
        fs::metadata(&from).unwrap().len()
    );
    assert_eq!(
        inspected["aliases"],
        json!({"fc.bias": "again.bias", "fc.weight": "again.weight"})
    );
    let args = ["verify", "--level", "content", "--json", text(&from)];
    let verified = safeshard(args).ended(0).json();
    assert_eq!(verified["verdict"], "accept");
    safeshard(["convert", text(&from), text(&to)]).ended(0);
    safeshard(["diff", text(&from), text(&to)]).ended(0);
    let digested = |path: &Path| {
        safeshard(["digest", "--tensors", text(path)])
            .ended(0)
            .stdout
    };
    assert_eq!(digested(&from), digested(&to));
    let resharded = folder.path().join("shards");
    safeshard([
        "reshard",
        "--max-shard-size",
        "40",
        text(&from),
        text(&resharded),
    ])
    .ended(0);
    safeshard(["diff", text(&to), text(&resharded)]).ended(0);
    // Which sha256sum agrees with.
    let digest = safeshard(["digest", text(&from)]).ended(0).stdout;
    let sum = Command::new("sha256sum").arg(&from).output().unwrap();
    assert_eq!(
        digest.split(' ').next(),
        String::from_utf8_lossy(&sum.stdout).split(' ').next()
    );
}

#[test]
fn a_folder_with_only_a_file_of_torch_is_that_file() {
    let folder = tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::copy(torch("state-dict-zip.pt"), model.join("pytorch_model.bin")).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let inspected = safeshard(["inspect", "--json", text(&model)])
        .ended(0)
        .json();
    assert_eq!(inspected["files"][0]["name"], "pytorch_model.bin");
    let out = folder.path().join("out");
    safeshard(["convert", "--with-files", text(&model), text(&out)]).ended(0);
    assert!(out.join("config.json").exists() && !out.join("pytorch_model.bin").exists());
    // In its own folder, beside the file that it was.
    safeshard(["convert", text(&model), text(&model)]).ended(0);
    assert!(model.join("pytorch_model.bin").exists());
    // Safetensors come first.
    let inspected = safeshard(["inspect", "--json", text(&model)])
        .ended(0)
        .json();
    assert_eq!(inspected["files"][0]["name"], "model.safetensors");
    safeshard(["diff", text(&model), text(&out)]).ended(0);
    // Several are for the caller to choose from.
    let several = folder.path().join("several");
    fs::create_dir(&several).unwrap();
    for name in ["pytorch_model.bin", "adapter_model.bin"] {
        fs::copy(torch("state-dict-zip.pt"), several.join(name)).unwrap();
    }
    let refused = safeshard(["inspect", text(&several)]).ended(2);
    assert!(
        refused.stderr.contains("[ambiguous-checkpoint]"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_key_says_which_part_is_meant() {
    let folder = tempdir().unwrap();
    let (from, to) = (torch("two-zip.pt"), folder.path().join("out.safetensors"));
    let refused = safeshard(["convert", text(&from), text(&to)]).ended(2);
    for part in ["[ambiguous-key]", "`model`", "`ema`", "--key"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    safeshard(["convert", text(&from), text(&to), "--key", "ema"]).ended(0);
    let inspected = safeshard(["inspect", "--json", text(&to)]).ended(0).json();
    assert_eq!(inspected["tensors"][0]["name"], "enc.w");
    let refused = safeshard(["convert", text(&from), text(&to), "--key", "best"]).ended(2);
    assert!(
        refused.stderr.contains("[key-missing]"),
        "{}",
        refused.stderr
    );
}

#[test]
fn code_is_refused_and_never_run() {
    let folder = tempdir().unwrap();
    let (from, to) = (torch("code.pt"), folder.path().join("out.safetensors"));
    let args = ["convert", text(&from), text(&to)];
    let refused = safeshard(args).ended(2);
    for part in ["[pickle-code]", "posix.system", "--allow-code", text(&from)] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    assert!(!to.exists());
    let verdict = safeshard(["verify", "--json", text(&from)]).ended(1).json();
    assert_eq!(verdict["findings"][0]["code"], "pickle-code");
    if !strace::works("that no code is run") {
        return;
    }
    let log = folder.path().join("log");
    let calls = "execve,execveat,fork,vfork,socket,connect";
    let traced = Command::new("strace")
        .args([
            "-f",
            "-e",
            &format!("trace={calls}"),
            "-o",
            text(&log),
            SAFESHARD,
        ])
        .args(args)
        .arg("--allow-code")
        .output();
    Run::from(traced.unwrap()).ended(0);
    let log = fs::read_to_string(&log).unwrap();
    let called: Vec<_> = log.lines().filter(|line| line.contains('(')).collect();
    assert_eq!(called.len(), 1, "only the command itself: {called:#?}");
    assert!(called[0].contains("execve"));
}
