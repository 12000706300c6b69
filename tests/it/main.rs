//! Tests of promises, on real services. One file per promise; `support` holds one harness per service.

mod api_auth;
mod api_daemon;
mod cli;
mod conformance;
mod demo;
mod git_transports;
mod inbox;
mod logs;
mod private_registry;
mod webhooks;
