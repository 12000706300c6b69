//! What a repository holds, what may go, whether it is what it was: on a real folder and a real S3 server, with real seals.

#![allow(clippy::print_stdout, reason = "what was counted is part of the answer")]

mod checks;
mod expiry;
mod lab;
mod model;
mod on_s3;
mod reading;
mod world;
