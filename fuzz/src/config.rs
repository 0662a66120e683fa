//! The configuration: a TOML file, and behind a line `---` variables of the environment, one a line.

use std::cell::RefCell;
use std::io::{Seek, Write};

use promptmill::config::{Config, Flags, Surroundings};
use tempfile::NamedTempFile;

thread_local! {
    static FILE: RefCell<NamedTempFile> = RefCell::new(NamedTempFile::new().expect("a temporary file can be made"));
}

/// No file and no environment makes loading panic; what is wrong is said with its place.
pub fn config(data: &[u8]) {
    let Some(mut parts) = super::parts(data) else { return };
    let (toml, vars) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let path = FILE.with_borrow_mut(|file| {
        file.as_file().set_len(0).expect("it can be emptied");
        file.rewind().expect("it can be rewound");
        file.write_all(toml.as_bytes()).expect("it can be written");
        file.path().to_owned()
    });
    let vars = vars.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| !name.is_empty());
    let flags = Flags { config_file: Some(path), ..Flags::default() };
    match Config::load_from(&flags, &Surroundings::new(vars, "/nonexistent")) {
        Ok(config) => {
            assert!(!config.entries.is_empty());
            let _ = format!("{config:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
