//! Tests of promises, on real services. One file per promise; `support` holds one harness per service.

mod api_auth;
mod api_daemon;
mod audit;
mod cli;
mod conformance;
mod demo;
mod deploys;
mod engine_restarts;
mod gates;
mod git_transports;
mod health;
mod hostile;
mod inbox;
mod late_leftovers;
mod logs;
mod logs_end_to_end;
mod notify;
mod one_push_one_run;
mod people;
mod private_registry;
mod run_is_stopped;
mod run_survives_kill;
mod schedules_end_to_end;
mod support;
mod targets;
mod webhooks;
