//! What the demo says: titles, the commands as typed, and what to try next.

use super::Demo;
use crate::cli::exit::{Exit, Failure};
use crate::cli::ui::Tone;
use crate::cli::words;
use anyhow::anyhow;
use std::fs;
use std::path::Path;

impl Demo<'_> {
    pub(super) fn say(&self, text: impl AsRef<str>) {
        self.ui.say(text);
    }

    pub(super) fn title(&self, text: &str) {
        self.say("");
        self.say(self.ui.paint_err(Tone::Strong, format!("== {text}")));
    }

    /// A command as a user would type it, before what it says.
    pub(super) fn prompt(&self, line: &str) {
        self.say(self.ui.paint_err(Tone::Dim, format!("$ {line}")));
    }

    /// The end of the daemon's log says more than we know.
    pub(super) fn daemon_failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(self.folder.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(15)..] {
            self.say(format!("    {line}"));
        }
        Failure::new(Exit::Unreachable, anyhow!("{what}"))
            .hint(format!("its whole log is {}", self.folder.log().display()))
            .hint("`mainstay doctor` says what this machine lacks")
    }

    pub(super) fn next_steps(&self, run: u64) {
        let dir = self.folder.path.display();
        let pipelines = self.pipelines().unwrap_or_default();
        let pipeline = pipelines.first().map_or(".mainstay/build.yml", String::as_str);
        self.title("What to try next");
        self.say(format!("Everything is in {dir}"));
        self.say("Nothing of it runs any more. The next `mainstay demo` here replaces it, `rm -r` removes it.");
        self.say("");
        if !self.is_on_path() {
            self.say(format!("  export PATH={}:$PATH", shell_word(self.program.parent().unwrap_or(Path::new("/")))));
        }
        self.say(format!("  export MAINSTAY_CONFIG={}", shell_word(&self.folder.config())));
        self.say(format!("  cd {}", shell_word(&self.folder.work())));
        for (command, what) in [
            ("mainstay serve >../daemon.log 2>&1 &".to_owned(), "the daemon again; it still knows both runs"),
            (format!("mainstay show {run}"), "the failed run, and the commands to repeat it"),
            (format!("mainstay run {pipeline}"), "the same here, from the working tree, no push"),
            ("git revert --no-edit HEAD".to_owned(), "mend it, then"),
            ("git push origin main".to_owned(), "push that, and"),
            ("mainstay logs latest -f".to_owned(), "watch it pass"),
            ("kill %1".to_owned(), "stop the daemon"),
        ] {
            self.say(format!("  {command:38}{}", self.ui.paint_err(Tone::Dim, what)));
        }
        self.say("");
        self.say("In a project of your own, begin with `mainstay init`.");
    }

    /// Whether `mainstay`, typed in this shell, is this program.
    fn is_on_path(&self) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = std::env::split_paths(&path).map(|dir| dir.join("mainstay")).find(|file| file.is_file());
        first.and_then(|file| fs::canonicalize(file).ok()) == fs::canonicalize(&self.program).ok()
    }
}

fn shell_word(path: &Path) -> String {
    words::shell_word(&path.to_string_lossy())
}
