//! Where the references of a schema lead: whether one leads back to itself, and how deep.

use std::collections::HashSet;

use serde_json::Value;

/// How deep a schema may nest over its references. JSON itself is read 128 deep.
const DEPTH_MAX: usize = 200;

/// What was found on the way through all references.
pub(super) struct Survey<'a> {
    /// A reference that leads back to itself.
    pub(super) loops: Option<&'a str>,
    /// Whether they lead too deep to be followed on a thread's stack.
    pub(super) deep: bool,
    root: &'a Value,
    way: Vec<&'a str>,
    done: HashSet<&'a str>,
}

impl<'a> Survey<'a> {
    /// Follows every reference of a schema into itself.
    pub(super) fn of(schema: &'a Value) -> Self {
        let mut survey =
            Self { loops: None, deep: false, root: schema, way: vec!["#"], done: HashSet::new() };
        survey.walk(schema, 0);
        survey
    }

    fn walk(&mut self, here: &'a Value, depth: usize) {
        if depth > DEPTH_MAX {
            self.deep = true;
            return;
        }
        match here {
            Value::Array(items) => items.iter().for_each(|item| self.walk(item, depth + 1)),
            Value::Object(fields) => {
                if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                    self.follow(target, depth);
                }
                fields.values().for_each(|value| self.walk(value, depth + 1));
            }
            _ => {}
        }
    }

    fn follow(&mut self, target: &'a str, depth: usize) {
        if self.way.contains(&target) {
            self.loops.get_or_insert(target);
        } else if self.done.insert(target)
            && let Some(definition) = pointed(self.root, target)
        {
            self.way.push(target);
            self.walk(definition, depth + 1);
            self.way.pop();
        }
    }
}

/// What a reference within a schema points at.
pub(super) fn pointed<'a>(root: &'a Value, target: &str) -> Option<&'a Value> {
    root.pointer(target.strip_prefix('#')?)
}
