//! PID 1 of a step: waits for the word, runs the command as if it had been started plainly, passes signals on, reaps,
//! passes the exit code on.

use crate::sys::{self, SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use crate::wire::{self, Order, WORD_MAX_BYTES};
use crate::{command, command::WATCHED};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

/// Waits for the word and does what it says; the result is the exit code.
pub(crate) fn run(nonce: &str) -> io::Result<i32> {
    let signals = sys::signals(&WATCHED)?;
    // Without the buffers of `io::stdin` and `io::stdout`: nothing may be held back when the command starts.
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let order = match wait_for_word(&signals, &stdin)? {
        Ok(order) => order,
        Err(signal) => return Ok(128 + signal),
    };
    command::make_output(&order.output);
    say(&stdout, command::begin_mark(nonce).as_bytes())?;
    let pid = match command::spawn(&order, None) {
        Ok(child) => child.id() as i32,
        Err((code, message)) => {
            let _ = writeln!(io::stderr(), "mainstay: {message}");
            return Ok(code);
        }
    };
    let code = supervise(pid, &signals, &stdin)?;
    match command::end_mark(nonce, &order.output) {
        Ok(mark) => {
            say(&stdout, mark.as_bytes())?;
            Ok(code)
        }
        Err(why) => {
            // A step whose outputs are lost must not look well to the steps that read them.
            let _ = writeln!(io::stderr(), "mainstay: cannot take the outputs from $MAINSTAY_OUTPUT: {why}");
            Ok(if code == 0 { 1 } else { code })
        }
    }
}

/// The order, or the signal that ended the waiting.
fn wait_for_word(signals: &File, mut stdin: &File) -> io::Result<Result<Order, i32>> {
    let mut stdin_fd = stdin.as_raw_fd();
    let mut line = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let ready = sys::readable(&[signals.as_raw_fd(), stdin_fd], -1)?;
        if ready[0] {
            match sys::next_signal(signals)? {
                Some(signal @ (SIGTERM | SIGINT | SIGHUP | SIGQUIT)) => return Ok(Err(signal)),
                Some(SIGCHLD) => while sys::reap().is_some() {},
                _ => {}
            }
        }
        if !ready[1] {
            continue;
        }
        let count = match stdin.read(&mut chunk) {
            Ok(count) => count,
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => continue,
            Err(e) => return Err(e),
        };
        if count == 0 {
            // Nobody can give the word any more; go on waiting for the signal that ends us.
            stdin_fd = -1;
            continue;
        }
        for piece in chunk[..count].split_inclusive(|b| *b == b'\n') {
            if line.len() + piece.len() > WORD_MAX_BYTES {
                line.clear();
            } else {
                line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                if let Some(order) = wire::parse_word(line.trim_ascii_end()) {
                    return Ok(Ok(order));
                }
                line.clear();
            }
        }
    }
}

/// Passes signals on and reaps until the command has ended; the result is its exit code.
fn supervise(pid: i32, signals: &File, mut stdin: &File) -> io::Result<i32> {
    let mut stdin_fd = stdin.as_raw_fd();
    let mut chunk = vec![0; 4 << 10];
    loop {
        let ready = sys::readable(&[signals.as_raw_fd(), stdin_fd], -1)?;
        if ready[1] {
            // A word said twice is swallowed, so that its sender does not hang on a full pipe.
            match stdin.read(&mut chunk) {
                Ok(1..) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                _ => stdin_fd = -1,
            }
        }
        if !ready[0] {
            continue;
        }
        while let Some(signal) = sys::next_signal(signals)? {
            if signal != SIGCHLD {
                sys::send_signal(-pid, signal);
                continue;
            }
            while let Some((ended, code)) = sys::reap() {
                if ended == pid {
                    return Ok(code);
                }
            }
        }
    }
}

/// Writes it all, also when the command has made the pipe non-blocking.
fn say(mut stdout: &File, text: &[u8]) -> io::Result<()> {
    let mut rest = text;
    while !rest.is_empty() {
        match stdout.write(rest) {
            Ok(n) => rest = &rest[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sys::writable(stdout.as_raw_fd())?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
