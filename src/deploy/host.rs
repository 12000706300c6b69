//! Commands of this machine around a deploy: hooks, and the version of a database schema. `mainstay.yml` alone names them.

use crate::model::deploy::Release;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A hook that takes longer is stopped: a deploy waits for it, and with it the environment.
const WITHIN: Duration = Duration::from_secs(600);
/// So much of the end of its output is told when it fails.
const TOLD_BYTES: usize = 2_000;

/// What a command is told about the deploy, as variables.
pub(super) fn environment(release: &Release, previous: Option<u64>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::from([
        ("MAINSTAY_ENVIRONMENT".to_owned(), release.environment.to_string()),
        ("MAINSTAY_RELEASE".to_owned(), release.number.to_string()),
        ("MAINSTAY_COMMIT".to_owned(), release.provenance.commit.to_string()),
        ("MAINSTAY_REPO".to_owned(), release.provenance.repo.to_string()),
    ]);
    variables.extend(previous.map(|number| ("MAINSTAY_PREVIOUS_RELEASE".to_owned(), number.to_string())));
    variables
}

/// Runs lines under `sh -e`; what they print at the end, or why they failed in words.
pub(super) async fn run(lines: &[String], variables: &BTreeMap<String, String>) -> Result<String, String> {
    if lines.is_empty() {
        return Ok(String::new());
    }
    let mut command = std::process::Command::new("sh");
    command.args(["-e", "-c", &lines.join("\n")]).envs(variables);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that what it started ends with it.
    command.process_group(0);
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("`{}` cannot be started: {error}", shown(lines)))?;
    let group = child.id();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let whole = async {
        let (out, err) = tokio::join!(end_of(out), end_of(err));
        (child.wait().await, out, err)
    };
    let Ok((status, out, err)) = tokio::time::timeout(WITHIN, whole).await else {
        if let Some(group) = group {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group as i32), nix::sys::signal::Signal::SIGKILL);
        }
        return Err(format!("`{}` did not end within {} s", shown(lines), WITHIN.as_secs()));
    };
    match status {
        Ok(status) if status.success() => Ok(out),
        Ok(status) => {
            let said = if err.trim().is_empty() { out } else { err };
            Err(format!("`{}` ended with {status}: {}", shown(lines), said.trim()))
        }
        Err(error) => Err(format!("`{}`: {error}", shown(lines))),
    }
}

fn shown(lines: &[String]) -> String {
    let text = lines.join("; ");
    match text.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Reads to the end, and keeps the end.
async fn end_of(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut chunk) = (Vec::new(), [0_u8; 4096]);
    while let Ok(count) = stream.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..count]);
        if kept.len() > 2 * TOLD_BYTES {
            kept.drain(..kept.len() - TOLD_BYTES);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_run_until_one_fails_and_the_end_of_what_was_said_is_told() {
        let none = BTreeMap::new();
        assert_eq!(run(&[], &none).await, Ok(String::new()));
        let named = BTreeMap::from([("MAINSTAY_RELEASE".to_owned(), "7".to_owned())]);
        assert_eq!(run(&["echo $MAINSTAY_RELEASE".into()], &named).await, Ok("7\n".into()));
        let why = run(&["echo first".into(), "echo why >&2; false".into(), "echo never".into()], &none).await.unwrap_err();
        assert!(why.contains("exit status: 1: why") && !why.contains("never\n"), "{why}");
        let much = run(&["seq 1 100000".into()], &none).await.unwrap();
        assert!(much.ends_with("100000\n") && much.len() <= 2 * TOLD_BYTES + 4096, "{}", much.len());
    }
}
