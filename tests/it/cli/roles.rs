//! The roles that `promptmill roles` prints: each may do its own work with our commands, and no more.

use std::fmt::Write as _;
use std::process::Command;

use super::{Desk, command, run};
use crate::support::Ground;

/// A ground whose roles exist, with a login each.
struct Roles {
    ground: Ground,
    prefix: String,
}

const ROLES: [&str; 6] = ["owner", "enqueuer", "reader", "operator", "tool", "worker"];

impl Roles {
    async fn new() -> Self {
        let ground = Ground::postgres().await;
        let prefix = format!("r_{}", ground.schema());
        let sql = Desk::new(&ground).mill(&["roles", "--prefix", &prefix]).good();
        // Twice: a second run changes nothing.
        ground
            .shell(&format!("SET client_min_messages = warning;\n{sql}\n{sql}"))
            .expect("the printed SQL runs");
        let mut logins = String::new();
        for role in ROLES {
            writeln!(logins, "ALTER ROLE {prefix}_{role} LOGIN;").expect("a String takes every write");
        }
        ground.shell(&logins).expect("the roles exist");
        Self { ground, prefix }
    }

    fn mill(&self, role: &str, args: &[&str]) -> super::Ran {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut command: Command = command(dir.path());
        command
            .args(args)
            .env("DATABASE_URL", self.ground.url_as(&format!("{}_{role}", self.prefix)))
            .env("PROMPTMILL_DATABASE__SCHEMA", self.ground.schema());
        run(command, "")
    }

    async fn close(self) {
        let owned: Vec<String> = ROLES.iter().map(|role| format!("{}_{role}", self.prefix)).collect();
        let owned = owned.join(", ");
        self.ground
            .shell(&format!("SET client_min_messages = warning; REASSIGN OWNED BY {owned} TO CURRENT_USER; DROP OWNED BY {owned}; DROP ROLE {owned};"))
            .expect("the roles can be dropped");
        self.ground.close().await;
    }
}

#[tokio::test]
async fn each_role_may_do_its_own_work_and_no_more() {
    let roles = Roles::new().await;
    assert_eq!(roles.mill("enqueuer", &["enqueue", "--prompt", "a", "--key", "k"]).good(), "1\n");
    let said = roles.mill("enqueuer", &["enqueue", "--prompt", "b", "--key", "k"]).said(0);
    assert!(said.contains("0 new, 1 already there; its content was not compared"), "{said}");
    assert!(roles.mill("enqueuer", &["status"]).said(1).contains("permission denied"));

    assert!(roles.mill("reader", &["show", "1"]).good().contains("prompt: a"));
    assert!(roles.mill("reader", &["status"]).good().contains("default"));
    assert!(roles.mill("reader", &["cancel", "1"]).said(1).contains("permission denied"));
    assert!(roles.mill("reader", &["enqueue", "--prompt", "a"]).said(1).contains("permission denied"));

    assert_eq!(roles.mill("operator", &["pause", "default"]).said(0), "1 queue paused: default\n");
    assert_eq!(roles.mill("operator", &["resume", "--all"]).said(0), "1 queue resumed: default\n");
    assert_eq!(roles.mill("operator", &["cancel", "1"]).said(0), "1 job cancelled\n");
    assert_eq!(roles.mill("operator", &["retry", "1"]).said(0), "1 job runs again\n");
    let label = "UPDATE jobs SET metadata = '1'";
    assert!(
        roles
            .ground
            .shell(&format!(
                "SET ROLE {}_operator; SET search_path = {}; {label}",
                roles.prefix,
                roles.ground.schema()
            ))
            .is_err()
    );
    roles.close().await;
}
