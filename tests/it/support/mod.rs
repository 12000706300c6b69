//! One harness per real service, shared by the tests of promises.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was counted is part of the answer")]

pub(crate) mod daemon;
pub(crate) mod dockerd;
pub(crate) mod engine;
pub(crate) mod failpoints;
pub(crate) mod faulty;
pub(crate) mod forge;
pub(crate) mod http;
pub(crate) mod nodes;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod smtp;
pub(crate) mod stage;
pub(crate) mod store;
pub(crate) mod store_proxy;
pub(crate) mod swarm;

/// How often something is tried: `usual` in the gate, all of it under `make soak`, which sets `MAINSTAY_SOAK` to the
/// number of random moments.
pub(crate) fn soak() -> Option<usize> {
    let text = std::env::var("MAINSTAY_SOAK").ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("MAINSTAY_SOAK is a number, not `{text}`")))
}

/// Numbers that differ from run to run and can be had again: the seed is printed, and `MAINSTAY_SEED` sets it.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(what: &str) -> Random {
        let seed = match std::env::var("MAINSTAY_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("MAINSTAY_SEED is a number, not `{text}`")),
            Err(_) => getrandom::u64().unwrap(),
        };
        println!("{what}: MAINSTAY_SEED={seed}");
        Random(seed | 1)
    }

    /// From 0 up to, not including, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end.max(1)
    }
}
