//! The errors of the API: statuses, types, codes, sentences and shapes.
//!
//! Facts: the API's "Errors" page. Sentences that clients are known to match on are the real ones.

use serde_json::json;

/// What the body of an error looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// The API's own.
    #[default]
    Json,
    /// As a gateway in front of the API says it.
    Html,
    /// Nothing at all.
    Empty,
    /// JSON that ends in the middle.
    Broken,
}

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// `error.type`.
    pub kind: String,
    /// `error.details.error_code`.
    pub code: Option<String>,
    /// `error.message`.
    pub message: String,
    /// Headers beside the usual ones.
    pub headers: Vec<(&'static str, String)>,
    /// How the body looks.
    pub shape: Shape,
}

/// Errors with a name of their own: name, status, whether the name is the API's `error_code`, sentence.
const NAMED: [(&str, u16, bool, &str); 22] = [
    (
        "credit",
        400,
        false,
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or \
         purchase credits.",
    ),
    (
        "usage-limit",
        400,
        false,
        "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    ),
    (
        "workspace-usage-limit",
        400,
        false,
        "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01 at \
         00:00 UTC.",
    ),
    ("prompt-too-long", 400, false, "prompt is too long: 200251 tokens > 200000 maximum"),
    ("prefill", 400, false, PREFILL),
    ("organization_on_hold", 400, true, "This organization is on hold."),
    ("cmek_key_disabled", 400, true, "The customer-managed encryption key is disabled."),
    ("request_body_timeout", 400, true, "The request body was not received in time."),
    ("request_body_encoding_invalid", 400, true, "The request body could not be decoded."),
    (
        "linked_organization_billing_unavailable",
        402,
        true,
        "Billing of the linked organization is unavailable.",
    ),
    (
        "linked_organization_spend_limit_reached",
        402,
        true,
        "The linked organization reached its spend limit.",
    ),
    ("api_key_scope_missing", 403, true, "This API key may not be used for this endpoint."),
    ("user_profile_not_allowed", 403, true, "This user profile may not be used."),
    ("file_expired", 404, true, "File has expired."),
    ("request_body_too_large_after_decoding", 413, true, "Request exceeds the maximum size after decoding."),
    ("ramp_limit_exceeded", 429, true, "Your traffic grows faster than your ramp limit allows."),
    ("enforced_spend_limit_reached", 429, true, "Your organization reached its monthly spend limit."),
    ("contract_spend_limit_reached", 429, true, "Your organization reached the spend limit of its contract."),
    (
        "cmek_key_unreachable",
        503,
        true,
        "The customer-managed encryption key cannot be reached; retry in a few minutes.",
    ),
    ("cmek_context_unavailable", 503, true, "The encryption context is unavailable; retry in a few minutes."),
    ("compaction_unavailable", 529, true, "Compaction is unavailable."),
    ("overloaded", 529, false, "Overloaded"),
];

const PREFILL: &str =
    "This model does not support assistant message prefill. The conversation must end with a user message.";

impl Problem {
    /// Returns the error of a status as the API words it.
    pub fn of_status(status: u16) -> Self {
        let (kind, message) = match status {
            400 => ("invalid_request_error", "The request was refused by [[error 400]]."),
            401 => ("authentication_error", "invalid x-api-key"),
            402 => ("billing_error", "There is a problem with your billing."),
            403 => {
                ("permission_error", "Your API key does not have permission to use the specified resource.")
            }
            404 => ("not_found_error", "The requested resource could not be found."),
            408 | 504 => ("timeout_error", "Request timed out. Please try again later."),
            409 => ("conflict_error", "The request conflicts with another one."),
            413 => ("request_too_large", "Request exceeds the maximum size"),
            412 | 422 => ("invalid_request_error", "The request cannot be processed."),
            429 => ("rate_limit_error", "This request would exceed your organization's rate limit."),
            529 => ("overloaded_error", "Overloaded"),
            500.. => ("api_error", "Internal server error"),
            _ => ("invalid_request_error", "The request was refused."),
        };
        Self {
            status,
            kind: kind.to_owned(),
            code: None,
            message: message.to_owned(),
            headers: Vec::new(),
            shape: Shape::Json,
        }
    }

    /// Returns the error of a name or code that the API documents.
    pub fn of_name(name: &str) -> Option<Self> {
        let &(_, status, is_code, message) = NAMED.iter().find(|known| known.0 == name)?;
        let code = is_code.then(|| name.to_owned());
        Some(Self { code, message: message.to_owned(), ..Self::of_status(status) })
    }

    /// Returns the error that an `error` event of this type would have been before the stream.
    pub fn of_kind(kind: &str) -> Self {
        let status = match kind {
            "overloaded_error" => 529,
            "rate_limit_error" => 429,
            "timeout_error" => 504,
            "invalid_request_error" => 400,
            "authentication_error" => 401,
            "billing_error" => 402,
            "permission_error" => 403,
            "not_found_error" => 404,
            "conflict_error" => 409,
            "request_too_large" => 413,
            _ => 500,
        };
        Self { kind: kind.to_owned(), ..Self::of_status(status) }
    }

    /// Returns a 400 with this sentence.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::of_status(400) }
    }

    /// Returns a 401 with this sentence.
    pub fn unauthenticated(message: &str) -> Self {
        Self { message: message.to_owned(), ..Self::of_status(401) }
    }

    /// Returns a 404 with this sentence.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::of_status(404) }
    }

    /// Returns the real 400 of a conversation that ends with the assistant.
    pub fn prefill() -> Self {
        Self::invalid(PREFILL)
    }

    /// Returns the error as JSON text.
    pub fn to_json(&self, request_id: &str) -> String {
        json!({
            "type": "error",
            "error": {
                "details": self.code.as_ref().map(|code| json!({ "error_code": code })),
                "type": self.kind,
                "message": self.message,
            },
            "request_id": request_id,
        })
        .to_string()
    }

    /// Returns content type and body.
    pub fn body(&self, request_id: &str) -> (&'static str, String) {
        match self.shape {
            Shape::Json => ("application/json", self.to_json(request_id)),
            Shape::Html => ("text/html", html(self.status)),
            Shape::Empty => ("text/plain", String::new()),
            Shape::Broken => {
                let mut text = self.to_json(request_id);
                text.truncate(text.floor_char_boundary(text.len() / 2));
                ("application/json", text)
            }
        }
    }
}

/// Returns a page as a gateway writes it.
pub fn html(status: u16) -> String {
    format!(
        "<html>\r\n<head><title>{status} gateway</title></head>\r\n<body>\r\n<center><h1>{status} gateway</h1>\
         </center>\r\n<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
    )
}
