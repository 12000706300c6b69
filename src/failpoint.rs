//! Points at which a test may kill the process: one call before and one after everything that is recorded or done.
//!
//! Entered from `store` and `engine` through [`failpoint!`](crate::failpoint!). Without the `failpoints` feature the macro is nothing at all, and a test
//! asserts that a release binary does not hold it. With it, `MAINSTAY_FAILPOINT=n` aborts the process, as `kill -9`
//! would, at the n-th point reached since its start.

/// Marks a point where the process may be killed by a test. Compiles to nothing without the `failpoints` feature.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reached($name);
    };
}

/// Counts one reached point and kills the process when it is the one asked for.
#[cfg(feature = "failpoints")]
pub fn reached(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static AT: OnceLock<Option<u64>> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let wanted = AT.get_or_init(|| std::env::var("MAINSTAY_FAILPOINT").ok()?.parse().ok());
    let now = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    if *wanted == Some(now) {
        tracing::warn!(name, now, "failpoint reached");
        // SIGKILL to ourselves: no destructor, no flush, exactly what a lost machine leaves behind.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        std::thread::sleep(std::time::Duration::from_secs(5));
    }
}
