//! Ports for servers that are to be found where they were after they have been killed.
//!
//! A port that the kernel picks is free for the moment. While its server is down, another test's server may be given it, or
//! a connection that leaves from it: then the server cannot come back. These lie below the ports of connections, and a
//! lock keeps other tests away from each for as long as this process lives.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};

/// Above what services have by custom; below those that Linux gives to connections and Docker Swarm to published services.
const RANGE: std::ops::Range<u16> = 10_000..30_000;

/// A port of 127.0.0.1 that is this process's alone.
pub(crate) fn free() -> u16 {
    let user = nix::unistd::geteuid();
    let folder = std::env::temp_dir().join(format!("mainstay-test-ports-{user}"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).unwrap();
    assert_eq!(std::fs::metadata(&folder).unwrap().uid(), user.as_raw(), "{} is somebody else's", folder.display());
    for _ in 0..1_000 {
        let port = RANGE.start + (getrandom::u32().unwrap() % u32::from(RANGE.end - RANGE.start)) as u16;
        let lock = File::options().create(true).append(true).open(folder.join(port.to_string())).unwrap();
        if lock.try_lock().is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok() {
            // Let go when the process ends, however it ends.
            std::mem::forget(lock);
            return port;
        }
    }
    panic!("no port of {RANGE:?} is free");
}
