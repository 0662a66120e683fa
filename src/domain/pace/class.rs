//! Which models share a rate limit.

/// Families of models; a generation of a family is one class.
const FAMILIES: [&str; 4] = ["opus", "sonnet", "haiku", "fable"];

/// Returns the class of a model: all Opus 4.x share a limit (`opus-4`), so do all Sonnet 4.x; a model
/// of a name that tells nothing stands alone. `named` is the configuration's word and wins.
///
/// Before generation 4 each model had a limit of its own (`claude-3-5-haiku-20241022` is
/// `claude-3-5-haiku`).
pub fn class(model: &str, named: Option<&str>) -> String {
    if let Some(named) = named {
        return named.to_owned();
    }
    let name = bare(model);
    let mut words = name.strip_prefix("claude-").unwrap_or_default().split('-');
    match (words.next(), words.next().and_then(|word| word.parse::<u32>().ok())) {
        (Some(family), Some(generation)) if FAMILIES.contains(&family) => format!("{family}-{generation}"),
        _ => name.to_owned(),
    }
}

/// A Claude model's name without its date and without what platforms put around it
/// (`us.anthropic.claude-opus-4-6-v1:0`, `anthropic/claude-opus-4-6`, `claude-opus-4-6@20260205`).
fn bare(model: &str) -> &str {
    let Some(start) = model.rfind("claude-") else { return model };
    let name = &model[start..];
    let name = name.split(['@', ':']).next().unwrap_or(name);
    let end = name.split('-').take_while(|word| !is_suffix(word)).map(|word| word.len() + 1).sum::<usize>();
    &name[..end.saturating_sub(1).min(name.len())]
}

fn is_suffix(word: &str) -> bool {
    let digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    word == "latest"
        || (word.len() == 8 && digits(word))
        || word.strip_prefix('v').is_some_and(|rest| !rest.is_empty() && digits(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_one_generation_share_a_class_however_a_platform_writes_them() {
        for (model, expected) in [
            ("claude-opus-4-8", "opus-4"),
            ("claude-opus-4-20250514", "opus-4"),
            ("claude-opus-4-5-20251101", "opus-4"),
            ("claude-opus-5", "opus-5"),
            ("claude-opus-5-5", "opus-5"),
            ("claude-sonnet-4-6", "sonnet-4"),
            ("claude-haiku-4-5-20251001", "haiku-4"),
            ("claude-fable-5-2", "fable-5"),
            ("claude-sonnet-4-latest", "sonnet-4"),
            ("anthropic/claude-opus-4-6", "opus-4"),
            ("us.anthropic.claude-opus-4-6-v1:0", "opus-4"),
            ("claude-opus-4-6@20260205", "opus-4"),
            ("claude-3-5-haiku-20241022", "claude-3-5-haiku"),
            ("claude-3-opus-latest", "claude-3-opus"),
            ("claude-mystery-9", "claude-mystery-9"),
            ("qwen/qwen3:8b", "qwen/qwen3:8b"),
            ("claude-", "claude-"),
            ("", ""),
        ] {
            assert_eq!(class(model, None), expected, "{model}");
        }
        assert_eq!(class("claude-opus-4-8", Some("mine")), "mine");
    }
}
