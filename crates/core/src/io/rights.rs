//! Who may read and write a file: kept where a file is replaced, as far as the system lets us, and never
//! more than that.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{
    XattrFlags, fremovexattr, fsetxattr, getxattr, getxattr_query, listxattr, listxattr_query,
};
use rustix::io::Errno;

use super::source::{describe, open_error};
use crate::error::{Code, Error, Result};

/// Where Linux keeps the access control list of a file.
const ACL: &CStr = c"system.posix_acl_access";

/// Attributes that go from a replaced file to the new one: what people and programs noted, and who may
/// read it by the labels of a security module. None of them is about the contents.
const KEPT: [&str; 3] = ["user.", "security.selinux", "security.SMACK64"];

/// The longest value of an attribute that Linux has, in bytes.
const LONGEST: usize = 64 << 10;

const ALL: u32 = 0o777;
const OWNER: u32 = 0o700;
const OTHERS_READ: u32 = 0o004;

/// Who may read and write a new file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Everybody whom the process's umask and the folder allow.
    New,
    /// Those who may read and write the file that is replaced.
    Kept(Kept),
    /// Of those whom umask and folder allow, the ones who may read another file, which it copies.
    Within(Kept),
}

/// The rights of a file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The mode's lower nine bits.
    pub(crate) mode: u32,
    owner: u32,
    group: u32,
    acl: Option<Vec<u8>>,
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Rights {
    /// Those for what will be saved at `path`, where there may be a file already, or a link to one.
    ///
    /// # Errors
    /// `not-a-regular-file` where there is something else, which a save must not replace.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let found = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => {
                return Ok(Self::Kept(Kept {
                    mode: metadata.mode() & ALL,
                    owner: metadata.uid(),
                    group: metadata.gid(),
                    acl: attribute(path, ACL),
                    attributes: attributes(path),
                }));
            }
            Ok(metadata) => describe(&metadata),
            // A link that leads nowhere is replaced like any other.
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT | Errno::LOOP) => return Ok(Self::New),
                _ => return Err(open_error(error).at_path(path)),
            },
        };
        Err(Error::new(Code::NotRegularFile)
            .at_path(path)
            .found(found)
            .help("save under another name"))
    }

    /// Those of whoever has the one and the other.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::New, rights) | (rights, Self::New) => rights,
            (Self::Kept(one), Self::Kept(other)) => Self::Kept(one.and(other)),
            (Self::Within(one) | Self::Kept(one), Self::Within(other) | Self::Kept(other)) => {
                Self::Within(one.and(other))
            }
        }
    }

    /// Those for a copy in another place: never more than here, and no more than a new file has there.
    pub(crate) fn of_a_copy(self) -> Self {
        match self {
            Self::Kept(kept) => Self::Within(kept),
            rights => rights,
        }
    }

    /// Those of a file of another kind that comes into the place of this one: notes are not about it.
    pub(crate) fn without_notes(mut self) -> Self {
        if let Self::Kept(kept) | Self::Within(kept) = &mut self {
            kept.attributes.clear();
        }
        self
    }

    /// The bits with which the file is made: at no time more than it will have.
    pub(super) fn at_first(&self) -> u32 {
        match self {
            Self::New => 0o666,
            Self::Kept(kept) => kept.mode & 0o600,
            Self::Within(kept) => kept.within() & 0o666,
        }
    }

    /// Gives a file that was made with [`Rights::at_first`] the rest. What is refused leaves it with fewer
    /// rights, never with more.
    pub(super) fn give_to(&self, file: &File) {
        match self {
            Self::New => {}
            Self::Kept(kept) => kept.give_to(file),
            Self::Within(kept) => kept.limit(file),
        }
    }
}

impl Kept {
    fn and(self, other: Self) -> Self {
        let is_like = self.owner == other.owner
            && self.group == other.group
            && self.acl == other.acl
            && (self.acl.is_none() || self.mode == other.mode);
        Self {
            // Whom the bits mean differs: nobody but the owner is sure to have both.
            mode: self.mode & other.mode & if is_like { ALL } else { OWNER },
            acl: self.acl.filter(|_| is_like),
            attributes: Vec::new(),
            ..self
        }
    }

