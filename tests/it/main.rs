//! Tests of promises, on real services. One file per promise; `support` holds one harness per service.

mod api_auth;
mod api_daemon;
mod audit;
mod cli;
mod conformance;
mod demo;
mod engine_restarts;
mod git_transports;
mod hostile;
mod inbox;
mod late_leftovers;
mod logs;
mod logs_end_to_end;
mod one_push_one_run;
mod people;
mod private_registry;
mod run_is_stopped;
mod run_survives_kill;
mod schedules_end_to_end;
mod settings_of_deploys;
mod support;
mod webhooks;
