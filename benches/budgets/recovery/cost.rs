//! What a command cost: time, processor, memory.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

/// Clock ticks of `/proc/PID/stat` in a second.
use crate::lab::TICKS_PER_SECOND;

/// What a command cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    /// Of the command and all its processes.
    pub(super) cpu: f64,
    /// Of the database server meanwhile.
    pub(super) server_cpu: f64,
    /// The most that one process of it held.
    pub(super) peak_mib: f64,
}

/// Runs a command to its end, which must be a good one. Gives what it cost and what it printed.
#[allow(clippy::zombie_processes, reason = "`wait4` waits for it, and tells what it used")]
pub(super) fn run(command: &mut Command, log: &Path) -> (Cost, String) {
    let file = File::create(log).expect("a log is made");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let began = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
    let mut said = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut said).expect("it prints text");
    let (mut status, mut used) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both places are ours, and the process is our child, not yet waited for.
    let ended = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, used.as_mut_ptr()) };
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(ended, child.id() as i32, "the child is waited for");
    // SAFETY: zeroed bytes are a `rusage`, and the call has filled it.
    let used = unsafe { used.assume_init() };
    let status = ExitStatus::from_raw(status);
    assert!(status.success(), "{command:?} ended with {status}: {said}{}", fs::read_to_string(log).unwrap_or_default());
    let time = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let cost = Cost {
        seconds,
        cpu: time(used.ru_utime) + time(used.ru_stime),
        server_cpu: 0.0,
        peak_mib: used.ru_maxrss as f64 / 1024.0,
    };
    (cost, said)
}

/// Processor time of a process, those of its children that have ended, and its living ones.
pub(super) fn cpu_of_tree(pid: u32) -> f64 {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc").expect("there is /proc").flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect();
        // From the third field on: state, parent, …; user, system, and both of children that have ended.
        if number == pid {
            ticks += fields[11..15].iter().sum::<u64>();
        } else if fields[1] == u64::from(pid) {
            ticks += fields[11..13].iter().sum::<u64>();
        }
    }
    ticks as f64 / TICKS_PER_SECOND
}
