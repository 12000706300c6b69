//! Mirrors of repositories on this machine, made by the real `git`.

use super::super::testing::git;
use super::super::{Change, fingerprint, folder};
use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    work: PathBuf,
    bare: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "--bare", "-b", "main", "bare.git"]);
        git(dir.path(), &["init", "-q", "-b", "main", "work"]);
        let (work, bare) = (dir.path().join("work"), dir.path().join("bare.git"));
        git(&work, &["remote", "add", "origin", "../bare.git"]);
        Fixture { dir, work, bare }
    }

    fn commit(&self, file: &str, text: &str) -> Oid {
        let path = self.work.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        git(&self.work, &["add", "-A"]);
        git(&self.work, &["commit", "-q", "-m", &format!("change {file}")]);
        git(&self.work, &["rev-parse", "HEAD"]).parse().unwrap()
    }

    fn push(&self, spec: &str) {
        git(&self.work, &["push", "-q", "--force", "origin", spec]);
    }

    fn mirror(&self) -> Mirror {
        Mirror::open(&self.dir.path().join("mirrors/shop.git"), self.bare.to_str().unwrap(), None).unwrap()
    }
}

#[test]
fn a_fetch_follows_branches_tags_force_pushes_and_deletions() {
    let f = Fixture::new();
    let first = f.commit("a", "1");
    f.push("HEAD:refs/heads/main");
    git(&f.bare, &["update-ref", "refs/mainstay/production", first.as_str()]);
    let mirror = f.mirror();
    let refs = mirror.fetch().unwrap();
    assert_eq!(refs.head.as_deref(), Some("refs/heads/main"));
    assert_eq!(
        refs.refs.iter().collect::<Vec<_>>(),
        [(&"refs/heads/main".to_owned(), &first)],
        "nothing but branches and tags"
    );
    assert_eq!(mirror.default_branch().unwrap().as_deref(), Some("refs/heads/main"));

    let second = f.commit("a", "2");
    git(&f.work, &["tag", "-m", "one", "v1"]);
    f.push("HEAD:refs/heads/main");
    f.push("HEAD:refs/heads/team/x");
    f.push("v1");
    let refs = mirror.fetch().unwrap();
    assert_eq!(refs, mirror.list_remote().unwrap());
    assert_eq!(refs, mirror.refs().unwrap());
    assert_eq!(refs.refs.len(), 3);
    let tag = &refs.refs["refs/tags/v1"];
    assert_ne!(tag, &second, "an annotated tag holds a tag object");
    assert_eq!(mirror.commit_info(tag).unwrap().sha, second, "and is peeled for its commit");

    // Force-push back and delete a branch.
    git(&f.work, &["reset", "-q", "--hard", first.as_str()]);
    let third = f.commit("b", "3");
    f.push("HEAD:refs/heads/main");
    f.push(":refs/heads/team/x");
    let refs = mirror.fetch().unwrap();
    assert_eq!(refs.refs["refs/heads/main"], third);
    assert!(!refs.refs.contains_key("refs/heads/team/x"));
    assert!(mirror.contains(&second).unwrap(), "what a run may still need stays");
    git(mirror.dir(), &["fsck", "--full", "--strict"]);
}

#[test]
fn many_new_objects_come_as_a_pack_and_few_as_they_are() {
    let f = Fixture::new();
    for n in 0..LOOSE_AND_MORE {
        std::fs::write(f.work.join(format!("f{n}")), format!("{n}")).unwrap();
    }
    let first = f.commit("a", "1");
    git(&f.work, &["tag", "-m", "one", "v1"]);
    f.push("HEAD:refs/heads/main");
    f.push("v1");
    let mirror = f.mirror();
    mirror.fetch().unwrap();
    let packs = || std::fs::read_dir(mirror.dir().join("objects/pack")).unwrap().count();
    assert_eq!(packs(), 2, "a pack and its index");
    let second = f.commit("dir/b", "2");
    f.push("HEAD:refs/heads/main");
    mirror.fetch().unwrap();
    assert_eq!(packs(), 2);
    for commit in [&first, &second] {
        assert!(mirror.contains(commit).unwrap());
    }
    let fsck = git(mirror.dir(), &["fsck", "--full", "--strict"]);
    assert!(!fsck.contains("missing"), "{fsck}");
    let all = |dir: &Path| git(dir, &["rev-list", "--objects", "--all"]);
    assert_eq!(all(mirror.dir()), all(&f.bare));
}
const LOOSE_AND_MORE: usize = 450;

