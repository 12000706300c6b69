//! The thin binary: arguments in, exit code out.

/// glibc keeps large blocks that were freed for the next ones of their size, up to 32 MiB each and arena: a backup would
/// hold twice of what it uses. From this size on, what is freed goes back.
#[cfg(target_env = "gnu")]
const GIVEN_BACK_BYTES: libc::c_int = 1 << 20;

fn main() -> std::process::ExitCode {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES);
    }
    mainstay::cli::main(std::env::args_os())
}
