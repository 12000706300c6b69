//! Release refs in mirrors and repositories of the real `git`, which also checks the signatures.

use super::super::Pushed;
use super::super::testing::git;
use super::*;
use crate::model::deploy::{DeployKind, DeployStatus, Provenance, Release};
use crate::model::ids::{DeployId, PipelineName, RepoName, RunId};
use crate::signing::SigningKey;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;

struct Lab {
    dir: tempfile::TempDir,
    work: PathBuf,
    bare: PathBuf,
    mirror: Mirror,
    key: SigningKey,
    production: EnvironmentName,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "--bare", "-b", "main", "bare.git"]);
        git(dir.path(), &["init", "-q", "-b", "main", "work"]);
        let (work, bare) = (dir.path().join("work"), dir.path().join("bare.git"));
        git(&work, &["remote", "add", "origin", "../bare.git"]);
        let mirror = Mirror::open(&dir.path().join("mirror.git"), bare.to_str().unwrap(), None).unwrap();
        let key = SigningKey::open(&dir.path().join("key")).unwrap();
        Lab { dir, work, bare, mirror, key, production: EnvironmentName::new("production").unwrap() }
    }

    fn commit(&self, text: &str) -> Oid {
        std::fs::write(self.work.join("app"), text).unwrap();
        git(&self.work, &["add", "-A"]);
        git(&self.work, &["commit", "-q", "-m", text]);
        git(&self.work, &["push", "-q", "origin", "main"]);
        self.mirror.fetch().unwrap();
        git(&self.work, &["rev-parse", "HEAD"]).parse().unwrap()
    }

    fn entry(&self, number: u64, commit: &Oid) -> ReleaseEntry {
        ReleaseEntry {
            release: Release {
                environment: self.production.clone(),
                number,
                at: Timestamp::from_second(1_700_000_000 + number as i64).unwrap(),
                provenance: Provenance {
                    repo: RepoName::new("shop").unwrap(),
                    git_ref: "refs/heads/main".into(),
                    commit: commit.clone(),
                    pipeline: PipelineName::new("release").unwrap(),
                    run: RunId(number + 10),
                    actor: Some("ana".into()),
                },
                images: BTreeMap::from([("api".into(), format!("registry/api@sha256:{number}"))]),
                target: "swarm".into(),
                rendered: format!("services: {{api: {number}}}\n"),
                config_hash: String::new(),
                replicas: BTreeMap::new(),
                secrets: BTreeMap::new(),
                schema: None,
                recovery_point: "none".into(),
                promoted_from: None,
            },
            deploy: DeployId(number + 100),
            kind: DeployKind::Deploy,
            status: DeployStatus::Verified,
            at: Timestamp::from_second(1_700_000_100 + number as i64).unwrap(),
            by: "ana".into(),
            because: None,
            stands: None,
        }
    }

    fn read(&self) -> Releases {
        self.mirror.read_releases(&self.production, &[self.key.public()]).unwrap()
    }

    fn remote(&self) -> Option<Oid> {
        let out = git(&self.bare, &["for-each-ref", "--format=%(objectname)", "refs/mainstay/production"]);
        (!out.is_empty()).then(|| out.parse().unwrap())
    }
}

#[test]
fn the_history_reads_as_a_log_and_git_believes_its_signatures() {
    let lab = Lab::new();
    let (one, two) = (lab.commit("1"), lab.commit("2"));
    let first = lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    let second = lab.mirror.record_release(&lab.entry(2, &two), &lab.key).unwrap();
    let because = "`http` failed\n3 times".to_owned();
    let back = ReleaseEntry {
        kind: DeployKind::Rollback,
        because: Some(because),
        deploy: DeployId(200),
        ..lab.entry(1, &one)
    };
    let third = lab.mirror.record_release(&back, &lab.key).unwrap();

    let dir = lab.mirror.dir();
    let log = git(dir, &["log", "--first-parent", "--max-count=3", "--format=%s", "refs/mainstay/production"]);
    let wanted = [
        format!("production: rolled back to 1 (shop {}) because `http` failed 3 times", &one.as_str()[..7]),
        format!("production 2: shop {} verified", &two.as_str()[..7]),
        format!("production 1: shop {} verified", &one.as_str()[..7]),
    ];
    assert_eq!(log.lines().collect::<Vec<_>>(), wanted);
    let parents = |of: &Oid| git(dir, &["log", "-1", "--format=%P", of.as_str()]);
    assert_eq!(parents(&first), one.as_str());
    assert_eq!(parents(&second), format!("{first} {two}"));
    assert_eq!(parents(&third), format!("{second} {one}"));
    assert_eq!(git(dir, &["show", &format!("{second}:config")]), "services: {api: 2}");
    git(dir, &["fsck", "--full", "--strict"]);

    let allowed = lab.dir.path().join("allowed");
    std::fs::write(&allowed, format!("mainstay@localhost {}\n", lab.key.public())).unwrap();
    let setting = format!("gpg.ssh.allowedSignersFile={}", allowed.display());
    for commit in [&first, &second, &third] {
        git(dir, &["-c", &setting, "verify-commit", commit.as_str()]);
    }

    let read = lab.read();
    let entries: Vec<_> = read.entries.iter().map(|found| found.entry.clone()).collect();
    assert_eq!(entries, [back.clone(), lab.entry(2, &two), lab.entry(1, &one)]);
    assert_eq!(read.entries.iter().map(|found| &found.commit).collect::<Vec<_>>(), [&third, &second, &first]);
    assert!(read.entries.iter().all(|found| found.by == lab.key.public()));
    assert_eq!(lab.mirror.newest_release(&lab.production).unwrap(), Some(back));
    assert_eq!(read.stopped, None);
    assert_eq!(lab.mirror.release_tip(&lab.production).unwrap(), Some(third));
}

