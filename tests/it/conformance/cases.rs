//! What holds for every engine.

use super::lab::{Kind, Lab, bytes, read, within, word};
use futures_util::StreamExt;
use mainstay::model::log::{LogCursor, Stream};
use mainstay::model::{AttemptId, RunId};
use mainstay::runtime::{Found, Living, RuntimeError, Word, WorkspaceSource, advance};
use std::time::{Duration, Instant};

pub(super) async fn a_step_runs_and_its_output_and_exit_code_come_back(lab: &Lab) {
    let space = lab.space().await;
    let good = lab.step(&space, "good", &["cat README", "./tool; echo to-stderr >&2"]).await;
    assert_eq!(good.code(), 0, "{}", good.stderr());
    assert_eq!(good.stdout(), "+ cat README\nhello\n+ ./tool; echo to-stderr >&2\ntool\n");
    assert_eq!(good.stderr(), "to-stderr\n");
    let bad = lab.step(&space, "bad", &["echo before", "exit 7", "echo after"]).await;
    assert_eq!((bad.code(), bad.stdout().as_str()), (7, "+ echo before\nbefore\n+ exit 7\n"));
    lab.runtime.close(lab.run, Some(&space), false).await.unwrap();
    assert_eq!(lab.runtime.leftovers().await.unwrap(), []);
}

pub(super) async fn commands_stop_at_the_first_failure_and_are_shown_as_written(lab: &Lab) {
    let space = lab.space().await;
    let commands = [
        "printf '%s' 'it''s \\n'; echo \" $HOME\" > /dev/null",
        "if true; then\n  echo multi\nfi",
        "false",
        "echo never",
    ];
    let outcome = lab.step(&space, "test", &commands).await;
    assert_eq!(outcome.code(), 1);
    let expected = format!("+ {}\nits \\n+ {}\nmulti\n+ false\n", commands[0], commands[1]);
    assert_eq!(outcome.stdout(), expected);
}

pub(super) async fn death_by_signal_is_128_and_its_number(lab: &Lab) {
    let space = lab.space().await;
    assert_eq!(lab.step(&space, "kill", &["kill -KILL $$"]).await.code(), 128 + 9);
    assert_eq!(lab.step(&space, "term", &["kill -TERM $$"]).await.code(), 128 + 15);
}

pub(super) async fn a_missing_program_is_127_and_a_file_that_is_none_126(lab: &Lab) {
    let space = lab.space().await;
    assert_eq!(lab.step(&space, "missing", &["nosuch-program"]).await.code(), 127);
    assert_eq!(lab.step(&space, "folder", &["/workspace-x/none || ./src"]).await.code(), 126);
}

pub(super) async fn the_word_brings_environment_and_nothing_comes_from_the_daemon(lab: &Lab) {
    let space = lab.space().await;
    let mut word = word(&["echo \"$SECRET|$EMPTY|${CARGO_MANIFEST_DIR-none}|${MAINSTAY_NONCE-none}\""]);
    word.environment = vec![("SECRET".into(), "multi\nline '\"$x".into()), ("EMPTY".into(), String::new())];
    let outcome = lab.go(&lab.spec(&space, "env").await, &word).await;
    assert!(outcome.stdout().ends_with("multi\nline '\"$x||none|none\n"), "{}", outcome.stdout());
}

pub(super) async fn a_word_given_twice_begins_once(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "once").await;
    let word = word(&["echo begun >> ran", "sleep 1"]);
    lab.runtime.release(&spec, &word).await.unwrap();
    lab.again().release(&spec, &word).await.unwrap();
    lab.saw("once", "begun").await;
    lab.runtime.release(&spec, &word).await.unwrap();
    let outcome = lab.outcome("once").await;
    lab.again().release(&spec, &word).await.unwrap();
    assert_eq!(outcome.code(), 0);
    assert_eq!(String::from_utf8_lossy(&outcome.bytes(Stream::Stdout)).matches("mainstay:begin:").count(), 1);
    assert_eq!(lab.step(&space, "look", &["cat ran"]).await.stdout(), "+ cat ran\nbegun\n");
}

