//! File names that an index may name.

use std::fmt;

use crate::error::{Code, Error, Result};

/// A file name from an index: relative, below the index's folder, and a safetensors file, on every
/// platform.
///
/// The rule is lexical, so that links work as the Hugging Face cache lays them out and nothing is
/// opened to find out. A name that any platform would read as leading elsewhere is refused on all.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ShardName(String);

impl ShardName {
    pub(crate) fn parse(name: &str) -> Result<Self> {
        match refusal(name) {
            None => Ok(Self(name.to_owned())),
            Some(reason) => Err(Error::new(Code::ShardName)
                .expected("the name of a .safetensors file below the index's folder")
                .found(format_args!("{name:?}: {reason}"))),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a name must not be followed, or `None`.
pub(crate) fn refusal(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.chars().any(char::is_control) {
        return Some("it has a control character");
    }
    if name.contains('\\') {
        return Some("a backslash separates folders on Windows");
    }
    if name.contains(':') {
        return Some("a colon names a drive, a stream or a URL");
    }
    let lower = name.to_ascii_lowercase();
    if ["%2e", "%2f", "%5c", "%00"]
        .iter()
        .any(|escape| lower.contains(escape))
    {
        return Some("percent escapes hide where it leads");
    }
    if let Some(reason) = name.split('/').find_map(component_refusal) {
        return Some(reason);
    }
    if !name.ends_with(".safetensors") {
        return Some("it does not end in .safetensors, and nothing else is opened");
    }
    None
}

fn component_refusal(component: &str) -> Option<&'static str> {
    /// Device names on Windows, in any folder and with any extension.
    const RESERVED: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
    let base = component.split('.').next().unwrap_or_default().trim_end();
    let base = base.to_ascii_lowercase();
    let numbered = |prefix| {
        let digit = base.strip_prefix(prefix).map(str::chars);
        digit.is_some_and(|mut rest| {
            matches!(rest.next(), Some('0'..='9' | '¹' | '²' | '³')) && rest.next().is_none()
        })
    };
    match component {
        "" => Some("it is absolute, or has an empty folder name"),
        "." | ".." => Some("it leads out of its folder or round about"),
        _ if component.ends_with([' ', '.']) => Some("Windows drops dots and spaces at the end"),
        _ if component.starts_with(' ') => Some("a space begins it"),
        _ if component.len() > 255 => Some("it is longer than file names are"),
        _ if component.contains(['<', '>', '"', '|', '?', '*']) => {
            Some("it has a wildcard or redirection")
        }
        _ if RESERVED.contains(&base.as_str()) || numbered("com") || numbered("lpt") => {
            Some("it is the name of a device on Windows")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_wild_are_allowed() {
        for name in [
            "model.safetensors",
            "model-00001-of-000004.safetensors",
            "model-00000-of-00002.safetensors",
            "model.fp16-00001-of-00002.safetensors",
            "sub/folder/x.safetensors",
            "mtp.safetensors",
            "out-00000.safetensors",
            "..model.safetensors",
            "模型-00001-of-00002.safetensors",
            "console.safetensors",
            "com.example.safetensors",
            "~model.safetensors",
        ] {
            ShardName::parse(name).unwrap();
        }
    }

    #[test]
    fn no_spelling_leads_out_of_the_folder_on_any_platform() {
        for name in [
            "",
            ".",
            "..",
            "/",
            "../x.safetensors",
            "a/../x.safetensors",
            "a/../../x.safetensors",
            "./x.safetensors",
            "a/./x.safetensors",
            "a//x.safetensors",
            "/etc/x.safetensors",
            "//host/share/x.safetensors",
            "\\\\host\\share\\x.safetensors",
            "..\\x.safetensors",
            "a\\..\\..\\x.safetensors",
            "C:\\x.safetensors",
            "C:x.safetensors",
            "c:/x.safetensors",
            "\\\\?\\C:\\x.safetensors",
            "x.safetensors\0",
            "x\0.safetensors",
            "x\n.safetensors",
            "file:///x.safetensors",
            "https://host/x.safetensors",
            "x.safetensors::$DATA",
            "%2e%2e/x.safetensors",
            "%2E%2E%2Fx.safetensors",
            "..%2fx.safetensors",
            "%5c%5chost/x.safetensors",
            "... /x.safetensors",
            ".. /x.safetensors",
            ".../x.safetensors",
            "a./x.safetensors",
            "a /x.safetensors",
            " x.safetensors",
            "x.safetensors/",
            "x.safetensors.",
            "x.safetensors ",
            "NUL.safetensors",
            "nul/x.safetensors",
            "con.safetensors",
            "a/COM1.safetensors",
            "lpt¹.safetensors",
            "AUX .safetensors",
            "pytorch_model.bin",
            "x.SAFETENSORS",
            "x.safetensors.bin",
            "*.safetensors",
            "x?.safetensors",
        ] {
            let error = ShardName::parse(name).unwrap_err();
            assert_eq!(error.code(), Code::ShardName, "{name:?}");
        }
        let long = "x".repeat(300) + ".safetensors";
        assert!(ShardName::parse(&long).is_err());
    }
}
