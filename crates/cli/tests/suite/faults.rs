//! Input that blocks, vanishes, is too large, or changes while it is read.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::support::*;

/// Longer than anything here may take that must not wait.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn what_would_block_or_never_end_is_refused() {
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    shell(folder.path(), "mkfifo fifo.safetensors").ended(0);
    let begun = Instant::now();
    for path in [
        at("fifo.safetensors").as_path(),
        Path::new("/dev/zero"),
        Path::new("/dev/null"),
    ] {
        for command in ["inspect", "verify", "digest", "meta"] {
            let run = safeshard([command.as_ref(), path.as_os_str()]).ended(2);
            assert!(
                run.stderr.starts_with("error[not-a-regular-file]"),
                "{}",
                run.stderr
            );
            assert_eq!(run.stdout, "");
        }
    }
    // A shard that is one makes the checkpoint wrong.
    let index = r#"{"weight_map": {"w": "fifo.safetensors"}}"#;
    fs::write(at("model.safetensors.index.json"), index).unwrap();
    let found = safeshard([
        "verify".as_ref(),
        "--json".as_ref(),
        folder.path().as_os_str(),
    ]);
    assert_eq!(
        found.ended(1).json()["findings"][0]["code"],
        "not-a-regular-file"
    );
    assert!(begun.elapsed() < SOON);
}

#[test]
fn files_that_may_not_be_read_are_named() {
    let folder = tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[floats("w", &[1.0])]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser reads everything.
    let binary = folder.path().join("safeshard");
    fs::copy(SAFESHARD, &binary).unwrap();
    let is_root = shell(folder.path(), "id -u").stdout == "0\n";
    let drop = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let as_other = if is_root { drop } else { "" };
    for command in ["inspect", "verify", "digest"] {
        let run = shell(
            folder.path(),
            &format!("{as_other} ./safeshard {command} {}", path.display()),
        );
        let run = run.ended(2);
        assert!(run.stderr.starts_with("error[io]: "), "{}", run.stderr);
        assert!(run.stderr.contains("Permission denied"), "{}", run.stderr);
    }
}

#[test]
fn many_shards_need_few_descriptors() {
    const SHARDS: usize = 1500;
    let folder = tempdir().unwrap();
    let mut map = String::new();
    for shard in 1..=SHARDS {
        let name = format!("model-{shard:05}-of-{SHARDS:05}.safetensors");
        let tensor = format!("layer.{shard}.weight");
        write(
            &folder.path().join(&name),
            &[floats(&tensor, &[shard as f32])],
        );
        map.push_str(&format!(
            "{}\"{tensor}\": \"{name}\"",
            if shard > 1 { ", " } else { "" }
        ));
    }
    let index = format!("{{\"weight_map\": {{{map}}}}}");
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    for line in [
        "safeshard inspect .",
        "safeshard verify . --level content",
        "safeshard digest . -o ../SUMS && safeshard verify . --manifest ../SUMS",
        "safeshard diff . .",
        "safeshard index . --check",
        "safeshard index . --write",
    ] {
        let inner = folder.path().join("inner");
        let _there = fs::create_dir(&inner);
        let line = line.replace("../SUMS", "inner/SUMS");
        shell(folder.path(), &format!("ulimit -n 64; {line} > /dev/null")).ended(0);
    }
}

#[test]
fn five_terabytes_are_inspected_without_reading_them() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let len = 5_000_000_000_000_u64;
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    write_by_hand(&path, &header, &[]);
    let file = File::options().write(true).open(&path).unwrap();
    if let Err(error) = file.set_len(8 + header.len() as u64 + len) {
        eprintln!("WARNING: NOT TESTED: no sparse files here: {error}");
        return;
    }
    let traced = format!(
        "strace -f -P {0} -e trace=pread64,read,mmap -o trace safeshard inspect {0}",
        path.display()
    );
    let begun = Instant::now();
    let text = safeshard(["inspect".as_ref(), path.as_os_str()])
        .ended(0)
        .stdout;
    assert!(begun.elapsed() < SOON);
    assert!(text.contains("5.00 TB"), "{text}");
    safeshard(["verify".as_ref(), path.as_os_str()]).ended(0);
    let json = safeshard(["inspect".as_ref(), "--json".as_ref(), path.as_os_str()]).json();
    assert_eq!(json["totals"]["bytes"], len);
    // One read of the file, or two.
    if shell(folder.path(), &traced).code == Some(0) {
        let trace = fs::read_to_string(folder.path().join("trace")).unwrap();
        let reads: Vec<_> = trace
            .lines()
            .filter(|line| line.contains("pread64("))
            .collect();
        assert!((1..=2).contains(&reads.len()), "{reads:#?}");
    }
}

