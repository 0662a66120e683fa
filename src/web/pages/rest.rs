//! Errors grouped, the configuration, and the book of what people did.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use crate::cli::config::to_json;
use crate::cli::out::time_rfc3339;
use crate::config::Entry;
use crate::store::Moment;
use crate::store::board::{Deed, FAULTS_MAX, FaultCard};
use crate::web::Web;
use crate::web::fault::Fault;
use crate::web::fields::{Fields, link};
use crate::web::guard::is_there;
use crate::web::words::{self, Frame, page};

/// Deeds on a page.
const PAGE: usize = 100;

#[derive(Template)]
#[template(path = "errors.html")]
struct ErrorsPage {
    frame: Frame,
    now: Moment,
    faults: Vec<FaultCard>,
}

impl ErrorsPage {
    /// Where the jobs of a group are listed.
    #[expect(clippy::unused_self, reason = "templates call methods")]
    fn jobs(&self, fault: &FaultCard) -> String {
        link(
            "/jobs",
            &[
                ("outcome", fault.outcome.as_str()),
                ("error_type", fault.error_type.as_deref().unwrap_or_default()),
                ("error_code", fault.error_code.as_deref().unwrap_or_default()),
                ("stop_reason", fault.stop_reason.as_deref().unwrap_or_default()),
            ],
        )
    }
}

/// Shows what went wrong, grouped.
pub async fn errors(State(web): State<Arc<Web>>) -> Result<Response, Fault> {
    let faults = web.board()?.faults().await?;
    let now = web.board()?.now().await?;
    is_there(&web);
    Ok(page(&ErrorsPage { frame: Frame::new(&web, "Errors", "/errors").every(10), now, faults }))
}

/// What went wrong, for programs.
pub async fn errors_json(web: &Web) -> Result<Value, Fault> {
    let fault = |fault: &FaultCard| {
        json!({
            "outcome": fault.outcome, "error_type": fault.error_type, "error_code": fault.error_code,
            "stop_reason": fault.stop_reason, "jobs": fault.count, "newest_job": fault.newest.0,
            "at": time_rfc3339(fault.at), "error": fault.error,
        })
    };
    let faults = web.board()?.faults().await?;
    Ok(json!({"errors": faults.iter().map(fault).collect::<Vec<_>>(), "counted_up_to": FAULTS_MAX}))
}

#[derive(Template)]
#[template(path = "config.html")]
struct ConfigPage {
    frame: Frame,
    file: Option<String>,
    entries: Vec<Entry>,
    keys: Vec<(String, String)>,
    all: bool,
}

/// Shows the configuration, its secrets masked.
pub async fn config(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let all = fields.is_on("all");
    let config = &web.config;
    let entries = config.entries.iter().filter(|entry| all || entry.origin != "default").cloned().collect();
    let mut keys = Vec::new();
    for account in config.accounts() {
        let said = match account.key.read() {
            Ok(Some(key)) => format!("from {}, fingerprint {}", account.key.describe(), key.fingerprint()),
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string(),
        };
        keys.push((account.profile.clone(), said));
    }
    let file = config.file.as_ref().map(|file| file.display().to_string());
    Ok(page(&ConfigPage { frame: Frame::new(&web, "Configuration", "/config"), file, entries, keys, all }))
}

/// The configuration, for programs.
pub fn config_json(web: &Web) -> Value {
    to_json(&web.config)
}

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    frame: Frame,
    now: Moment,
    deeds: Vec<Deed>,
    next: Option<i64>,
}

/// Shows what people did.
pub async fn audit(State(web): State<Arc<Web>>, fields: Fields) -> Result<Response, Fault> {
    let (deeds, next) = deeds(&web, &fields).await?;
    let now = web.board()?.now().await?;
    is_there(&web);
    Ok(page(&AuditPage { frame: Frame::new(&web, "Audit", "/audit"), now, deeds, next }))
}

async fn deeds(web: &Web, fields: &Fields) -> Result<(Vec<Deed>, Option<i64>), Fault> {
    let before = fields.number("from")?.unwrap_or(i64::MAX);
    let mut deeds = web.board()?.deeds(before, PAGE as i64 + 1).await?;
    let more = deeds.len() > PAGE;
    deeds.truncate(PAGE);
    let next = deeds.last().filter(|_| more).map(|deed| deed.id);
    Ok((deeds, next))
}

/// What people did, for programs.
pub async fn audit_json(web: &Web, fields: &Fields) -> Result<Value, Fault> {
    let (deeds, next) = deeds(web, fields).await?;
    let deed = |deed: &Deed| {
        json!({
            "id": deed.id, "at": time_rfc3339(deed.at), "actor": deed.actor, "action": deed.action,
            "target": deed.target, "count": deed.count, "detail": deed.detail,
        })
    };
    Ok(json!({"audit": deeds.iter().map(deed).collect::<Vec<_>>(), "next": next}))
}