#[test]
fn the_same_deploy_is_recorded_once() {
    let lab = Lab::new();
    let one = lab.commit("1");
    let first = lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    assert_eq!(lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap(), first);
    assert_eq!(lab.read().entries.len(), 1);
    // One whose commit the mirror never had is recorded all the same.
    let gone: Oid = "12".repeat(20).parse().unwrap();
    lab.mirror.record_release(&lab.entry(2, &gone), &lab.key).unwrap();
    assert_eq!(lab.read().entries[0].entry.release.provenance.commit, gone);
}

#[test]
fn reading_stops_where_no_trusted_key_vouches() {
    let lab = Lab::new();
    let one = lab.commit("1");
    lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    let stranger = SigningKey::open(&lab.dir.path().join("stranger")).unwrap();
    let strange = lab.mirror.record_release(&lab.entry(2, &one), &stranger).unwrap();
    lab.mirror.record_release(&lab.entry(3, &one), &lab.key).unwrap();
    let read = lab.read();
    assert_eq!(
        read.entries.iter().map(|e| e.entry.release.number).collect::<Vec<_>>(),
        [3],
        "1 lies behind a stranger's"
    );
    let stopped = read.stopped.unwrap();
    assert_eq!((&stopped.commit, &stopped.key), (&strange, &Some(stranger.public())));
    assert!(stopped.why.contains("not trusted"), "{stopped}");

    // Unsigned, and signed for something else.
    let dir = lab.mirror.dir();
    let tree = git(dir, &["rev-parse", "refs/mainstay/production^{tree}"]);
    let tip = git(dir, &["rev-parse", "refs/mainstay/production"]);
    let unsigned = git(dir, &["commit-tree", "-p", &tip, "-m", "production 4", &tree]);
    git(dir, &["update-ref", "refs/mainstay/production", &unsigned]);
    let read = lab.read();
    assert!(read.entries.is_empty() && read.stopped.as_ref().unwrap().why.contains("not signed"), "{read:?}");
    git(dir, &["update-ref", "refs/mainstay/staging", &tip]);
    let staging = EnvironmentName::new("staging").unwrap();
    let read = lab.mirror.read_releases(&staging, &[lab.key.public()]).unwrap();
    assert!(read.entries.is_empty() && read.stopped.unwrap().why.contains("release of production"));
}

#[test]
fn a_changed_word_in_a_signed_entry_is_not_believed() {
    let lab = Lab::new();
    let one = lab.commit("1");
    let tip = lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    let dir = lab.mirror.dir();
    let text = git(dir, &["cat-file", "commit", tip.as_str()]);
    std::fs::write(lab.dir.path().join("changed"), text.replace("By: ana", "By: ben") + "\n").unwrap();
    let path = lab.dir.path().join("changed");
    let changed = git(dir, &["hash-object", "-t", "commit", "-w", path.to_str().unwrap()]);
    git(dir, &["update-ref", "refs/mainstay/production", &changed]);
    let read = lab.read();
    let stopped = read.stopped.unwrap();
    assert!(read.entries.is_empty() && stopped.why.contains("does not fit"), "{stopped}");
    assert_eq!(stopped.key, None, "trusting its key would not help");
}

#[test]
fn a_push_brings_the_whole_chain_and_never_overwrites_anybody() {
    let lab = Lab::new();
    let (one, two) = (lab.commit("1"), lab.commit("2"));
    assert!(matches!(lab.mirror.push_release(&lab.production), Err(GitError::NotFound { .. })));
    lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    let second = lab.mirror.record_release(&lab.entry(2, &two), &lab.key).unwrap();
    assert_eq!(lab.mirror.push_release(&lab.production).unwrap(), Pushed::Done);
    assert_eq!(lab.mirror.push_release(&lab.production).unwrap(), Pushed::AlreadyThere);
    assert_eq!(lab.remote(), Some(second));
    let third = lab.mirror.record_release(&lab.entry(3, &two), &lab.key).unwrap();
    assert_eq!(lab.mirror.push_release(&lab.production).unwrap(), Pushed::Done);
    assert_eq!(lab.remote(), Some(third));
    git(&lab.bare, &["fsck", "--full", "--strict"]);

    // Somebody else wrote there.
    git(&lab.bare, &["update-ref", "refs/mainstay/production", two.as_str()]);
    lab.mirror.record_release(&lab.entry(4, &two), &lab.key).unwrap();
    assert_eq!(lab.mirror.push_release(&lab.production).unwrap(), Pushed::Overtaken { found: two.clone() });
    assert_eq!(lab.remote(), Some(two));
}