pub(super) async fn prepare_may_be_repeated_and_the_process_waits(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "waits").await;
    assert_eq!(lab.runtime.find(&spec.id).await.unwrap(), Found::Absent);
    lab.runtime.prepare(&spec).await.unwrap();
    lab.runtime.prepare(&spec).await.unwrap();
    lab.again().prepare(&spec).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lab.again().find(&spec.id).await.unwrap(), Found::Alive);
    let outcome = lab.go(&spec, &word(&["echo hello"])).await;
    assert_eq!(outcome.stdout(), "+ echo hello\nhello\n");
    lab.again().prepare(&spec).await.unwrap();
    assert_eq!(lab.again().find(&spec.id).await.unwrap(), Found::Exited { code: 0, out_of_memory: false });
}

pub(super) async fn a_new_client_finds_what_an_old_one_left_running(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "runs").await;
    lab.runtime
        .release(&spec, &word(&["echo begun", "while [ ! -e stop ]; do sleep 0.05; done", "exit 5"]))
        .await
        .unwrap();
    lab.saw("runs", "begun\n").await;
    let successor = lab.again();
    assert_eq!(successor.find(&spec.id).await.unwrap(), Found::Alive);
    let waiting = async {
        let id = spec.id.clone();
        successor.wait(&id).await.unwrap()
    };
    let (found, _) = tokio::join!(within(30, waiting), lab.step(&space, "end", &["touch stop"]));
    assert_eq!(found, Found::Exited { code: 5, out_of_memory: false });
    let missing = AttemptId { attempt: 99, ..spec.id };
    assert!(matches!(successor.wait(&missing).await, Err(RuntimeError::Gone { .. })));
    assert!(matches!(successor.logs(&missing, LogCursor::default()).await, Err(RuntimeError::Gone { .. })));
}

pub(super) async fn stop_lets_a_step_clean_up(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "trap").await;
    let commands = ["trap 'echo cleaning; exit 3' TERM", "echo begun", "while :; do sleep 0.05; done"];
    lab.runtime.release(&spec, &word(&commands)).await.unwrap();
    lab.saw("trap", "begun\n").await;
    within(20, lab.runtime.stop(&spec.id, Duration::from_secs(15))).await.unwrap();
    let outcome = lab.outcome("trap").await;
    assert_eq!(outcome.code(), 3);
    assert!(outcome.stdout().ends_with("cleaning\n"), "{}", outcome.stdout());
    lab.runtime.stop(&spec.id, Duration::from_secs(15)).await.unwrap();
}

pub(super) async fn stop_kills_what_does_not_heed_it(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "deaf").await;
    // The child that left the group must go too.
    let commands = [
        "trap '' TERM",
        "setsid sh -c 'while :; do date > alive; sleep 0.05; done' &",
        "echo begun",
        "while :; do sleep 0.05; done",
    ];
    lab.runtime.release(&spec, &word(&commands)).await.unwrap();
    lab.saw("deaf", "begun\n").await;
    let started = Instant::now();
    within(20, lab.runtime.stop(&spec.id, Duration::from_millis(500))).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(450), "killed before its grace was over");
    assert_eq!(lab.outcome("deaf").await.code(), 137);
    let look = lab.step(&space, "look", &["rm -f alive; sleep 0.5", "if [ -e alive ]; then exit 9; fi"]).await;
    assert_eq!(look.code(), 0, "a process of the stopped step still runs");
}

pub(super) async fn a_step_that_only_waits_can_be_stopped(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "waits").await;
    lab.runtime.stop(&spec.id, Duration::from_secs(5)).await.unwrap();
    lab.runtime.prepare(&spec).await.unwrap();
    within(10, lab.runtime.stop(&spec.id, Duration::from_secs(5))).await.unwrap();
    assert_eq!(lab.runtime.find(&spec.id).await.unwrap(), Found::Exited { code: 143, out_of_memory: false });
}

