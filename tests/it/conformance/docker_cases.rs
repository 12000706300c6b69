//! What only an engine with containers promises.

use super::lab::{Lab, docker, engine_host, read, within, word};
use crate::support::http;
use bollard::query_parameters::AttachContainerOptions;
use mainstay::model::log::{LogCursor, Stream};
use mainstay::model::plan::Resources;
use mainstay::model::{ByteSize, RunId};
use mainstay::runtime::docker::{Docker, DockerConfig};
use mainstay::runtime::{Found, Runtime, RuntimeError, Word};
use tokio::io::AsyncWriteExt;

fn container(lab: &Lab, step: &str) -> String {
    format!("mainstay-{}-r{}-{step}-a1", lab.instance, lab.run)
}

/// An image made from the Debian one, or from nothing, under a name of the tests' own.
fn image(name: &str, dockerfile: &str) -> String {
    let tag = format!("mainstay-test/{name}:1");
    docker(&["build", "-q", "-t", &tag, "-"], dockerfile.as_bytes());
    tag
}

pub(super) async fn the_engine_is_not_told_what_the_word_says(lab: &Lab) {
    let space = lab.space().await;
    let mut word = word(&["echo the-command; sleep 2"]);
    word.environment = vec![("TOKEN".into(), "s3cret-value".into())];
    let spec = lab.spec(&space, "secret").await;
    lab.runtime.release(&spec, &word).await.unwrap();
    lab.saw("secret", "the-command\n").await;
    let known = docker(&["inspect", &container(lab, "secret")], b"");
    assert!(known.contains("mainstay.run"), "{known}");
    for hidden in ["s3cret-value", "TOKEN", "the-command"] {
        assert!(!known.contains(hidden), "inspect shows {hidden}");
    }
    assert_eq!(lab.outcome("secret").await.code(), 0);
}

pub(super) async fn a_word_cut_in_half_and_given_again_arrives_whole(lab: &Lab) {
    let space = lab.space().await;
    let api = bollard::Docker::connect_with_host(&engine_host()).unwrap();
    for (step, half) in [("first", "\nW 0badcafe AAAA"), ("second", "W"), ("third", "\nW 00000000 AAAA\n\nrubbish")] {
        let spec = lab.spec(&space, step).await;
        lab.runtime.prepare(&spec).await.unwrap();
        let options = AttachContainerOptions { stream: true, stdin: true, ..Default::default() };
        let mut attached = api.attach_container(&container(lab, step), Some(options)).await.unwrap();
        attached.input.write_all(half.as_bytes()).await.unwrap();
        attached.input.shutdown().await.unwrap();
        drop(attached);
        let outcome = lab.go(&spec, &word(&["echo whole"])).await;
        assert_eq!(outcome.stdout(), "+ echo whole\nwhole\n");
    }
}

pub(super) async fn steps_side_by_side_may_open_the_same_port_and_reach_each_other_by_name(lab: &Lab) {
    let space = lab.space().await;
    let serve = "perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 80, Listen => 5, ReuseAddr => 1) \
                 or die \"port: $!\"; print \"open\\n\"; close(STDOUT); while ($c = $s->accept) { print $c \"served\\n\"; close $c }'";
    for step in ["one", "Two"] {
        let mut spec = lab.spec(&space, step).await;
        spec.shares_holder = false;
        lab.runtime.release(&spec, &word(&[serve])).await.unwrap();
        lab.saw(step, "open\n").await;
    }
    let ask = "perl -MIO::Socket::INET -e 'for (\"one\", \"two\") { $c = IO::Socket::INET->new(\"$_:80\") or die \"$_: $@\"; print \"$_ \", <$c> }'";
    for shares_holder in [true, false] {
        let mut spec = lab.spec(&space, &format!("ask-{shares_holder}")).await;
        spec.shares_holder = shares_holder;
        let outcome = lab.go(&spec, &word(&[ask])).await;
        assert!(outcome.stdout().ends_with("one served\ntwo served\n"), "{}{}", outcome.stdout(), outcome.stderr());
    }
}

