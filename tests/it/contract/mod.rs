//! The SQL contract: what people may write, what it does, and what is refused, with no daemon anywhere.

mod deletion;
mod insert;
mod redaction;
mod refusals;
mod roles;
mod shape;
mod shells;
mod tools;
mod transitions;
mod views;
