//! What a repository holds, what may go, whether it is what it was: on a real folder and a real S3 server, with real seals.

mod checks;
mod expiry;
mod lab;
mod model;
mod on_s3;
mod reading;
mod world;