pub(super) async fn what_is_not_ours_is_not_touched(lab: &Lab) {
    let name = format!("foreign-{}", lab.instance);
    docker(
        &["run", "-d", "--name", &name, "--label", "mainstay.run=1", "--network", "none", "debian:12", "sleep", "100"],
        b"",
    );
    let space = lab.space().await;
    lab.step(&space, "test", &["true"]).await;
    lab.runtime.close(lab.run, Some(&space), false).await.unwrap();
    lab.runtime.close(RunId(1), None, false).await.unwrap();
    lab.runtime.sweep(None).await.unwrap();
    lab.runtime.drain_pool().await;
    let running = docker(&["inspect", "-f", "{{.State.Running}}", &name], b"");
    docker(&["rm", "-f", &name], b"");
    assert_eq!(running, "true");
}

pub(super) async fn a_missing_image_is_named_with_the_reason(lab: &Lab) {
    let progress = std::sync::Mutex::new(Vec::new());
    let note = |sentence: String| progress.lock().unwrap().push(sentence);
    // Nobody listens there, so no registry is asked.
    let error = lab.runtime.resolve_image("localhost:9/nosuch:1", &note).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Image { .. }), "{error:?}");
    assert!(error.to_string().starts_with("get the image `localhost:9/nosuch:1`: "), "{error}");
    assert_eq!(progress.lock().unwrap()[0], "pulling localhost:9/nosuch:1");
    let error = lab.runtime.resolve_image("Not An Image", &note).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Image { .. }), "{error:?}");
}

pub(super) async fn an_image_without_a_shell_fails_with_a_clear_word(lab: &Lab) {
    let empty = image("empty", "FROM scratch\nLABEL mainstay-test=empty\n");
    let space = lab.space().await;
    let mut spec = lab.spec(&space, "empty").await;
    spec.image = lab.image(&empty).await;
    let outcome = lab.go(&spec, &word(&["echo hello"])).await;
    assert_eq!(outcome.code(), 127);
    assert!(outcome.stderr().contains("the image has no shell"), "{}", outcome.stderr());
    let mut spec = lab.spec(&space, "nothing").await;
    spec.image = lab.image(&empty).await;
    let nothing = Word { commands: vec![], args: vec![], environment: vec![] };
    let outcome = lab.go(&spec, &nothing).await;
    assert_eq!(outcome.code(), 127);
    assert!(outcome.stderr().contains("the image names no command"), "{}", outcome.stderr());
}

pub(super) async fn a_step_without_commands_runs_the_images_entrypoint(lab: &Lab) {
    let echo = image("echo", "FROM debian:12\nENTRYPOINT [\"/bin/echo\", \"entry\"]\nCMD [\"own\"]\n");
    let space = lab.space().await;
    for (step, args, expected) in [("own", vec![], "entry own\n"), ("args", vec!["a b".to_owned()], "entry a b\n")] {
        let mut spec = lab.spec(&space, step).await;
        spec.image = lab.image(&echo).await;
        let outcome = lab.go(&spec, &Word { commands: vec![], args, environment: vec![] }).await;
        assert_eq!((outcome.code(), outcome.stdout().as_str()), (0, expected));
    }
}

pub(super) async fn limits_hold(lab: &Lab) {
    let space = lab.space().await;
    let mut spec = lab.spec(&space, "memory").await;
    spec.resources = Resources { memory: Some(ByteSize(48 << 20)), ..Default::default() };
    let outcome = lab.go(&spec, &word(&["exec perl -e '$x = \"a\" x (200 << 20); print length $x'"])).await;
    assert_eq!(outcome.found, Found::Exited { code: 137, out_of_memory: true });
    let mut spec = lab.spec(&space, "pids").await;
    spec.resources = Resources { pids: Some(12), ..Default::default() };
    let fork = "perl -e 'for (1..50) { defined($p = fork) or do { print \"refused\\n\"; exit 0 }; $p or do { sleep 5; exit } }'";
    let outcome = lab.go(&spec, &word(&[fork])).await;
    assert!(outcome.stdout().contains("refused\n"), "{}", outcome.stdout());
    let set =
        docker(&["inspect", "-f", "{{.HostConfig.MemorySwap}} {{.HostConfig.Memory}}", &container(lab, "memory")], b"");
    assert_eq!(set, format!("{0} {0}", 48 << 20));
}

