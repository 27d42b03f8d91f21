//! Variables: loaded exactly or not at all, adopted without a copy, saved under any names.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rstest::rstest;
use safeshard_core::Code;
use safeshard_tch::{DimRange, Fit, Kinds, LoadReport, Result, VarOptions, VarStoreExt, load};
use tch::nn::{self, VarStore};
use tch::{Kind, Tensor};

use crate::support::{
    CPU, Stored, bytes, cached, floats, mapped, numbers, pattern, write, write_floats,
};

/// A store with variables `layer.w` (2 by 3), `layer.b` (3), trainable, and `steps`, which is not.
fn store() -> (VarStore, Vec<Tensor>) {
    let vars = VarStore::new(CPU);
    let layer = vars.root() / "layer";
    let w = layer.zeros("w", &[2, 3]);
    let b = layer.ones("b", &[3]);
    let steps = vars.root().zeros_no_train("steps", &[2]);
    (vars, vec![w, b, steps])
}

/// A checkpoint that fits [`store`].
fn fitting(path: &Path) {
    write_floats(
        path,
        &[("layer.w", &[2, 3]), ("layer.b", &[3]), ("steps", &[2])],
    );
}

#[derive(Clone, Copy, Debug)]
enum How {
    Load,
    Adopt,
    AdoptMapped,
}

fn apply(how: How, vars: &mut VarStore, path: &Path, options: &VarOptions) -> Result<LoadReport> {
    let mut options = options.clone();
    match how {
        How::Load => vars.load_checkpoint(path, &options),
        How::Adopt => vars.adopt_checkpoint(path, &options),
        How::AdoptMapped => {
            options.load.open.io = mapped().open.io;
            vars.adopt_checkpoint(path, &options)
        }
    }
}

#[rstest]
fn variables_of_a_share_get_their_part(
    #[values(How::Load, How::Adopt, How::AdoptMapped)] how: How,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_floats(&path, &[("w", &[4, 2])]);
    let mut vars = VarStore::new(CPU);
    let w = vars.root().zeros("w", &[2, 2]);
    let mut options = VarOptions::default();
    options.load.part = Some(Arc::new(|_, _| vec![DimRange::from(1u64..3)]));
    apply(how, &mut vars, &path, &options).unwrap();
    let whole: HashMap<_, _> = Tensor::read_safetensors(&path)
        .unwrap()
        .into_iter()
        .collect();
    assert_eq!(floats(&w), floats(&whole["w"].narrow(0, 1, 2)));
    let error = apply(how, &mut vars, &path, &VarOptions::default()).unwrap_err();
    assert_eq!(error.code(), Code::ShapeMismatch);
}

#[rstest]
fn variables_and_the_layers_that_share_them_get_the_checkpoints_numbers(
    #[values(How::Load, How::Adopt, How::AdoptMapped)] how: How,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fitting(&path);
    let (mut vars, tensors) = store();
    let mut optimizer = nn::Optimizer::default_for_test(&vars);
    let report = apply(how, &mut vars, &path, &VarOptions::default()).unwrap();
    assert!(report.is_exact(), "{report}");
    assert_eq!(report.loaded, ["layer.b", "layer.w", "steps"]);
    let expected = load(&path, CPU).unwrap();
    for (tensor, name) in tensors.iter().zip(["layer.w", "layer.b", "steps"]) {
        assert_eq!(floats(&tensor.detach()), floats(&expected[name]), "{name}");
        assert_eq!(
            floats(&vars.variables()[name].detach()),
            floats(&expected[name])
        );
        assert_eq!(tensor.requires_grad(), name != "steps");
        assert!(tensor.is_leaf());
    }
    // Training goes on from there, and an optimizer made before sees the new numbers.
    let loss = (&tensors[0] * 3.).sum(Kind::Float);
    optimizer.backward_step(&loss);
    let trained = floats(&vars.variables()["layer.w"].detach());
    let expected: Vec<_> = floats(&expected["layer.w"])
        .iter()
        .map(|x| x - 3.)
        .collect();
    assert_eq!(trained, expected);
}

trait ForTest {
    fn default_for_test(vars: &VarStore) -> Self;
}

impl ForTest for nn::Optimizer {
    fn default_for_test(vars: &VarStore) -> Self {
        use nn::OptimizerConfig;
        nn::Sgd::default().build(vars, 1.).unwrap()
    }
}

