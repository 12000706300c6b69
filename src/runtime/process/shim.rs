//! `mainstay shim FOLDER`: stands beside one step of the process runtime, for as long as that runs, whether or not the
//! daemon does.
//!
//! The word comes in by stdin, and nothing of it reaches a file or an argument list. Out go frames of captured output
//! and, last of all, the exit code.

// Shared with the helper that is PID 1 in containers, so that a step begins and ends in one way.
#[path = "../../init/command.rs"]
mod command;
#[path = "../../init/sys.rs"]
#[allow(dead_code, reason = "the helper uses the rest")]
mod sys;
#[path = "../../init/tree.rs"]
#[allow(dead_code, reason = "the helper uses the rest")]
pub(super) mod tree;
use crate::runtime::helper::wire;

use super::files::{Attempt, Shim, descendants};
use super::logs::frame;
use crate::model::log::Stream;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use sys::{SIGCHLD, SIGQUIT};
use wire::{Order, WORD_MAX_BYTES};

/// Large enough that a chatty step costs few frames, small enough to be seen soon.
const CAPTURE_BYTES: usize = 32 << 10;
/// After everything was killed its pipes are empty at once, unless something out of our reach holds them open.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// Carries out one attempt. `words` is the attempt's folder. The result is only whether the shim itself could do its
/// work; the step's exit code goes to its file.
///
/// # Errors
/// When the folder is not one of an attempt, or no whole word came.
pub fn shim_main(words: &[OsString]) -> io::Result<()> {
    let [folder] = words else {
        return Err(io::Error::other("it is started by the daemon, with one folder"));
    };
    let attempt = Attempt::new(PathBuf::from(folder));
    let (leaves_servers, nonce, order) = read_word()?;
    // Its own session: a terminal's or the daemon's end does not reach it.
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true)?;
    let Some(lock) = attempt.take()? else {
        // Another shim has the word already; that is as good.
        return say_ready();
    };
    let signals = sys::signals(&command::WATCHED)?;
    let mut log = Log::open(&attempt)?;
    attempt.write_shim(&Shim::this()?)?;
    say_ready()?;
    let code = carry_out(&order, &nonce, leaves_servers, &signals, &mut log)?;
    attempt.write_exit(code)?;
    drop(lock);
    Ok(())
}

/// The word, and before it what comes with it and is not for the step: whether it leaves servers, and the nonce.
fn read_word() -> io::Result<(bool, String, Order)> {
    let mut text = Vec::new();
    io::stdin().take(WORD_MAX_BYTES as u64).read_to_end(&mut text)?;
    let order = text.split(|b| *b == b'\n').find_map(wire::parse_word);
    let mut order = order.ok_or_else(|| io::Error::other("no whole word came"))?;
    let leaves_servers = order.env.first().is_some_and(|(name, _)| name == super::alone::LEAVES.as_bytes());
    if leaves_servers {
        order.env.remove(0);
    }
    match order.env.first() {
        Some((name, nonce)) if name == b"MAINSTAY_NONCE" => {
            let nonce = String::from_utf8_lossy(nonce).into_owned();
            order.env.remove(0);
            Ok((leaves_servers, nonce, order))
        }
        _ => Err(io::Error::other("the word has no nonce")),
    }
}