pub(super) async fn root_in_a_step_has_few_rights(lab: &Lab) {
    let space = lab.space().await;
    let outcome = lab.step(&space, "rights", &["grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status"]).await;
    let text = outcome.stdout();
    assert!(text.contains("NoNewPrivs:\t1\n"), "{text}");
    for line in text.lines().filter(|l| l.starts_with("Cap")) {
        let rights = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        for (name, bit) in [("NET_ADMIN", 12), ("NET_RAW", 13), ("SYS_ADMIN", 21), ("MKNOD", 27), ("AUDIT_WRITE", 29)] {
            assert_eq!(rights >> bit & 1, 0, "{name} in {line}");
        }
        assert_eq!(rights & 1, 1, "CHOWN is missing in {line}");
    }
    let inside =
        lab.step(&space, "inside", &["! touch /.mainstay/x 2>/dev/null", "test ! -e /var/run/docker.sock"]).await;
    assert_eq!(inside.code(), 0, "{}", inside.stderr());
}

pub(super) async fn the_workspace_belongs_to_the_images_user(lab: &Lab) {
    let space = lab.space().await;
    let look = "test -O . && test -O src/deep/big && test -O link || exit 9; id -u; echo x > by-$(id -u); echo k=v > \"$MAINSTAY_OUTPUT\"";
    for (step, user, id) in
        [("named", "nobody", "65534"), ("number", "1234:4321", "1234"), ("mixed", "1300:daemon", "1300")]
    {
        let tag = image(&format!("user-{step}"), &format!("FROM debian:12\nUSER {user}\n"));
        let mut spec = lab.spec(&space, step).await;
        spec.image = lab.image(&tag).await;
        let outcome = lab.go(&spec, &word(&[look])).await;
        assert_eq!(outcome.code(), 0, "{user}: {}{}", outcome.stdout(), outcome.stderr());
        assert!(outcome.stdout().contains(&format!("\n{id}\n\u{1e}mainstay:end:")), "{user}: {}", outcome.stdout());
        let root = lab
            .step(
                &space,
                &format!("root-{step}"),
                &[&format!("echo more >> by-{id}; mkdir -p src/deep; echo {id} > root")],
            )
            .await;
        assert_eq!(root.code(), 0, "{}", root.stderr());
    }
    let owner = lab.step(&space, "owner", &["stat -c %u:%g by-1234 link | sort -u"]).await;
    assert!(owner.stdout().ends_with("1300:1\n"), "{}", owner.stdout());
    let unknown = image("user-unknown", "FROM debian:12\nUSER nosuch\n");
    let mut spec = lab.spec(&space, "unknown").await;
    spec.image = lab.image(&unknown).await;
    let refused = lab.runtime.prepare(&spec).await.and(lab.runtime.release(&spec, &word(&["true"])).await);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("nosuch"), "{error}");
}

