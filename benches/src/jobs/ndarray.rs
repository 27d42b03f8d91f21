//! Checkpoints as ndarray's arrays, beside the other crates that read and write arrays.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use ndarray::{Array2, ArrayD, ArrayView2, Ix2};
use ndarray_npy::{ViewNpyExt, read_npy, write_npy};
use ndarray_safetensors::{
    TensorViewWithDataBuffer, parse_bf16_tensor_view_data, parse_tensor_view_data,
};
use safeshard::ndarray::{CheckpointExt, DynArray, load, load_with, save_with};
use safeshard::{
    Checkpoint, Dtype, Durability, Io, LoadOptions, OpenOptions, SaveOptions, ShardSize,
};
use safetensors_0_5::SafeTensors;
use safetensors_0_5::tensor::TensorView;

use super::common::{GIB, owned, shapes, threads};
use super::save::{fresh_folder, saved};
use crate::Result;
use crate::data::{Dataset, files};
use crate::digest::Digest;
use crate::job::{Cache, Contender, Job, Opens, Prepared, Product, Target};

pub(super) const VIEWS: Job = Job {
    name: "ndarray-views",
    title: "Views of 1 GiB of arrays",
    about: "16 matrices in F32, 1 GiB: opening the file and making a view of every matrix. ndarray-npy \
            views mapped `.npy` files, one a matrix; ndarray-safetensors has no views, so it copies.",
    data: Dataset::Matrices,
    cache: Cache::Warm,
    touch: 2 * GIB,
    samples_times: 3,
    opens: Opens::Ignored,
    contenders: &[
        Contender::ours("safeshard", "safeshard `view`", views),
        Contender::rival("npy", "ndarray-npy `view_npy`, mapped", npy_views),
        Contender::rival(
            "ndarray-safetensors",
            "ndarray-safetensors `parse_tensor_view_data`, mapped",
            theirs,
        ),
    ],
    targets: &[
        Target::time("safeshard", "npy", 1.0, 0.5),
        Target::time("safeshard", "ndarray-safetensors", 0.01, 0.002),
        Target::extra_memory("safeshard", 4.0, 1.0),
    ],
};

pub(super) const SMALL_VIEWS: Job = Job {
    name: "ndarray-views-small",
    title: "Views of 16 MiB of arrays",
    about: "The same with matrices that are 64 times smaller: views take the same time.",
    data: Dataset::SmallMatrices,
    touch: GIB,
    targets: &[Target::extra_memory("safeshard", 4.0, 1.0)],
    ..VIEWS
};

pub(super) const LOAD: Job = Job {
    name: "ndarray-load-f32",
    title: "1 GiB of arrays, each in memory of its own",
    about: "The same matrices as arrays that own their elements. ndarray-safetensors, with its default \
            features, parses a mapping; ndarray-npy reads `.npy` files, one a matrix.",
    touch: 3 * GIB,
    samples_times: 1,
    contenders: &[
        Contender::ours("safeshard-2", "safeshard, 2 threads", |path| {
            ours(path, threads(2))
        }),
        Contender::ours("safeshard-1", "safeshard, 1 thread", |path| {
            ours(path, threads(1))
        }),
        Contender::rival(
            "ndarray-safetensors",
            "ndarray-safetensors `parse_tensor_view_data`",
            theirs,
        ),
        Contender::rival("npy", "ndarray-npy `read_npy`", npy),
    ],
    targets: &[
        Target::time("safeshard-2", "ndarray-safetensors", 0.25, 0.15),
        Target::time("safeshard-2", "npy", 0.50, 0.30),
        Target::memory("safeshard-2"),
    ],
    ..VIEWS
};

pub(super) const LOAD_BF16: Job = Job {
    name: "ndarray-load-bf16",
    title: "1 GiB of BF16 as arrays of `f32`",
    about: "16 matrices in BF16, 1 GiB, as 2 GiB of arrays of `f32`: ndarray-safetensors has no other \
            way to load them. Beside it, the same numbers as arrays of `bf16`.",
    data: Dataset::Bf16Matrices,
    touch: 4 * GIB,
    contenders: &[
        Contender::ours("safeshard-2", "safeshard, 2 threads", |path| {
            ours(path, as_f32(threads(2)))
        }),
        Contender::ours(
            "safeshard-bf16",
            "safeshard, as `bf16`, 2 threads",
            |path| ours(path, threads(2)),
        ),
        Contender::rival(
            "ndarray-safetensors",
            "ndarray-safetensors `parse_bf16_tensor_view_data`",
            theirs_of_bf16,
        ),
    ],
    targets: &[
        Target::time("safeshard-2", "ndarray-safetensors", 0.25, 0.15),
        Target::time("safeshard-bf16", "ndarray-safetensors", 0.25, 0.15),
        Target::memory("safeshard-2"),
    ],
    ..LOAD
};

