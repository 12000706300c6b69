//! The helper: PID 1 of every container that Mainstay starts. One small static program, so that it runs in any image,
//! an empty one too. Compiled by `build.rs`, embedded in the binary, given to containers by a read-only volume.
//!
//! `init step NONCE` waits on stdin for the word and then runs the command; `init hold` keeps a run's network and
//! writes its workspace. Exit code 125: the helper itself failed, as with `docker run`.

// The shared files are also compiled into the library, which uses other parts of them.
#![allow(dead_code)]

mod command;
mod hold;
mod step;
mod sys;
mod tree;
mod wire;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["step", nonce] => step::run(nonce),
        ["hold"] => hold::run(std::path::Path::new("/workspace")),
        _ => Err(std::io::Error::other("started with wrong arguments")),
    };
    let code = result.unwrap_or_else(|error| {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "mainstay: the helper failed: {error}");
        125
    });
    std::process::exit(code);
}
