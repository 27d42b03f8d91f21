//! What the codes of findings mean, at more length than a finding has.

use std::io::{self, Write};

use safeshard_core::{Code, Kind};

use crate::output::{HEADING, Output};
use crate::words;

/// Writes what a code means, why it matters and what to do.
pub(crate) fn write(out: &mut Output, code: Code) -> io::Result<()> {
    let heading = out.style(HEADING);
    writeln!(
        out,
        "{heading}{}{heading:#}: {}",
        code.as_str(),
        code.title()
    )?;
    let why = why(code);
    if !why.is_empty() {
        writeln!(out, "\n{why}")?;
    }
    writeln!(out, "\n{}", fault(code.kind()))?;
    if !code.advice().is_empty() {
        writeln!(out, "What to do: {}.", words::of(code.advice()))?;
    }
    Ok(())
}

fn fault(kind: Kind) -> &'static str {
    match kind {
        Kind::Io => "The system answered this; the checkpoint may be fine.",
        Kind::Format => "The file breaks the rules of the format.",
        Kind::Checkpoint => "The files are readable, but they do not make a checkpoint to rely on.",
        Kind::Usage => "This is about what was asked for, not about the checkpoint.",
        Kind::Limit => "This is about a bound that protects the reader, not about the format.",
        Kind::Unsupported => "This is legal, but nothing that can be done here.",
    }
}