#[test]
fn loading_keeps_the_variables_memory_and_adopting_takes_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fitting(&path);
    let (mut vars, tensors) = store();
    let view = tensors[0].detach().narrow(0, 0, 1);
    let place = tensors[0].data_ptr();
    vars.load_checkpoint(&path, &VarOptions::default()).unwrap();
    assert_eq!(tensors[0].data_ptr(), place);
    assert_eq!(floats(&view), floats(&tensors[0].detach().narrow(0, 0, 1)));
    vars.adopt_checkpoint(&path, &VarOptions::default())
        .unwrap();
    assert_ne!(tensors[0].data_ptr(), place);

    let options = VarOptions {
        load: mapped(),
        ..VarOptions::default()
    };
    vars.adopt_checkpoint(&path, &options).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lies_in = |tensor: &Tensor| {
        let address = tensor.data_ptr().addr();
        let line = maps.lines().find(|line| {
            let range = line.split(' ').next().unwrap().split_once('-').unwrap();
            let hex = |text| usize::from_str_radix(text, 16).unwrap();
            (hex(range.0)..hex(range.1)).contains(&address)
        });
        line.unwrap().ends_with(path.to_str().unwrap())
    };
    assert!(tensors.iter().all(lies_in), "no copy at all");
}

#[rstest]
fn what_does_not_fit_is_named_and_nothing_is_changed(
    #[values(How::Load, How::Adopt, How::AdoptMapped)] how: How,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // `steps` would fit; `layer.w` is transposed; there is no `layer.b`.
    write_floats(
        &path,
        &[("layer.w", &[3, 2]), ("steps", &[2]), ("other", &[1])],
    );
    let (mut vars, tensors) = store();
    let before: Vec<_> = tensors
        .iter()
        .map(|tensor| floats(&tensor.detach()))
        .collect();
    let error = apply(how, &mut vars, &path, &VarOptions::default()).unwrap_err();
    let found: Vec<_> = error
        .problems()
        .iter()
        .map(|e| (e.tensor().unwrap(), e.code()))
        .collect();
    assert_eq!(
        found,
        [
            ("layer.b", Code::TensorMissing),
            ("layer.w", Code::ShapeMismatch),
        ]
    );
    for (tensor, before) in tensors.iter().zip(&before) {
        assert_eq!(&floats(&tensor.detach()), before);
    }

    let report = vars
        .check_checkpoint(&path, &VarOptions::default())
        .unwrap();
    assert_eq!(floats(&tensors[2]), [0., 0.], "checking changes nothing");
    let options = VarOptions {
        fit: Fit::Partial,
        ..VarOptions::default()
    };
    assert_eq!(apply(how, &mut vars, &path, &options).unwrap(), report);
    assert_eq!(report.loaded, ["steps"]);
    assert_eq!(report.missing, ["layer.b"]);
    assert_eq!(report.unused, ["other"]);
    let [mismatch] = &report.mismatched[..] else {
        panic!("{report}");
    };
    assert_eq!(
        (&mismatch.expected[..], &mismatch.found[..]),
        (&[2, 3][..], &[3, 2][..])
    );
    assert_eq!(floats(&tensors[0].detach()), before[0]);
    assert_ne!(floats(&tensors[2]), before[2]);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fitting(&path);
    let (mut vars, tensors) = store();
    let mut options = VarOptions::default();
    let cut = path.clone();
    // Behind the header's check: the file shrinks when the read has begun.
    options.load.rename = Some(Arc::new(move |name| {
        let file = std::fs::OpenOptions::new().write(true).open(&cut).unwrap();
        file.set_len(file.metadata().unwrap().len().min(250))
            .unwrap();
        name.to_owned()
    }));
    let error = vars.load_checkpoint(&path, &options).unwrap_err();
    assert!(
        matches!(error.code(), Code::FileTruncated | Code::FileChanged),
        "{error}"
    );
    assert_eq!(floats(&tensors[0].detach()), [0.; 6]);
    assert_eq!(floats(&tensors[1].detach()), [1.; 3]);
}

#[rstest]
fn kinds_are_the_variables_or_the_checkpoints(
    #[values(How::Load, How::Adopt, How::AdoptMapped)] how: How,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let halves: Vec<u8> = (0..6)
        .flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes())
        .collect();
    let brains: Vec<u8> = (0..3)
        .flat_map(|i| half::bf16::from_f32(1.5 + i as f32).to_le_bytes())
        .collect();
    write(
        &path,
        &[
            ("layer.w", Stored::F16, &[2, 3], &halves),
            ("layer.b", Stored::BF16, &[3], &brains),
            ("steps", Stored::F32, &[2], &numbers("steps", 2)),
        ],
    );
    let (mut vars, tensors) = store();
    let report = apply(how, &mut vars, &path, &VarOptions::default()).unwrap();
    assert_eq!(report.cast.len(), 2);
    assert_eq!(tensors[0].kind(), Kind::Float);
    assert_eq!(floats(&tensors[0].detach()), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(floats(&tensors[1].detach()), [1.5, 2.5, 3.5]);

    let options = VarOptions {
        kinds: Kinds::Checkpoint,
        ..VarOptions::default()
    };
    let report = apply(how, &mut vars, &path, &options).unwrap();
    assert!(report.cast.is_empty());
    assert_eq!(tensors[0].kind(), Kind::Half);
    assert_eq!(tensors[1].kind(), Kind::BFloat16);
    assert!(tensors[0].requires_grad());
    assert_eq!(bytes(&tensors[1].detach()), brains);
}

