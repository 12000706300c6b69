use super::*;
use serde_json::json;

fn service(image: &str, release: u64, update: Option<&str>) -> SwarmService {
    let spec = json!({
        "Name": "shop_api",
        "Labels": { "mainstay.release": release.to_string() },
        "TaskTemplate": { "ContainerSpec": { "Image": image }, "ForceUpdate": 0, "Runtime": "container" },
        "Mode": { "Replicated": { "Replicas": 2 } },
    });
    let message = update.map(|update| format!("update {update}")).unwrap_or_default();
    SwarmService { id: "s".into(), name: "shop_api".into(), spec, update: update.map(str::to_owned), message }
}

fn task(id: &str, slot: u64, image: &str, state: &str, desired: &str) -> SwarmTask {
    SwarmTask {
        id: id.into(),
        service: "s".into(),
        slot,
        node: "n1".into(),
        spec: json!({ "ContainerSpec": { "Image": image } }),
        state: state.into(),
        desired: desired.into(),
        since: id.into(),
        error: String::new(),
        exit_code: None,
        container: None,
    }
}

fn look(service: SwarmService, tasks: Vec<SwarmTask>) -> Look {
    Look { services: vec![service], tasks, silent: BTreeSet::new() }
}

/// Release 1 serves, both replicas of it.
fn settled() -> Look {
    look(service("one", 1, Some("completed")), vec![up("a1", 1, "one"), up("a2", 2, "one")])
}

fn up(id: &str, slot: u64, image: &str) -> SwarmTask {
    task(id, slot, image, "running", "running")
}

fn judge(before: Look, release: u64, now: &Look) -> Verdict {
    let mut rollout = Rollout::new("shop", release, before);
    // As if every task had been seen a while ago.
    for task in &now.tasks {
        rollout.running.insert(task.id.clone(), Instant::now() - STEADY);
    }
    rollout.judge(&["api".to_owned()], now).remove("api").unwrap()
}

#[test]
fn it_is_done_when_all_of_the_new_and_none_of_the_old_run_and_the_engine_has_said_so() {
    let new = || vec![up("b1", 1, "two"), up("b2", 2, "two")];
    let with = |more: Vec<SwarmTask>, update| look(service("two", 2, update), new().into_iter().chain(more).collect());
    assert_eq!(judge(settled(), 2, &with(vec![], Some("completed"))), Verdict::Done);
    // Created, or only its labels changed.
    assert_eq!(judge(Look::default(), 2, &with(vec![], None)), Verdict::Done);
    let going = |look: &Look| match judge(settled(), 2, look) {
        Verdict::Going(line) => line,
        other => panic!("{other:?}"),
    };
    assert!(going(&with(vec![], Some("updating"))).contains("watches"));
    let old = task("a1", 1, "one", "running", "shutdown");
    assert!(going(&with(vec![old.clone()], Some("completed"))).contains("1 of the old still end"));
    let ended = task("a1", 1, "one", "shutdown", "shutdown");
    assert_eq!(judge(settled(), 2, &with(vec![ended], Some("completed"))), Verdict::Done);
    let half = look(service("two", 2, Some("updating")), vec![up("b1", 1, "two"), up("a2", 2, "one")]);
    assert!(going(&half).starts_with("1 of 2 run the release"));
    // A node that nobody hears from runs nothing, whatever it said last.
    let mut lost = with(vec![task("a1", 1, "one", "running", "shutdown")], Some("completed"));
    lost.tasks[2].node = "n2".into();
    lost.silent.insert("n2".into());
    assert_eq!(judge(settled(), 2, &lost), Verdict::Done);
    lost.silent.insert("n1".into());
    assert!(matches!(judge(settled(), 2, &lost), Verdict::Going(_)));
}

#[test]
fn a_task_that_just_began_does_not_count_yet() {
    let now = look(service("two", 2, None), vec![up("b1", 1, "two"), up("b2", 2, "two")]);
    let mut rollout = Rollout::new("shop", 2, Look::default());
    let first = rollout.judge(&["api".to_owned()], &now).remove("api").unwrap();
    assert!(matches!(first, Verdict::Going(_)), "{first:?}");
}

