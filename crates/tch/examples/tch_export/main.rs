//! Trains a small classifier in tch, saves it sharded, and shows that everybody reads the same model:
//! a new process with a fresh `VarStore`, candle, and PyTorch in Python.
//!
//! ```console
//! $ cargo run --package safeshard-tch --example tch_export [FOLDER]
//! ```
//!
//! Python takes part where `SAFESHARD_PYTHON` names one that has torch and safetensors.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

use candle_core as candle;
use safeshard::SaveOptions;
use safeshard::tch::{VarOptions, VarStoreExt, load, save};
use tch::nn::{self, Module, OptimizerConfig, VarStore};
use tch::{Device, Kind, Tensor};

type Result<T = (), E = Box<dyn Error>> = std::result::Result<T, E>;

const CLASSES: i64 = 3;
const HIDDEN: i64 = 48;

/// The frameworks add up the same numbers in different orders.
const TOLERANCE: f64 = 1e-4;

fn main() -> Result {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["reload", folder, probe] => reload(folder, probe),
        [folder] => export(Path::new(folder)),
        [] => {
            let folder = env::temp_dir().join(format!("tch_export-{}", std::process::id()));
            let shown = export(&folder);
            std::fs::remove_dir_all(&folder)?;
            shown
        }
        _ => Err("usage: tch_export [FOLDER]".into()),
    }
}

fn export(folder: &Path) -> Result {
    std::fs::create_dir_all(folder)?;
    tch::manual_seed(7);
    let vars = VarStore::new(Device::Cpu);
    let model = classifier(&vars.root());
    let (points, classes) = spirals();
    train(&vars, &model, &points, &classes)?;

    // What this is about: one line, and the folder is what `transformers` would have left.
    let shards = folder.join("model");
    let options = SaveOptions {
        max_shard_size: "5KB".parse()?, // "5GB" unless you say otherwise
        ..SaveOptions::default()
    };
    let report = vars.save_checkpoint(&shards, &options)?;
    println!(
        "saved: {} shards and {:?}",
        report.files.len(),
        report.index
    );

    // What the others are compared with: inputs, what tch computes for them, and tch's own file.
    let probe = folder.join("probe.safetensors");
    let logits = tch::no_grad(|| model.forward(&points));
    save([("points", &points), ("logits", &logits)], &probe)?;
    let reference = folder.join("by-tch.safetensors");
    vars.save(&reference)?;

    let program = env::current_exe()?;
    succeed(Command::new(program).arg("reload").args([&shards, &probe]))?;
    let difference = in_candle(&shards, &points, &logits)?;
    println!("candle: largest difference {difference:e}");
    if difference > TOLERANCE {
        return Err("candle computes something else".into());
    }
    match env::var_os("SAFESHARD_PYTHON") {
        Some(python) => {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tch_export/check.py");
            succeed(
                Command::new(python)
                    .arg(script)
                    .args([&shards, &probe, &reference]),
            )?;
        }
        None => println!("python: not asked, SAFESHARD_PYTHON is not set"),
    }
    Ok(())
}

fn succeed(command: &mut Command) -> Result {
    match command.status()?.success() {
        true => Ok(()),
        false => Err(format!("{} failed", command.get_program().display()).into()),
    }
}

/// A new process: a fresh `VarStore` computes the very same bits.
fn reload(folder: &str, probe: &str) -> Result {
    let probe = load(probe, Device::Cpu)?;
    let mut vars = VarStore::new(Device::Cpu);
    let model = classifier(&vars.root());
    let report = vars.load_checkpoint(folder, &VarOptions::default())?;
    println!("new process: {report}");
    let logits = tch::no_grad(|| model.forward(&probe["points"]));
    match report.is_exact() && logits == probe["logits"] {
        true => println!("new process: outputs identical"),
        false => return Err("the outputs differ".into()),
    }
    Ok(())
}

fn classifier(path: &nn::Path<'_>) -> impl Module + use<> {
    nn::seq()
        .add(nn::linear(
            path / "hidden" / "0",
            2,
            HIDDEN,
            Default::default(),
        ))
        .add_fn(Tensor::relu)
        .add(nn::linear(
            path / "hidden" / "1",
            HIDDEN,
            HIDDEN,
            Default::default(),
        ))
        .add_fn(Tensor::relu)
        .add(nn::linear(
            path / "head",
            HIDDEN,
            CLASSES,
            Default::default(),
        ))
}

/// Points on arms of a spiral, and which arm each is on.
fn spirals() -> (Tensor, Tensor) {
    let (points, classes): (Vec<_>, Vec<_>) = (0..CLASSES)
        .flat_map(|class| (0..100).map(move |i| (class, f64::from(i) / 100.)))
        .map(|(class, radius)| {
            let angle = radius * 5. + class as f64 * std::f64::consts::TAU / CLASSES as f64;
            let point = [radius * angle.cos(), radius * angle.sin()];
            (point.map(|x| x as f32), class)
        })
        .unzip();
    let points = Tensor::from_slice(points.as_flattened()).view([-1, 2]);
    (points, Tensor::from_slice(&classes))
}

fn train(vars: &VarStore, model: &impl Module, points: &Tensor, classes: &Tensor) -> Result {
    let mut optimizer = nn::Adam::default().build(vars, 1e-2)?;
    for _ in 0..300 {
        let loss = model.forward(points).cross_entropy_for_logits(classes);
        optimizer.backward_step(&loss);
    }
    let accuracy = model.forward(points).accuracy_for_logits(classes);
    println!("trained: accuracy {:.3}", accuracy.double_value(&[]));
    Ok(())
}

/// The same folder in candle; returns the largest difference of its logits.
fn in_candle(folder: &Path, points: &Tensor, expected: &Tensor) -> Result<f64> {
    use candle::Module;
    let size = |size: i64| size as usize;
    let vb = safeshard::candle::var_builder(folder, candle::DType::F32, &candle::Device::Cpu)?;
    let hidden = size(HIDDEN);
    let layers = [
        candle_nn::linear(2, hidden, vb.pp("hidden.0"))?,
        candle_nn::linear(hidden, hidden, vb.pp("hidden.1"))?,
    ];
    let head = candle_nn::linear(hidden, size(CLASSES), vb.pp("head"))?;
    let flat = Vec::<f32>::try_from(points.flatten(0, -1))?;
    let mut x = candle::Tensor::from_vec(flat, (size(points.size()[0]), 2), &candle::Device::Cpu)?;
    for layer in &layers {
        x = layer.forward(&x)?.relu()?;
    }
    let logits = head.forward(&x)?.flatten_all()?.to_vec1::<f32>()?;
    let difference = Tensor::from_slice(&logits) - expected.flatten(0, -1);
    Ok(difference
        .abs()
        .max()
        .to_kind(Kind::Double)
        .double_value(&[]))
}
