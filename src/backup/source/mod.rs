//! What is backed up: bytes and facts, as the server gives them.

pub mod postgres;