/// What a title is too short for.
fn why(code: Code) -> &'static str {
    match code {
        Code::HeaderTooShort => {
            "A safetensors file begins with 8 bytes that say how long its header is. This one has \
             not even those."
        }
        Code::NotSafetensors => {
            "The first bytes are those of another format, which is named: a pickle, a zip archive, \
             an HTML page that a download left, or the pointer that git-lfs puts in place of a file."
        }
        Code::HeaderTooLarge => {
            "Readers refuse headers of more than 100 MB, so that a few bytes cannot make them \
             allocate any amount of memory."
        }
        Code::HeaderTruncated | Code::FileTruncated => {
            "The file is shorter than it says it is. What is there may be right, but tensors at its \
             end are lost."
        }
        Code::HeaderNotUtf8 | Code::HeaderStart | Code::HeaderPadding | Code::HeaderNotObject => {
            "The header is JSON in UTF-8, an object that begins with its first byte, with nothing \
             but spaces behind it. Readers that are laxer read different things into other bytes."
        }
        Code::JsonSyntax | Code::IndexSyntax => "Nothing behind this byte can be trusted.",
        Code::MetadataType => {
            "Under `__metadata__`, the format allows strings only. Readers in other languages \
             refuse the file."
        }
        Code::EntryType | Code::FieldMissing | Code::FieldType | Code::FieldUnknown => {
            "A tensor is described by `dtype`, `shape` and `data_offsets`, and nothing else."
        }
        Code::DuplicateKey | Code::DuplicateTensor | Code::IndexDuplicate => {
            "One reader takes the first of the two, another one the last: the same file is two \
             different models."
        }
        Code::UnknownDtype => {
            "The format has 22 dtypes, and this is none of them. A newer writer may know it."
        }
        Code::ShapeOverflow | Code::OffsetsOverflow => {
            "Whoever multiplies or adds these numbers without looking gets a small one, and reads \
             past the end of memory."
        }
        Code::SubByteRemainder => {
            "Elements of 4 or 6 bits share bytes, and a tensor has to end where a byte does."
        }
        Code::OffsetsReversed | Code::SizeMismatch => {
            "Where a tensor begins and ends must fit how many bytes its shape and dtype need, or \
             readers take other bytes for its elements."
        }
        Code::Hole | Code::TrailingBytes => {
            "Bytes that belong to no tensor can hide anything: another file, code, a watermark."
        }
        Code::Overlap => {
            "Two tensors would share bytes, and a change of one would change the other."
        }
        Code::NoCheckpoint => {
            "Looked for were a single `.safetensors` file, or a `.safetensors.index.json` with its \
             shards."
        }
        Code::AmbiguousCheckpoint => {
            "A folder with two checkpoints gives each library another one: transformers takes \
             `model.safetensors`, huggingface_hub the index."
        }
        Code::IndexMissing => {
            "The files are called like shards, but nothing says which tensor is in which of them, or \
             whether any is missing."
        }
        Code::IndexType | Code::IndexNoMap | Code::IndexEmpty => {
            "An index has a `weight_map` that says for each tensor which shard it is in. Without it \
             there are no tensors."
        }
        Code::ShardName => {
            "A shard lies beside its index or below. A name that leads anywhere else, on any \
             platform, could make a reader open any file of the machine."
        }
        Code::ShardMissing | Code::TensorNotInShard => {
            "The index promises tensors that are not there. Some loaders go on with random numbers \
             in their place."
        }
        Code::DuplicateAcrossFiles => {
            "Which of the two counts would depend on the order in which the files are read."
        }
        Code::UnlistedTensor => {
            "The index decides. This tensor takes space and is never loaded; perhaps the index is \
             older than the shard."
        }
        Code::UnlistedFile => {
            "It takes space and is never loaded; perhaps it is left from an earlier save, or belongs \
             to another model."
        }
        Code::WouldBeLost => {
            "The files that would be replaced hold tensors that are not part of the checkpoint: its \
             index does not list them, or another index places them there. They exist nowhere else."
        }
        Code::TotalSize => {
            "Some loaders use this number for planning memory. Tied tensors, or shards that were \
             edited by hand, are the usual reasons."
        }
        Code::IndexMetadata | Code::IndexExtraKey => "Readers get along with it.",
        Code::QuantizedIncomplete => {
            "Numbers of a few bits mean nothing without the scales that they are multiplied by, and \
             readers that do not look for these take the numbers for the weight."
        }
        Code::QuantizedShape => {
            "Which scale belongs to which part of a weight follows from the two shapes. Where they do \
             not fit, one of the two is of another model."
        }
        Code::Nan | Code::Infinity => {
            "Training that diverged, or a cast to a dtype with a smaller range, leaves such numbers, \
             and one of them can spoil every output of a model. `offset` is the first one's place in \
             the file."
        }
        Code::AllZero => {
            "Usual for biases and for parameters that begin with zeros; for a large weight it may \
             mean that it was never written."
        }
        Code::BoolValue => {
            "Frameworks read any other byte as true, as false, or in ways that are not defined."
        }
        Code::ManifestSyntax => {
            "A manifest that is not understood as a whole would leave files unchecked."
        }
        Code::ManifestName => {
            "A manifest vouches for files beside it, not for others of the machine."
        }
        Code::DigestMismatch => {
            "Not a single bit may differ. The file was damaged, changed or replaced since its digest \
             was made."
        }
        Code::DigestMissing => "It may have been renamed, or never been fetched.",
        Code::DigestUnlisted => {
            "Nobody has said what these bytes should be; whoever put them there may have meant harm."
        }
        Code::DtypeMismatch | Code::ShapeMismatch => {
            "Of a manifest of tensors, each line says dtype and shape as well."
        }
        Code::BrokenJournal => {
            "While a checkpoint is saved, a hidden file says how far it came, so that readers and the \
             next save know which of two checkpoints counts."
        }
        Code::NotWeights => {
            "Python keeps anything in a pickle: this one has no tensors, at least not as torch keeps \
             them."
        }
        Code::ZipDirectory | Code::ZipEntry | Code::ZipDuplicate | Code::ZipOverlap => {
            "Since 1.6, torch keeps its files as zip archives. Of an archive that says two things, one \
             program reads the one and another the other: a scanner sees no harm where there is some."
        }
        Code::ZipChecksum => {
            "A single bit that changed on the way makes other weights. torch itself does not look."
        }
        Code::PickleTruncated
        | Code::PickleOpcode
        | Code::PickleProtocol
        | Code::PickleStack
        | Code::PickleMemo
        | Code::PickleText
        | Code::PickleNumber
        | Code::PickleType
        | Code::PicklePersistent => {
            "A pickle is a program for a small machine. torch does not write this one, and what other \
             readers make of it may differ."
        }
        Code::PickleCode => {
            "A pickle can name any callable of Python, to be called when it is loaded. This one names \
             one that no file of weights needs. Reading it here calls nothing."
        }
        Code::PickleObject => {
            "Objects of other classes than those of tensors and dicts are not made here. Whatever \
             tensors they hold in ways of their own are not served."
        }
        Code::TorchRoot
        | Code::TorchByteorder
        | Code::TorchVersion
        | Code::TorchArguments
        | Code::StorageDtype => "torch writes no such file, and reads none.",
        Code::TorchscriptAttributes => {
            "Which attributes of a TorchScript module are parameters stands in its code only, which is \
             not run."
        }
        Code::StorageMissing | Code::StorageSize | Code::StorageRange | Code::StorageDuplicate => {
            "Tensors are views of storages. One that reaches beyond its storage would read what \
             belongs to something else."
        }
        Code::AmbiguousKey => {
            "A file of torch can hold a model, its average over time, an optimiser: which of them is \
             meant is for you to say."
        }
        Code::UnselectedTensor => {
            "What is under a key such as `model` or `state_dict` was taken for the weights, and the \
             rest, such as an optimiser, left."
        }
        Code::FileChanged => "What was read before and after the change may not fit together.",
        Code::NotRegularFile => "A FIFO, a device or a socket would block, or never end.",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_a_file_or_a_checkpoint_is_explained() {
        let concerned = [Kind::Format, Kind::Checkpoint];
        let codes = Code::ALL
            .iter()
            .filter(|code| concerned.contains(&code.kind()));
        let own_words = codes.filter(|code| {
            // These come with the problem that they stand for.
            ![
                Code::SeveralProblems,
                Code::VariantMissing,
                Code::TensorMissing,
                Code::IndexedSingle,
            ]
            .contains(code)
        });
        for code in own_words {
            assert_ne!(why(*code), "", "{}", code.as_str());
        }
    }
}
