//! Tests of promises, on real services. One file per promise; `support` holds one harness per service.

mod api_auth;
mod api_daemon;
mod cli;
mod conformance;
mod demo;
mod engine_restarts;
mod git_transports;
mod inbox;
mod logs;
mod one_push_one_run;
mod private_registry;
mod run_is_stopped;
mod run_survives_kill;
mod support;
mod webhooks;
