//! The journal of a save: a hidden file that says what the save is about to change.
//!
//! It is there from before the first change that a reader can see until after the last one, so that
//! whoever finds it knows which of the files of the folder are the checkpoint, and the next save can
//! finish or undo what this one left; see [`commit`](super::commit). For `model.safetensors`, or the
//! index in its place, it is called `.model.safetensors.commit`:
//!
//! ```json
//! {
//!   "version": "1",
//!   "main": {"model.safetensors.index.json": "812 1767225600.000000000"},
//!   "stage": ".model.safetensors.index.json.0123456789abcdef.partial",
//!   "new": {"model-00001-of-00002.safetensors": "4096 1767225599.250000000", …},
//!   "superseded": {"model.safetensors": "8104 1735689600.000000000"}
//! }
//! ```
//!
//! Each file comes with its length and the time of its last change, which it keeps when it is renamed.
//! What has the name but not these is another file: of somebody who wrote here after the save was
//! killed, or of a copy of the folder. It is never removed, and what hangs on it does not hold.
//!
//! A journal is not trusted: whoever made the folder may have made it. It can name only safetensors
//! files below its folder and the indexes of its own checkpoint, and it can only choose between files
//! that a reader would have considered without it.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::locate::index_of;
use crate::checkpoint::shard_name::ShardName;
use crate::format::json::Cursor;
use crate::io::entry::{Entry, Mark, Presence};
use crate::io::publish::{JOURNAL_END, is_stage_name};
use crate::io::source::{FileSource, ReadAt, open_error, read_vec};
use crate::{Code, Error, Result};

const VERSION: &str = "1";

/// The longest journal that is read, in bytes: one of a hundred thousand shards.
const LONGEST: u64 = 16 << 20;

/// What a save is about to change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Journal {
    /// The file whose renaming is the commit: the index, or the single file.
    pub(super) main: Entry,
    /// What `main` is called until then.
    pub(super) stage: String,
    /// The files that get their names before `main`, and are nothing without it.
    pub(super) new: Vec<Entry>,
    /// The files that are of no use once `main` has its name.
    pub(super) superseded: Vec<Entry>,
}

/// How far the save came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// The old checkpoint is the one that counts.
    Pending,
    /// The new one is.
    Committed,
    /// Somebody else changed the folder since; the journal says nothing any more.
    Void,
}

impl Journal {
    /// The name of the journal of the checkpoint whose single file is, or would be, `single`.
    pub(crate) fn name(single: &str) -> String {
        format!(".{single}{JOURNAL_END}")
    }

    /// The single file of the checkpoint, if `name` is that of a journal.
    pub(crate) fn single_of(name: &str) -> Option<&str> {
        let single = name.strip_prefix('.')?.strip_suffix(JOURNAL_END)?;
        single.ends_with(".safetensors").then_some(single)
    }

    /// The journal in `folder` of the checkpoint of `single`, if there is one.
    ///
    /// # Errors
    /// `broken-journal`, `io`, with its path.
    pub(crate) fn read(folder: &Path, single: &str) -> Result<Option<Self>> {
        let path = folder.join(Self::name(single));
        let bytes = match read_unlinked(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.code() == Code::NotFound => return Ok(None),
            Err(error) => return Err(error.at_path(&path)),
        };
        let journal = Self::parse(&bytes, single);
        journal.map(Some).map_err(|error| error.at_path(&path))
    }

    fn parse(bytes: &[u8], single: &str) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| broken("bytes that are not UTF-8"))?;
        let mut parser = Parser {
            json: Cursor::new(text, 0, Code::BrokenJournal),
            single,
        };
        parser.document()
    }

    /// What [`Journal::read`] reads.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let marks = |entries: &[Entry]| -> Map<String, Value> {
            let marks = entries.iter();
            marks
                .map(|entry| (entry.name.clone(), json!(mark_text(entry.mark))))
                .collect()
        };
        let journal = json!({
            "version": VERSION,
            "main": marks(std::slice::from_ref(&self.main)),
            "stage": self.stage,
            "new": marks(&self.new),
            "superseded": marks(&self.superseded),
        });
        journal.to_string().into_bytes()
    }

    /// How far the save came.
    ///
    /// # Errors
    /// `io`.
    pub(crate) fn stand(&self, folder: &Path) -> Result<Stand> {
        // In this order: without a lock, the one may become the other in between, but never back.
        let staged = Entry {
            name: self.stage.clone(),
            mark: self.main.mark,
        };
        if staged.presence(folder)? == Presence::Same {
            return Ok(Stand::Pending);
        }
        Ok(match self.main.presence(folder)? {
            Presence::Same => Stand::Committed,
            Presence::Other | Presence::Gone => Stand::Void,
        })
    }

    /// Which of these files are not the checkpoint, or not any more.
    ///
    /// # Errors
    /// `io`.
    pub(crate) fn overruled(&self, folder: &Path, candidates: &[&str]) -> Result<Vec<String>> {
        let overruled = match self.stand(folder)? {
            Stand::Pending => &self.new,
            Stand::Committed => &self.superseded,
            Stand::Void => return Ok(Vec::new()),
        };
        let mut names = Vec::new();
        for entry in overruled {
            if candidates.contains(&entry.name.as_str())
                && entry.presence(folder)? != Presence::Other
            {
                names.push(entry.name.clone());
            }
        }
        Ok(names)
    }
}

