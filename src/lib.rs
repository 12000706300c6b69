//! Mainstay: a GitOps pipeline runner and disaster-recovery keeper, as one binary on this library.
//!
//! The tree reads as one sentence per half of the product. This half:
//! config -> trigger -> plan -> schedule (`engine`) -> run step (`step`, `runtime`) -> ask people (`approval`) -> deploy,
//! watch, take back (`deploy`) -> record (`store`) -> tell (`notify`) -> show (`web`, `cli`).
//!
//! | room | what it holds | knows, beside model |
//! |---|---|---|
//! | [`cli`] | one file per command; turns errors into text and exit codes | daemon, everything the command needs |
//! | [`daemon`] | wires the rooms together, owns the loops and the shutdown, makes the targets | all below |
//! | [`web`] | the HTTP API, webhooks, mailed links, live log stream | approval, deploy, engine, logs, store |
//! | [`deploy`] | environments, deploys, health rules, targets, reverts | approval, notify's messages and forges, git, runtime, logs, step, config, store |
//! | [`backup`] | from a database into a repository, and back: into a folder, a server, a container | runtime, config, signing |
//! | [`approval`] | who may say yes, what counts, mailed links | config, store |
//! | [`notify`] | messages to people and systems, and the sending of them; pull requests | config, store |
//! | [`trigger`] | the world becomes one durable inbox row | git, store |
//! | [`engine`] | events, one transition function, decide, drive, recover | plan, step, runtime, logs, git, config, store |
//! | [`step`] | what one attempt of one step does | runtime, logs, config |
//! | [`runtime`] | the contract with a container engine, Docker, plain processes | git |
//! | [`logs`] | masking, framing, storing and reading log lines | nobody |
//! | [`plan`] | (pipeline, trigger) becomes a plan; no I/O | config |
//! | [`git`] | mirrors, reading a tree at a commit, checkouts, the history of releases | nobody |
//! | [`config`] | what the files say, and whether it makes sense | small_file |
//! | [`signing`] | keys that sign what Mainstay writes | small_file |
//! | [`small_file`] | reads files that people write: regular ones, of bounded size | nobody |
//! | [`store`] | SQLite, and the only SQL | nobody |
//! | [`model`] | plain data that every room may use | nobody |
//!
//! `docs/ARCHITECTURE.md` walks through a push from the hook to the last log line, a yes, and a deploy from
//! the step to the last probe.

pub mod approval;
pub mod backup;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod deploy;
pub mod engine;
pub mod failpoint;
pub mod git;
pub mod logs;
mod markup;
pub mod model;
pub mod notify;
pub mod plan;
pub mod runtime;
pub mod signing;
pub mod small_file;
pub mod step;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trigger;
pub mod web;