pub(super) const SAVE: Job = Job {
    name: "ndarray-save",
    title: "Saving 1 GiB of arrays",
    about: "The matrices in F32 from memory into one new file, in the page cache when it returns. \
            ndarray-safetensors copies all arrays before anything is written; ndarray-npy writes a file \
            a matrix.",
    touch: 3 * GIB,
    contenders: &[
        Contender::ours("safeshard", "`safeshard::ndarray::save`", ours_saved),
        Contender::rival(
            "ndarray-safetensors",
            "ndarray-safetensors + `serialize_to_file`",
            theirs_saved,
        ),
        Contender::rival("npy", "ndarray-npy `write_npy`", npy_saved),
    ],
    targets: &[
        Target::time("safeshard", "ndarray-safetensors", 0.50, 0.35),
        Target::extra_memory("safeshard", 4.0, 1.0),
    ],
    ..LOAD
};

fn views(path: &Path) -> Result<Prepared> {
    let (path, shapes) = (owned(path), shapes(&files(path)?)?);
    Ok(Box::new(move || {
        // SAFETY: nobody writes to the generated files once they have their name.
        let io = unsafe { Io::mmap() };
        let options = OpenOptions {
            io,
            ..OpenOptions::default()
        };
        let checkpoint = Checkpoint::open_with(path, &options)?;
        for (name, shape) in &shapes {
            let view = checkpoint.view::<f32, Ix2>(name)?;
            expect_shape(view.shape(), shape)?;
        }
        Ok(Box::new(move || {
            let views = shapes.iter().map(|(name, _)| {
                let view = checkpoint.view::<f32, Ix2>(name)?;
                Ok((name, view))
            });
            let views = views.collect::<Result<Vec<_>>>()?;
            let elements = views.iter().map(|(name, view)| {
                let elements = view.as_slice().unwrap_or_default();
                (name.as_str(), view.shape(), elements)
            });
            Ok(Digest::of_arrays(elements))
        }))
    }))
}

fn npy_views(path: &Path) -> Result<Prepared> {
    let files = npy_files(path)?;
    Ok(Box::new(move || {
        let mut mapped = Vec::new();
        for (name, file, shape) in files {
            // SAFETY: nobody writes to the generated files once they have their name.
            let map = unsafe { Mmap::map(&File::open(file)?) }?;
            expect_shape(ArrayView2::<f32>::view_npy(&map)?.shape(), &shape)?;
            mapped.push((name, map));
        }
        Ok(Box::new(move || {
            let views = mapped.iter().map(|(name, map)| {
                let view = ArrayView2::<f32>::view_npy(map)?;
                Ok((name, view))
            });
            let views = views.collect::<Result<Vec<_>>>()?;
            let elements = views.iter().map(|(name, view)| {
                let elements = view.as_slice().unwrap_or_default();
                (name.as_str(), view.shape(), elements)
            });
            Ok(Digest::of_arrays(elements))
        }))
    }))
}

fn expect_shape(found: &[usize], expected: &[usize]) -> Result {
    if found == expected {
        return Ok(());
    }
    Err(format!("a view has the shape {found:?}").into())
}

fn as_f32(options: LoadOptions) -> LoadOptions {
    LoadOptions {
        read: options.read,
        ..LoadOptions::floats_as(Dtype::F32)
    }
}

fn ours(path: &Path, options: LoadOptions) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let (arrays, _report) = load_with(path, &options)?;
        Ok(Box::new(move || {
            let arrays = arrays.into_iter().map(|(name, array)| {
                let array: ArrayD<f32> = array.cast::<f32>()?.try_into()?;
                Ok((name, array))
            });
            Ok(digest(&arrays.collect::<Result<Vec<_>>>()?))
        }))
    }))
}

fn npy(path: &Path) -> Result<Prepared> {
    let files = npy_files(path)?;
    Ok(Box::new(move || {
        let mut arrays: Vec<(String, ArrayD<f32>)> = Vec::new();
        for (name, file, _) in files {
            arrays.push((name, read_npy::<_, Array2<f32>>(file)?.into_dyn()));
        }
        Ok(Box::new(move || Ok(digest(&arrays))))
    }))
}