/// Runs a command on a large file, and does something to the file as soon as the run has begun to
/// read it.
fn meanwhile(command: &str, change: impl FnOnce(&Path)) -> Run {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // Long enough to be read for a while: holes cost no space.
    let len = 200_000_000_000_u64;
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    write_by_hand(&path, &header, &[]);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + len).unwrap();
    let mut args = command.split(' ').collect::<Vec<_>>();
    args.push(path.to_str().unwrap());
    let child = Command::new(SAFESHARD)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_reading(child.id());
    change(&path);
    child.wait_with_output().unwrap().into()
}

/// Waits until a process has read a good deal.
fn wait_for_reading(id: u32) {
    let begun = Instant::now();
    loop {
        let io = fs::read_to_string(format!("/proc/{id}/io")).unwrap_or_default();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        if read.is_some_and(|read| read.parse::<u64>().unwrap() > 20_000_000) {
            return;
        }
        assert!(begun.elapsed() < SOON, "it does not read");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_file_that_is_cut_off_while_it_is_read_is_an_error() {
    for command in [
        "digest --algorithm blake3",
        "digest",
        "verify --level content",
    ] {
        let run = meanwhile(command, |path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(1 << 20)
                .unwrap();
        });
        let run = run.ended(2);
        assert!(run.stderr.contains("model.safetensors"), "{}", run.stderr);
        assert!(
            run.stderr.contains("shrank while it was read"),
            "{}",
            run.stderr
        );
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_is_an_error() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[floats("w", &vec![1.0; 8 << 20])]);
    // Held at a read in the middle until the file has grown.
    let line = "strace -qq -o /dev/null -f -e trace=pread64 \
                -e inject=pread64:delay_enter=500000:when=6 \
                safeshard --threads 1 digest model.safetensors";
    let growing = path.clone();
    let writer = thread::spawn(move || {
        for _ in 0..200 {
            thread::sleep(Duration::from_millis(10));
            let mut file = File::options().append(true).open(&growing).unwrap();
            file.write_all(b"more").unwrap();
        }
    });
    let run = shell(folder.path(), line);
    writer.join().unwrap();
    if run.stderr.contains("strace:") && std::env::var_os("SAFESHARD_SKIP_STRACE").is_some() {
        eprintln!("WARNING: NOT TESTED: strace cannot trace here, and may be skipped");
        return;
    }
    let run = run.ended(2);
    let refused = ["error[file-changed]", "error[trailing-bytes]"];
    assert!(
        refused.iter().any(|code| run.stderr.contains(code)),
        "{}",
        run.stderr
    );
}

#[test]
fn a_signal_ends_what_reads_with_its_number() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let folder = tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let len = 200_000_000_000_u64;
        let header =
            format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
        write_by_hand(&path, &header, &[]);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(8 + header.len() as u64 + len).unwrap();
        let child = Command::new(SAFESHARD)
            .args(["digest".as_ref(), path.as_os_str()])
            .spawn();
        let mut child = child.unwrap();
        wait_for_reading(child.id());
        shell(folder.path(), &format!("kill -{signal} {}", child.id())).ended(0);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
    }
}

#[test]
fn a_signal_leaves_no_stage() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // With a hole, so that only what is written takes time and space.
    let len = 3_000_000_000_u64;
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    write_by_hand(&path, &header, &[]);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + len).unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let args = [
        "meta".as_ref(),
        path.as_os_str(),
        "set".as_ref(),
        "a=b".as_ref(),
    ];
    let mut child = Command::new(SAFESHARD).args(args).spawn().unwrap();
    let begun = Instant::now();
    while names(folder.path()).len() < 2 {
        assert!(begun.elapsed() < SOON, "it does not write");
        thread::sleep(Duration::from_millis(1));
    }
    shell(folder.path(), &format!("kill -INT {}", child.id())).ended(0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(folder.path()), ["model.safetensors"]);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}
