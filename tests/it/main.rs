//! Tests of promises, on real services. One file per promise; `support` holds one harness per service.

mod git_transports;
mod inbox;
mod webhooks;
