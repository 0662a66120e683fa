//! The SQL contract: what people may write, what it does, and what is refused, with no daemon anywhere.

mod insert;
