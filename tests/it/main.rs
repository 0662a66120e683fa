//! The one integration binary.

mod claude;
