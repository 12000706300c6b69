//! Mainstay: a GitOps pipeline runner and disaster-recovery keeper, as one binary on this library.
//!
//! The tree reads as one sentence per half of the product. This half:
//! config -> trigger -> plan -> schedule (`engine`) -> run step (`step`, `runtime`) -> record (`store`) -> show (`web`, `cli`).
//!
//! | room | what it holds | knows |
//! |---|---|---|
//! | [`cli`] | one file per command; turns errors into text and exit codes | daemon, everything the command needs |
//! | [`daemon`] | wires the rooms together, owns the loops and the shutdown | all below |
//! | [`web`] | the HTTP API, webhooks, live log stream | trigger, store, engine's handle |
//! | [`approval`] | who may say yes, what counts, mailed links | config, store |
//! | [`trigger`] | the world becomes one durable inbox row | git, config, store |
//! | [`engine`] | events, one transition function, decide, drive, recover | plan, step, store |
//! | [`step`] | what one attempt of one step does | runtime, logs |
//! | [`runtime`] | the contract with a container engine, Docker, plain processes | model |
//! | [`logs`] | masking, framing, storing and reading log lines | model |
//! | [`plan`] | (pipeline, trigger) becomes a plan; no I/O | config, model |
//! | [`git`] | mirrors, reading a tree at a commit, checkouts | model |
//! | [`config`] | what the files say, and whether it makes sense | model |
//! | [`store`] | SQLite, and the only SQL | model |
//! | [`model`] | plain data that every room may use | nobody |
//!
//! `docs/ARCHITECTURE.md` walks through a push from the hook to the last log line.

pub mod approval;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod deploy;
pub mod engine;
pub mod failpoint;
pub mod git;
pub mod logs;
pub mod model;
pub mod notify;
pub mod plan;
pub mod runtime;
pub mod step;
pub mod store;
pub mod telemetry;
pub mod trigger;
pub mod web;
