//! What `doctor` asks of the API and of the database.

use async_trait::async_trait;

use super::doctor::{InUse, KeyCheck, Outside};
use super::mill;
use super::open::desk_of;
use crate::claude::Claude as _;
use crate::config::{ApiSettings, Config};
use crate::domain::outcome::Failure;
use crate::domain::retry::{fault, reason};
use crate::store::{self, Migrate};

/// How many jobs are looked at for the models that they name.
const YOUNG: i64 = 1000;

/// The real world.
pub struct World;

#[async_trait]
impl Outside for World {
    async fn key(&self, config: &Config, api: &ApiSettings) -> KeyCheck {
        let claude = match mill::claude(config, api) {
            Ok(claude) => claude,
            Err(err) => return KeyCheck::Unclear(format!("{err:#}")),
        };
        match claude.check().await {
            Ok(()) => KeyCheck::Accepted,
            Err(Failure::Api(error)) if error.status == 401 => {
                let why = reason(&Failure::Api(error));
                KeyCheck::Refused(format!("{} refuses it: {why}; put a valid one in its place", api.base_url))
            }
            Err(failure) => {
                let why = fault(&failure).message;
                KeyCheck::Unclear(format!("{} could not say whether the key is good: {why}", api.base_url))
            }
        }
    }

    async fn database(&self, config: &Config) -> Result<String, String> {
        let url = &config.database.url;
        if let Some(file) = url.file()
            && !file.exists()
        {
            return Ok(format!(
                "{} is not there yet; `promptmill run` or `promptmill enqueue` makes it",
                file.display()
            ));
        }
        match store::open(&url.expose(), &config.database.store, Migrate::Never).await {
            Ok(_) => Ok(format!("the tables are there, in {url}")),
            Err(err) => Err(err.to_string()),
        }
    }

    async fn models(&self, config: &Config) -> Option<InUse> {
        let catalogue = mill::claude(config, &config.api).ok()?.models().await.ok()?;
        Some(InUse { catalogue, named: named(config).await })
    }
}

/// The models that the database names; none where it cannot be asked, which is said elsewhere.
async fn named(config: &Config) -> Vec<String> {
    let url = &config.database.url;
    if url.file().is_some_and(|file| !file.exists()) {
        return Vec::new();
    }
    let opened = store::open(&url.expose(), &config.database.store, Migrate::Never).await;
    match opened {
        Ok(opened) => desk_of(&opened).models_named(YOUNG).await.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}
