use super::*;
use crate::git::testing::git;

const NEW: &str = "1111111111111111111111111111111111111111";

fn bare() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q", "--bare", "-b", "main", "it's shop.git"]);
    let path = dir.path().join("it's shop.git");
    (dir, path)
}

fn repo() -> RepoName {
    RepoName::new("shop").unwrap()
}

fn install_here(path: &Path) -> Result<InstallReport, InstallError> {
    install(path, &repo(), &path.join("no.sock"), Path::new("/nonexistent/mainstay"))
}

/// Pushes a new commit to `main`, from a working tree beside the repository; returns how long the push took.
fn push(dir: &Path, bare: &Path) -> Duration {
    let work = dir.join("work");
    if !work.exists() {
        git(dir, &["init", "-q", "-b", "main", "work"]);
    }
    git(&work, &["commit", "-q", "--allow-empty", "-m", "x"]);
    let before = std::time::Instant::now();
    git(&work, &["push", "-q", bare.to_str().unwrap(), "HEAD:refs/heads/main"]);
    before.elapsed()
}

fn spooled(bare: &Path) -> Vec<Message> {
    let mut files: Vec<_> = fs::read_dir(bare.join(SPOOL_DIR))
        .map(|d| d.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "push")).collect())
        .unwrap_or_default();
    files.sort();
    files.iter().map(|f| Message::parse(&fs::read(f).unwrap()).unwrap()).collect()
}

#[test]
fn installing_is_repeatable_and_the_hook_is_executable() {
    let (_dir, bare) = bare();
    let report = install_here(&bare).unwrap();
    assert_eq!((report.done, &report.chained), (Installed::New, &None));
    assert_eq!(fs::metadata(&report.hook).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(install_here(&bare).unwrap().done, Installed::Unchanged);
    fs::set_permissions(&report.hook, fs::Permissions::from_mode(0o644)).unwrap();
    install_here(&bare).unwrap();
    assert_eq!(fs::metadata(&report.hook).unwrap().permissions().mode() & 0o777, 0o755);
    let other = install(&bare, &repo(), Path::new("/other.sock"), Path::new("/m")).unwrap();
    assert_eq!((other.done, other.chained), (Installed::Renewed, None));
    assert!(fs::read_to_string(&report.hook).unwrap().contains("socket='/other.sock'"));
}

#[test]
fn a_foreign_hook_is_kept_and_called_with_the_same_input() {
    let (dir, bare) = bare();
    fs::create_dir_all(bare.join("hooks")).unwrap();
    let foreign = bare.join("hooks/post-receive");
    fs::write(&foreign, "#!/bin/sh\ncat > \"$GIT_DIR/seen\"\n").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o755)).unwrap();
    let report = install_here(&bare).unwrap();
    assert_eq!(report.chained, Some(bare.canonicalize().unwrap().join("hooks/post-receive.before-mainstay")));
    assert_eq!(install_here(&bare).unwrap().done, Installed::Unchanged);
    push(dir.path(), &bare);
    let seen = fs::read_to_string(bare.join("seen")).unwrap();
    assert!(seen.ends_with(" refs/heads/main\n") && seen.lines().count() == 1, "{seen:?}");
    assert_eq!(spooled(&bare).len(), 1);
    // Somebody replaced our hook by another one: that is for a person to sort out.
    fs::remove_file(&foreign).unwrap();
    fs::write(&foreign, "#!/bin/sh\n# third\n").unwrap();
    assert!(matches!(install_here(&bare), Err(InstallError::Crowded { .. })));
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "#!/bin/sh\n# third\n", "nothing was touched");
}

#[test]
fn what_is_no_bare_repository_is_refused_with_a_hint() {
    let (dir, bare) = bare();
    git(dir.path(), &["init", "-q", "work"]);
    for (path, words) in [
        (dir.path().join("work"), "is a working tree"),
        (dir.path().join("work/.git"), "inside of a working tree"),
        (dir.path().to_owned(), "is no Git repository"),
    ] {
        let error = install_here(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("\nhint: "), "{error}");
        assert!(!path.join(SPOOL_DIR).exists());
    }
    git(&bare, &["config", "core.hooksPath", "/etc/hooks"]);
    let error = install_here(&bare).unwrap_err().to_string();
    assert!(error.contains("core.hooksPath"), "{error}");
    let error = install_here(Path::new("/nonexistent/x.git")).unwrap_err();
    assert!(matches!(error, InstallError::Io { .. }));
}

#[test]
fn a_push_without_the_program_leaves_a_message_made_by_the_shell() {
    let (dir, bare) = bare();
    install_here(&bare).unwrap();
    let took = push(dir.path(), &bare);
    assert!(took < Duration::from_secs(1), "{took:?}");
    push(dir.path(), &bare);
    let messages = spooled(&bare);
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0].repo, "shop");
    assert!(messages[0].changes[0].old.is_zero());
    assert_eq!(messages[1].changes[0].old, messages[0].changes[0].new, "in the order of the pushes");
    assert!(messages[0].actor.is_some());
    assert_ne!(messages[0].delivery, messages[1].delivery);
}

#[test]
fn nobody_there_means_a_spool_file_at_once() {
    let (_dir, bare) = bare();
    let line = format!("{} {NEW} refs/heads/main\n", "0".repeat(40));
    let before = std::time::Instant::now();
    let done = notify(&bare, "shop", Path::new("/nonexistent.sock"), line.as_bytes()).unwrap();
    assert!(matches!(done, Notified::Spooled(_)), "{done:?}");
    assert!(before.elapsed() < Duration::from_millis(200));
    let messages = spooled(&bare);
    assert_eq!(messages[0].changes[0].git_ref, "refs/heads/main");
    assert_eq!(notify(&bare, "shop", Path::new("/nonexistent.sock"), &b""[..]).unwrap(), Notified::Nothing);
}

#[test]
fn a_daemon_that_hangs_holds_a_push_up_for_less_than_a_second() {
    let (dir, bare) = bare();
    let socket = dir.path().join("hang.sock");
    // Accepts into its backlog and never answers.
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let line = format!("{} {NEW} refs/heads/main\n", "0".repeat(40));
    let before = std::time::Instant::now();
    let done = notify(&bare, "shop", &socket, line.as_bytes()).unwrap();
    assert!(matches!(done, Notified::Spooled(_)), "{done:?}");
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    // The same with a backlog so full that even connecting hangs.
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let socket = socket.clone();
        let (said, heard) = mpsc::channel();
        std::thread::spawn(move || said.send(UnixStream::connect(socket)));
        match heard.recv_timeout(Duration::from_millis(50)) {
            Ok(stream) => waiting.push(stream),
            Err(_) => break,
        }
    }
    let before = std::time::Instant::now();
    let done = notify(&bare, "shop", &socket, line.as_bytes()).unwrap();
    assert!(matches!(done, Notified::Spooled(_)), "{done:?}");
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    assert_eq!(spooled(&bare).len(), 2);
    drop(listener);
}