fn digest(arrays: &[(String, ArrayD<f32>)]) -> Digest {
    Digest::of_arrays(arrays.iter().map(|(name, array)| {
        let elements = array.as_slice().unwrap_or_default();
        (name.as_str(), array.shape(), elements)
    }))
}

/// An array of the ndarray that ndarray-safetensors has.
type Theirs = ndarray_0_16::ArrayD<f32>;

fn theirs(path: &Path) -> Result<Prepared> {
    parsed(path, |view| Ok(parse_tensor_view_data(view)?))
}

fn theirs_of_bf16(path: &Path) -> Result<Prepared> {
    parsed(path, |view| Ok(parse_bf16_tensor_view_data(view)?))
}

/// As the crate's own examples load a file.
fn parsed(path: &Path, parse: fn(&TensorView<'_>) -> Result<Theirs>) -> Result<Prepared> {
    let path = owned(path);
    Ok(Box::new(move || {
        let arrays = load_theirs(&path, parse)?;
        let product: Product = Box::new(move || {
            let arrays = arrays.iter().map(|(name, array)| {
                let elements = array.as_slice().unwrap_or_default();
                (name.as_str(), array.shape(), elements)
            });
            Ok(Digest::of_arrays(arrays))
        });
        Ok(product)
    }))
}

fn load_theirs(
    path: &Path,
    parse: fn(&TensorView<'_>) -> Result<Theirs>,
) -> Result<Vec<(String, Theirs)>> {
    // SAFETY: nobody writes to the generated files once they have their name.
    let map = unsafe { Mmap::map(&File::open(path)?) }?;
    let tensors = SafeTensors::deserialize(&map)?;
    let arrays = tensors
        .iter()
        .map(|(name, view)| Ok((name.to_owned(), parse(&view)?)));
    arrays.collect()
}

fn ours_saved(path: &Path) -> Result<Prepared> {
    let arrays: Vec<(String, DynArray)> = load(path)?.into_iter().collect();
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        let options = SaveOptions {
            max_shard_size: ShardSize::UNLIMITED,
            durability: Durability::Cached,
            ..SaveOptions::default()
        };
        let borrowed = arrays.iter().map(|(name, array)| (name, array));
        save_with(borrowed, &folder, &options)?;
        Ok(saved(folder, arrays))
    }))
}

fn theirs_saved(path: &Path) -> Result<Prepared> {
    let arrays = load_theirs(path, |view| Ok(parse_tensor_view_data(view)?))?;
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        let copies = arrays
            .iter()
            .map(|(name, array)| (name, TensorViewWithDataBuffer::new(array)));
        let file = folder.join("model.safetensors");
        safetensors_0_5::serialize_to_file(copies, &None, &file)?;
        Ok(saved(folder, arrays))
    }))
}

fn npy_saved(path: &Path) -> Result<Prepared> {
    let mut arrays: Vec<(String, Array2<f32>)> = Vec::new();
    for (name, file, _) in npy_files(path)? {
        arrays.push((name, read_npy(file)?));
    }
    let folder = fresh_folder(path)?;
    Ok(Box::new(move || {
        for (name, array) in &arrays {
            write_npy(folder.join(name), array)?;
        }
        Ok(Box::new(move || {
            let names = arrays.into_iter().map(|(name, _)| name);
            let read = names.map(|name| {
                let array: Array2<f32> = read_npy(folder.join(&name))?;
                Ok((name, array.into_dyn()))
            });
            Ok(digest(&read.collect::<Result<Vec<_>>>()?))
        }))
    }))
}

/// Name, file and shape of each matrix of a safetensors file as `.npy`; they are made beside it unless they
/// are there, and are in the page cache afterwards.
fn npy_files(path: &Path) -> Result<Vec<(String, PathBuf, Vec<usize>)>> {
    let folder = path.with_extension("npy");
    if !folder.exists() {
        let partial = path.with_extension("npy-partial");
        fs::create_dir_all(&partial)?;
        for (name, array) in load(path)? {
            let array: Array2<f32> = array.try_into()?;
            write_npy(partial.join(name), &array)?;
        }
        fs::rename(&partial, &folder)?;
    }
    let files = shapes(&files(path)?)?.into_iter().map(|(name, shape)| {
        let file = folder.join(&name);
        std::io::copy(&mut File::open(&file)?, &mut std::io::sink())?;
        Ok((name, file, shape))
    });
    files.collect()
}