#[test]
fn feeders_see_no_release_ref_and_fetch_and_tidy_keep_them() {
    let lab = Lab::new();
    let one = lab.commit("1");
    let before = lab.mirror.list_remote().unwrap();
    let tip = lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    lab.mirror.push_release(&lab.production).unwrap();
    assert_eq!(lab.mirror.list_remote().unwrap(), before);
    assert_eq!(lab.mirror.fetch().unwrap(), before);
    lab.commit("2");
    lab.mirror.fetch().unwrap();
    lab.mirror.tidy().unwrap();
    assert_eq!(lab.mirror.release_tip(&lab.production).unwrap(), Some(tip));
    assert_eq!(lab.read().entries.len(), 1);
    git(lab.mirror.dir(), &["fsck", "--full", "--strict"]);
}

#[test]
fn a_lost_mirror_takes_the_history_over_from_the_repository_if_it_is_signed() {
    let lab = Lab::new();
    let one = lab.commit("1");
    let trusted = [lab.key.public()];
    assert_eq!(lab.mirror.take_over_releases(&lab.production, &trusted).unwrap(), Releases::default());
    lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    let tip = lab.mirror.record_release(&lab.entry(2, &one), &lab.key).unwrap();
    lab.mirror.push_release(&lab.production).unwrap();

    let again = Mirror::open(&lab.dir.path().join("again.git"), lab.bare.to_str().unwrap(), None).unwrap();
    let stranger = SigningKey::open(&lab.dir.path().join("stranger")).unwrap();
    let refused = again.take_over_releases(&lab.production, &[stranger.public()]).unwrap();
    assert_eq!((refused.entries.len(), refused.stopped.unwrap().key), (0, Some(lab.key.public())));
    assert_eq!(again.release_tip(&lab.production).unwrap(), None);
    let taken = again.take_over_releases(&lab.production, &trusted).unwrap();
    assert_eq!(taken.entries.iter().map(|e| e.entry.release.number).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(again.release_tip(&lab.production).unwrap(), Some(tip));
    assert_eq!(again.take_over_releases(&lab.production, &trusted).unwrap(), taken);
    // A new key goes on where the old one ended.
    let third = again.record_release(&lab.entry(3, &one), &stranger).unwrap();
    assert_eq!(again.push_release(&lab.production).unwrap(), Pushed::Done);
    assert_eq!(lab.remote(), Some(third.clone()));
    let both = [lab.key.public(), stranger.public()];
    assert_eq!(again.read_releases(&lab.production, &both).unwrap().entries.len(), 3);
    assert_eq!(lab.mirror.take_over_releases(&lab.production, &both).unwrap().entries.len(), 3);
    assert_eq!(lab.mirror.release_tip(&lab.production).unwrap(), Some(third));
}

#[test]
fn a_repository_that_may_not_be_written_is_said_and_the_mirror_keeps_the_release() {
    let lab = Lab::new();
    let one = lab.commit("1");
    lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    // Root may write anywhere, so the place itself is what is in the way.
    std::fs::remove_dir_all(lab.bare.join("objects/pack")).unwrap();
    std::fs::write(lab.bare.join("objects/pack"), "no folder").unwrap();
    match lab.mirror.push_release(&lab.production).unwrap() {
        Pushed::OnlyInMirror { why } => assert!(why.contains("failed to write into"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(lab.remote(), None);
    assert_eq!(lab.read().entries.len(), 1);
}

#[test]
fn what_is_written_into_somebody_elses_repository_belongs_to_them() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new();
    let one = lab.commit("1");
    if !nix::unistd::Uid::effective().is_root() {
        // Whoever is not root can only write where everything is theirs already.
        return;
    }
    let given = std::process::Command::new("chown").args(["-R", "65534:65534"]).arg(&lab.bare).status().unwrap();
    assert!(given.success());
    lab.mirror.record_release(&lab.entry(1, &one), &lab.key).unwrap();
    assert_eq!(lab.mirror.push_release(&lab.production).unwrap(), Pushed::Done);
    let mut open = vec![lab.bare.clone()];
    while let Some(path) = open.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (65_534, 65_534), "{}", path.display());
        if meta.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn a_tag_of_our_own_is_set_once_and_never_moved() {
    let lab = Lab::new();
    let (one, two) = (lab.commit("1"), lab.commit("2"));
    let name = "mainstay/rolled-back/production-7";
    assert_eq!(lab.mirror.push_own_tag(name, &one).unwrap(), Pushed::Done);
    assert_eq!(lab.mirror.push_own_tag(name, &one).unwrap(), Pushed::AlreadyThere);
    assert_eq!(lab.mirror.push_own_tag(name, &two).unwrap(), Pushed::Overtaken { found: one.clone() });
    assert_eq!(git(&lab.bare, &["rev-parse", &format!("refs/tags/{name}")]), one.as_str());
    assert!(lab.mirror.push_own_tag("mainstay/a..b", &one).is_err());
}
