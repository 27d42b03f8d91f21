//! Which callables a pickle names only to run code.
//!
//! A courtesy and no boundary: nothing is called, whatever it is named. Whoever made the file may have meant
//! harm, and its users load it with Python too.

use super::values::Global;

/// Modules of which no file of weights needs anything.
const MODULES: &[&str] = &[
    "_pickle",
    "aiohttp",
    "asyncio",
    "bdb",
    "cProfile",
    "cloudpickle",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "dill",
    "distutils",
    "doctest",
    "ensurepip",
    "ftplib",
    "http",
    "httplib",
    "idlelib",
    "imp",
    "importlib",
    "lib2to3",
    "linecache",
    "marshal",
    "multiprocessing",
    "nt",
    "operator",
    "os",
    "pdb",
    "pickle",
    "pip",
    "pkgutil",
    "posix",
    "profile",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shelve",
    "shutil",
    "site",
    "smtplib",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "timeit",
    "trace",
    "urllib",
    "urllib2",
    "venv",
    "webbrowser",
    "zipimport",
];

/// Of modules that have harmless parts too, those that are not.
const NAMES: &[(&str, &[&str])] = &[
    (
        "builtins",
        &[
            "__import__",
            "apply",
            "breakpoint",
            "compile",
            "delattr",
            "eval",
            "exec",
            "execfile",
            "exit",
            "file",
            "getattr",
            "globals",
            "input",
            "locals",
            "map",
            "open",
            "quit",
            "setattr",
            "vars",
        ],
    ),
    ("numpy.testing._private.utils", &["runstring"]),
    ("torch", &["compile", "hub", "load"]),
    ("torch._inductor.codecache", &["compile_file"]),
    ("torch.jit", &["load"]),
    ("torch.serialization", &["load"]),
    ("torch.storage", &["_load_from_bytes"]),
];

/// Whether a callable is one of those.
pub(super) fn runs_code(global: &Global) -> bool {
    let (module, name) = global.path();
    let top = module.split('.').next().unwrap_or_default();
    let is_module = |part: &str| MODULES.binary_search(&part).is_ok();
    let is_hub = module == "torch.hub" || module.starts_with("torch.hub.");
    // A name may lead through modules as well: `torch.serialization` and `os.system`.
    let mut steps = name.split('.');
    let last = steps.next_back().unwrap_or_default();
    let named = NAMES.iter().find(|(of, _)| *of == module);
    let is_named = |part: &str| named.is_some_and(|(_, names)| names.contains(&part));
    is_module(top)
        || is_hub
        || steps.any(|step| is_module(step) || is_named(step))
        || is_named(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_code_is_known_under_its_names() {
        let mut sorted = MODULES.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, MODULES);
        let is_code = |module: &str, name: &str| {
            runs_code(&Global {
                module: module.into(),
                name: name.into(),
                offset: 0,
            })
        };
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("__builtin__", "eval"),
            ("builtins", "exec"),
            ("torch.serialization", "os.system"),
            ("torch.hub", "load"),
            ("torch", "hub.load"),
            ("importlib.util", "spec_from_file_location"),
        ] {
            assert!(is_code(module, name), "{module}.{name}");
        }
        for (module, name) in [
            ("torch._utils", "_rebuild_tensor_v2"),
            ("collections", "OrderedDict"),
            ("builtins", "set"),
            ("torch", "FloatStorage"),
            ("torch.nn.modules.linear", "Linear"),
            ("numpy.core.multiarray", "scalar"),
            ("osmnx", "graph"),
        ] {
            assert!(!is_code(module, name), "{module}.{name}");
        }
    }
}
