//! The folder that feeder and script share, with the script in it. What stands in it says the table in `feeder`.

use super::Feeding;
use crate::backup::restore::RestoreError;
use crate::backup::restore::place::give;
use crate::backup::restore::plan::PlannedLog;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The folder inside the data directory; on its file system, so that segments are handed out as hard links.
pub const STAGE: &str = "mainstay-restore";

/// The script, before its patience is filled in.
const SCRIPT: &str = include_str!("feed.sh");

pub(super) fn io<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> RestoreError + 'a {
    move |source| RestoreError::io(format!("{doing} {}", path.display()), source)
}

/// The folder that feeder and script share.
#[derive(Debug, Clone)]
pub(in crate::backup::restore) struct Stage {
    dir: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Stage {
    /// The folder in a data directory, as it is.
    pub(in crate::backup::restore) fn at(data: &Path) -> Stage {
        Stage { dir: data.join(STAGE), owner: None }
    }

    /// Makes the folder anew, with the script and the plan's end list.
    pub(in crate::backup::restore) fn make(
        data: &Path,
        owner: Option<(u32, u32)>,
        log: &PlannedLog,
        feeding: &Feeding,
    ) -> Result<Stage, RestoreError> {
        let stage = Stage { dir: data.join(STAGE), owner };
        stage.remove()?;
        for part in ["", "wal", "asked"] {
            let dir = stage.dir.join(part);
            fs::create_dir(&dir).map_err(io("make", &dir))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(io("make", &dir))?;
            give(&dir, owner)?;
        }
        // Its patience counts in steps of 0.05 s.
        let steps = (feeding.patience.as_millis() / 50).max(1);
        stage.write("feed.sh", SCRIPT.replace("@PATIENCE@", &steps.to_string()).as_bytes())?;
        stage.end_at(&log.end_names)?;
        stage.write("alive", b"0\n")?;
        Ok(stage)
    }

    /// Takes all of it away.
    pub(in crate::backup::restore) fn remove(&self) -> Result<(), RestoreError> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &self.dir)(error)),
            _ => Ok(()),
        }
    }

    /// Says that everything is here, and nobody will bring more.
    pub(in crate::backup::restore) fn whole(&self) -> Result<(), RestoreError> {
        self.write("whole", b"")
    }

    /// Says that it cannot go on: the server is not to open, whatever it asks for next.
    pub(in crate::backup::restore) fn fail(&self, why: &str) {
        // Where even this fails there is no new number in `alive` either, which says the same.
        if let Err(error) = self.write("failed", why.as_bytes()) {
            tracing::warn!(%error, "the server will stop by itself");
        }
    }

    /// Makes a file anew, the server's own. Whoever may write here must not have a link of theirs followed.
    pub(super) fn create(&self, path: &Path) -> Result<File, RestoreError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("replace", path)(error)),
            _ => {}
        }
        let file = File::options().read(true).write(true).create_new(true).open(path).map_err(io("write", path))?;
        if let Some((user, group)) = self.owner {
            std::os::unix::fs::fchown(&file, Some(user), Some(group)).map_err(io("give away", path))?;
        }
        Ok(file)
    }

    /// Writes a small file so that it is seen whole or not at all.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RestoreError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        self.create(&new)?.write_all(bytes).map_err(io("write", &new))?;
        fs::rename(&new, &path).map_err(io("write", &path))
    }

    /// Writes down the names at which the log ends.
    pub(super) fn end_at<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<(), RestoreError> {
        let lines: String = names.into_iter().flat_map(|name| [name, "\n"]).collect();
        self.write("end", lines.as_bytes())
    }

    pub(super) fn wal(&self, name: &str) -> PathBuf {
        self.dir.join("wal").join(name)
    }

    /// Syncs a complete file and says that it may be handed out.
    pub(super) fn ready(&self, name: &str, file: &File) -> Result<(), RestoreError> {
        let (new, path) = (self.wal(&format!("{name}.new")), self.wal(name));
        file.sync_data().map_err(io("sync", &new))?;
        fs::rename(&new, &path).map_err(io("write", &path))?;
        crate::failpoint!("restore-segment-staged");
        let mark = self.wal(&format!("{name}.ready"));
        self.create(&mark).map(drop)
    }

    /// Takes a file away again, the word for it first.
    pub(super) fn take_back(&self, name: &str) -> Result<(), RestoreError> {
        for path in [self.wal(&format!("{name}.ready")), self.wal(name)] {
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// What the server has asked for since the last look.
    pub(super) fn asked(&self) -> Result<BTreeSet<String>, RestoreError> {
        let dir = self.dir.join("asked");
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&dir).map_err(io("read", &dir))? {
            let entry = entry.map_err(io("read", &dir))?;
            names.insert(entry.file_name().to_string_lossy().into_owned());
            fs::remove_file(entry.path()).map_err(io("remove", &entry.path()))?;
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::restore::settings::restore_command;
    use crate::model::SegmentSize;
    use std::process::Command;
    use std::time::{Duration, Instant};

    /// What the script answers when a server asks it for a name, as a server asks.
    fn ask(data: &Path, name: &str) -> Option<i32> {
        let command = restore_command().replace("%f", name).replace("%p", "pg_wal/RECOVERYXLOG");
        Command::new("sh").arg("-c").arg(command).current_dir(data).status().unwrap().code()
    }

    #[test]
    fn r22_the_script_ends_the_log_only_at_names_that_are_proven_absent() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("it's a \"place\" with spaces");
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        let log = PlannedLog {
            segments: Vec::new(),
            wanted: 0,
            histories: Vec::new(),
            end_names: vec!["00000002.history".into(), "000000010000000000000009".into()],
            behind_wanted: Vec::new(),
            segment_size: SegmentSize::USUAL,
        };
        let feeding = Feeding { patience: Duration::from_millis(300), ..Feeding::default() };
        let stage = Stage::make(&data, None, &log, &feeding).unwrap();
        assert_eq!(ask(&data, "00000002.history"), Some(1));
        assert_eq!(ask(&data, "000000010000000000000009"), Some(1));
        // A name that is a part of one in the list, or a pattern for it, is not in it.
        for name in ["00000001000000000000000", "00000002xhistory", "000000010000000000000008"] {
            let began = Instant::now();
            assert_eq!(ask(&data, name), Some(200), "{name}: nobody is alive");
            assert!(began.elapsed() >= Duration::from_millis(250));
        }
        assert!(stage.asked().unwrap().contains("000000010000000000000008"));

        let (name, restored) = ("000000010000000000000007", data.join("pg_wal/RECOVERYXLOG"));
        let new = stage.wal(&format!("{name}.new"));
        fs::write(&new, "a segment").unwrap();
        assert_eq!(ask(&data, name), Some(200), "it is not complete");
        stage.ready(name, &File::open(&new).unwrap()).unwrap();
        assert_eq!((ask(&data, name), fs::read_to_string(&restored).unwrap().as_str()), (Some(0), "a segment"));
        stage.whole().unwrap();
        let began = Instant::now();
        assert_eq!(ask(&data, "000000010000000000000008"), Some(200));
        assert!(began.elapsed() < Duration::from_millis(250), "nobody is waited for");
        // After a failure nothing is an end, and nothing is handed out.
        stage.fail("the store is gone");
        for name in [name, "00000002.history", "000000010000000000000009"] {
            assert_eq!(ask(&data, name), Some(200), "{name}");
        }
        fs::remove_dir_all(data.join(STAGE)).unwrap();
        assert_eq!(ask(&data, "000000010000000000000009"), Some(200), "no script, no end");
    }
}
