//! Commands of an environment's own, in containers of the real engine and as processes of this machine.

use super::lab::release_of;
use crate::support::engine::DockerEngine;
use mainstay::config::daemon::environment::CommandTarget;
use mainstay::deploy::target::command::{Command, CommandParts};
use mainstay::deploy::target::{Apply, Left, RenderInput, Target, TargetError};
use mainstay::model::deploy::Release;
use mainstay::model::{InstanceId, Oid};
use mainstay::runtime::docker::{Docker, DockerConfig};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Container,
    Process,
}

/// An environment whose application is a file in its state folder: `up` copies the version there.
struct Place {
    form: Form,
    image: Option<String>,
    instance: InstanceId,
    folder: tempfile::TempDir,
    /// What is started as the shim.
    shim: PathBuf,
    commits: BTreeMap<&'static str, Oid>,
}

const SECRET: &str = "correct-horse-battery";

/// Says how often it was begun, and does what the release's files want.
const UP: &str = "\
echo begun >> $MAINSTAY_STATE/begun
echo $MAINSTAY_RELEASE > $MAINSTAY_STATE/running
trap 'echo ended >> $MAINSTAY_STATE/ended; exit 9' TERM
. ./behave
test ${#TOKEN} -eq 21
test -f deep/file && test -x up.sh
cp version $MAINSTAY_STATE/serving
";
const STATUS: &str = "\
test -f $MAINSTAY_STATE/serving
echo version=$(cat $MAINSTAY_STATE/serving)
echo begun=$(grep -c . $MAINSTAY_STATE/begun)
echo ended=$(cat $MAINSTAY_STATE/ended 2>/dev/null | grep -c .)
echo environment=$MAINSTAY_ENVIRONMENT
echo commit=$MAINSTAY_COMMIT
echo release=$MAINSTAY_RELEASE
echo image=$MAINSTAY_IMAGE_WEB_APP
echo level=$LEVEL
echo token=$TOKEN
echo user=$(id -u)
";

fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = std::process::Command::new("git");
    command.args(["-c", "user.name=Ana", "-c", "user.email=ana@example.com"]).args(args).current_dir(dir);
    let output = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Place {
    fn new(form: Form) -> Place {
        Place::with_image(form, "busybox")
    }

    fn with_image(form: Form, image: &str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        std::fs::create_dir_all(work.join("deep")).unwrap();
        git(&work, &["init", "-q", "-b", "main", "."]);
        std::fs::write(work.join("deep/file"), "x").unwrap();
        std::fs::write(work.join("up.sh"), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(work.join("up.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut commits = BTreeMap::new();
        let versions = [
            ("one", "true"),
            ("two", "true"),
            ("slow", "sleep 2"),
            ("endless", "sleep 300 & wait"),
            ("fails", "echo looking; echo \"the token is $TOKEN\" >&2; exit 3"),
            ("quick-failure", "sleep 1; exit 4"),
        ];
        for (version, behave) in versions {
            std::fs::write(work.join("version"), version).unwrap();
            std::fs::write(work.join("behave"), behave).unwrap();
            git(&work, &["add", "-A"]);
            git(&work, &["commit", "-q", "-m", version]);
            commits.insert(version, git(&work, &["rev-parse", "HEAD"]).parse().unwrap());
        }
        git(folder.path(), &["clone", "-q", "--bare", "work", "shop.git"]);
        let random = getrandom::u32().unwrap();
        let image = (form == Form::Container).then(|| image.to_owned());
        let shim = PathBuf::from(env!("CARGO_BIN_EXE_mainstay"));
        Place { form, image, instance: InstanceId(format!("{random:08x}")), folder, shim, commits }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("production")
    }

    /// A new client of the same place: what a restarted daemon has.
    fn target(&self) -> Command {
        let docker = (self.form == Form::Container).then(|| {
            let mut config = DockerConfig::new(self.instance.clone()).unwrap();
            config.host = Some(DockerEngine::usual().host());
            Docker::connect(config).unwrap()
        });
        Command::new(CommandParts {
            environment: "production".parse().unwrap(),
            instance: self.instance.clone(),
            config: CommandTarget {
                image: self.image.clone(),
                repo: "shop".parse().unwrap(),
                up: vec![UP.to_owned()],
                status: vec![STATUS.to_owned()],
                down: vec!["rm $MAINSTAY_STATE/serving".to_owned(), ". ./behave".to_owned()],
            },
            mirror: self.folder.path().join("shop.git"),
            dir: self.dir(),
            shim: self.shim.clone(),
            docker,
            secrets: secrets(),
        })
    }

    fn release(&self, number: u64, version: &str) -> Release {
        let input = RenderInput {
            environment: "production".parse().unwrap(),
            file: None,
            commit: self.commits[version].clone(),
            images: BTreeMap::from([("web-app".to_owned(), format!("r/web@sha256:{number:064}"))]),
            variables: BTreeMap::from([("LEVEL".to_owned(), "5".to_owned()), ("TOKEN".to_owned(), SECRET.to_owned())]),
            secret_names: vec!["TOKEN".to_owned()],
        };
        let rendered = self.target().render(&input).unwrap();
        assert!(!rendered.text.contains(SECRET));
        release_of("command", &input.environment, number, input.images, rendered)
    }

    async fn apply(&self, number: u64, version: &str, try_name: &str) -> Result<(), TargetError> {
        self.apply_within(number, version, try_name, Duration::from_secs(60)).await
    }

    async fn apply_within(
        &self,
        number: u64,
        version: &str,
        try_name: &str,
        timeout: Duration,
    ) -> Result<(), TargetError> {
        let release = self.release(number, version);
        let name = format!("mainstay-{}-production-{try_name}", self.instance);
        let progress = |line: String| println!("  {line}");
        let apply = Apply { release: &release, secrets: &secrets(), name: &name, timeout, progress: &progress };
        let began = Instant::now();
        let ended = self.target().apply(&apply).await;
        println!("apply of release {number}, {version}, took {:?}: {ended:?}", began.elapsed());
        ended
    }

    async fn item(&self, name: &str) -> String {
        let seen = self.target().observe().await.unwrap();
        seen.items.get(name).unwrap_or_else(|| panic!("no {name} in {seen:?}")).clone()
    }

    /// What the engine holds of the environment, and files.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.form == Form::Container {
            let engine = DockerEngine::usual().held(&self.instance.0);
            // The daemon's helper, which all of an engine's daemons share, is given by a container of a moment.
            left.extend(engine.into_iter().filter(|one| !one.contains("-helper-")));
        }
        if let Ok(entries) = std::fs::read_dir(self.dir()) {
            left.extend(entries.flatten().map(|entry| entry.path().display().to_string()));
        }
        left
    }

    /// What of the environment's commands runs.
    fn running(&self) -> Vec<String> {
        match self.form {
            Form::Container => {
                let held = DockerEngine::usual().held(&self.instance.0);
                held.into_iter().filter(|one| one.starts_with("container ") && one.contains("(Up ")).collect()
            }
            Form::Process => {
                let folder = self.dir().display().to_string();
                let mut found = Vec::new();
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let Ok(words) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
                    if words.contains(&folder) {
                        found.push(words.replace('\0', " "));
                    }
                }
                found
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.form == Form::Container {
            DockerEngine::usual().forget(&self.instance.0);
        }
    }
}

fn secrets() -> BTreeMap<String, String> {
    BTreeMap::from([("TOKEN".to_owned(), SECRET.to_owned())])
}

async fn up_status_and_down_bring_releases_and_take_them_away(place: Place) {
    assert!(place.target().observe().await.unwrap().items.is_empty());
    place.target().remove().await.unwrap();
    place.apply(1, "one", "1").await.unwrap();
    let seen = place.target().observe().await.unwrap();
    assert!(seen.instances[0].healthy, "{seen:?}");
    let wanted = [
        ("version", "one".to_owned()),
        ("environment", "production".to_owned()),
        ("commit", place.commits["one"].to_string()),
        ("release", "1".to_owned()),
        ("image", format!("r/web@sha256:{:064}", 1)),
        ("level", "5".to_owned()),
    ];
    for (name, value) in wanted {
        assert_eq!(seen.items[name], value, "{name}");
    }
    assert!(seen.items["token"].starts_with("sha256:"), "{}", seen.items["token"]);
    place.apply(2, "two", "2").await.unwrap();
    assert_eq!(place.item("version").await, "two");
    place.apply(1, "one", "3").await.unwrap();
    assert_eq!(place.item("version").await, "one");
    assert_eq!(place.item("begun").await, "3");
    assert_ne!(place.left(), Vec::<String>::new());
    for _ in 0..2 {
        place.target().remove().await.unwrap();
        assert_eq!(place.left(), Vec::<String>::new());
        assert!(place.target().observe().await.unwrap().items.is_empty());
    }
}

async fn a_change_made_by_hand_is_seen_and_the_next_try_puts_it_back(place: Place) {
    place.apply(1, "one", "1").await.unwrap();
    let before = place.target().observe().await.unwrap();
    match place.form {
        Form::Process => std::fs::write(place.dir().join("state/serving"), "hand").unwrap(),
        Form::Container => {
            let volume = format!("mainstay-env-{}-production:/state", place.instance);
            let words = ["run", "--rm", "-v", &volume, "busybox", "sh", "-c", "echo hand > /state/serving"];
            assert!(std::process::Command::new("docker").args(words).status().unwrap().success());
        }
    }
    let drift = place.target().observe().await.unwrap().drift_from(&before);
    assert_eq!(drift.iter().map(|one| one.item.as_str()).collect::<Vec<_>>(), ["version"]);
    place.apply(1, "one", "2").await.unwrap();
    assert_eq!(place.item("version").await, "one");
}

async fn a_failure_is_told_with_its_last_lines_and_without_secrets(place: Place) {
    place.apply(1, "one", "1").await.unwrap();
    for _ in 0..2 {
        // The same try is told the same again, and begins nothing.
        match place.apply(2, "fails", "2").await {
            Err(TargetError::Bad { why, left: Left::Mixed }) => {
                assert!(why.contains("`up` ended with exit code 3"), "{why}");
                assert!(why.contains("looking") && why.contains("the token is ***"), "{why}");
                assert!(!why.contains(SECRET), "{why}");
            }
            other => panic!("it ended as {other:?}"),
        }
    }
    assert_eq!(place.item("begun").await, "2");
    place.apply(1, "one", "3").await.unwrap();
    assert_eq!(place.item("version").await, "one");
    let inside = std::fs::read_dir(place.dir()).unwrap().flatten().filter(|entry| entry.path().is_file());
    for file in inside {
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(!text.contains(SECRET), "{} holds a secret", file.path().display());
    }
}

/// A daemon that dies at any moment; its successor says the same again, and `up` begins once.
async fn a_try_that_was_cut_off_is_waited_for_and_begins_once(place: Place) {
    place.apply(1, "one", "0").await.unwrap();
    let mut begun = 1;
    for (number, moment) in [20, 900, 2_300].into_iter().enumerate() {
        let (number, moment) = (number as u64 + 2, Duration::from_millis(moment));
        let name = number.to_string();
        let cut = tokio::time::timeout(moment, place.apply(number, "slow", &name)).await;
        println!("cut off after {moment:?}: {}", cut.is_err());
        if number % 2 == 0 {
            // Long enough for it to end while nobody looks.
            tokio::time::sleep(Duration::from_millis(2_500)).await;
        }
        place.apply(number, "slow", &name).await.unwrap();
        begun += 1;
        assert_eq!(place.item("begun").await, begun.to_string(), "after a cut at {moment:?}");
        assert_eq!(place.item("release").await, number.to_string());
    }
    // An end that nobody saw is told all the same.
    let _ = tokio::time::timeout(Duration::from_millis(900), place.apply(9, "quick-failure", "9")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let why = place.apply(9, "quick-failure", "9").await.unwrap_err().to_string();
    assert!(why.contains("exit code 4"), "{why}");
    assert_eq!(place.item("begun").await, (begun + 1).to_string());
}

async fn another_release_ends_what_was_cut_off_first(place: Place) {
    place.apply(1, "one", "1").await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(4), place.apply(2, "endless", "2")).await;
    assert!(cut.is_err());
    assert_ne!(place.running(), Vec::<String>::new());
    let began = Instant::now();
    place.apply(1, "one", "3").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "it waited for the other");
    assert_eq!(place.running(), Vec::<String>::new());
    assert_eq!((place.item("version").await, place.item("ended").await), ("one".to_owned(), "1".to_owned()));
}

async fn a_command_that_takes_too_long_is_asked_to_end(place: Place) {
    match place.apply_within(1, "endless", "1", Duration::from_secs(2)).await {
        Err(TargetError::Bad { why, left: Left::Mixed }) => {
            assert!(why.contains("`up` took longer than 2s and was stopped"), "{why}");
        }
        other => panic!("it ended as {other:?}"),
    }
    assert_eq!(place.running(), Vec::<String>::new());
    let seen = place.target().observe().await.unwrap();
    assert!(!seen.instances[0].healthy, "{seen:?}");
}

async fn a_down_that_fails_takes_nothing_away_and_can_be_said_again(place: Place) {
    place.apply(1, "one", "1").await.unwrap();
    let _ = place.apply(2, "fails", "2").await;
    for _ in 0..2 {
        let why = place.target().remove().await.unwrap_err().to_string();
        assert!(why.contains("`down` ended with exit code") && !why.contains(SECRET), "{why}");
        assert_ne!(place.left(), Vec::<String>::new());
    }
    place.apply(1, "one", "3").await.unwrap();
    place.target().remove().await.unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}

macro_rules! both_forms {
    ($($name:ident),* $(,)?) => {
        mod container {
            $(#[test] fn $name() { super::go(super::$name(super::Place::new(super::Form::Container))); })*
        }
        mod process {
            $(#[test] fn $name() { super::go(super::$name(super::Place::new(super::Form::Process))); })*
        }
    };
}

both_forms! {
    up_status_and_down_bring_releases_and_take_them_away,
    a_change_made_by_hand_is_seen_and_the_next_try_puts_it_back,
    a_failure_is_told_with_its_last_lines_and_without_secrets,
    a_try_that_was_cut_off_is_waited_for_and_begins_once,
    another_release_ends_what_was_cut_off_first,
    a_command_that_takes_too_long_is_asked_to_end,
    a_down_that_fails_takes_nothing_away_and_can_be_said_again,
}

fn go(case: impl Future<Output = ()>) {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(case);
}

/// A daemon that dies after it gave the word and before it hears that the word was taken: nobody listens to its shim.
#[test]
fn a_shim_that_nobody_listens_to_carries_its_word_out() {
    go(async {
        let mut place = Place::new(Form::Process);
        place.apply(1, "one", "1").await.unwrap();
        let (begun, go_on) = (place.folder.path().join("shim-began"), place.folder.path().join("go-on"));
        let slow = place.folder.path().join("slow-shim");
        let script = format!(
            "#!/bin/sh\ntouch {begun}\nwhile ! test -e {go_on}; do sleep 0.01; done\nexec {shim} \"$@\"\n",
            begun = begun.display(),
            go_on = go_on.display(),
            shim = place.shim.display(),
        );
        std::fs::write(&slow, script).unwrap();
        std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        place.shim = slow;
        let given = async {
            while !begun.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // The word follows the start at once; it is in the pipe long before this.
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        tokio::select! {
            ended = place.apply(2, "slow", "2") => panic!("it ended before its shim went on: {ended:?}"),
            () = given => {}
        }
        std::fs::write(&go_on, "").unwrap();
        // The shim of the one that died comes first: it is found by who comes next.
        tokio::time::sleep(Duration::from_millis(500)).await;
        place.apply(2, "slow", "2").await.unwrap();
        assert_eq!((place.item("begun").await, place.item("release").await), ("2".to_owned(), "2".to_owned()));
    });
}

/// In a container the engine's records must not hold what only the command may know.
#[test]
fn the_engine_is_not_told_a_secret() {
    go(async {
        let place = Place::new(Form::Container);
        let cut = tokio::time::timeout(Duration::from_secs(4), place.apply(1, "endless", "1")).await;
        assert!(cut.is_err());
        let name = format!("mainstay-{}-production-1-up", place.instance);
        let told = std::process::Command::new("docker").args(["inspect", &name]).output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("mainstay.environment"), "{told}");
        assert!(!told.contains(SECRET), "{told}");
        // What the daemon's sweep goes by.
        assert!(!told.contains("mainstay.instance"), "{told}");
    });
}

/// An image whose user is not root can write the workspace and the state.
#[test]
fn files_and_state_belong_to_the_images_user() {
    go(async {
        let tag = "mainstay-test/user-named:1";
        let mut build = std::process::Command::new("docker");
        build.args(["build", "-q", "--label", "mainstay.setup=test", "-t", tag, "-"]);
        let mut build = build.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(&mut build.stdin.take().unwrap(), b"FROM debian:12\nUSER nobody\n").unwrap();
        assert!(build.wait().unwrap().success());
        let place = Place::with_image(Form::Container, tag);
        place.apply(1, "one", "1").await.unwrap();
        assert_eq!((place.item("version").await, place.item("user").await), ("one".to_owned(), "65534".to_owned()));
        place.apply(2, "two", "2").await.unwrap();
        assert_eq!(place.item("version").await, "two");
        place.target().remove().await.unwrap();
    });
}

#[test]
fn an_image_that_cannot_be_had_leaves_what_was_there() {
    go(async {
        let mut place = Place::new(Form::Container);
        place.apply(1, "one", "1").await.unwrap();
        place.image = Some("127.0.0.1:1/nobody/has-this:1".to_owned());
        match place.apply(2, "two", "2").await {
            Err(TargetError::Bad { why, left: Left::Before }) => assert!(why.contains("has-this"), "{why}"),
            other => panic!("it ended as {other:?}"),
        }
        place.image = Some("busybox".to_owned());
        place.apply(1, "one", "3").await.unwrap();
        assert_eq!(place.item("version").await, "one");
    });
}