    fn give_to(&self, file: &File) {
        let Ok(now) = file.metadata() else {
            return;
        };
        let is_owned = now.uid() == self.owner || fchown(file, Some(self.owner), None).is_ok();
        let has_group = now.gid() == self.group || fchown(file, None, Some(self.group)).is_ok();
        let mode = match &self.acl {
            None if has_no_acl(file) => self.mode,
            // As long as the group has nothing, no other entry has.
            None => self.mode & OWNER,
            Some(acl) if is_owned && has_group && set(file, ACL, acl).is_ok() => self.mode,
            Some(_) => {
                let _has_none = has_no_acl(file);
                self.mode & OWNER
            }
        };
        let mode = shrunk(mode, is_owned, has_group);
        // Where it is refused, the bits of the beginning stay, which are no more than these.
        let _refused = file.set_permissions(Permissions::from_mode(mode));
        for (name, value) in &self.attributes {
            let _not_here = set(file, name, value);
        }
    }

    /// The bits of a copy, before anything is known of who will own it.
    fn within(&self) -> u32 {
        match self.acl {
            None => self.mode,
            Some(_) => self.mode & OWNER,
        }
    }

    fn limit(&self, file: &File) {
        let Ok(now) = file.metadata() else {
            return;
        };
        // What the folder hands down to its files may name anybody.
        let is_open = self.mode & OTHERS_READ != 0;
        let inherits = !is_open && !has_no_acl(file);
        let has_group = now.gid() == self.group;
        let mode = shrunk(now.mode() & ALL, true, has_group || is_open);
        let mode = mode & if inherits { OWNER } else { ALL };
        if mode != now.mode() & ALL {
            let _refused = file.set_permissions(Permissions::from_mode(mode));
        }
    }
}

/// A mode for another owner or group: whoever comes into another class has no more there than before.
fn shrunk(mode: u32, is_owned: bool, has_group: bool) -> u32 {
    let (owner, mut group, mut other) = (mode >> 6 & 7, mode >> 3 & 7, mode & 7);
    if !has_group {
        (group, other) = (group & other, group & other);
    }
    if !is_owned {
        (group, other) = (group & owner, other & owner);
    }
    owner << 6 | group << 3 | other
}

/// Takes what a folder handed down; whether the file has no list now.
fn has_no_acl(file: &File) -> bool {
    match fremovexattr(file, ACL) {
        Ok(()) => true,
        // Without one, or on a file system that has none.
        Err(errno) => {
            [Errno::NODATA, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS].contains(&errno)
        }
    }
}

fn set(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    Ok(fsetxattr(file, name, value, XattrFlags::empty())?)
}

fn attribute(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let len = getxattr_query(path, name).ok()?;
    let mut value = vec![0u8; len.min(LONGEST)];
    let len = getxattr(path, name, &mut value).ok()?;
    value.truncate(len);
    Some(value).filter(|value| !value.is_empty())
}