/// The bytes of a regular file that is no link.
fn read_unlinked(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::symlink_metadata(path).map_err(open_error)?;
    if !metadata.is_file() {
        return Err(broken("not a regular file"));
    }
    let file = FileSource::open(path)?;
    if file.len() > LONGEST {
        let found = format_args!("{} bytes", file.len());
        return Err(broken(found).expected(format_args!("at most {LONGEST} bytes")));
    }
    read_vec(&file, 0, file.len())
}

struct Parser<'a> {
    json: Cursor<'a>,
    single: &'a str,
}

impl Parser<'_> {
    fn document(&mut self) -> Result<Journal> {
        let (mut version, mut main, mut stage) = (None, None, None);
        let (mut new, mut superseded) = (None, None);
        self.json.expect(b'{')?;
        let mut first = true;
        while let Some((key, offset)) = self.json.next_key(&mut first)? {
            let again = match &*key {
                "version" => version.replace(self.version()?).is_some(),
                "main" => main.replace(self.main()?).is_some(),
                "stage" => stage.replace(self.stage()?).is_some(),
                "new" => new.replace(self.entries()?).is_some(),
                "superseded" => superseded.replace(self.entries()?).is_some(),
                _ => return Err(broken(format_args!("the key {key:?}")).at_offset(offset)),
            };
            if again {
                return Err(broken(format_args!("`{key}` twice")).at_offset(offset));
            }
        }
        if self.json.peek().is_some() {
            return Err(self.json.unexpected("nothing behind the journal"));
        }
        let missing = || broken("an incomplete one");
        version.ok_or_else(missing)?;
        Ok(Journal {
            main: main.ok_or_else(missing)?,
            stage: stage.ok_or_else(missing)?,
            new: new.ok_or_else(missing)?,
            superseded: superseded.ok_or_else(missing)?,
        })
    }

    fn version(&mut self) -> Result<()> {
        let version = self.json.string()?;
        if version == VERSION {
            return Ok(());
        }
        let error = broken(format_args!("version {version:?}"));
        Err(error.expected(format_args!("version {VERSION}")))
    }

    fn main(&mut self) -> Result<Entry> {
        let entries = self.entries()?;
        let [main] = <[Entry; 1]>::try_from(entries)
            .map_err(|entries| broken(format_args!("{} main files", entries.len())))?;
        if main.name == self.single || self.is_index(&main.name) {
            return Ok(main);
        }
        Err(broken(format_args!("{:?} as the main file", main.name)))
    }

    fn stage(&mut self) -> Result<String> {
        let name = self.json.string()?;
        if is_stage_name(&name) && !name.contains('/') {
            return Ok(name.into_owned());
        }
        Err(broken(format_args!("{name:?} as the stage")))
    }

    fn entries(&mut self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.json.expect(b'{')?;
        let mut first = true;
        while let Some((name, offset)) = self.json.next_key(&mut first)? {
            if !self.is_index(&name)
                && let Err(error) = ShardName::parse(&name)
            {
                return Err(error.recode(Code::BrokenJournal).at_offset(offset));
            }
            let text = self.json.string()?;
            let mark = parse_mark(&text)
                .ok_or_else(|| broken(format_args!("{text:?}")).at_offset(offset))?;
            entries.push(Entry {
                name: name.into_owned(),
                mark,
            });
        }
        Ok(entries)
    }

    /// Whether a name is that of an index of this checkpoint.
    fn is_index(&self, name: &str) -> bool {
        index_of(name).as_deref() == Some(self.single)
    }
}

