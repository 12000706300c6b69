//! The thin binary: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    mainstay::cli::main(std::env::args_os())
}
