//! Clones made by `checkout`, looked at by the real `git`.

use super::super::testing::git;
use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

/// A working repository and the bare one it pushes to, which serves as the mirror.
struct Fixture {
    dir: tempfile::TempDir,
    work: PathBuf,
    bare: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (work, bare) = (dir.path().join("work"), dir.path().join("bare.git"));
        git(dir.path(), &["init", "-q", "--bare", "-b", "main", "bare.git"]);
        git(dir.path(), &["init", "-q", "-b", "main", "work"]);
        Fixture { dir, work, bare }
    }

    fn write(&self, path: &str, text: &str) {
        let full = self.work.join(path);
        std::fs::create_dir_all(full.parent().unwrap()).unwrap();
        std::fs::write(full, text).unwrap();
    }

    fn commit(&self, message: &str) -> Oid {
        git(&self.work, &["add", "-A"]);
        git(&self.work, &["commit", "-q", "--allow-empty", "-m", message]);
        git(&self.work, &["push", "-q", "--force", "../bare.git", "HEAD:refs/heads/main"]);
        git(&self.work, &["rev-parse", "HEAD"]).parse().unwrap()
    }

    fn clone_into(&self, to: &Path, commit: &Oid, base: Option<&Base>) -> Base {
        checkout(&self.bare, commit, base, Some("main"), "https://ana:secret@example.com/x.git", &mut apply(to))
            .unwrap()
    }
}

/// The simplest sink: does to a folder what it is told.
fn apply(to: &Path) -> impl FnMut(Change<'_>) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let to = to.to_owned();
    move |change| {
        let at = |path: &[u8]| to.join(std::ffi::OsStr::from_bytes(path));
        match change {
            Change::Remove(path) => match std::fs::symlink_metadata(at(&path)) {
                Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(at(&path)),
                Ok(_) => std::fs::remove_file(at(&path)),
                Err(_) => Ok(()),
            },
            Change::Dir(path) => match std::fs::create_dir(at(&path)) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            },
            Change::File { path, executable, data } => {
                let _ = std::fs::remove_file(at(&path));
                std::fs::write(at(&path), data)?;
                let mode = if executable { 0o755 } else { 0o644 };
                std::fs::set_permissions(at(&path), std::fs::Permissions::from_mode(mode))
            }
            Change::Link { path, target } => {
                let _ = std::fs::remove_file(at(&path));
                symlink(std::ffi::OsStr::from_bytes(&target), at(&path))
            }
        }
    }
}

fn check_clone(at: &Path, commit: &Oid, work: &Path) {
    assert_eq!(git(at, &["status", "--porcelain"]), "");
    assert_eq!(git(at, &["rev-parse", "HEAD"]), commit.as_str());
    assert_eq!(git(at, &["log", "--format=%H"]), commit.as_str(), "depth is one");
    git(at, &["describe", "--always"]);
    let fsck = git(at, &["fsck", "--full", "--strict"]);
    assert!(!fsck.contains("missing") && !fsck.contains("broken") && !fsck.contains("error"), "{fsck}");
    assert_eq!(git(at, &["ls-files", "-s"]), git(work, &["ls-files", "-s"]));
    assert_eq!(git(at, &["remote", "get-url", "origin"]), "https://example.com/x.git");
    assert_eq!(git(at, &["symbolic-ref", "HEAD"]), "refs/heads/main");
    assert!(git(at, &["rev-parse", "--abbrev-ref", "main@{upstream}"]) == "origin/main");
    let differs = std::process::Command::new("diff")
        .args(["-r", "--no-dereference", "--exclude=.git"])
        .args([at, work])
        .output()
        .unwrap();
    assert!(differs.status.success(), "{}", String::from_utf8_lossy(&differs.stdout));
}