#[rstest]
fn integers_never_become_a_trainable_variable(
    #[values(How::Load, How::Adopt, How::AdoptMapped)] how: How,
    #[values(Kinds::Variable, Kinds::Checkpoint)] kinds: Kinds,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(
        &path,
        &[
            ("layer.w", Stored::I64, &[2, 3], &pattern(Stored::I64, 48)),
            ("layer.b", Stored::F32, &[3], &numbers("b", 3)),
            ("steps", Stored::F32, &[2], &numbers("steps", 2)),
        ],
    );
    let (mut vars, tensors) = store();
    let options = VarOptions {
        kinds,
        ..VarOptions::default()
    };
    let error = apply(how, &mut vars, &path, &options).unwrap_err();
    assert_eq!(
        (error.code(), error.tensor()),
        (Code::DtypeMismatch, Some("layer.w"))
    );
    assert_eq!(floats(&tensors[1].detach()), [1.; 3], "all or nothing");
}

#[test]
fn names_change_on_the_way_out_and_in() {
    let folder = tempfile::tempdir().unwrap();
    let (vars, _) = store();
    let path = folder.path().join("model");
    let report = vars.save_checkpoint_as(&path, &cached(), |name| format!("model.{name}"));
    assert_eq!(report.unwrap().files.len(), 1);
    let saved = load(&path, CPU).unwrap();
    let mut names: Vec<_> = saved.keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["model.layer.b", "model.layer.w", "model.steps"]);

    let (mut vars, tensors) = store();
    let _ = tch::no_grad(|| tensors[1].shallow_clone().fill_(5));
    let mut options = VarOptions::default();
    options.load.rename = Some(Arc::new(|name| name.replace("model.", "")));
    let report = vars.load_checkpoint(&path, &options).unwrap();
    assert!(report.is_exact());
    assert_eq!(floats(&tensors[1].detach()), [1.; 3]);

    let error = vars
        .save_checkpoint_as(&path, &cached(), |_| "same".to_owned())
        .unwrap_err();
    assert!(error.problems().is_empty());
    assert_eq!(error.code(), Code::NameCollision);
}

#[test]
fn names_with_bars_are_found_for_names_with_dots() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (mut vars, tensors) = store();
    // As `VarStore::save` spells them in libtorch's own format.
    write_floats(
        &path,
        &[
            ("layer|w", &[2, 3]),
            ("layer|b", &[3]),
            ("layer.b", &[3]),
            ("steps", &[2]),
        ],
    );
    let report = vars.load_checkpoint(&path, &VarOptions::default()).unwrap();
    assert_eq!(report.unused, ["layer|b"], "its own name comes first");
    let stored = load(&path, CPU).unwrap();
    assert_eq!(floats(&tensors[0].detach()), floats(&stored["layer|w"]));
    assert_eq!(floats(&tensors[1].detach()), floats(&stored["layer.b"]));
}

#[rstest]
fn an_alias_in_the_checkpoint_does_not_tie_variables(
    #[values(How::Load, How::Adopt, How::AdoptMapped)] how: How,
) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let shared = Tensor::arange(6, (Kind::Float, CPU));
    let tied = [
        ("embed", shared.shallow_clone()),
        ("head", shared.shallow_clone()),
    ];
    safeshard_tch::save_with(tied, &path, &cached()).unwrap();
    let mut vars = VarStore::new(CPU);
    let embed = vars.root().zeros("embed", &[6]);
    let head = vars.root().zeros("head", &[6]);
    apply(how, &mut vars, &path, &VarOptions::default()).unwrap();
    let _ = tch::no_grad(|| embed.shallow_clone().fill_(9));
    assert_eq!(floats(&head.detach()), floats(&shared));
}

#[test]
fn a_frozen_store_stays_frozen_and_its_variables_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (mut vars, tensors) = store();
    vars.freeze();
    vars.save_checkpoint(&path, &cached()).unwrap();
    vars.adopt_checkpoint(&path, &VarOptions::default())
        .unwrap();
    assert!(!tensors[0].requires_grad());
    vars.unfreeze();
    assert!(tensors[0].requires_grad());
}
