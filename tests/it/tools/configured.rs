//! Tools as the configuration describes them, and as `doctor` looks at them.

use std::fs;
use std::time::Duration;

use async_trait::async_trait;
use promptmill::cli::config::to_toml;
use promptmill::cli::doctor::{InUse, KeyCheck, Outside, Verdict, examine};
use promptmill::config::{Config, ConfigError, Flags, Surroundings};
use promptmill::worker::tools::{Action, ToolSettings};
use secrecy::ExposeSecret as _;

const VARS: [(&str, &str); 8] = [
    ("PATH", "/usr/bin:/bin"),
    ("HOME", "/home/miller"),
    ("TZ", "Europe/Berlin"),
    ("SHOP_URL", "canary-shop"),
    ("ANTHROPIC_API_KEY", "canary-key"),
    ("DATABASE_URL", "postgres://mill:canary-password@db.example/app"),
    ("PROMPTMILL_WORKER__CONCURRENCY", "3"),
    ("FIND_TOKEN", "canary-token"),
];

fn load_with(file: &str, vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("promptmill.toml"), file).unwrap();
    Config::load_from(&Flags::default(), &Surroundings::new(vars.iter().copied(), dir.path()))
}

fn load(file: &str) -> Config {
    load_with(file, &VARS).unwrap()
}

