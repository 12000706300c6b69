//! The machine's engine as a swarm, asked with its own client as a person would.

use std::process::Command;

/// What the client prints.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let done = Command::new("docker").args(arguments).output();
    let done = done.unwrap_or_else(|error| panic!("this test needs the `docker` client: {error}"));
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "docker {arguments:?}: {error}\nis it set up? tests/setup/prepare.sh test");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// The engine's id of an image that set-up made.
pub(crate) fn image_id(name: &str) -> String {
    docker(&["image", "inspect", "--format", "{{.Id}}", name])
}
