//! Where the references of a schema lead: whether one leads back to itself, and how deep.

use std::collections::HashMap;

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
    /// How deep what a reference points at nests, over its own references.
    depths: HashMap<&'a str, usize>,
}

impl<'a> Survey<'a> {
    /// Follows every reference of a schema into itself.
    pub(super) fn of(schema: &'a Value) -> Self {
        let mut survey =
            Self { loops: None, deep: false, root: schema, way: vec!["#"], depths: HashMap::new() };
        let depth = survey.walk(schema, 0);
        survey.deep |= depth > DEPTH_MAX;
        survey
    }

    /// Returns how deep a part nests. `way` is how deep the walk is already: it ends before the stack does.
    fn walk(&mut self, here: &'a Value, way: usize) -> usize {
        if way > DEPTH_MAX {
            self.deep = true;
            return 0;
        }
        let mut depth = 0;
        match here {
            Value::Array(items) => {
                for item in items {
                    depth = depth.max(1 + self.walk(item, way + 1));
                }
            }
            Value::Object(fields) => {
                if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                    depth = 1 + self.follow(target, way + 1);
                }
                for value in fields.values() {
                    depth = depth.max(1 + self.walk(value, way + 1));
                }
            }
            _ => {}
        }
        depth
    }

    /// The same of what a reference points at. It is walked once, wherever it is referred to.
    fn follow(&mut self, target: &'a str, way: usize) -> usize {
        if self.way.contains(&target) {
            self.loops.get_or_insert(target);
            return 0;
        }
        if let Some(depth) = self.depths.get(target) {
            return *depth;
        }
        self.way.push(target);
        let depth = pointed(self.root, target).map_or(0, |definition| self.walk(definition, way));
        self.way.pop();
        self.depths.insert(target, depth);
        depth
    }
}

/// What a reference within a schema points at.
pub(super) fn pointed<'a>(root: &'a Value, target: &str) -> Option<&'a Value> {
    root.pointer(target.strip_prefix('#')?)
}