fn names_of_env(tool: &ToolSettings) -> Vec<&str> {
    let Action::Command(command) = &tool.action else { panic!("{tool:?} is no command") };
    command.env.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_tool_gets_what_is_set_for_it_and_only_a_few_variables() {
    let config = load(
        "[tools.find]\ncommand = ['find', '-x', '$HOME']\nenv = ['SHOP_URL', 'UNSET']\ncwd = '/srv'\n\
         timeout_seconds = 2.5\noutput_max_bytes = '2 KiB'\nidempotent = true\n\
         [tools.look_up]\nurl = 'https://tools.example/look?x=1'\ntoken_env = 'FIND_TOKEN'\n\
         [queues.bulk]\ntools = ['look_up', 'find']\n[queues.shy]\n[worker]\ntools_max = 3\n",
    );
    let [find, look_up] = config.tools.as_slice() else { panic!("{:?}", config.tools) };
    let Action::Command(command) = &find.action else { panic!("{find:?}") };
    assert_eq!(command.argv, ["find", "-x", "$HOME"]);
    assert_eq!(names_of_env(find), ["HOME", "PATH", "SHOP_URL", "TZ"]);
    assert_eq!(command.env[2].1.expose_secret(), "canary-shop");
    assert_eq!(find.timeout, Duration::from_millis(2500));
    assert_eq!((find.output_max, find.idempotent), (2048, true));
    assert_eq!((look_up.timeout, look_up.output_max), (Duration::from_mins(1), 1 << 20));
    assert!(!look_up.idempotent);
    assert_eq!(config.queues.0["bulk"].tools, ["look_up", "find"]);
    assert!(config.queues.0["shy"].tools.is_empty());
    assert_eq!(config.worker.tools_max, 3);
    // No value of a variable is shown anywhere.
    for printed in [format!("{config:#?}"), to_toml(&config)] {
        assert!(!printed.contains("canary"), "{printed}");
    }
    // What is shown can be read again.
    let again = load(&to_toml(&config));
    assert_eq!(format!("{:?}", again.tools), format!("{:?}", config.tools));
    assert_eq!(again.queues, config.queues);
    assert!(load("").tools.is_empty());
}

#[test]
fn lists_are_written_in_variables_as_in_files() {
    let vars = [
        ("PROMPTMILL_TOOLS__find__COMMAND", "[\"find\", '-x']"),
        ("PROMPTMILL_QUEUES__DEFAULT__TOOLS", " [ 'find' ] "),
    ];
    let config = load_with("", &vars).unwrap();
    assert_eq!(config.queues.0["default"].tools, ["find"]);
    assert!(to_toml(&config).contains("command = [\"find\", \"-x\"]"), "{}", to_toml(&config));
}

#[test]
fn everything_wrong_with_tools_is_said_at_once() {
    let wrong = load_with(
        "[tools.none]\n[tools.both]\ncommand = ['a']\nurl = 'http://h'\n\
         [tools.line]\ncommand = 'ls -l'\n[tools.'no name']\ncommand = ['a']\n\
         [tools.asks]\nurl = 'http://u:canary@h'\nenv = ['A']\ncwd = '/'\n\
         [tools.starts]\ncommand = ['a']\ntoken_env = 'A'\nenv = ['A=b']\n\
         [tools.ftp]\nurl = 'ftp://h'\ncomand = ['a']\n\
         [queues.bulk]\ntools = ['start', 'zzz', 'asks']\n",
        &VARS,
    )
    .unwrap_err()
    .to_string();
    for sentence in [
        "tools.\"none\".command: a tool needs one: a program and its arguments, or a `url` in its place",
        "a tool has one or the other: take this or `url` out",
        "must be a list of texts, such as [\"one\", \"two\"]",
        "no tool can have this name",
        "must not hold a user name or a password: use `token_env`",
        "tools.\"asks\".env",
        "tools.\"asks\".cwd",
        "belongs to `url`: name the variable in `env`",
        "`A=b` is no name of a variable",
        "must begin with https:// or http:// and name a host",
        "did you mean tools.\"NAME\".command?",
        "there is no tool `start`: did you mean `starts`?",
        "there is no tool `zzz`: describe it as [tools.\"zzz\"]",
    ] {
        assert!(wrong.contains(sentence), "{sentence} is not in {wrong}");
    }
    assert!(!wrong.contains("canary"), "{wrong}");
    assert_eq!(wrong.matches("tools.\"line\"").count(), 1, "what is there is not missing: {wrong}");
}

#[test]
fn a_tool_that_no_queue_may_use_is_pointed_out() {
    let file = "[tools.find]\ncommand = ['find']\n[tools.spare]\ncommand = ['true']\n\
                [queues.bulk]\ntools = ['find']\n[queues.other]\nprofile = ''\n";
    assert_eq!(load(file).warnings, ["tool spare may be used by no queue: list it in queues.\"NAME\".tools"]);
}

struct Away;

#[async_trait]
impl Outside for Away {
    async fn key(&self, _config: &Config, _api: &promptmill::config::ApiSettings) -> KeyCheck {
        KeyCheck::Accepted
    }

    async fn database(&self, _config: &Config) -> Result<String, String> {
        Ok("schema 1".into())
    }

    async fn models(&self, _config: &Config) -> Option<InUse> {
        None
    }
}

#[tokio::test]
async fn the_doctor_says_which_tools_cannot_be_run() {
    let config = load(
        "[tools.good]\ncommand = ['sh', '-c', 'true']\n[tools.gone]\ncommand = ['no-such-program']\n\
         [tools.asks]\nurl = 'http://127.0.0.1:1/a?secret=canary'\n\
         [tools.bare]\nurl = 'http://127.0.0.1:1/b'\ntoken_env = 'UNSET'\n",
    );
    let findings = examine(&config, &Away).await;
    let found: Vec<(Verdict, &str)> = findings
        .iter()
        .filter(|finding| finding.subject == "tool")
        .map(|finding| (finding.verdict, finding.says.as_str()))
        .collect();
    let [asks, bare, gone, good] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(*asks, (Verdict::Ok, "asks: asks http://127.0.0.1:1/a"));
    assert_eq!(bare.0, Verdict::Fail);
    assert!(bare.1.contains("the variable UNSET") && bare.1.contains("is not set"), "{bare:?}");
    assert_eq!(*gone, (Verdict::Fail, "gone: cannot be run: there is no program no-such-program in PATH"));
    assert!(good.0 == Verdict::Ok && good.1.ends_with("bin/sh"), "{good:?}");
}
