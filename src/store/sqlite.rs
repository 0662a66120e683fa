//! The store in a SQLite file.

mod desk;

use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

use super::{Migrate, StoreError, StoreSettings, op};

/// A SQLite file with our tables in it.
pub struct SqliteStore {
    pool: SqlitePool,
}

impl SqliteStore {
    /// Opens the file.
    pub async fn open(file: &str, _: &StoreSettings, migrate: Migrate) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(migrate != Migrate::Never);
        let fresh = !std::path::Path::new(file).exists();
        let pool = sqlx::sqlite::SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .map_err(op::said)?;
        if fresh {
            sqlx::raw_sql(include_str!("../../migrations/sqlite/0001_create_tables.sql"))
                .execute(&pool)
                .await
                .map_err(op::said)?;
        }
        Ok(Self { pool })
    }

    /// Returns the pool for reads.
    pub fn reader(&self) -> &SqlitePool {
        &self.pool
    }

    /// Returns the one writer.
    pub fn writer(&self) -> &SqlitePool {
        &self.pool
    }
}