pub(super) async fn logs_go_on_from_every_cursor_with_nothing_lost_or_doubled(lab: &Lab) {
    let space = lab.space().await;
    let script = "i=0; while [ $i -lt 2500 ]; do i=$((i+1)); echo out-$i; echo err-$i >&2; \
                  if [ $((i % 500)) = 0 ]; then sleep 0.4; fi; done";
    let outcome = lab.step(&space, "talks", &[script]).await;
    assert_eq!(outcome.code(), 0);
    let count = |stream| bytes(&outcome.chunks, stream).iter().filter(|b| **b == b'\n').count();
    assert_eq!((count(Stream::Stdout), count(Stream::Stderr)), (2502, 2500));
    let whole = |stream| bytes(&outcome.chunks, stream);
    let mut seed = getrandom::u32().unwrap();
    for _ in 0..15 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = (seed >> 8) as usize % (outcome.chunks.len() + 1);
        let mut cursor = LogCursor::default();
        outcome.chunks[..at].iter().for_each(|chunk| advance(&mut cursor, chunk));
        let rest = within(60, read(&*lab.again(), &lab.id("talks"), cursor)).await.unwrap();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut joined = bytes(&outcome.chunks[..at], stream);
            joined.extend(bytes(&rest, stream));
            assert!(joined == whole(stream), "{stream:?} differs when read on from chunk {at}");
        }
    }
}

pub(super) async fn a_follower_that_comes_back_in_the_middle_misses_nothing(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "talks").await;
    let script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo out-$i; echo err-$i >&2; sleep 0.03; done";
    lab.runtime.release(&spec, &word(&[script])).await.unwrap();
    let (mut cursor, mut chunks, mut times) = (LogCursor::default(), Vec::new(), 0);
    loop {
        let client = lab.again();
        let mut log = client.logs(&spec.id, cursor).await.unwrap();
        times += 1;
        let mut ended = true;
        for taken in 0.. {
            let Some(chunk) = within(30, log.next()).await else { break };
            let chunk = chunk.unwrap();
            advance(&mut cursor, &chunk);
            chunks.push(chunk);
            if taken == 10 {
                ended = false;
                break;
            }
        }
        if ended {
            break;
        }
    }
    assert!(times > 5, "the log was followed {times} times only");
    let lines = |name: &str| (1..=60).map(|i| format!("{name}-{i}\n")).collect::<String>();
    assert_eq!(String::from_utf8(bytes(&chunks, Stream::Stderr)).unwrap(), lines("err"));
    assert!(String::from_utf8(bytes(&chunks, Stream::Stdout)).unwrap().ends_with(&lines("out")));
}

pub(super) async fn long_lines_and_odd_bytes_come_through_unchanged(lab: &Lab) {
    let space = lab.space().await;
    let long = lab.step(&space, "long", &["head -c 1048576 /dev/zero | tr '\\0' x; echo"]).await;
    let text = long.stdout();
    let line = text.lines().last().unwrap();
    assert!(line.len() == 1 << 20 && line.bytes().all(|b| b == b'x'), "{} bytes came", line.len());
    let odd = lab.step(&space, "odd", &["printf 'a\\000\\033[0m\\303\\251\\377\\r\\nno-end'"]).await;
    let all = odd.bytes(Stream::Stdout);
    // The engine's log is JSON text: what is no UTF-8 comes back as the replacement character. Files of ours keep it.
    let no_text: &[u8] = if lab.kind == Kind::Docker { "\u{fffd}".as_bytes() } else { b"\xff" };
    let expected = [b"a\0\x1b[0m\xc3\xa9", no_text, b"\r\nno-end"].concat();
    assert!(all.ends_with(&expected), "{:?}", String::from_utf8_lossy(&all));
}

