//! The migrations, compiled in: the same numbers and names for both databases.

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::StoreError;
use super::op::said;

/// One step of the schema, written twice.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Its number: `meta.schema_version` after it.
    pub version: i32,
    /// Its name, without number and ending.
    pub name: &'static str,
    /// `migrations/postgres/NNNN_name.sql`.
    pub postgres: &'static str,
    /// `migrations/sqlite/NNNN_name.sql`.
    pub sqlite: &'static str,
}

/// All steps, in order. Add a file to both folders and a line here.
pub const STEPS: &[Step] = &[Step {
    version: 1,
    name: "create_tables",
    postgres: include_str!("../../migrations/postgres/0001_create_tables.sql"),
    sqlite: include_str!("../../migrations/sqlite/0001_create_tables.sql"),
}];

/// The schema that this binary writes.
pub const LATEST: i32 = STEPS[STEPS.len() - 1].version;

/// Returns the migrator for one of the two: `|step| step.sqlite`.
///
/// It takes no lock of its own ([`super::postgres`] and [`super::sqlite`] do), and knows that a
/// newer binary may have migrated further.
pub(crate) fn migrator(steps: &[Step], text: fn(&Step) -> &'static str) -> Migrator {
    let steps = steps.iter().map(|step| {
        let sql = text(step);
        let no_transaction = sql.starts_with("-- no-transaction");
        let kind = MigrationType::Simple;
        Migration::new(i64::from(step.version), step.name.into(), kind, sql.into_sql_str(), no_transaction)
    });
    let mut migrator = Migrator::with_migrations(steps.collect());
    migrator.set_locking(false).set_ignore_missing(true);
    migrator
}

/// What `meta` says of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Names the database: made once, with the schema.
    pub(crate) database_id: String,
    /// The last migration that ran.
    pub(crate) version: i32,
    /// The oldest binary that may run on it, by the last migration that it knows.
    pub(crate) min: i32,
}

impl Meta {
    /// Says why this binary cannot run on the schema, if it cannot. `place` names it to a person.
    pub(crate) fn objection(&self, place: &str) -> Option<String> {
        self.outgrown(place).or_else(|| self.lacking(place))
    }

    /// Says why this binary is too old for the schema, if it is. Newer tables alone are no reason.
    pub(crate) fn outgrown(&self, place: &str) -> Option<String> {
        (self.min > LATEST).then(|| {
            format!(
                "{place} is at schema version {} and needs a promptmill that knows version {}; this one knows \
                 {LATEST}: install a newer promptmill",
                self.version, self.min
            )
        })
    }

    fn lacking(&self, place: &str) -> Option<String> {
        (self.version < LATEST).then(|| {
            format!(
                "{place} is at schema version {} and this promptmill needs {LATEST}: run `promptmill migrate`",
                self.version
            )
        })
    }
}

/// Says what a migration met.
pub(crate) fn refused(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(inner) => said(inner),
        MigrateError::ExecuteMigration(inner, version) => match said(inner) {
            StoreError::Unavailable(why) => StoreError::Unavailable(why),
            other => StoreError::Schema(format!("migration {version:04} failed: {other}")),
        },
        MigrateError::VersionMismatch(version) => StoreError::Schema(format!(
            "migration {version:04} ran here with another text than this promptmill has: it is another build; \
             use the one that made these tables, or a newer release"
        )),
        other => StoreError::Schema(format!("the tables cannot be migrated: {other}")),
    }
}
