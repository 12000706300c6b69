//! The daemon with its fail points, under a name of its own: what users get never holds them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Builds it beside the usual one (nothing to do when it is fresh) and returns its path.
pub(crate) fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let usual = Path::new(env!("CARGO_BIN_EXE_mainstay"));
        let profile = usual.parent().unwrap();
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--features", "failpoints", "--example", "mainstay-failpoints"])
            .arg("--target-dir")
            .arg(profile.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo is needed to build the daemon with fail points");
        assert!(
            built.status.success(),
            "failed to build the daemon with fail points:\n{}",
            String::from_utf8_lossy(&built.stderr)
        );
        profile.parent().unwrap().join("debug/examples/mainstay-failpoints")
    })
}
