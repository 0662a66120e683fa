//! Finds the file of a program, as a shell would.

use std::path::{Path, PathBuf, absolute};

use rustix::fs::{Access, access};

/// Where programs are looked for if nobody says.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Returns the file of a program: a name alone is looked for in `path` (the value of `PATH`), a path
/// counts from the folder it will be started in. The error says what is amiss.
pub fn find(program: &str, path: Option<&str>, folder: Option<&Path>) -> Result<PathBuf, String> {
    let folder = absolute(folder.unwrap_or(Path::new("."))).map_err(|err| err.to_string())?;
    if !folder.is_dir() {
        return Err(format!("there is no folder {} to start it in", folder.display()));
    }
    let startable = |file: &Path| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    if program.contains('/') {
        let file = folder.join(program);
        return match file.exists() {
            false => Err(format!("there is no file {}", file.display())),
            true if startable(&file) => Ok(file),
            true => {
                Err(format!("{} cannot be started: chmod +x it, or name its interpreter", file.display()))
            }
        };
    }
    let path = path.filter(|path| !path.is_empty()).unwrap_or(PATH);
    std::env::split_paths(path)
        .map(|place| folder.join(place).join(program))
        .find(|file| startable(file))
        .ok_or_else(|| format!("there is no program {program} in PATH"))
}