#[test]
fn what_the_engine_gives_up_is_bad() {
    let now = |update| look(service("two", 2, Some(update)), vec![up("a1", 1, "one"), up("a2", 2, "one")]);
    let bad = |put_back, update: &str| Verdict::Bad { why: format!("update {update}"), put_back };
    assert_eq!(judge(settled(), 2, &now("paused")), bad(false, "paused"));
    assert_eq!(judge(settled(), 2, &now("rollback_paused")), bad(false, "rollback_paused"));
    assert!(matches!(judge(settled(), 2, &now("rollback_started")), Verdict::GoingBack(_)));
    // What it was put back to has the label of what it was.
    let back = look(service("one", 1, Some("rollback_completed")), settled().tasks);
    assert_eq!(judge(settled(), 2, &back), bad(true, "rollback_completed"));
    // Put back to the same release, after a repeated apply: nothing was put back.
    let same = look(service("two", 2, Some("rollback_completed")), vec![]);
    assert_eq!(judge(settled(), 2, &same), bad(false, "rollback_completed"));
    let other = look(service("three", 3, Some("updating")), vec![]);
    assert!(matches!(judge(settled(), 2, &other), Verdict::Bad { put_back: false, .. }));
}

#[test]
fn a_new_service_may_fail_a_few_times() {
    let fails = |times: usize| {
        let mut tasks: Vec<_> = (0..times).map(|n| task(&format!("f{n}"), 1, "two", "failed", "shutdown")).collect();
        // Another place, and another spec, count by themselves.
        tasks.push(task("g", 2, "two", "failed", "shutdown"));
        tasks.push(task("h", 1, "one", "failed", "shutdown"));
        look(service("two", 2, None), tasks)
    };
    assert!(matches!(judge(Look::default(), 2, &fails(FIRST_FAILURES_MAX - 1)), Verdict::Going(_)));
    assert!(matches!(judge(Look::default(), 2, &fails(FIRST_FAILURES_MAX)), Verdict::Bad { .. }));
    // What had failed before is not the fault of this time.
    let before = fails(FIRST_FAILURES_MAX);
    assert!(matches!(judge(before.clone(), 2, &before), Verdict::Going(_)));
}

#[test]
fn the_engine_may_go_back_only_to_what_was_whole() {
    let manner = |before: Look, release| *Rollout::new("shop", release, before).manners().values().next().unwrap();
    let usual = Manner::default();
    assert_eq!(manner(settled(), 2), usual);
    // The way back: all at once, and the engine may still keep what there is.
    assert_eq!(
        manner(look(service("two", 2, None), vec![up("b1", 1, "two"), up("b2", 2, "two")]), 1),
        Manner { at_once: true, ..usual }
    );
    // The same again: what the engine would go back to is the same.
    assert_eq!(manner(settled(), 1), Manner { no_way_back: true, at_once: false });
    let broken = Manner { no_way_back: true, at_once: true };
    let half = vec![up("b1", 1, "two"), up("a2", 2, "one")];
    assert_eq!(manner(look(service("two", 2, Some("updating")), half.clone()), 3), broken);
    assert_eq!(manner(look(service("two", 2, Some("paused")), half.clone()), 3), broken);
    assert_eq!(manner(look(service("two", 2, Some("completed")), half), 3), broken);
    assert_eq!(manner(look(service("one", 1, None), vec![up("a1", 1, "one")]), 2), broken);
}

#[test]
fn before_is_only_said_when_nothing_else_was_touched() {
    let rollout = || Rollout::new("shop", 2, settled());
    let back = look(service("one", 2, Some("rollback_completed")), settled().tasks);
    assert!(rollout().is_as_before(&back), "labels do not count");
    assert!(!rollout().is_as_before(&look(service("two", 2, Some("completed")), vec![])));
    let half = look(service("one", 1, Some("rollback_completed")), vec![up("a1", 1, "one")]);
    assert!(!rollout().is_as_before(&half), "one replica is missing");
    assert!(!rollout().is_as_before(&Look::default()), "it is gone");
    let mut more = back.clone();
    more.services.push(SwarmService { name: "shop_new".into(), id: "n".into(), ..service("x", 2, None) });
    assert!(!rollout().is_as_before(&more));
    assert!(rollout().others_changed("api", &more) && !rollout().others_changed("api", &back));
    let unsettled = Rollout::new("shop", 2, half);
    assert!(!unsettled.is_as_before(&back), "it was not whole before");
}

#[test]
fn the_newest_failed_task_of_this_time_speaks_for_the_service() {
    let old = task("z", 1, "one", "failed", "shutdown");
    let mut before = settled();
    before.tasks.push(old.clone());
    let rollout = Rollout::new("shop", 2, before);
    let tasks = vec![
        old,
        task("b", 1, "two", "failed", "shutdown"),
        task("c", 2, "two", "failed", "shutdown"),
        up("a1", 1, "one"),
    ];
    let now = look(service("one", 1, Some("rollback_completed")), tasks);
    assert_eq!(rollout.culprit("api", &now).map(|task| task.id.as_str()), Some("c"));
    let waiting =
        look(service("two", 2, Some("updating")), vec![up("a1", 1, "one"), task("p", 1, "two", "pending", "running")]);
    assert_eq!(rollout.culprit("api", &waiting).map(|task| task.id.as_str()), Some("p"));
}