#[test]
fn a_pinned_commit_is_found_after_its_branch_moved_away() {
    let f = Fixture::new();
    f.commit("a", "1");
    f.push("HEAD:refs/heads/main");
    let mirror = f.mirror();
    let second = f.commit("a", "2");
    f.push("HEAD:refs/heads/main");
    git(&f.work, &["reset", "-q", "--hard", "HEAD~1"]);
    f.push("HEAD:refs/heads/main");
    mirror.ensure(&second).unwrap();
    assert_eq!(mirror.commit_info(&second).unwrap().title(), "change a");
    assert_eq!(mirror.commit_info(&second).unwrap().author, "Ana <ana@example.com>");
    let unknown: Oid = "1234567890123456789012345678901234567890".parse().unwrap();
    assert!(matches!(mirror.ensure(&unknown), Err(GitError::NotFound { .. })));
}

#[test]
fn words_are_resolved() {
    let f = Fixture::new();
    let first = f.commit("a", "1");
    git(&f.work, &["tag", "-m", "one", "v1"]);
    let second = f.commit("a", "2");
    f.push("HEAD:refs/heads/main");
    f.push("HEAD~1:refs/heads/team/x");
    f.push("v1");
    let mirror = f.mirror();
    mirror.fetch().unwrap();
    let is = |word: &str, git_ref: Option<&str>, commit: &Oid| {
        let expected = Resolved { git_ref: git_ref.map(str::to_owned), commit: commit.clone() };
        assert_eq!(mirror.resolve(word).unwrap(), expected, "{word}");
    };
    is("", Some("refs/heads/main"), &second);
    is("HEAD", Some("refs/heads/main"), &second);
    is("main", Some("refs/heads/main"), &second);
    is("team/x", Some("refs/heads/team/x"), &first);
    is("refs/heads/team/x", Some("refs/heads/team/x"), &first);
    is("v1", Some("refs/tags/v1"), &first);
    is(first.as_str(), None, &first);
    is(&first.as_str()[..9], None, &first);
    for bad in ["nope", "main~1", "HEAD@{1}", "../x", "-x", "abc", "0123456789"] {
        assert!(matches!(mirror.resolve(bad), Err(GitError::NotFound { .. })), "{bad}");
    }
}

#[test]
fn files_are_read_and_links_are_not_followed() {
    let f = Fixture::new();
    std::fs::create_dir_all(f.work.join(".mainstay")).unwrap();
    std::fs::write(f.work.join(".mainstay/build.yml"), "steps: {}\n").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", f.work.join(".mainstay/evil.yml")).unwrap();
    std::os::unix::fs::symlink(".mainstay", f.work.join("pipelines")).unwrap();
    let commit = f.commit("z", "1");
    f.push("HEAD:refs/heads/main");
    let mirror = f.mirror();
    mirror.fetch().unwrap();
    assert_eq!(mirror.read_file(&commit, ".mainstay/build.yml", 100).unwrap().unwrap(), b"steps: {}\n");
    assert!(matches!(mirror.read_file(&commit, ".mainstay/build.yml", 3), Err(GitError::TooBig { .. })));
    assert!(matches!(mirror.read_file(&commit, ".mainstay/evil.yml", 100), Err(GitError::IsLink { .. })));
    assert!(matches!(mirror.read_file(&commit, "pipelines/build.yml", 100), Err(GitError::IsLink { .. })));
    assert!(matches!(mirror.list_dir(&commit, "pipelines"), Err(GitError::IsLink { .. })));
    assert_eq!(mirror.read_file(&commit, ".mainstay/none.yml", 100).unwrap(), None);
    assert_eq!(mirror.read_file(&commit, "../../etc/passwd", 100).unwrap(), None);
    assert_eq!(mirror.list_dir(&commit, "none").unwrap(), None);
    let names: Vec<_> = mirror.list_dir(&commit, ".mainstay").unwrap().unwrap();
    let is = |name: &str, kind| DirEntry { name: name.into(), kind };
    assert_eq!(names, [is("build.yml", tree::EntryKind::File), is("evil.yml", tree::EntryKind::Link)]);
}

