//! The stable codes of errors: the one table of them.

/// Who is at fault.
///
/// Complete: whoever is at fault is one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The operating system refused a call.
    Io,
    /// A file breaks the rules of the format.
    Format,
    /// The files of a checkpoint do not fit together.
    Checkpoint,
    /// The caller asked for something that makes no sense.
    Usage,
    /// A bound of [`Limits`](crate::Limits) was reached.
    Limit,
    /// Legal, but not something this library or the framework can hold.
    Unsupported,
}

/// One line a code: its variant, its stable name, who is at fault, what it says, what to do.
macro_rules! codes {
    ($($variant:ident $name:literal $kind:ident $title:literal $advice:literal;)*) => {
        /// The stable name of every rule that can be broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = concat!("`", $name, "`: ", $title, ".")] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name that outputs, scripts and tests rely on; it never changes.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Who is at fault when this rule is broken.
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }

            /// The rule's message, without a place.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// What to do about it in general; may be empty.
            pub fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }
        }
    };
}

codes! {
    // The operating system
    Io "io" Io "the operating system refused" "";
    NotFound "not-found" Io "no such file or folder" "check the path";
    NotRegularFile "not-a-regular-file" Io "not a regular file" "pass a file, an index or a folder";
    FileChanged "file-changed" Io "the file changed while it was being read" "open the checkpoint again";
    // The file: from its first byte to its last
    HeaderTooShort "header-too-short" Format "the file ends inside the 8 bytes of the header's length" "the file is empty or was cut off: fetch it again";
    NotSafetensors "not-safetensors" Format "this is no safetensors file" "";
    HeaderTooLarge "header-too-large" Limit "the header is longer than the limit" "raise `Limits::header_bytes` if the file is trusted";
    HeaderTruncated "header-truncated" Format "the file ends inside the header" "the file was cut off: fetch it again";
    HeaderNotUtf8 "header-not-utf8" Format "the header is not UTF-8" "";
    HeaderStart "header-start" Format "the header does not begin with `{`" "";
    HeaderPadding "header-padding" Format "the header is padded with something other than spaces" "";
    HeaderNotObject "header-not-object" Format "the header is not a JSON object" "";
    JsonSyntax "json-syntax" Format "invalid JSON" "";
    JsonDepth "json-depth" Limit "JSON nested too deeply" "";
    MetadataType "metadata-type" Format "`__metadata__` must map strings to strings" "";
    EntryType "entry-type" Format "a tensor's entry must be an object" "";
    FieldMissing "field-missing" Format "a tensor's entry lacks a field" "";
    FieldType "field-type" Format "a field of a tensor's entry has the wrong type" "";
    FieldUnknown "field-unknown" Format "a tensor's entry has a field the format does not know" "";
    DuplicateKey "duplicate-key" Format "a JSON object has the same key twice" "";
    DuplicateTensor "duplicate-tensor" Format "the header names a tensor twice" "readers disagree on which one counts: write the file again";
    UnknownDtype "unknown-dtype" Format "unknown dtype" "";
    ShapeOverflow "shape-overflow" Format "the shape has more elements than 64 bits can count" "";
    SubByteRemainder "sub-byte-remainder" Format "the tensor does not end on a whole byte" "";
    OffsetsReversed "offsets-reversed" Format "data_offsets end before they begin" "";
    OffsetsOverflow "offsets-overflow" Format "data_offsets reach beyond what 64 bits can count" "";
    SizeMismatch "size-mismatch" Format "shape and dtype do not fill data_offsets" "";
    Hole "hole" Format "bytes before this tensor belong to no tensor" "";
    Overlap "overlap" Format "the tensor overlaps the one before it" "";
    FileTruncated "file-truncated" Format "the file ends before its tensors do" "the file was cut off: fetch it again";
    TrailingBytes "trailing-bytes" Format "the file goes on after its last tensor" "";
    // Limits
    LimitTensors "limit-tensors" Limit "more tensors than the limit" "raise `Limits::tensors` if the file is trusted";
    LimitName "limit-name" Limit "a name is longer than the limit" "raise `Limits::name_bytes` if the file is trusted";
    LimitRank "limit-rank" Limit "a shape has more dimensions than the limit" "raise `Limits::rank` if the file is trusted";
    LimitDimensions "limit-dimensions" Limit "the shapes would take more memory than the header" "";
    LimitMetadata "limit-metadata" Limit "`__metadata__` is longer than the limit" "raise `Limits::metadata_bytes` if the file is trusted";
    LimitIgnored "limit-ignored" Limit "unknown fields are longer than the limit" "raise `Limits::ignored_bytes` if the file is trusted";
    LimitIndex "limit-index" Limit "the index is longer than the limit" "raise `Limits::index_bytes` if the file is trusted";
    LimitShards "limit-shards" Limit "more shards than the limit" "raise `Limits::shards` if the index is trusted";
    LimitMemory "limit-memory" Limit "not enough memory" "free some, or work on fewer threads";
    // The index and the folder
    NoCheckpoint "no-checkpoint" Checkpoint "no safetensors checkpoint here" "";
    AmbiguousCheckpoint "ambiguous-checkpoint" Checkpoint "more than one checkpoint here" "pass the path of the one you mean";
    IndexMissing "index-missing" Checkpoint "shards without an index" "write one with `write_index`, or open the list of files";
    VariantMissing "variant-missing" Checkpoint "no such variant here" "";
    IndexSyntax "index-syntax" Checkpoint "the index is not valid JSON" "fetch it again";
    IndexType "index-type" Checkpoint "the index has a value of the wrong type" "";
    IndexNoMap "index-no-weight-map" Checkpoint "the index has no `weight_map`" "";
    IndexEmpty "index-empty" Checkpoint "the index maps no tensor" "";
    IndexDuplicate "index-duplicate" Checkpoint "the index names a tensor twice" "readers disagree on which one counts: write the index again";
    ShardName "shard-name" Checkpoint "the index names a file that it must not name" "";
    ShardMissing "shard-missing" Checkpoint "a shard is absent" "fetch the missing file";
    TensorNotInShard "tensor-not-in-shard" Checkpoint "the shard lacks a tensor that the index places in it" "";
    TensorMissing "tensor-missing" Checkpoint "no such tensor" "";
    DuplicateAcrossFiles "duplicate-across-files" Checkpoint "two of the files hold a tensor of the same name" "leave out the file that is not meant";
    SeveralProblems "several-problems" Checkpoint "the checkpoint has several problems" "";
    UnlistedTensor "unlisted-tensor" Checkpoint "the shard holds a tensor that the index does not place in it; it is not served" "";
    UnlistedFile "unlisted-file" Checkpoint "the folder holds a safetensors file that the checkpoint does not use" "";
    TotalSize "total-size" Checkpoint "`metadata.total_size` is not the size of the tensors" "";
    IndexMetadata "index-metadata" Checkpoint "the index's `metadata` is absent or not an object" "";
    IndexExtraKey "index-extra-key" Checkpoint "the index has a key that is not `metadata` or `weight_map`" "";
    QuantizedIncomplete "quantized-incomplete" Checkpoint "a quantised weight lacks what it is read with" "fetch the checkpoint again, or take the file that has it";
    QuantizedShape "quantized-shape" Checkpoint "a quantised weight and its scales do not fit together" "";
    // What the bytes of tensors say
    Nan "nan" Checkpoint "elements are not a number" "whatever is computed with them is not a number either";
    Infinity "infinity" Checkpoint "elements are infinite" "";
    AllZero "all-zero" Checkpoint "nothing but zeros" "";
    BoolValue "bool-value" Checkpoint "elements of BOOL are neither 0 nor 1" "";
    // What a manifest of digests says
    ManifestSyntax "manifest-syntax" Checkpoint "not a line of a manifest" "a line is a digest of 64 digits, two spaces and a name, as `sha256sum` writes it";
    ManifestName "manifest-name" Checkpoint "the manifest names a file outside the checkpoint's folder" "";
    DigestMissing "digest-missing" Checkpoint "the manifest names a file that is not there" "fetch the missing file";
    DigestMismatch "digest-mismatch" Checkpoint "these are not the bytes that the manifest vouches for" "fetch the file again";
    DigestUnlisted "digest-unlisted" Checkpoint "the manifest does not vouch for it" "";
    // Files of other formats: zip archives, pickles, and what torch keeps in them
    NotWeights "not-weights" Format "this is no file of weights that can be read here" "";
    ZipDirectory "zip-directory" Format "the directory of the zip archive is broken" "the file was cut off or changed: fetch it again";
    ZipEntry "zip-entry" Format "the zip archive says two things of one entry" "fetch the file again";
    ZipDuplicate "zip-duplicate" Format "the zip archive has an entry twice" "readers disagree on which one counts: write the file again";
    ZipOverlap "zip-overlap" Format "entries of the zip archive overlap" "";
    ZipMethod "zip-method" Unsupported "an entry of the zip archive is compressed" "pack it again without compression, as torch does";
    ZipEncrypted "zip-encrypted" Unsupported "an entry of the zip archive is encrypted" "";
    ZipChecksum "zip-checksum" Format "these are not the bytes that the zip archive vouches for" "fetch the file again";
    PickleTruncated "pickle-truncated" Format "the pickle ends before it is complete" "the file was cut off: fetch it again";
    PickleOpcode "pickle-opcode" Format "the pickle has an instruction that no file of weights needs" "";
    PickleProtocol "pickle-protocol" Format "the pickle has an unknown protocol" "";
    PickleStack "pickle-stack" Format "the pickle takes from its stack what is not there" "";
    PickleMemo "pickle-memo" Format "the pickle refers to what it has not named" "";
    PickleText "pickle-text" Format "the pickle has text that is none" "";
    PickleNumber "pickle-number" Format "the pickle has a number that is none" "";
    PickleType "pickle-type" Format "the pickle does to a value what cannot be done to it" "";
    PicklePersistent "pickle-persistent" Format "the pickle refers to something that is no storage" "";
    PickleCode "pickle-code" Format "loaded by Python, this pickle would run code; nothing was run" "get the file from somebody you trust; or read its weights with `PickledCode::Ignore`, which runs nothing either";
    PickleObject "pickle-object" Checkpoint "the pickle holds objects that were not made" "";
    LimitPickle "limit-pickle" Limit "the pickle is larger than the limit" "raise `ImportLimits` if the file is trusted";
    LimitExpansion "limit-expansion" Limit "tensors are larger than the bytes that they are views of" "raise `ImportLimits::expansion` if the file is trusted";
    TorchRoot "torch-root" Format "the archive must have one `data.pkl`" "";
    TorchByteorder "torch-byteorder" Format "unknown byte order" "";
    TorchVersion "torch-version" Format "unknown version of torch's files" "";
    TorchArguments "torch-arguments" Format "a tensor is described by arguments that make no sense" "";
    TorchDtype "torch-dtype" Unsupported "safetensors has no such dtype" "";
    TorchTensorKind "torch-tensor-kind" Unsupported "only dense tensors can be read" "";
    TorchscriptAttributes "torchscript-attributes" Checkpoint "a TorchScript module does not say which of its tensors are parameters: all are served" "";
    StorageMissing "storage-missing" Format "the bytes of a storage are absent" "";
    StorageSize "storage-size" Format "a storage is larger or smaller than declared" "";
    StorageRange "storage-range" Format "a tensor reaches beyond its storage" "";
    StorageDtype "storage-dtype" Format "a storage is declared in two ways" "";
    StorageDuplicate "storage-duplicate" Format "a storage is there twice" "";
    KeyMissing "key-missing" Usage "nothing with tensors is under this key" "";
    AmbiguousKey "ambiguous-key" Checkpoint "the file holds several sets of tensors" "say under which key the one you mean is";
    KeyType "key-type" Unsupported "a tensor is under a key that is no name" "";
    UnselectedTensor "unselected-tensor" Checkpoint "the file holds tensors under other keys; they are not served" "";
    // The caller's request
    SchemeNotBuiltIn "scheme-not-built-in" Usage "places with this scheme are not built in" "fetch the files and pass their path, or build with what reads such places";
    SliceRank "slice-rank" Usage "more ranges than the tensor has dimensions" "";
    SliceRange "slice-range" Usage "the range is not inside the dimension" "";
    SliceReversed "slice-reversed" Usage "the range ends before it begins" "";
    SliceStep "slice-step" Usage "the step of a range must be at least 1" "";
    SliceSubByte "slice-sub-byte" Unsupported "the slice does not fall on whole bytes" "";
    BufferSize "buffer-size" Usage "the destination has the wrong size" "";
    Cancelled "cancelled" Usage "cancelled" "";
    // Saving
    ReservedName "reserved-name" Usage "no tensor may have this name" "the format keeps `__metadata__` for itself";
    ShardSize "shard-size" Usage "not a size" "write it like `5GB`, `500 MiB`, `1.5GB` or as a number of bytes";
    ShardList "shard-list" Usage "the shards asked for do not hold every tensor once" "name each stored tensor once; of tied tensors only the one that is kept";
    CheckpointName "checkpoint-name" Usage "no checkpoint can be called that" "";
    MetadataClash "metadata-clash" Usage "one key of the metadata would have two values" "";
    TiedTensors "tied-tensors" Usage "tensors share their memory" "save them with `Ties::Dedup` or `Ties::Duplicate`";
    BrokenJournal "broken-journal" Checkpoint "the journal of an unfinished save cannot be read" "remove it if nobody is saving here; the folder may then hold two checkpoints";
    IndexedSingle "indexed-single" Checkpoint "the index of the checkpoint that is to be replaced counts the single file among its shards" "save in shards, or remove the index first";
    CacheRepository "cache-repository" Usage "a repository of the Hugging Face cache is read by its revisions: what is saved into it would not be found" "save into another folder";
    WouldBeLost "would-be-lost" Checkpoint "tensors would be lost that nobody asked to drop" "move them first, or save with `Losses::Accept`";
    OldCheckpointLeft "old-checkpoint-left" Io "a file of the old checkpoint could not be removed" "remove it";
    SideFileMissing "side-file-missing" Io "a file that goes along with the checkpoint did not get its name" "save again";
    SideFileKind "side-file-kind" Usage "a file beside the checkpoint cannot go along" "move it away, or do not copy files along";
    NotAManifest "not-a-manifest" Usage "what is there already is no manifest" "write to another name, or remove it first";
    NothingLeft "nothing-left" Usage "no tensor is left" "let the filter keep one";
    SideFileDiffers "side-file-differs" Usage "a file that is to be copied along is there already, and says something else" "remove it, or do not copy files along";
    TensorShort "tensor-short" Usage "the data are fewer bytes than dtype and shape say" "";
    TensorLong "tensor-long" Usage "the data are more bytes than dtype and shape say" "";
    // What a framework or a cast cannot do
    UnsupportedDtype "unsupported-dtype" Unsupported "the framework has no such dtype" "";
    QuantizedWeight "quantized-weight" Unsupported "the weight is quantised: its numbers mean nothing without their scales" "";
    QuantizedConfig "quantized-config" Usage "the configuration beside the checkpoint would still say that its weights are quantised" "write into another folder";
    QuantizedCompanion "quantized-companion" Unsupported "scales, zero points and tables of a quantised weight keep their dtype" "";
    UnsupportedCast "unsupported-cast" Unsupported "this cast is not offered" "";
    CastValue "cast-value" Unsupported "a value does not fit the target dtype" "";
    ShapeMismatch "shape-mismatch" Usage "the tensor has another shape than asked for" "";
    DtypeMismatch "dtype-mismatch" Usage "the tensor has another dtype than asked for" "";
    RankMismatch "rank-mismatch" Usage "the tensor has another number of dimensions than asked for" "";
    Misaligned "misaligned" Unsupported "the tensor does not lie where its elements can be used in place" "read it instead; files that this library saves are aligned";
    NotInMemory "not-in-memory" Usage "the tensor does not lie in memory" "read it, or open the checkpoint with `Io::mmap` or from bytes";
    EmptyName "empty-name" Usage "nothing would be left of the name" "change the rename rule";
    NameCollision "name-collision" Usage "two tensors would get the same name" "change the rename rule";
    Framework "framework" Unsupported "the framework refused" "";
}