/// Tells the daemon that it need not stay, and lets go of it.
fn say_ready() -> io::Result<()> {
    // A daemon that was ended after its word was whole no longer listens. The word holds all the same: its successor
    // finds us written down, and would take us for lost.
    let _ = io::stdout().write_all(b"ready\n").and_then(|()| io::stdout().flush());
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

fn carry_out(order: &Order, nonce: &str, leaves_servers: bool, signals: &File, log: &mut Log) -> io::Result<i32> {
    command::make_output(&order.output);
    log.put(Stream::Stdout, command::begin_mark(nonce).as_bytes())?;
    let mut child = match command::spawn(order, Some(())) {
        Ok(child) => child,
        Err((code, message)) => {
            log.put(Stream::Stderr, format!("mainstay: {message}\n").as_bytes())?;
            return Ok(code);
        }
    };
    let pid = child.id() as i32;
    let mut pipes = [
        child.stdout.take().map(|pipe| (Stream::Stdout, OwnedFd::from(pipe))),
        child.stderr.take().map(|pipe| (Stream::Stderr, OwnedFd::from(pipe))),
    ];
    for (_, pipe) in pipes.iter().flatten() {
        fcntl(pipe.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let code = supervise(pid, signals, &mut pipes, log)?;
    if !leaves_servers {
        end_the_rest();
    }
    let ended = Instant::now();
    while pipes.iter().any(Option::is_some) && ended.elapsed() < DRAIN_WITHIN {
        capture(&mut pipes, -1, 10, log)?;
    }
    match command::end_mark(nonce, &order.output) {
        Ok(mark) => {
            log.put(Stream::Stdout, mark.as_bytes())?;
            Ok(code)
        }
        Err(why) => {
            let text = format!("mainstay: cannot take the outputs from $MAINSTAY_OUTPUT: {why}\n");
            log.put(Stream::Stderr, text.as_bytes())?;
            Ok(if code == 0 { 1 } else { code })
        }
    }
}

type Pipes = [Option<(Stream, OwnedFd)>; 2];

/// Captures, passes signals on and reaps until the command has ended; the result is its exit code.
fn supervise(pid: i32, signals: &File, pipes: &mut Pipes, log: &mut Log) -> io::Result<i32> {
    loop {
        if !capture(pipes, signals.as_raw_fd(), -1, log)? {
            continue;
        }
        while let Some(signal) = sys::next_signal(signals)? {
            match signal {
                SIGCHLD => {
                    while let Some((ended, code)) = sys::reap() {
                        if ended == pid {
                            return Ok(code);
                        }
                    }
                }
                // The daemon's word for SIGKILL, which would end this process instead.
                SIGQUIT => kill_descendants(),
                other => sys::send_signal(-pid, other),
            }
        }
    }
}

/// Kills everything that descends from this process.
fn kill_descendants() {
    for pid in descendants() {
        // It may have ended by itself since.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Kills and reaps what the command left behind, as the end of a container does.
fn end_the_rest() {
    let ended = Instant::now();
    // What is killed may just have forked, so it is looked for again.
    while !descendants().is_empty() && ended.elapsed() < DRAIN_WITHIN {
        kill_descendants();
        while sys::reap().is_some() {}
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes what the pipes hold; true when a signal came. Waits at most so long for either.
fn capture(pipes: &mut Pipes, signals: i32, wait_millis: i32, log: &mut Log) -> io::Result<bool> {
    let fd = |pipe: &Option<(Stream, OwnedFd)>| pipe.as_ref().map_or(-1, |(_, fd)| fd.as_raw_fd());
    let ready = sys::readable(&[signals, fd(&pipes[0]), fd(&pipes[1])], wait_millis)?;
    for (pipe, ready) in pipes.iter_mut().zip(&ready[1..]) {
        let Some((stream, fd)) = pipe.as_ref().filter(|_| *ready) else { continue };
        match nix::unistd::read(fd.as_fd(), &mut log.chunk) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                let stream = *stream;
                let chunk = std::mem::take(&mut log.chunk);
                let written = log.put(stream, &chunk[..count]);
                log.chunk = chunk;
                written?;
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ready[0])
}

/// The file of captured output.
struct Log {
    file: File,
    chunk: Vec<u8>,
}

impl Log {
    fn open(attempt: &Attempt) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(attempt.log())?;
        Ok(Log { file, chunk: vec![0; CAPTURE_BYTES] })
    }

    fn put(&mut self, stream: Stream, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut out = Vec::with_capacity(data.len() + 16);
        frame(&mut out, stream, now.as_nanos() as i64, data);
        self.file.write_all(&out)
    }
}
