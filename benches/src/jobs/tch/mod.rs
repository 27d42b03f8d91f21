//! tch: loading, mapping, variables and saving. What runs needs libtorch and the feature `tch`, which
//! `cargo xtask bench` switches on where such a job is named; the declarations are always there.

#[cfg(not(feature = "tch"))]
mod absent;
#[cfg(feature = "tch")]
mod run;

#[cfg(not(feature = "tch"))]
use absent as run;

use super::common::GIB;
use crate::data::Dataset;
use crate::job::{Cache, Contender, Job, Opens, Target};

pub(super) const LOAD: Job = Job {
    name: "tch-load",
    title: "All tensors into tch",
    about: "Every tensor of a Llama of 2.1 GiB as a tch tensor in memory of its own. Python's \
            `load_file` only maps the file, so it is followed by `clone()`.",
    data: Dataset::Llama,
    cache: Cache::Warm,
    touch: 5 * GIB,
    samples_times: 1,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard-2", "safeshard, 2 threads", run::load),
        Contender::rival("tch", "`Tensor::read_safetensors`", run::read_safetensors),
        Contender::python(
            "python",
            "Python `load_file` + `clone`",
            "load_and_clone",
            &[],
        ),
    ],
    targets: &[
        Target::time("safeshard-2", "tch", 0.22, 0.18),
        Target::time("safeshard-2", "python", 0.90, 0.80),
        Target::memory("safeshard-2"),
    ],
};

pub(super) const MAP: Job = Job {
    name: "tch-map",
    title: "All tensors into tch, mapped",
    about: "The same tensors where they lie in the page cache. Python's `load_file` maps lazily too. \
            The floor is a private mapping of the file and nothing else.",
    touch: GIB,
    samples_times: 3,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::tch::map`", run::map),
        Contender::python("python", "Python `load_file`", "load_lazily", &[]),
        Contender::floor("floor", "floor: `mmap`", run::raw_map),
    ],
    targets: &[Target::time("safeshard", "python", 0.50, 0.30)],
    ..LOAD
};

pub(super) const MAP_TOUCHED: Job = Job {
    name: "tch-map-touched",
    title: "Mapped tensors, every page touched",
    about: "The same, and then one byte of every page is read.",
    touch: GIB,
    samples_times: 1,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::tch::map`", run::map_and_touch),
        Contender::floor("floor", "floor: `mmap`", run::raw_map_and_touch),
    ],
    targets: &[Target::time("safeshard", "floor", 1.10, 1.02)],
    ..LOAD
};

pub(super) const VAR_STORE: Job = Job {
    name: "tch-var-store",
    title: "A checkpoint into a `VarStore`",
    about: "BERT-large, 1.2 GiB in F32, into variables that are there. `VarStore::load` reads the file \
            and copies twice; `adopt_checkpoint` lets the variables have what was read.",
    data: Dataset::Bert,
    touch: 5 * GIB,
    contenders: &[
        Contender::ours("adopt", "`adopt_checkpoint`, 2 threads", run::adopt),
        Contender::ours("load", "`load_checkpoint`, 2 threads", run::load_variables),
        Contender::rival("tch", "`VarStore::load`", run::var_store_load),
    ],
    targets: &[Target::time("adopt", "tch", 0.20, 0.16)],
    ..LOAD
};

pub(super) const SAVE: Job = Job {
    name: "tch-save",
    title: "Saving tch's tensors",
    about: "The Llama of 2.1 GiB from memory into one new file, in the page cache when it returns.",
    touch: 5 * GIB,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::tch::save`", run::save),
        Contender::rival("tch", "`Tensor::write_safetensors`", run::write_safetensors),
    ],
    targets: &[
        Target::time("safeshard", "tch", 0.45, 0.40),
        Target::extra_memory("safeshard", 4.0, 1.0),
    ],
    ..LOAD
};