#[test]
fn a_full_and_an_incremental_checkout_are_real_clones_of_depth_one() {
    let f = Fixture::new();
    f.write("a.txt", "one\n");
    f.write("sub/deep/b.txt", "two\n");
    f.write("sub.txt", "sorts between sub and sub/\n");
    f.write("run.sh", "#!/bin/sh\n");
    f.write("becomes-dir", "file\n");
    f.write("becomes-file/x", "x\n");
    f.write("becomes-link", "file\n");
    f.write("gone/only/file", "x\n");
    f.write("empty", "");
    f.write("big", &"0123456789abcdef".repeat(200_000));
    std::fs::set_permissions(f.work.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/etc/passwd", f.work.join("link-out")).unwrap();
    symlink("sub", f.work.join("link-dir")).unwrap();
    let first = f.commit("first");
    let clone = f.dir.path().join("clone");
    std::fs::create_dir(&clone).unwrap();
    let base = f.clone_into(&clone, &first, None);
    check_clone(&clone, &first, &f.work);
    assert!(!clone.join(".git/shallow").exists(), "a first commit has nothing to be cut off");

    for gone in ["becomes-dir", "becomes-link", "link-dir", "link-out"] {
        std::fs::remove_file(f.work.join(gone)).unwrap();
    }
    std::fs::remove_dir_all(f.work.join("becomes-file")).unwrap();
    std::fs::remove_dir_all(f.work.join("gone")).unwrap();
    f.write("becomes-dir/inside", "x\n");
    f.write("becomes-file", "x\n");
    f.write("link-dir/now/a/folder", "x\n");
    f.write("link-out", "a file now\n");
    f.write("a.txt", "changed\n");
    f.write("sub/deep/new.txt", "new\n");
    symlink("sub/deep", f.work.join("becomes-link")).unwrap();
    std::fs::set_permissions(f.work.join("run.sh"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let second = f.commit("second");
    let base = f.clone_into(&clone, &second, Some(&base));
    check_clone(&clone, &second, &f.work);
    assert_eq!(base.packs, 2);

    // Back to the first commit, the way a force-push goes.
    git(&f.work, &["reset", "-q", "--hard", "HEAD~1"]);
    let base = f.clone_into(&clone, &first, Some(&base));
    check_clone(&clone, &first, &f.work);

    // Many small steps: the packs stay few.
    let mut base = base;
    for n in 0..PACKS_MAX + 3 {
        f.write("a.txt", &format!("{n}\n"));
        let commit = f.commit("step");
        base = f.clone_into(&clone, &commit, Some(&base));
        assert!(base.packs <= PACKS_MAX, "{base:?}");
        if n % 10 == 0 || n >= PACKS_MAX {
            check_clone(&clone, &commit, &f.work);
        }
    }
    let found = std::fs::read_dir(clone.join(".git/objects/pack")).unwrap().count() as u32;
    assert_eq!(found, base.packs * 2);
}

#[test]
fn an_incremental_checkout_sends_only_the_difference() {
    let f = Fixture::new();
    for n in 0..500 {
        f.write(&format!("d{}/f{n}", n % 20), &format!("{n}\n").repeat(50));
    }
    let first = f.commit("first");
    let base = checkout(&f.bare, &first, None, None, "/x", &mut |_| Ok(())).unwrap();
    f.write("d1/f1", "changed\n");
    let second = f.commit("second");
    let (mut files, mut bytes) = (Vec::new(), 0);
    let mut sink = |change: Change<'_>| {
        if let Change::File { path, data, .. } = &change {
            files.push(String::from_utf8(path.clone()).unwrap());
            bytes += data.len();
        }
        Ok(())
    };
    checkout(&f.bare, &second, Some(&base), None, "/x", &mut sink).unwrap();
    let plain: Vec<_> = files.iter().filter(|p| !p.starts_with(".git/")).collect();
    assert_eq!(plain, ["d1/f1"]);
    // The index is most of it.
    assert!(bytes < 80_000, "{bytes} bytes in {files:?}");
}

#[test]
fn a_tag_and_a_bare_commit_leave_head_detached() {
    let f = Fixture::new();
    f.write("a", "a");
    let first = f.commit("first");
    let second = f.commit("second");
    for (branch, commit) in [(Some("refs/tags/v1"), &second), (None, &first), (Some("no..good"), &second)] {
        let clone = f.dir.path().join(format!("clone-{}", branch.is_some_and(|b| b.contains("tags")) as u8));
        std::fs::create_dir_all(&clone).unwrap();
        let _ = std::fs::remove_dir_all(clone.join(".git"));
        checkout(&f.bare, commit, None, branch, "/srv/x.git", &mut apply(&clone)).unwrap();
        assert_eq!(std::fs::read_to_string(clone.join(".git/HEAD")).unwrap().trim(), commit.as_str());
        assert_eq!(git(&clone, &["status", "--porcelain"]), "");
        if branch == Some("refs/tags/v1") {
            assert_eq!(git(&clone, &["describe", "--tags"]), "v1");
        }
    }
}

#[test]
fn a_submodule_is_an_empty_folder() {
    let f = Fixture::new();
    f.write("a", "a");
    let first = f.commit("first");
    git(&f.work, &["update-index", "--add", "--cacheinfo", &format!("160000,{first},vendor/lib")]);
    git(&f.work, &["commit", "-q", "-m", "submodule"]);
    git(&f.work, &["push", "-q", "../bare.git", "HEAD:refs/heads/main"]);
    let second: Oid = git(&f.work, &["rev-parse", "HEAD"]).parse().unwrap();
    let clone = f.dir.path().join("clone");
    std::fs::create_dir(&clone).unwrap();
    f.clone_into(&clone, &second, None);
    assert_eq!(std::fs::read_dir(clone.join("vendor/lib")).unwrap().count(), 0);
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");
}

/// Writes a tree object that `git` itself would refuse to make, and a commit of it.
fn hostile_commit(bare: &Path, entries: &[(&str, &[u8], git2::Oid)]) -> Oid {
    let repo = Repository::open_bare(bare).unwrap();
    let odb = repo.odb().unwrap();
    let mut tree = Vec::new();
    for (mode, name, id) in entries {
        tree.extend_from_slice(mode.as_bytes());
        tree.push(b' ');
        tree.extend_from_slice(name);
        tree.push(0);
        tree.extend_from_slice(id.as_bytes());
    }
    let tree = odb.write(ObjectType::Tree, &tree).unwrap();
    let text = format!("tree {tree}\nauthor A <a@x> 1 +0000\ncommitter A <a@x> 1 +0000\n\nx\n");
    from_git(odb.write(ObjectType::Commit, text.as_bytes()).unwrap())
}

#[test]
fn hostile_trees_are_refused_before_the_first_change() {
    let f = Fixture::new();
    f.write("a", "a");
    f.commit("first");
    let repo = Repository::open_bare(&f.bare).unwrap();
    let blob = repo.odb().unwrap().write(ObjectType::Blob, b"/etc").unwrap();
    let inner = to_git(&hostile_commit(&f.bare, &[("100644", b"passwd", blob)]));
    let dir = repo.find_commit(inner).unwrap().tree_id();
    let bad: [(&str, &[u8]); 14] = [
        ("100644", b".."),
        ("40000", b".."),
        ("100644", b"."),
        ("40000", b".git"),
        ("40000", b".GIT"),
        ("100644", b".git "),
        ("100644", b".git."),
        ("40000", b"git~1"),
        ("40000", b".git::$INDEX_ALLOCATION"),
        ("40000", ".g\u{200c}it".as_bytes()),
        ("100644", b"../../etc/passwd"),
        ("100644", b"/etc/passwd"),
        ("100644", b"a\\..\\..\\x"),
        ("100644", b".git\\hooks\\post-checkout"),
    ];
    for (mode, name) in bad {
        let id = if mode == "40000" { dir } else { blob };
        let commit = hostile_commit(&f.bare, &[(mode, name, id)]);
        let mut sent = 0;
        let result = checkout(&f.bare, &commit, None, None, "/x", &mut |_| {
            sent += 1;
            Ok(())
        });
        assert!(matches!(result, Err(GitError::Hostile { .. })), "{name:?}: {result:?}");
        assert_eq!(sent, 0, "{name:?}");
    }
    // A link and a folder of the same name: writing `x/passwd` would go through the link.
    let commit = hostile_commit(&f.bare, &[("120000", b"x", blob), ("40000", b"x", dir)]);
    let result = checkout(&f.bare, &commit, None, None, "/x", &mut |_| Ok(()));
    assert!(matches!(result, Err(GitError::Hostile { .. })), "{result:?}");
}

#[test]
fn a_failing_sink_ends_the_checkout() {
    let f = Fixture::new();
    f.write("a", "a");
    let first = f.commit("first");
    let result = checkout(&f.bare, &first, None, None, "/x", &mut |_| Err(io::Error::other("full")));
    assert!(matches!(result, Err(GitError::Io { .. })), "{result:?}");
}
