//! Compiles the helper (`src/init`), which the library embeds: a static program without dependencies, made by the
//! same compiler for the same target.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/init");
    let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"));
    let helper = format!("{}/init", var("OUT_DIR"));
    let status = Command::new(var("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "init", "--crate-type", "bin", "--target", &var("TARGET")])
        // Static and without an interpreter, so that it runs in an empty image; small, since it goes into every engine.
        .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static", "-C", "panic=abort"])
        .args(["-C", "opt-level=s", "-C", "strip=symbols", "-D", "warnings"])
        .args(["-o", &helper, "src/init/main.rs"])
        .status()
        .unwrap_or_else(|error| panic!("failed to start the compiler for the helper: {error}"));
    assert!(status.success(), "failed to compile the helper src/init/main.rs");
}
