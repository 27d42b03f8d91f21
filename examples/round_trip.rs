//! Passes a checkpoint from candle to ndarray and shows that every file comes out byte for byte, its index
//! too.
//!
//! ```text
//! cargo run --release --example round_trip                  # the small checkpoint in examples/data
//! cargo run --release --example round_trip -- FOLDER [OUT]  # any other, and where to leave it
//! ```

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use safeshard::{Checkpoint, SaveOptions, ShardFile};

fn main() -> Result<(), Box<dyn Error>> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-bert");
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = args.next().unwrap_or(shipped);
    let temporary = tempfile::tempdir()?;
    let out = args.next().unwrap_or(temporary.path().join("ndarray"));

    // How it is saved: its shards, metadata and ties, and whose spelling its index has.
    let original = Checkpoint::open(&folder)?;
    let like = SaveOptions::like(&original);

    let tensors = safeshard::candle::load(&folder, &Device::Cpu)?;
    let through_candle = temporary.path().join("candle");
    safeshard::candle::save_with(&tensors, &through_candle, &like)?;

    let arrays = safeshard::ndarray::load(&through_candle)?;
    safeshard::ndarray::save_with(&arrays, &out, &like)?;

    let mut files: Vec<_> = original.files().iter().map(ShardFile::name).collect();
    if let Some(index) = original.index() {
        files.extend(index.path().file_name().and_then(|name| name.to_str()));
    }
    for file in files {
        let (before, after) = (fs::read(folder.join(file))?, fs::read(out.join(file))?);
        if before != after {
            return Err(format!("{file} is not the same any more").into());
        }
        println!("{file}: the same {} bytes", after.len());
    }
    Ok(())
}