fn attributes(path: &Path) -> Vec<(CString, Vec<u8>)> {
    let len = listxattr_query(path).unwrap_or(0);
    let mut names = vec![0u8; len.min(LONGEST)];
    let len = listxattr(path, &mut names).unwrap_or(0);
    names.truncate(len);
    let names = names.split(|&byte| byte == 0);
    let kept = names.filter(|name| KEPT.iter().any(|kept| name.starts_with(kept.as_bytes())));
    let kept = kept.filter_map(|name| CString::new(name).ok());
    let kept = kept.filter_map(|name| attribute(path, &name).map(|value| (name, value)));
    kept.collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tempfile::tempdir;

    use super::super::publish::Stage;
    use super::*;

    const NAME: &str = "model.safetensors";

    /// Owner, others of the group `n` and the user `uid` with these rights, everybody else.
    fn acl(owner: u16, uid: u32, user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
        const NOBODY: u32 = u32::MAX;
        let entries = [
            (1, owner, NOBODY),
            (2, user, uid),
            (4, group, NOBODY),
            (16, mask, NOBODY),
            (32, other, NOBODY),
        ];
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            bytes.extend(u16::to_le_bytes(tag));
            bytes.extend(u16::to_le_bytes(rights));
            bytes.extend(u32::to_le_bytes(id));
        }
        bytes
    }

    /// What a file has that is staged to replace the one of this path.
    fn staged(path: &Path) -> Kept {
        let rights = Rights::at(path).unwrap();
        let (stage, file) = Stage::create(path.parent().unwrap(), NAME, &rights).unwrap();
        drop(file);
        match Rights::at(stage.path()).unwrap() {
            Rights::Kept(kept) => kept,
            rights => panic!("{rights:?}"),
        }
    }

    #[rstest]
    #[case::all_kept(0o640, true, true, 0o640)]
    #[case::another_group(0o640, true, false, 0o600)]
    #[case::another_group_of_an_open_file(0o664, true, false, 0o644)]
    #[case::a_group_that_was_shut_out(0o604, true, false, 0o600)]
    #[case::another_owner(0o640, false, true, 0o640)]
    #[case::an_owner_that_was_shut_out(0o066, false, true, 0o000)]
    #[case::neither(0o674, false, false, 0o644)]
    fn whoever_comes_into_another_class_has_no_more_there(
        #[case] mode: u32,
        #[case] is_owned: bool,
        #[case] has_group: bool,
        #[case] expected: u32,
    ) {
        assert_eq!(
            format!("{:o}", shrunk(mode, is_owned, has_group)),
            format!("{expected:o}")
        );
    }

    #[test]
    fn the_mode_is_that_of_the_file_before() {
        let folder = tempdir().unwrap();
        let path = folder.path().join(NAME);
        for mode in [0o600, 0o640, 0o444, 0o755, 0o000] {
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let rights = Rights::at(&path).unwrap();
            let (stage, file) = Stage::create(folder.path(), NAME, &rights).unwrap();
            assert_eq!(file.metadata().unwrap().mode() & 0o7777, mode);
            drop(stage);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn lists_notes_owner_and_group_are_those_of_the_file_before() {
        let folder = tempdir().unwrap();
        let path = folder.path().join(NAME);
        let file = File::create(&path).unwrap();
        // Where nobody may do that, they are kept as they are.
        let _not_root = fchown(&file, Some(1234), Some(5678));
        let list = acl(6, 4321, 4, 0, 4, 0);
        if set(&file, ACL, &list).is_err() || set(&file, c"user.note", b"mine").is_err() {
            eprintln!("WARNING: NOT TESTED: this file system has no lists or no attributes");
            return;
        }
        let Rights::Kept(before) = Rights::at(&path).unwrap() else {
            panic!("a file is there");
        };
        assert_eq!(before.acl.as_ref(), Some(&list));
        assert_eq!(
            before.attributes,
            [(c"user.note".to_owned(), b"mine".to_vec())]
        );
        assert_eq!(staged(&path), before);
    }

    #[test]
    fn what_a_folder_hands_down_gives_nobody_more_than_the_file_before() {
        let folder = tempdir().unwrap();
        let path = folder.path().join(NAME);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let handed_down = acl(7, 4321, 6, 6, 6, 4);
        let list = c"system.posix_acl_default";
        if set(&File::open(&folder).unwrap(), list, &handed_down).is_err() {
            eprintln!("WARNING: NOT TESTED: this file system has no lists");
            return;
        }
        let kept = staged(&path);
        assert_eq!((kept.mode, kept.acl), (0o640, None));
        // A new file gets what the folder hands down.
        let (stage, _file) = Stage::create(folder.path(), NAME, &Rights::New).unwrap();
        assert!(attribute(stage.path(), ACL).is_some());
        // But not a copy of one that only some could read.
        let copy = Rights::at(&path).unwrap().of_a_copy();
        let (stage, file) = Stage::create(folder.path(), NAME, &copy).unwrap();
        assert_eq!(attribute(stage.path(), ACL), None);
        assert_eq!(file.metadata().unwrap().mode() & 0o037, 0);
    }

    #[test]
    fn of_files_that_belong_to_different_people_only_the_owner_may_read_the_new_one() {
        let kept = |mode, group| {
            Rights::Kept(Kept {
                mode,
                owner: 1,
                group,
                acl: None,
                attributes: Vec::new(),
            })
        };
        assert_eq!(kept(0o664, 1).and(kept(0o640, 1)), kept(0o640, 1));
        assert_eq!(kept(0o664, 1).and(kept(0o664, 2)), kept(0o600, 1));
        assert_eq!(Rights::New.and(kept(0o664, 2)), kept(0o664, 2));
    }
}
