//! The store on Postgres.

mod desk;

use sqlx::PgPool;

use super::{Migrate, StoreError, StoreSettings, op};

/// A Postgres database with our schema in it.
pub struct PostgresStore {
    pool: PgPool,
}

impl PostgresStore {
    /// Opens the database.
    pub async fn open(url: &str, settings: &StoreSettings, _: Migrate) -> Result<Self, StoreError> {
        let options: sqlx::postgres::PgConnectOptions = url.parse().map_err(op::said)?;
        let options = options.options([("search_path", settings.schema.as_str())]);
        Ok(Self { pool: PgPool::connect_with(options).await.map_err(op::said)? })
    }

    /// Returns the pool.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}
