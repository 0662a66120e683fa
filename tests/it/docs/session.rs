//! One person at one shell: the blocks of a page in order, on a fresh database, beside the stand-in.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use promptmill::stand_in::{Options, Running, StandIn};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::page::{Block, Language, Page, differs};
use crate::support::private::{PrivatePostgres, free_port};
use crate::support::{Kind, server};

/// What there is before the first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Bare,
    Tables,
    Server,
}

/// A folder, a database, and an API.
pub struct Session {
    kind: Kind,
    start: Start,
    home: TempDir,
    url: String,
    /// The server with the database, and the name of the database there.
    postgres: Option<(String, String)>,
    /// That server, where it is a page's own.
    own: Option<PrivatePostgres>,
    api: Option<Running>,
}

impl Session {
    pub async fn start(kind: Kind, start: Start, page: &Page) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        // A page that starts its own is not served by ours.
        let has_its_own = page.blocks.iter().any(|block| block.text.contains("promptmill stand-in"));
        let api = if has_its_own {
            None
        } else {
            Some(StandIn::start(Options::default()).await.expect("it starts"))
        };
        let mut session = Self {
            kind,
            start,
            home,
            url: "sqlite:promptmill.db".to_owned(),
            postgres: None,
            own: None,
            api,
        };
        if kind == Kind::Postgres && page.blocks.iter().any(|block| block.only != Some(Kind::Sqlite)) {
            let own = (start == Start::Server).then(PrivatePostgres::start);
            let server = own.as_ref().map_or_else(server::url, PrivatePostgres::url);
            let name = server::fresh_name();
            server::admin_at(&server, format!("CREATE DATABASE {name}")).await;
            let (base, _) = server.rsplit_once('/').expect("a URL ends with a database");
            session.url = format!("{base}/{name}");
            session.postgres = Some((server.clone(), name));
            session.own = own;
        }
        session
    }

    /// Runs the blocks that are for this database; the first that fails ends the page.
    pub fn run(&self, page: &Page) {
        let blocks: Vec<(usize, &Block)> = page
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, block)| block.only.is_none_or(|only| only == self.kind))
            .collect();
        self.install(&blocks);
        let script = self.script(page, &blocks);
        fs::write(self.path("page.sh"), &script).expect("the folder can be written");
        let ended = self.execute();
        let at = fs::read_to_string(self.path(".at")).unwrap_or_default();
        let said =
            |what: &str| fs::read_to_string(self.path(&format!(".{what}.{}", at.trim()))).unwrap_or_default();
        let line =
            at.trim().parse::<usize>().map_or(0, |at| page.blocks.get(at).map_or(0, |block| block.line));
        assert!(ended, "docs/{}:{line} fails:\n{}\n{}\n({MISSING})", page.name, said("out"), said("err"));
        let mut before = None;
        for (at, block) in blocks {
            if block.language != Language::Output {
                before = Some(at);
                continue;
            }
            let before =
                before.unwrap_or_else(|| panic!("docs/{}:{}: nothing prints this", page.name, block.line));
            let printed = fs::read_to_string(self.path(&format!(".out.{before}"))).expect("it ran");
            let shown = self.here(&block.text);
            let differs = differs(&shown, &printed);
            assert!(differs.is_none(), "docs/{}:{}: {}", page.name, block.line, differs.unwrap_or_default());
        }
    }

    /// Takes the database away again.
    pub async fn end(self) {
        if let Some((server, name)) = &self.postgres {
            server::admin_at(server, format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
        drop(self.own);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The addresses that the pages name are those of one machine: here many pages run at once.
    fn here(&self, text: &str) -> String {
        let stand_in = self.path(".stand-in");
        if !stand_in.exists() {
            let own = || format!("127.0.0.1:{}", free_port());
            let url =
                self.api.as_ref().map_or_else(own, |api| api.url().trim_start_matches("http://").to_owned());
            fs::write(&stand_in, url).expect("the folder can be written");
            fs::write(self.path(".web"), own()).expect("the folder can be written");
            fs::write(self.path(".metrics"), own()).expect("the folder can be written");
        }
        let address = |name: &str| fs::read_to_string(self.path(name)).expect("it was written");
        text.replace("127.0.0.1:8787", &address(".stand-in"))
            .replace("127.0.0.1:8020", &address(".web"))
            .replace("127.0.0.1:9464", &address(".metrics"))
    }

    /// All blocks as one script, so that what is exported, and where one stands, is kept from one to the next.
    fn script(&self, page: &Page, blocks: &[(usize, &Block)]) -> String {
        let mut script = "set -eo pipefail\n".to_owned();
        if self.start != Start::Bare {
            script += "{ promptmill migrate; } >/dev/null\n";
        }
        for (at, block) in blocks {
            let text = self.here(&block.text);
            let file = self.path(&format!(".block.{at}{}", extension(block.language)));
            fs::write(&file, &text).expect("the folder can be written");
            let file = file.display();
            let command = match block.language {
                Language::Shell => text,
                Language::Sql if self.kind == Kind::Sqlite => {
                    format!("sqlite3 -bail -box promptmill.db < {file}")
                }
                Language::Sql => {
                    // The pages say: SET search_path first.
                    format!(
                        "PGOPTIONS='-c search_path=promptmill,public' psql -X -q -v ON_ERROR_STOP=1 \"$DATABASE_URL\" -f {file}"
                    )
                }
                Language::Python => format!("python3 {file}"),
                Language::JavaScript => format!("node {file}"),
                Language::Toml => format!("promptmill config --check --config {file}"),
                Language::Json => {
                    let values = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
                    for value in values {
                        value.unwrap_or_else(|err| panic!("docs/{}:{}: {err}", page.name, block.line));
                    }
                    continue;
                }
                Language::Output => continue,
            };
            let home = self.home.path().display();
            writeln!(
                script,
                "echo {at} > {home}/.at\n{{\n{command}\n}} > {home}/.out.{at} 2> {home}/.err.{at}"
            )
            .expect("a string takes it");
        }
        script
    }

    /// Returns whether the script went well to its end. Whatever it left running is ended.
    fn execute(&self) -> bool {
        let binary = Path::new(env!("CARGO_BIN_EXE_promptmill")).parent().expect("a folder");
        let inherited = std::env::var_os("PATH").expect("a path");
        let mut path = binary.as_os_str().to_owned();
        path.push(":");
        path.push(inherited);
        let mut command = Command::new("timeout");
        command.args(["--foreground", "200", "bash", "page.sh"]).current_dir(self.home.path());
        command.env_clear().env("PATH", path).env("HOME", self.home.path()).env("LANG", "C.UTF-8");
        command.env("PYTHONPATH", python()).env("PAGER", "cat");
        if self.kind == Kind::Postgres || self.start != Start::Bare {
            command.env("DATABASE_URL", &self.url);
        }
        if let Some(api) = self.api.as_ref().filter(|_| self.start != Start::Bare) {
            command.env("ANTHROPIC_BASE_URL", api.url()).env("ANTHROPIC_API_KEY", "any");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().expect("timeout starts");
        let group = Pid::from_child(&child);
        let ended = tokio::task::block_in_place(|| child.wait()).expect("it ends");
        // Nothing may be left of the group.
        rustix::process::kill_process_group(group, Signal::KILL).ok();
        ended.success()
    }

    /// Has what blocks in Python and JavaScript need: drivers of Postgres, once for all tests.
    fn install(&self, blocks: &[(usize, &Block)]) {
        if self.kind != Kind::Postgres {
            return;
        }
        let uses = |language| blocks.iter().any(|(_, block)| block.language == language);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/docs");
        if uses(Language::Python) {
            let into = python();
            let install = "python3 -c 'import psycopg' 2>/dev/null || python3 -m pip install -q --root-user-action=ignore --target \"$0\" -r requirements.txt";
            once(&folder, &[install, &into.display().to_string()], &into);
        }
        if uses(Language::JavaScript) {
            let modules = folder.join("node_modules");
            let install = "[ -e node_modules/pg ] || npm ci --silent --ignore-scripts --no-audit --no-fund";
            once(&folder, &[install], &modules);
            std::os::unix::fs::symlink(modules, self.path("node_modules"))
                .expect("the folder can be written");
        }
    }
}

/// What to do where a program of the blocks is missing.
const MISSING: &str =
    "where a program is missing: .ci/packages curl nodejs npm python3-pip sqlite3 postgresql-client";

/// Where the Python packages are that this machine does not have.
fn python() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs-python")
}

/// Runs a shell command that installs something, alone among all tests.
fn once(folder: &Path, args: &[&str], python: &Path) {
    let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs.lock");
    let mut command = Command::new("flock");
    command.arg(lock).args(["sh", "-c"]).args(args).current_dir(folder).env("PYTHONPATH", python);
    let output = command.output().expect("flock starts");
    assert!(output.status.success(), "{args:?}: {}\n({MISSING})", String::from_utf8_lossy(&output.stderr));
}

const fn extension(language: Language) -> &'static str {
    match language {
        Language::Shell => ".sh",
        Language::Sql => ".sql",
        Language::Python => ".py",
        Language::JavaScript => ".mjs",
        Language::Toml => ".toml",
        Language::Json => ".json",
        Language::Output => ".txt",
    }
}