pub(super) async fn outputs_come_back_in_the_end_mark(lab: &Lab) {
    let space = lab.space().await;
    let outcome = lab
        .step(&space, "out", &["echo version=1.2 >> \"$MAINSTAY_OUTPUT\"", "echo b=2 >> \"$MAINSTAY_OUTPUT\""])
        .await;
    let text = outcome.stdout();
    let nonce = lab.nonce("out");
    let mark = text.lines().last().unwrap();
    let encoded = mark.strip_prefix(&format!("\u{1e}mainstay:end:{nonce}:")).unwrap_or_else(|| panic!("{text}"));
    use base64::Engine as _;
    let raw = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    assert_eq!(raw, b"version=1.2\nb=2\n");
    let first = String::from_utf8(outcome.bytes(Stream::Stdout)).unwrap();
    assert!(first.starts_with(&format!("\u{1e}mainstay:begin:{nonce}:1")), "{first}");
    let none = lab.step(&space, "none", &["test -w \"$MAINSTAY_OUTPUT\""]).await;
    assert!(none.code() == 0 && !none.stdout().contains("mainstay:end"));
    let much = lab.step(&space, "much", &["head -c 70000 /dev/zero > \"$MAINSTAY_OUTPUT\""]).await;
    assert_eq!(much.code(), 1, "outputs that cannot be taken must fail the step");
    assert!(much.stderr().contains("longer than 64 KiB"), "{}", much.stderr());
}

pub(super) async fn the_workspace_is_what_was_sent_and_is_shared_by_the_runs_steps(lab: &Lab) {
    let space = lab.space().await;
    let look = [
        "test \"$(readlink link)\" = README && test \"$(readlink out)\" = /etc",
        "test \"$(stat -c %a README tool src | tr '\\n' ' ')\" = '644 755 755 '",
        "test $(wc -c < src/deep/big) = 300000 && test -e src/empty",
        "echo made > made-by-first && mkdir sub && echo x > sub/y",
    ];
    let first = lab.step(&space, "first", &look).await;
    assert_eq!(first.code(), 0, "{}{}", first.stdout(), first.stderr());
    let second = lab.step(&space, "second", &["cat made-by-first sub/y"]).await;
    assert_eq!(second.stdout(), "+ cat made-by-first sub/y\nmade\nx\n");
}

pub(super) async fn a_commit_becomes_a_clone_that_git_likes(lab: &Lab) {
    let (mirror, commits) = super::lab::mirror(lab.folder.path());
    let source = |n: usize| WorkspaceSource::Commit {
        mirror: mirror.clone(),
        commit: commits[n].clone(),
        branch: Some("main".to_owned()),
        origin: "https://example.com/shop.git".to_owned(),
    };
    // What lies ready is of the first commit; the run wants the second, so only the difference is sent.
    lab.runtime.warm(&lab.repo(), &source(0)).await;
    let space = lab.runtime.take_space(lab.run, &lab.repo()).await.unwrap();
    lab.runtime.fill(&space, &source(1)).await.unwrap();
    let look = ["cat kept changed; ls", "test -d .git && cat .git/HEAD"];
    let outcome = lab.step(&space, "look", &look).await;
    let expected = "kept\nsecond\nadded\nchanged\nkept\n";
    assert!(outcome.stdout().contains(expected), "{}{}", outcome.stdout(), outcome.stderr());
    assert!(outcome.stdout().contains("ref: refs/heads/main"), "{}", outcome.stdout());
    lab.runtime.close(lab.run, Some(&space), false).await.unwrap();
    lab.runtime.drain_pool().await;
    assert_eq!(lab.runtime.leftovers().await.unwrap(), []);
}

