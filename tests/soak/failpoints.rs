//! The daemon built with its fail points: an example, so that it never takes the place of the real binary.

fn main() -> std::process::ExitCode {
    mainstay::cli::main(std::env::args_os())
}