fn mark_text(mark: Mark) -> String {
    let (seconds, nanoseconds) = mark.modified;
    format!("{} {seconds}.{nanoseconds:09}", mark.len)
}

fn parse_mark(text: &str) -> Option<Mark> {
    let (len, modified) = text.split_once(' ')?;
    let (seconds, nanoseconds) = modified.split_once('.')?;
    Some(Mark {
        len: len.parse().ok()?,
        modified: (seconds.parse().ok()?, nanoseconds.parse().ok()?),
    })
}

fn broken(found: impl Display) -> Error {
    Error::new(Code::BrokenJournal).found(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;
    use tempfile::{TempDir, tempdir};

    use super::*;

    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    const STAGE: &str = ".model.safetensors.index.json.0123456789abcdef.partial";

    fn entry(folder: &TempDir, name: &str) -> Entry {
        Entry::at(folder.path(), name).unwrap().unwrap()
    }

    /// A folder in which shards are about to replace a single file, and the journal of that.
    fn pending() -> (TempDir, Journal) {
        let folder = tempdir().unwrap();
        for (name, bytes) in [(STAGE, "index"), (SINGLE, "single"), ("a.safetensors", "a")] {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        let staged = entry(&folder, STAGE);
        let journal = Journal {
            main: Entry {
                name: INDEX.to_owned(),
                mark: staged.mark,
            },
            stage: STAGE.to_owned(),
            new: vec![entry(&folder, "a.safetensors")],
            superseded: vec![entry(&folder, SINGLE)],
        };
        (folder, journal)
    }

    fn rename(folder: &TempDir, from: &str, to: &str) {
        fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    }

    #[test]
    fn what_is_written_is_read() {
        let (folder, mut journal) = pending();
        journal.superseded.push(Entry {
            name: "sub/b.safetensors".to_owned(),
            mark: Mark {
                len: u64::MAX,
                modified: (-1, 999_999_999),
            },
        });
        let path = folder.path().join(Journal::name(SINGLE));
        assert_eq!(Journal::read(folder.path(), SINGLE).unwrap(), None);
        fs::write(path, journal.to_bytes()).unwrap();
        assert_eq!(Journal::read(folder.path(), SINGLE).unwrap(), Some(journal));
        assert_eq!(
            Journal::read(folder.path(), "other.safetensors").unwrap(),
            None
        );
    }

    #[test]
    fn names_of_journals() {
        assert_eq!(
            Journal::single_of(".model.safetensors.commit"),
            Some(SINGLE)
        );
        assert_eq!(
            Journal::single_of(&Journal::name("a.b.safetensors")),
            Some("a.b.safetensors")
        );
        for name in [
            ".git.commit",
            "model.safetensors.commit",
            ".model.safetensors",
            ".commit",
        ] {
            assert_eq!(Journal::single_of(name), None, "{name}");
        }
    }

    #[test]
    fn the_renaming_of_the_main_file_decides() {
        let (folder, journal) = pending();
        let stand = || journal.stand(folder.path()).unwrap();
        let overruled = |names: &[&str]| journal.overruled(folder.path(), names).unwrap();
        assert_eq!(stand(), Stand::Pending);
        assert_eq!(
            overruled(&[SINGLE, INDEX, "a.safetensors"]),
            ["a.safetensors"]
        );
        rename(&folder, STAGE, INDEX);
        assert_eq!(stand(), Stand::Committed);
        assert_eq!(overruled(&[SINGLE, INDEX]), [SINGLE]);
        assert!(overruled(&[INDEX]).is_empty());
        fs::remove_file(folder.path().join(SINGLE)).unwrap();
        assert_eq!(
            overruled(&[SINGLE]),
            [SINGLE],
            "removed since it was listed"
        );
        // Somebody saves a single file with other means.
        fs::write(folder.path().join(SINGLE), "another one").unwrap();
        assert!(overruled(&[SINGLE, INDEX]).is_empty());
        // Somebody replaces the index.
        fs::write(folder.path().join(INDEX), "another index").unwrap();
        assert_eq!(stand(), Stand::Void);
        assert!(overruled(&[SINGLE, INDEX]).is_empty());
        fs::remove_file(folder.path().join(INDEX)).unwrap();
        assert_eq!(stand(), Stand::Void);
    }

    /// With this in the place of `good`.
    fn text(good: &str, bad: &str) -> String {
        let mark = "4 1.000000000";
        let text = format!(
            r#"{{"version": "1", "main": {{"{INDEX}": "{mark}"}}, "stage": "{STAGE}",
                "new": {{"a.safetensors": "{mark}"}}, "superseded": {{"{SINGLE}": "{mark}"}}}}"#
        );
        Journal::parse(text.as_bytes(), SINGLE).unwrap();
        assert!(text.contains(good));
        text.replace(good, bad)
    }

    #[rstest]
    #[case::empty("")]
    #[case::not_json("no journal")]
    #[case::another_document("[]")]
    #[case::nothing_in_it("{}")]
    #[case::cut_off(&text(r#""}}"#, ""))]
    #[case::more_behind_it(&text(r#""}}"#, r#""}} 1"#))]
    #[case::another_version(&text(r#""1""#, r#""2""#))]
    #[case::a_number(&text(r#""1""#, "1"))]
    #[case::an_unknown_key(&text(r#""version""#, r#""x": "1", "version""#))]
    #[case::a_key_twice(&text(r#""version""#, r#""version": "1", "version""#))]
    #[case::no_stage(&text(r#""stage": "#, r#""new": {}, "x": "#))]
    #[case::a_stage_elsewhere(&text(STAGE, "./x/../y.safetensors.0123456789abcdef.partial"))]
    #[case::a_stage_that_is_none(&text(STAGE, "README.md"))]
    #[case::main_of_another_checkpoint(&text(INDEX, "other.safetensors.index.json"))]
    #[case::main_that_is_a_shard(&text(INDEX, "b.safetensors"))]
    #[case::main_elsewhere(&text(INDEX, "../model.safetensors.index.json"))]
    #[case::two_main_files(&text(r#""main": {"#, r#""main": {"model.safetensors": "1 1.0", "#))]
    #[case::no_main_file(&text(r#""main": {"model.safetensors.index.json": "4 1.000000000"}"#, r#""main": {}"#))]
    #[case::out_of_the_folder(&text("a.safetensors", "../a.safetensors"))]
    #[case::below_and_out(&text("a.safetensors", "x/../../a.safetensors"))]
    #[case::absolute(&text("a.safetensors", "/tmp/a.safetensors"))]
    #[case::no_safetensors_file(&text("a.safetensors", "config.json"))]
    #[case::a_hidden_end(&text("a.safetensors", r"a.safetensors\u0000"))]
    #[case::another_index(&text("a.safetensors", "other.safetensors.index.json"))]
    #[case::another_variants_index(&text("a.safetensors", "model.safetensors.index.fp16.json"))]
    #[case::an_index_elsewhere(&text("a.safetensors", "x/model.safetensors.index.json"))]
    #[case::no_mark(&text("4 1.000000000", ""))]
    #[case::half_a_mark(&text("4 1.000000000", "4"))]
    #[case::a_negative_length(&text("4 1.000000000", "-4 1.000000000"))]
    #[case::entries_in_a_list(&text(r#"{"a.safetensors": "4 1.000000000"}"#, r#"["a.safetensors"]"#))]
    #[case::deep(&format!(r#"{{"new": {}"#, "[".repeat(1 << 20)))]
    fn what_no_save_wrote_is_refused(#[case] text: &str) {
        let folder = tempdir().unwrap();
        let path = folder.path().join(Journal::name(SINGLE));
        fs::write(&path, text).unwrap();
        let error = Journal::read(folder.path(), SINGLE).unwrap_err();
        assert_eq!(error.code(), Code::BrokenJournal, "{error}");
        assert_eq!(error.path(), Some(&*path));
    }

    #[test]
    fn only_a_regular_file_of_some_size_is_read() {
        let folder = tempdir().unwrap();
        let path = folder.path().join(Journal::name(SINGLE));
        let refused = || {
            let error = Journal::read(folder.path(), SINGLE).unwrap_err();
            assert_eq!(error.code(), Code::BrokenJournal, "{error}");
            assert_eq!(error.path(), Some(&*path));
        };
        let good = folder.path().join("good");
        fs::write(&good, text("", "")).unwrap();
        for target in [&*good, Path::new("/dev/zero"), Path::new("nowhere")] {
            symlink(target, &path).unwrap();
            refused();
            fs::remove_file(&path).unwrap();
        }
        let mode = rustix::fs::Mode::RUSR;
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
        refused();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused();
        fs::remove_dir(&path).unwrap();
        fs::File::create(&path)
            .unwrap()
            .set_len(LONGEST + 1)
            .unwrap();
        refused();
    }
}
