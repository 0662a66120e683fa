//! How much of a text is images and documents: they cost tokens by pixels and pages, not by bytes.

use memchr::memchr2;

/// A shorter string is no file.
const FILE_MIN: usize = 1024;
/// So much of a string says what it is.
const LOOK: usize = 256;

/// Returns how many bytes of JSON text are files in base64: long strings without a blank.
pub fn file_bytes(json: &str) -> usize {
    let bytes = json.as_bytes();
    let mut found = 0;
    let mut at = 0;
    while let Some(open) = next_quote(bytes, at) {
        let Some(close) = next_quote(bytes, open + 1) else { break };
        let text = &bytes[open + 1..close];
        if text.len() >= FILE_MIN && text[..LOOK].iter().copied().all(is_base64) {
            found += text.len();
        }
        at = close + 1;
    }
    found
}

/// The next quote from `from` on that no backslash stands before.
fn next_quote(bytes: &[u8], mut from: usize) -> Option<usize> {
    loop {
        let at = from + memchr2(b'"', b'\\', bytes.get(from..)?)?;
        if bytes[at] == b'"' {
            return Some(at);
        }
        // What is escaped is passed over, be it a quote or another backslash.
        from = at + 2;
    }
}

const fn is_base64(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' | b'=' | b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_strings_of_base64_are_files() {
        let file = "iVBORw0KGgo/+".repeat(200);
        let prose = "It says \\\"no\\\" to \\\\ it. ".repeat(200);
        for (json, bytes) in [
            (format!(r#"{{"a":"\\","data":"{file}","b":"{prose}"}}"#), file.len()),
            (format!(r#"["{prose}","{file}","\"{file}","{file}"]"#), 2 * file.len()),
            (r#"{"data":"iVBORw0KGgo="}"#.to_owned(), 0),
            ("\"".to_owned(), 0),
            ("\"\\".to_owned(), 0),
            (String::new(), 0),
        ] {
            assert_eq!(file_bytes(&json), bytes, "{json:.80}");
        }
    }
}
