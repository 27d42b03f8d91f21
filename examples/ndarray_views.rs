//! Prints statistics of every tensor of a checkpoint without loading it: the files are mapped, and ndarray
//! computes where the elements lie.
//!
//! ```text
//! cargo run --release --example ndarray_views            # the small checkpoint in examples/data
//! cargo run --release --example ndarray_views -- PATH    # any other: a file, an index or a folder
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};

use ndarray::IxDyn;
use safeshard::ndarray::{CheckpointExt, Element, bf16, f16};
use safeshard::{Checkpoint, Dtype, Io, OpenOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/tiny-bert");
    let path = std::env::args_os().nth(1).map_or(shipped, PathBuf::from);
    // SAFETY: nobody writes to the files while this program runs.
    let io = unsafe { Io::mmap() };
    let options = OpenOptions {
        io,
        ..OpenOptions::default()
    };
    let checkpoint = Checkpoint::open_with(path, &options)?;

    println!("dtype         least       mean      most  deviation  name");
    for tensor in checkpoint.tensors() {
        let statistics = match tensor.dtype {
            Dtype::F64 => statistics::<f64>(&checkpoint, tensor.name)?,
            Dtype::F32 => statistics::<f32>(&checkpoint, tensor.name)?,
            Dtype::F16 => statistics::<f16>(&checkpoint, tensor.name)?,
            Dtype::Bf16 => statistics::<bf16>(&checkpoint, tensor.name)?,
            Dtype::I32 => statistics::<i32>(&checkpoint, tensor.name)?,
            Dtype::I8 => statistics::<i8>(&checkpoint, tensor.name)?,
            Dtype::U8 => statistics::<u8>(&checkpoint, tensor.name)?,
            other => format!("{:>42}", format!("({other} is not computed with)")),
        };
        println!(
            "{:5} {statistics}  {} {:?}",
            tensor.dtype, tensor.name, tensor.shape
        );
    }
    Ok(())
}

fn statistics<A: Element + Into<f64>>(
    checkpoint: &Checkpoint,
    name: &str,
) -> Result<String, Box<dyn Error>> {
    // A view of the mapping; a copy only where a tensor lies at an address that its elements cannot have.
    let elements = checkpoint.cow::<A, IxDyn>(name)?;
    let count = elements.len() as f64;
    let (mut least, mut most, mut sum, mut squares) = (f64::INFINITY, f64::NEG_INFINITY, 0., 0.);
    for &element in &elements {
        let element: f64 = element.into();
        least = least.min(element);
        most = most.max(element);
        sum += element;
        squares += element * element;
    }
    let mean = sum / count;
    let deviation = (squares / count - mean * mean).max(0.).sqrt();
    Ok(format!(
        "{least:>10.5} {mean:>10.5} {most:>9.5} {deviation:>10.5}"
    ))
}
