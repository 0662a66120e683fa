//! The examples work as they are printed: the real shells and Python, the real binary, and the stand-in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::mill::harness::Mill;
use crate::support::{Ground, Kind, on_both};

on_both! {
    a_table_becomes_prompts_in_pure_sql,
    an_image_is_asked_about,
    a_tool_server_works_through_sql_alone,
}

/// A file of the examples. On Postgres they name the tables with the schema that everybody has; ours is
/// another one in each test.
fn example(ground: &Ground, name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    match ground.kind() {
        Kind::Sqlite => text,
        Kind::Postgres => text.replace("promptmill.", &format!("{}.", ground.schema())),
    }
}

/// Copies a script of the examples into the mill's folder.
fn script(mill: &Mill<'_>, name: &str) -> PathBuf {
    let path = mill.home().join(Path::new(name).file_name().expect("a file's name"));
    fs::write(&path, example(mill.ground, name)).expect("the folder can be written");
    path
}

fn red() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/images/red.png")
}

/// Where the database is, as a script takes it.
fn database(ground: &Ground) -> String {
    match ground.kind() {
        Kind::Sqlite => ground.file().display().to_string(),
        Kind::Postgres => ground.url(),
    }
}

fn good(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{output:?}");
}

/// Runs a program to its end; it must have nothing to complain about.
fn run(program: &str, args: &[&str], dir: &Path) {
    let output = Command::new(program).args(args).current_dir(dir).stdin(Stdio::null()).output();
    good(&output.unwrap_or_else(|err| panic!("{program} does not start ({err}): tests/run installs it")));
}

/// A server that is killed when its test is over.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn a_table_becomes_prompts_in_pure_sql(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let products = example(ground, "templates/products.sql");
    let insert = match ground.kind() {
        Kind::Sqlite => {
            let file = mill.home().join("products.sql");
            fs::write(&file, products).expect("the folder can be written");
            let shop = format!(".read {}", file.display());
            run("sqlite3", &["-bail", "shop.db", &shop], &mill.home());
            script(&mill, "templates/sqlite.sql")
        }
        Kind::Postgres => {
            let schema = ground.schema();
            ground.shell(&format!("SET search_path TO {schema}; {products}")).expect("the table is made");
            let path = script(&mill, "templates/postgres.sql");
            let text = fs::read_to_string(&path).expect("it was written");
            fs::write(&path, format!("SET search_path TO {schema};\n{text}"))
                .expect("the folder can be written");
            path
        }
    };
    let (read, include) = (format!(".read {}", insert.display()), insert.display().to_string());
    let (database, home) = (database(ground), mill.home());
    let again = || match ground.kind() {
        Kind::Sqlite => run("sqlite3", &["-bail", &database, &read], &home),
        Kind::Postgres => {
            run("psql", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &database, "-f", &include], &home);
        }
    };
    again();
    again();
    assert_eq!(
        ground.lines("SELECT key, prompt FROM jobs WHERE batch = 'summaries' ORDER BY id").await,
        [
            "summaries/1|Summarise in 100% plain words: Shoe \"Red\"\n\nSoft, 50 % off.\nSays {{body}} and %s.",
            "summaries/2|Summarise in 100% plain words: Tea\n\nIt's green: 茶 \\ {\"a\": 1}",
        ]
    );
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await, "5");
    let first = ground.line("SELECT params FROM jobs WHERE key = 'titles/1'").await;
    let params: serde_json::Value = serde_json::from_str(&first).expect("params are JSON");
    assert_eq!(params["messages"][0]["content"], "A better title than \"Shoe \"Red\"\"?");
    assert_eq!(params["stop_sequences"], serde_json::json!(["END"]));
    let product = ground.either("j.metadata ->> '$.product'", "j.metadata ->> 'product'");
    let joined = format!(
        "SELECT {product} FROM results r JOIN jobs j ON j.id = r.job_id WHERE r.batch = 'summaries' ORDER BY j.id"
    );
    assert_eq!(ground.lines(&joined).await, ["1", "2"]);
}

async fn an_image_is_asked_about(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let (database, red) = (database(ground), red().display().to_string());
    let question = "What's \"this\"? $(false) \\ 漢";
    let name = ground.either("images/sqlite.sh", "images/postgres.sh");
    let path = script(&mill, name).display().to_string();
    run("sh", &[&path, &database, &red, question], &mill.home());
    if ground.kind() == Kind::Sqlite {
        let path = script(&mill, "images/sqlite.py").display().to_string();
        run("python3", &[&path, &database, question, &red], &mill.home());
        run("python3", &[&path, &database, question, &red], &mill.home());
    }
    let inserted = ground.lines("SELECT params FROM jobs ORDER BY id").await;
    assert_eq!(inserted.len(), if ground.kind() == Kind::Sqlite { 2 } else { 1 });
    for params in inserted {
        let params: serde_json::Value = serde_json::from_str(&params).expect("params are JSON");
        let content = &params["messages"][0]["content"];
        assert_eq!(content[0]["source"]["media_type"], "image/png");
        let data = content[0]["source"]["data"].as_str().expect("the data is text");
        // What the shell's base64 makes of the file, without its line ends.
        let base64 = Command::new("base64").arg("-w0").arg(&red).output().expect("base64 is there");
        assert_eq!(data.as_bytes(), base64.stdout);
        assert_eq!(content[1]["text"], question);
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let outcomes = ground.lines("SELECT DISTINCT outcome FROM results").await;
    assert_eq!(outcomes, ["complete"]);
}

async fn a_tool_server_works_through_sql_alone(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let job = example(ground, "tool-server/job.sql");
    let path = match ground.kind() {
        Kind::Sqlite => String::new(),
        Kind::Postgres => format!("SET search_path TO {};", ground.schema()),
    };
    ground.shell(&(path + &job)).expect("the job is inserted");
    let (program, name) = match ground.kind() {
        Kind::Sqlite => ("python3", "tool-server/sqlite.py"),
        Kind::Postgres => ("sh", "tool-server/postgres.sh"),
    };
    let server = Command::new(program)
        .arg(script(&mill, name))
        .arg(database(ground))
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|err| panic!("{program} does not start ({err}): tests/run installs it"));
    let _server = Server(server);
    let daemon = mill.start();
    mill.until("SELECT outcome FROM results", "complete").await;
    drop(daemon);
    let sunny =
        "SELECT count(*) FROM tool_calls WHERE result LIKE '18 degrees and sunny in %' AND NOT is_error";
    assert_eq!(ground.line(sunny).await, "2");
    assert_eq!(ground.line("SELECT count(*) FROM open_tool_calls").await, "0");
}