pub(super) async fn a_full_range_of_networks_is_said_and_other_networks_are_respected(lab: &Lab) {
    let third = getrandom::u32().unwrap() % 256;
    let mut config = DockerConfig::new(lab.instance.clone()).unwrap();
    config.host = Some(engine_host());
    config.networks = format!("10.214.{third}.0/27").parse().unwrap();
    config.subnet = 28;
    config.pool = 1;
    let small = Docker::connect(config).unwrap();
    let foreign = format!("foreign-{}", lab.instance);
    docker(&["network", "create", "--subnet", &format!("10.214.{third}.0/28"), &foreign], b"");
    let first = small.take_space(lab.run, &lab.repo()).await;
    let second = small.take_space(lab.run, &lab.repo()).await;
    docker(&["network", "rm", &foreign], b"");
    let first = first.unwrap();
    assert!(matches!(second, Err(RuntimeError::NoNetworkLeft { total: 2, .. })), "{second:?}");
    let third = small.take_space(lab.run, &lab.repo()).await.unwrap();
    for space in [first, third] {
        small.close(lab.run, Some(&space), false).await.unwrap();
    }
    assert_eq!(small.leftovers().await.unwrap(), []);
}

/// An engine may make late what a daemon had asked for that was killed, beside what its successor asked for.
pub(super) async fn a_network_that_was_made_twice_goes_twice(lab: &Lab) {
    let space = lab.space().await;
    let twin = serde_json::json!({ "Name": space.0, "Labels": { "mainstay.instance": lab.instance.0 } }).to_string();
    let host = engine_host();
    let socket = std::path::Path::new(host.strip_prefix("unix://").expect("the engine has a Unix socket"));
    let headers = [("Content-Type", "application/json")];
    // Newer engines refuse a name that is taken, and have no twins.
    let (status, body) = http::ask(socket, "POST", "/networks/create", &headers, twin.as_bytes()).unwrap();
    assert!(matches!(status, 201 | 409), "{status}: {}", String::from_utf8_lossy(&body));
    lab.runtime.close(lab.run, Some(&space), false).await.unwrap();
    let listed = http::get(socket, "/networks").unwrap();
    let left = listed.as_array().unwrap().iter().filter(|network| network["Name"] == space.0.as_str()).count();
    assert_eq!(left, 0, "of two networks with one name");
}

pub(super) async fn a_holder_that_was_lost_comes_back(lab: &Lab) {
    let space = lab.space().await;
    // As after a restart of the engine.
    docker(&["kill", &space.0], b"");
    let outcome = lab.step(&space, "test", &["cat README"]).await;
    assert_eq!(outcome.stdout(), "+ cat README\nhello\n");
    lab.runtime.warm(&lab.repo(), &mainstay::runtime::WorkspaceSource::Folder(lab.source())).await;
    let spares: Vec<_> = lab.runtime.leftovers().await.unwrap();
    for spare in spares.iter().filter(|l| l.kind == "container" && l.run.is_none() && l.name != space.0) {
        docker(&["kill", &spare.name], b"");
    }
    let fresh = lab.runtime.take_space(lab.run, &lab.repo()).await.unwrap();
    assert_eq!(docker(&["inspect", "-f", "{{.State.Running}}", &fresh.0], b""), "true");
}

pub(super) async fn an_engine_that_is_not_there_is_named(lab: &Lab) {
    let mut config = DockerConfig::new(lab.instance.clone()).unwrap();
    for host in ["unix:///nonexistent/engine.sock", "tcp://127.0.0.1:9"] {
        config.host = Some(host.to_owned());
        let away = Docker::connect(config.clone()).unwrap();
        for error in
            [away.ping().await.map(|_| ()).unwrap_err(), away.find(&lab.id("x")).await.map(|_| ()).unwrap_err()]
        {
            assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error:?}");
            assert!(error.to_string().starts_with(&format!("reach the container engine at {host}: ")), "{error}");
        }
    }
}

pub(super) async fn many_lines_are_read_whole(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "many").await;
    lab.runtime.release(&spec, &word(&["seq 1 200000; seq 1 50000 >&2"])).await.unwrap();
    let chunks = within(120, read(&*lab.runtime, &spec.id, LogCursor::default())).await.unwrap();
    let count = |stream| chunks.iter().filter(|c| c.stream == stream).count();
    assert_eq!((count(Stream::Stdout), count(Stream::Stderr)), (200_002, 50_000));
}