#[test]
fn a_mirror_that_went_bad_is_made_anew_and_a_foreign_folder_is_left_alone() {
    let f = Fixture::new();
    let commit = f.commit("a", "1");
    f.push("HEAD:refs/heads/main");
    let mirror = f.mirror();
    mirror.fetch().unwrap();
    std::fs::remove_file(mirror.dir().join("HEAD")).unwrap();
    let mirror = f.mirror();
    assert!(!mirror.contains(&commit).unwrap());
    mirror.fetch().unwrap();
    assert!(mirror.contains(&commit).unwrap());
    let error = Mirror::open(&f.work, f.bare.to_str().unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("holds something else"), "{error}");
    assert!(f.work.join("a").exists());
}

#[test]
fn a_repository_that_is_not_there_is_named() {
    let f = Fixture::new();
    let mirror = Mirror::open(&f.dir.path().join("m.git"), "/nonexistent/shop.git", None).unwrap();
    let error = mirror.fetch().unwrap_err();
    assert!(
        error.is_passing() && error.to_string().contains("/nonexistent/shop.git: there is no such folder"),
        "{error}"
    );
}

#[test]
fn a_fingerprint_moves_with_every_way_of_moving_a_ref() {
    let f = Fixture::new();
    let first = f.commit("a", "1");
    f.push("HEAD:refs/heads/main");
    f.push("HEAD:refs/heads/team/x");
    assert_eq!(fingerprint(&f.bare), None, "too young to be trusted");
    // Old enough to be trusted, without waiting: move the clock of the files, as if nothing had happened for an hour.
    let age = |seconds: u64| {
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        let mut stack = vec![f.bare.join("refs"), f.bare.join("HEAD"), f.bare.join("packed-refs")];
        while let Some(path) = stack.pop() {
            let Ok(file) = File::open(&path) else { continue };
            file.set_modified(time).unwrap();
            if path.is_dir() {
                stack.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()));
            }
        }
    };
    age(3_600);
    let before = fingerprint(&f.bare).expect("an hour of rest can be trusted");
    assert_eq!(fingerprint(&f.bare), Some(before));
    let mut seen = vec![before];
    let second = f.commit("a", "2");
    let moves: [&dyn Fn(); 6] = [
        &|| f.push("HEAD:refs/heads/main"),
        &|| f.push("HEAD:refs/heads/team/x"),
        &|| f.push(&format!("{first}:refs/heads/main")),
        &|| f.push(":refs/heads/team/x"),
        &|| drop(git(&f.bare, &["pack-refs", "--all"])),
        &|| drop(git(&f.bare, &["symbolic-ref", "HEAD", "refs/heads/other"])),
    ];
    for (n, step) in moves.iter().enumerate() {
        step();
        assert_eq!(fingerprint(&f.bare), None, "step {n} is too young");
        age(3_000 - n as u64 * 100);
        let now = fingerprint(&f.bare).unwrap();
        assert!(!seen.contains(&now), "step {n} was not noticed");
        seen.push(now);
    }
    assert!(f.mirror().ensure(&second).is_ok());
    assert_eq!(fingerprint(Path::new("/nonexistent")), None);
}