pub(super) async fn close_removes_everything_and_may_be_repeated(lab: &Lab) {
    let space = lab.space().await;
    let running = lab.spec(&space, "running").await;
    lab.runtime.release(&running, &word(&["sleep 1000"])).await.unwrap();
    let waiting = lab.spec(&space, "waiting").await;
    lab.runtime.prepare(&waiting).await.unwrap();
    lab.step(&space, "ended", &["true"]).await;
    assert!(!lab.runtime.leftovers().await.unwrap().is_empty());
    within(30, lab.again().close(lab.run, Some(&space), false)).await.unwrap();
    assert_eq!(lab.runtime.leftovers().await.unwrap(), []);
    assert_eq!(lab.runtime.find(&running.id).await.unwrap(), Found::Absent);
    lab.runtime.close(lab.run, Some(&space), false).await.unwrap();
    lab.runtime.remove(&running.id).await.unwrap();
    lab.runtime.stop(&running.id, Duration::from_secs(1)).await.unwrap();
}

pub(super) async fn a_kept_workspace_can_be_opened_again(lab: &Lab) {
    let space = lab.space().await;
    assert_eq!(lab.step(&space, "first", &["echo kept > kept; exit 1"]).await.code(), 1);
    lab.runtime.close(lab.run, Some(&space), true).await.unwrap();
    let left = lab.runtime.leftovers().await.unwrap();
    assert_eq!(left.iter().map(|l| l.kind).collect::<Vec<_>>(), ["volume"]);
    let client = lab.again();
    client.sweep(Some(&Living { runs: vec![], newest: lab.run, spaces: vec![space.clone()] })).await.unwrap();
    let next = RunId(lab.run.0 + 1);
    let space = client.reopen_space(next, &lab.repo(), &space).await.unwrap();
    let mut spec = lab.spec(&space, "again").await;
    spec.id.run = next;
    client.release(&spec, &word(&["cat kept README"])).await.unwrap();
    let chunks = within(30, read(&*client, &spec.id, LogCursor::default())).await.unwrap();
    assert!(String::from_utf8_lossy(&bytes(&chunks, Stream::Stdout)).ends_with("kept\nhello\n"));
    client.close(next, Some(&space), false).await.unwrap();
    assert_eq!(client.leftovers().await.unwrap(), []);
    assert!(matches!(client.reopen_space(next, &lab.repo(), &space).await, Err(RuntimeError::Gone { .. })));
}

pub(super) async fn a_sweep_keeps_live_runs_and_removes_the_rest(lab: &Lab) {
    let space = lab.space().await;
    let live = lab.spec(&space, "live").await;
    lab.runtime.release(&live, &word(&["echo begun", "while [ ! -e stop ]; do sleep 0.05; done"])).await.unwrap();
    lab.saw("live", "begun\n").await;
    let dead_run = RunId(lab.run.0 + 5000);
    let dead_space = lab.runtime.take_space(dead_run, &lab.repo()).await.unwrap();
    let mut dead = lab.spec(&dead_space, "dead").await;
    dead.id.run = dead_run;
    lab.runtime.release(&dead, &word(&["sleep 1000"])).await.unwrap();
    let successor = lab.again();
    let living = Living { runs: vec![lab.run], newest: dead_run, spaces: vec![space.clone()] };
    within(30, successor.sweep(Some(&living))).await.unwrap();
    assert_eq!(successor.find(&live.id).await.unwrap(), Found::Alive);
    assert_eq!(successor.find(&dead.id).await.unwrap(), Found::Absent);
    let left = successor.leftovers().await.unwrap();
    assert!(left.iter().all(|l| !l.name.contains(&dead_space.0) && l.run != Some(dead_run)), "{left:?}");
    assert_eq!(lab.step(&space, "end", &["touch stop"]).await.code(), 0);
    assert_eq!(within(30, successor.wait(&live.id)).await.unwrap(), Found::Exited { code: 0, out_of_memory: false });
}

pub(super) async fn a_word_without_a_command_is_refused_with_a_reason(lab: &Lab) {
    let space = lab.space().await;
    let spec = lab.spec(&space, "empty").await;
    let nothing = Word { commands: vec![], args: vec!["/no/such/program".to_owned()], environment: vec![] };
    let outcome = lab.go(&spec, &nothing).await;
    assert_eq!(outcome.code(), 127);
    assert!(outcome.stderr().contains("cannot start `/no/such/program`: not found"), "{}", outcome.stderr());
}
