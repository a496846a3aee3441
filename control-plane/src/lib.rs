//! (to be written)

pub mod compile;
pub mod model;
pub mod source;