#[test]
fn a_working_tree_is_sent_without_what_git_ignores() {
    let f = Fixture::new();
    std::fs::write(f.work.join(".gitignore"), "target/\n*.log\n").unwrap();
    std::fs::create_dir_all(f.work.join("target/debug")).unwrap();
    std::fs::write(f.work.join("target/debug/x"), "x").unwrap();
    std::fs::create_dir_all(f.work.join("logs")).unwrap();
    std::fs::write(f.work.join("logs/kept.log"), "tracked although ignored").unwrap();
    git(&f.work, &["add", "-f", "logs/kept.log"]);
    f.commit("a", "1");
    std::fs::write(f.work.join("untracked"), "u").unwrap();
    std::fs::write(f.work.join("logs/other.log"), "x").unwrap();
    std::os::unix::fs::symlink("/etc", f.work.join("link")).unwrap();
    nix::unistd::mkfifo(&f.work.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let listed = |path: &Path| {
        let mut got = Vec::new();
        folder(path, &mut |change| {
            let (path, tail) = match change {
                Change::Dir(path) => (path, "/".to_owned()),
                Change::File { path, .. } => (path, String::new()),
                Change::Link { path, target } => (path, format!(" -> {}", String::from_utf8(target).unwrap())),
                Change::Remove(path) => panic!("{path:?} is to be removed"),
            };
            got.push(String::from_utf8(path).unwrap() + &tail);
            Ok(())
        })
        .unwrap();
        got
    };
    assert_eq!(listed(&f.work), [".gitignore", "a", "link -> /etc", "logs/", "logs/kept.log", "untracked"]);
    assert_eq!(listed(&f.work.join("logs")), ["kept.log"], "a folder below the top follows the same rules");
    let plain = f.dir.path().join("plain");
    std::fs::create_dir_all(plain.join("target")).unwrap();
    assert_eq!(listed(&plain), ["target/"], "no repository, no rules");
}

#[test]
fn many_loose_objects_and_little_packs_become_one_pack_and_all_is_still_there() {
    let f = Fixture::new();
    let mut all = Vec::new();
    let first = f.commit("a", "1");
    f.push("HEAD:refs/heads/main");
    let mirror = f.mirror();
    mirror.fetch().unwrap();
    assert_eq!(mirror.tidy().unwrap(), super::super::Tidied::default(), "a few are left alone");
    // 42 pushes of 50 files each: loose objects. A push of 500 files is a pack.
    for round in 0..42 {
        for file in 0..50 {
            std::fs::write(f.work.join(format!("f{file}")), format!("{round} {file}")).unwrap();
        }
        all.push(f.commit("a", &format!("round {round}")));
        f.push("HEAD:refs/heads/main");
        mirror.fetch().unwrap();
    }
    let objects = mirror.dir().join("objects");
    let loose = || {
        let folders = std::fs::read_dir(&objects).unwrap().map(|e| e.unwrap().path());
        folders
            .filter(|p| p.file_name().unwrap().len() == 2)
            .map(|p| std::fs::read_dir(p).unwrap().count())
            .sum::<usize>()
    };
    let packs = || std::fs::read_dir(objects.join("pack")).map_or(0, |d| d.count());
    assert!(loose() > 2_000, "{}", loose());
    // What a kill in the middle leaves.
    std::fs::create_dir_all(objects.join("pack")).unwrap();
    std::fs::write(objects.join("pack/pack_git2_half"), "x").unwrap();
    // Readers at work see everything all the time.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let tidied = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for commit in &all {
                        mirror.read_file(commit, "f7", 1_000).unwrap().unwrap();
                    }
                }
            });
        }
        let tidied = mirror.tidy().unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        tidied
    });
    assert!(tidied.loose > 2_000 && tidied.packs == 0, "{tidied:?}");
    assert_eq!((loose(), packs()), (0, 2));
    for commit in all.iter().chain([&first]) {
        mirror.commit_info(commit).unwrap();
    }
    git(mirror.dir(), &["fsck", "--full", "--strict"]);

    for round in 0..42 {
        let source = git2::Repository::open(&f.bare).unwrap();
        let mut pack = source.packbuilder().unwrap();
        let blob = source.blob(format!("blob {round}").as_bytes()).unwrap();
        pack.insert_object(blob, None).unwrap();
        pack.write(&objects.join("pack"), 0o444).unwrap();
        all.push(super::super::from_git(blob));
    }
    let tidied = mirror.tidy().unwrap();
    assert_eq!((tidied.loose, tidied.packs), (0, 43));
    assert_eq!(packs(), 88, "the old ones stay until nobody can be reading them");
    assert_eq!(mirror.tidy().unwrap(), super::super::Tidied::default());
    assert_eq!(packs(), 2);
    assert!(all.iter().all(|id| mirror.contains(id).unwrap()));
    git(mirror.dir(), &["fsck", "--full", "--strict"]);
}

#[test]
fn a_head_that_names_nothing_is_told_with_the_way_out() {
    let f = Fixture::new();
    let mirror = f.mirror();
    mirror.fetch().unwrap();
    let said = mirror.resolve("").unwrap_err().to_string();
    assert!(said.contains("nothing was pushed there yet"), "{said}");
    git(&f.bare, &["symbolic-ref", "HEAD", "refs/heads/master"]);
    f.commit("a", "1");
    f.push("HEAD:refs/heads/aa");
    f.push("HEAD:refs/heads/main");
    mirror.fetch().unwrap();
    let said = mirror.resolve("").unwrap_err().to_string();
    assert!(said.contains("has `main`, among others\nhint: ") && said.contains("`--ref main`"), "{said}");
}
