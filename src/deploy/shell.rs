//! Short commands of this machine, as `mainstay.yml` names them: a line for `sh -e`, bounded in time and in what is kept
//! of its output.
//!
//! In comes a line with its folder and variables; out comes how it ended and what it said last. What has to be found
//! again after a crash of the daemon is no matter for this file but for `runtime::process::Alone`.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// So much of the end of each stream is kept: fifty long lines.
const TAIL_BYTES: usize = 16 << 10;
/// What a command left running may hold its pipes open; after its end we read what is there, and no more than this long.
const DRAIN_WITHIN: Duration = Duration::from_millis(200);

/// A line of shell.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// What `sh -e -c` is given.
    pub line: &'a str,
    /// Where it starts; `/` when nobody says.
    pub folder: Option<&'a Path>,
    /// Variables on top of `PATH` and `HOME`; nothing else of the daemon's own environment, which holds its secrets.
    pub environment: &'a [(String, String)],
    /// It is killed with its whole process group when it takes longer.
    pub timeout: Duration,
}

/// How a line ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code, 128 and the signal's number when one ended it; `None` when it was killed for taking too long.
    pub code: Option<i32>,
    /// The end of standard output.
    pub stdout: String,
    /// The end of standard error.
    pub stderr: String,
}

impl Ended {
    /// The last line that says something, of the errors if there are any.
    pub fn last_line(&self) -> Option<&str> {
        [&self.stderr, &self.stdout]
            .into_iter()
            .find_map(|text| text.lines().map(str::trim).rfind(|line| !line.is_empty()))
    }
}

/// What a process of this machine is given of the daemon's environment.
pub(crate) fn plain_environment() -> [(&'static str, OsString); 2] {
    let of = |name: &str, default: &str| std::env::var_os(name).unwrap_or_else(|| default.into());
    [("PATH", of("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")), ("HOME", of("HOME", "/"))]
}

/// Kills the whole group unless its leader was waited for: until then the number is nobody else's.
struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    fn kill(&self) {
        if let Some(pid) = self.child.id().filter(|_| !self.ended) {
            // It may end at this moment; its number stays taken until we wait for it.
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a line to its end, or to its timeout.
///
/// # Errors
/// When no shell can be started.
pub async fn run(line: &Line<'_>) -> io::Result<Ended> {
    let mut command = Command::new("/bin/sh");
    command.args(["-e", "-c", line.line]).env_clear().envs(plain_environment());
    command.envs(line.environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(line.folder.unwrap_or(Path::new("/")));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut group = Group { child: command.spawn()?, ended: false };
    let (stdout, stderr) = (group.child.stdout.take(), group.child.stderr.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = {
        let reading = async { tokio::join!(keep_tail(stdout, &mut out), keep_tail(stderr, &mut err)) };
        tokio::pin!(reading);
        let mut read = false;
        let ending = async {
            loop {
                tokio::select! {
                    status = group.child.wait() => break status,
                    _ = &mut reading, if !read => read = true,
                }
            }
        };
        let waited = tokio::time::timeout(line.timeout, ending).await;
        match waited {
            Ok(status) => {
                group.ended = true;
                let status = status?;
                if !read {
                    // Whatever holds them open now is not the command.
                    let _ = tokio::time::timeout(DRAIN_WITHIN, &mut reading).await;
                }
                use std::os::unix::process::ExitStatusExt;
                Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
            }
            Err(_) => {
                group.kill();
                let _ = group.child.wait().await;
                group.ended = true;
                None
            }
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ended { code, stdout: text(out), stderr: text(err) })
}

/// Reads to the end, keeping the last bytes.
async fn keep_tail(pipe: Option<impl AsyncRead + Unpin>, tail: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 8 << 10];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        tail.extend_from_slice(&chunk[..count]);
        if tail.len() > 2 * TAIL_BYTES {
            tail.drain(..tail.len() - TAIL_BYTES);
        }
    }
    tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    async fn sh(line: &str, timeout: Duration) -> Ended {
        run(&Line { line, folder: None, environment: &[("A".into(), "x y".into())], timeout }).await.unwrap()
    }

    #[tokio::test]
    async fn a_line_ends_with_its_code_and_its_last_words() {
        let minute = Duration::from_secs(60);
        let ended = sh("echo first; echo \"$A\"; exit 3", minute).await;
        assert_eq!((ended.code, ended.last_line()), (Some(3), Some("x y")));
        let ended = sh("echo out; echo why >&2; false; echo never", minute).await;
        assert_eq!((ended.code, ended.last_line()), (Some(1), Some("why")));
        let ended = sh("kill -TERM $$", minute).await;
        assert_eq!((ended.code, ended.last_line()), (Some(143), None));
    }

    #[tokio::test]
    async fn of_the_daemons_environment_only_path_and_home_are_seen() {
        let ended = sh("env", Duration::from_secs(60)).await;
        let mut names: Vec<_> = ended.stdout.lines().filter_map(|line| line.split_once('=')).map(|(n, _)| n).collect();
        names.retain(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(name));
        names.sort_unstable();
        assert_eq!(names, ["A", "HOME", "PATH"]);
    }

    #[tokio::test]
    async fn a_line_that_takes_too_long_is_killed_with_all_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let line = format!("(sleep 1; touch {}) & echo begun; sleep 60", mark.display());
        let began = Instant::now();
        let ended = sh(&line, Duration::from_millis(300)).await;
        assert_eq!((ended.code, ended.stdout.trim()), (None, "begun"));
        assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(!mark.exists(), "what it had started lived on");
    }

    #[tokio::test]
    async fn what_a_line_leaves_running_does_not_hold_it_up() {
        let began = Instant::now();
        let ended = sh("sleep 30 & echo $!", Duration::from_secs(20)).await;
        assert_eq!(ended.code, Some(0));
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
        let pid: i32 = ended.stdout.trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn of_much_output_the_end_is_kept() {
        let ended = sh("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", Duration::from_secs(60)).await;
        assert!(ended.stdout.len() <= TAIL_BYTES && ended.stdout.ends_with("line 19999\n"), "{}", ended.stdout.len());
    }
}
