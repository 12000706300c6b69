//! The pure half of the engine: every story of a run told as events, and random ones.

use super::decide::{Decision, decide, likely_next};
use super::event::RunEvent;
use super::state::RunState;
use crate::model::ids::PipelineName;
use crate::model::outcome::AttemptResult;
use crate::model::plan::{PlannedStep, Resources, Retries, RetryOn, WhenStatus};
use crate::model::{AttemptEnd, Plan, RunStatus, Span, StepName, StepOutcome};
use jiff::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn name(text: &str) -> StepName {
    StepName::new(text).unwrap()
}

fn step(text: &str, needs: &[&str]) -> PlannedStep {
    PlannedStep {
        name: name(text),
        image: "debian:12".into(),
        commands: vec!["true".into()],
        args: Vec::new(),
        environment: BTreeMap::new(),
        secrets: Vec::new(),
        needs: needs.iter().map(|n| name(n)).collect(),
        timeout: Span(Duration::from_secs(60)),
        retries: Retries::default(),
        allow_failure: false,
        when_status: vec![WhenStatus::Success],
        once: false,
        resources: Resources::default(),
        shares_holder: false,
        kind: crate::model::plan::StepKind::Container,
    }
}

fn begun(steps: Vec<PlannedStep>) -> RunState {
    let plan = Plan { pipeline: PipelineName::new("p").unwrap(), file: "p.yml".into(), digest: String::new(), steps };
    let mut state = RunState::new(Arc::new(plan), None);
    apply(&mut state, RunEvent::Begun { runtime: "docker".into() });
    state
}

fn apply(state: &mut RunState, event: RunEvent) {
    state.apply(&event, Timestamp::UNIX_EPOCH).unwrap();
}

fn ended(step: &str, attempt: u32, end: AttemptEnd) -> RunEvent {
    let result = AttemptResult {
        end,
        outputs: BTreeMap::new(),
        began_at: Some(Timestamp::UNIX_EPOCH),
        ended_at: Timestamp::UNIX_EPOCH,
    };
    RunEvent::StepEnded { step: name(step), attempt, result }
}

/// Carries out whatever is decided; `code` says how each attempt ends.
fn run_to_end(state: &mut RunState, code: impl Fn(&StepName, u32) -> i32) {
    for _ in 0..1_000 {
        let decisions = decide(state);
        if decisions.is_empty() {
            return;
        }
        for decision in decisions {
            match decision {
                Decision::Skip { step, reason, cancelled } => {
                    apply(state, RunEvent::StepSkipped { step, reason, cancelled });
                }
                Decision::Start { step, attempt } => {
                    let code = code(&step, attempt);
                    apply(state, RunEvent::StepStarted { step: step.clone(), attempt });
                    apply(state, ended(step.as_str(), attempt, AttemptEnd::Exited { code }));
                }
                Decision::Stop { step, attempt } => apply(state, ended(step.as_str(), attempt, AttemptEnd::Cancelled)),
                Decision::End { status } => apply(state, RunEvent::Ended { status, error: None }),
            }
        }
    }
    panic!("the run does not end: {:?}", decide(state));
}

fn outcomes(state: &RunState) -> Vec<(String, StepOutcome)> {
    state.plan().steps.iter().filter_map(|s| Some((s.name.to_string(), state.outcome(&s.name)?))).collect()
}

#[test]
fn a_failure_skips_what_comes_after_it_and_only_that() {
    let mut state = begun(vec![
        step("build", &[]),
        step("unit", &["build"]),
        step("lint", &["build"]),
        step("package", &["unit"]),
        step("publish", &["lint"]),
    ]);
    run_to_end(&mut state, |step, _| i32::from(step.as_str() == "unit"));
    assert_eq!(state.status, RunStatus::Failed);
    assert_eq!(
        outcomes(&state),
        [
            ("build".into(), StepOutcome::Succeeded),
            ("unit".into(), StepOutcome::Failed),
            ("lint".into(), StepOutcome::Succeeded),
            ("package".into(), StepOutcome::Skipped),
            ("publish".into(), StepOutcome::Succeeded),
        ]
    );
}

#[test]
fn a_skipped_step_satisfies_needs_but_does_not_hide_the_failure_behind_it() {
    let mut tell = step("tell", &["deploy"]);
    tell.when_status = vec![WhenStatus::Failure];
    let mut state = begun(vec![step("test", &[]), step("deploy", &["test"]), tell]);
    run_to_end(&mut state, |step, _| i32::from(step.as_str() == "test"));
    assert_eq!(state.outcome(&name("deploy")), Some(StepOutcome::Skipped));
    assert_eq!(state.outcome(&name("tell")), Some(StepOutcome::Succeeded));
    assert_eq!(state.status, RunStatus::Failed);
}

#[test]
fn a_step_for_failures_is_skipped_when_all_went_well() {
    let mut tell = step("tell", &["test"]);
    tell.when_status = vec![WhenStatus::Failure];
    let mut state = begun(vec![step("test", &[]), tell]);
    run_to_end(&mut state, |_, _| 0);
    assert_eq!(state.outcome(&name("tell")), Some(StepOutcome::Skipped));
    assert_eq!(state.status, RunStatus::Succeeded);
}

#[test]
fn an_allowed_failure_does_not_count() {
    let mut flaky = step("flaky", &[]);
    flaky.allow_failure = true;
    let mut state = begun(vec![flaky, step("after", &["flaky"])]);
    run_to_end(&mut state, |step, _| i32::from(step.as_str() == "flaky"));
    assert_eq!(state.outcome(&name("flaky")), Some(StepOutcome::FailedAllowed));
    assert_eq!(state.outcome(&name("after")), Some(StepOutcome::Succeeded));
    assert_eq!(state.status, RunStatus::Succeeded);
}

#[test]
fn retries_stop_at_their_bound_and_only_answer_the_named_ends() {
    let mut flaky = step("flaky", &[]);
    flaky.retries = Retries { max: 2, on: vec![RetryOn::Failure] };
    let mut state = begun(vec![flaky.clone()]);
    run_to_end(&mut state, |_, attempt| i32::from(attempt < 3));
    assert_eq!(state.steps[&name("flaky")].attempts.len(), 3);
    assert_eq!(state.status, RunStatus::Succeeded);

    let mut state = begun(vec![flaky.clone()]);
    run_to_end(&mut state, |_, _| 1);
    assert_eq!(state.steps[&name("flaky")].attempts.len(), 3);
    assert_eq!(state.status, RunStatus::Failed);

    flaky.retries.on = vec![RetryOn::LostContainer];
    let mut state = begun(vec![flaky]);
    run_to_end(&mut state, |_, _| 1);
    assert_eq!(state.steps[&name("flaky")].attempts.len(), 1, "an exit code was retried as a lost container");
}

#[test]
fn a_once_step_that_began_is_never_tried_again() {
    let mut migrate = step("migrate", &[]);
    migrate.once = true;
    migrate.retries = Retries { max: 3, on: vec![RetryOn::LostContainer, RetryOn::Failure] };
    let mut state = begun(vec![migrate]);
    apply(&mut state, RunEvent::StepStarted { step: name("migrate"), attempt: 1 });
    apply(&mut state, ended("migrate", 1, AttemptEnd::LostContainer { detail: "gone".into() }));
    assert_eq!(state.outcome(&name("migrate")), Some(StepOutcome::Failed));
}

#[test]
fn cancel_stops_what_runs_skips_what_waits_and_runs_the_always_steps() {
    let mut clean = step("clean", &["work"]);
    clean.when_status = vec![WhenStatus::Success, WhenStatus::Failure, WhenStatus::Cancelled];
    let mut state = begun(vec![step("work", &[]), step("more", &["work"]), clean]);
    apply(&mut state, RunEvent::StepStarted { step: name("work"), attempt: 1 });
    apply(&mut state, RunEvent::CancelRequested { by: "ana".into() });
    assert_eq!(decide(&state), [Decision::Stop { step: name("work"), attempt: 1 }]);
    run_to_end(&mut state, |_, _| 0);
    assert_eq!(
        outcomes(&state),
        [
            ("work".into(), StepOutcome::Cancelled),
            ("more".into(), StepOutcome::Cancelled),
            ("clean".into(), StepOutcome::Succeeded),
        ]
    );
    assert_eq!(state.status, RunStatus::Cancelled);
}

#[test]
fn a_run_cancelled_before_its_turn_ends_without_one() {
    let plan = begun(vec![step("a", &[])]).plan().clone();
    let mut state = RunState::new(plan, None);
    apply(&mut state, RunEvent::CancelRequested { by: "ana".into() });
    assert_eq!(decide(&state), [Decision::End { status: RunStatus::Cancelled }]);
}

#[test]
fn events_that_cannot_be_are_refused_and_change_nothing() {
    let mut state = begun(vec![step("a", &[])]);
    let impossible = [
        RunEvent::Begun { runtime: "docker".into() },
        RunEvent::StepStarted { step: name("a"), attempt: 2 },
        RunEvent::StepStarted { step: name("b"), attempt: 1 },
        ended("a", 1, AttemptEnd::Exited { code: 0 }),
        RunEvent::WorkspaceFilled,
        RunEvent::Ended { status: RunStatus::Running, error: None },
    ];
    for event in impossible {
        let before = state.seq;
        assert!(state.apply(&event, Timestamp::UNIX_EPOCH).is_err(), "{event:?} was accepted");
        assert_eq!(state.seq, before);
    }
    apply(&mut state, RunEvent::StepStarted { step: name("a"), attempt: 1 });
    apply(&mut state, ended("a", 1, AttemptEnd::Exited { code: 0 }));
    let twice = ended("a", 1, AttemptEnd::Exited { code: 1 });
    assert!(state.apply(&twice, Timestamp::UNIX_EPOCH).is_err(), "an end was recorded twice");
}

#[test]
fn nothing_is_started_ahead_that_must_not_be() {
    let mut once = step("once", &[]);
    once.once = true;
    let mut large = step("large", &[]);
    large.resources.memory = Some(crate::model::ByteSize(8 << 30));
    let state = begun(vec![once, large, step("plain", &[])]);
    let ahead: Vec<_> = likely_next(&state).into_iter().map(|s| s.name.as_str()).collect();
    assert_eq!(ahead, ["plain"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any graph, any exit codes, a cancel anywhere: the run ends, every step has an outcome, replaying the stored
    /// events gives the same state, and no step began before everything it needs had ended.
    #[test]
    fn every_run_ends_and_its_events_tell_the_whole_story(
        edges in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 8),
        codes in prop::collection::vec(0..2_i32, 8),
        retries in prop::collection::vec(0..3_u32, 8),
        always in prop::collection::vec(any::<bool>(), 8),
        cancel_after in prop::option::of(0..20_usize),
        order in any::<u64>(),
    ) {
        let steps: Vec<PlannedStep> = (0..8).map(|i| {
            let needs: Vec<String> = (0..i).filter(|&j| edges[i][j]).map(|j| format!("s{j}")).collect();
            let mut step = step(&format!("s{i}"), &needs.iter().map(String::as_str).collect::<Vec<_>>());
            step.retries = Retries { max: retries[i], on: vec![RetryOn::Failure] };
            if always[i] {
                step.when_status = vec![WhenStatus::Success, WhenStatus::Failure, WhenStatus::Cancelled];
            }
            step
        }).collect();
        let mut state = begun(steps);
        let mut log = vec![RunEvent::Begun { runtime: "docker".into() }];
        let mut running: Vec<(StepName, u32)> = Vec::new();
        let mut random = order;
        let mut record = |state: &mut RunState, event: RunEvent| { apply(state, event.clone()); log.push(event); };
        for turn in 0..500 {
            if cancel_after == Some(turn) && !state.status.is_final() {
                record(&mut state, RunEvent::CancelRequested { by: "x".into() });
            }
            let decisions = decide(&state);
            if decisions.is_empty() && running.is_empty() { break; }
            for decision in decisions {
                match decision {
                    Decision::Skip { step, reason, cancelled } => record(&mut state, RunEvent::StepSkipped { step, reason, cancelled }),
                    Decision::Start { step, attempt } => {
                        for need in &state.plan().step(&step).unwrap().needs {
                            prop_assert!(state.outcome(need).is_some(), "{step} began before {need} had ended");
                        }
                        record(&mut state, RunEvent::StepStarted { step: step.clone(), attempt });
                        running.push((step, attempt));
                    }
                    Decision::Stop { .. } => {}
                    Decision::End { status } => { record(&mut state, RunEvent::Ended { status, error: None }); break; }
                }
            }
            if !running.is_empty() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (step, attempt) = running.swap_remove((random >> 33) as usize % running.len());
                let index: usize = step.as_str()[1..].parse().unwrap();
                let stopped = state.cancelled_by.is_some() && !always[index];
                let end = if stopped { AttemptEnd::Cancelled } else { AttemptEnd::Exited { code: codes[index] } };
                record(&mut state, ended(step.as_str(), attempt, end));
            }
        }
        prop_assert!(state.status.is_final(), "stuck: {:?}", decide(&state));
        for step in &state.plan().steps {
            prop_assert!(state.outcome(&step.name).is_some(), "{} has no outcome", step.name);
        }
        let mut replayed = RunState::new(state.plan().clone(), None);
        for event in &log {
            let stored = serde_json::to_string(event).unwrap();
            apply(&mut replayed, serde_json::from_str(&stored).unwrap());
        }
        prop_assert_eq!(&replayed.steps, &state.steps);
        prop_assert_eq!(replayed.status, state.status);
        prop_assert_eq!(replayed.seq, state.seq);
    }
}

mod waiting {
    //! Approvals and deploys: what counts as given, what a rollback means, and when a run may be parked.

    use super::*;
    use crate::engine::decide::{needs_space, only_waits, status_seen_by};
    use crate::model::ids::EnvironmentName;
    use crate::model::plan::{ApprovalStep, DeployStep, StepKind};
    use crate::runtime::SpaceName;

    fn approval(text: &str, needs: &[&str]) -> PlannedStep {
        let kind = StepKind::Approval(ApprovalStep {
            environment: None,
            from: vec!["ana".into()],
            required: 1,
            expires: None,
            message: None,
            inputs: Vec::new(),
        });
        PlannedStep { kind, image: String::new(), ..step(text, needs) }
    }

    fn deploy(text: &str, needs: &[&str]) -> PlannedStep {
        let environment = EnvironmentName::new("production").unwrap();
        let kind = StepKind::Deploy(DeployStep { environment, images: BTreeMap::new(), promote: None, rollback: None });
        PlannedStep { kind, image: String::new(), ..step(text, needs) }
    }

    fn start(state: &mut RunState, step: &str) {
        apply(state, RunEvent::StepStarted { step: name(step), attempt: 1 });
    }

    fn end(state: &mut RunState, step: &str, end: AttemptEnd) {
        start(state, step);
        apply(state, ended(step, 1, end));
    }

    fn good() -> AttemptEnd {
        AttemptEnd::Exited { code: 0 }
    }

    fn space(state: &mut RunState) -> SpaceName {
        let space = SpaceName("s".into());
        apply(state, RunEvent::SpaceTaken { space: space.clone() });
        apply(state, RunEvent::WorkspaceFilled);
        space
    }

    #[test]
    fn a_refused_approval_ends_what_comes_after_and_is_never_asked_again() {
        let mut go = approval("go", &[]);
        go.retries = Retries { max: 3, on: vec![RetryOn::Failure, RetryOn::Timeout, RetryOn::LostContainer] };
        let mut state = begun(vec![go, deploy("production", &["go"])]);
        end(&mut state, "go", AttemptEnd::Refused { detail: "superseded by run #13".into() });
        run_to_end(&mut state, |_, _| panic!("something was started"));
        assert_eq!(state.outcome(&name("go")), Some(StepOutcome::Failed));
        assert_eq!(state.outcome(&name("production")), Some(StepOutcome::Skipped));
        assert_eq!(state.status, RunStatus::Failed);
    }

    #[test]
    fn an_approval_that_was_skipped_or_may_fail_was_not_given() {
        let mut only_on_failure = approval("go", &["test"]);
        only_on_failure.when_status = vec![WhenStatus::Failure];
        let mut may_fail = approval("go", &["test"]);
        may_fail.allow_failure = true;
        for (go, refused) in [(only_on_failure, false), (may_fail, true)] {
            let after = step("after", &["production"]);
            let mut state = begun(vec![step("test", &[]), go, deploy("production", &["go"]), after]);
            end(&mut state, "test", good());
            if refused {
                end(&mut state, "go", AttemptEnd::Refused { detail: "ben said no".into() });
                assert_eq!(state.outcome(&name("go")), Some(StepOutcome::FailedAllowed));
            }
            run_to_end(&mut state, |step, _| panic!("{step} was started"));
            assert_eq!(state.outcome(&name("production")), Some(StepOutcome::Skipped));
            assert_eq!(state.outcome(&name("after")), Some(StepOutcome::Skipped), "far behind it too");
            let why = &state.steps[&name("production")].skipped.as_ref().unwrap().reason;
            assert_eq!(why, "the approval `go` was not given");
        }
        let mut state = begun(vec![approval("go", &[]), deploy("production", &["go"])]);
        run_to_end(&mut state, |_, _| 0);
        assert_eq!(state.outcome(&name("production")), Some(StepOutcome::Succeeded), "one that was given");
    }

    #[test]
    fn a_rollback_is_a_failure_with_a_word_of_its_own() {
        let when =
            |text: &str, when: WhenStatus| PlannedStep { when_status: vec![when], ..step(text, &["production"]) };
        let mut production = deploy("production", &[]);
        production.retries = Retries { max: 3, on: vec![RetryOn::Failure] };
        let steps = vec![
            production,
            when("rolled", WhenStatus::RolledBack),
            when("failed", WhenStatus::Failure),
            when("fine", WhenStatus::Success),
        ];
        let mut state = begun(steps.clone());
        end(&mut state, "production", AttemptEnd::RolledBack { detail: "500s".into() });
        assert_eq!(state.outcome(&name("production")), Some(StepOutcome::Failed), "what is held is not tried again");
        assert_eq!(status_seen_by(&state, &steps[1]), "rolled-back");
        run_to_end(&mut state, |_, _| 0);
        assert_eq!(state.status, RunStatus::Failed);
        let ran = |state: &RunState| {
            let ran = |step: &&PlannedStep| state.outcome(&step.name) == Some(StepOutcome::Succeeded);
            state.plan().steps.iter().filter(ran).map(|step| step.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ran(&state), ["rolled", "failed"]);

        // One that failed without a rollback, after its retries.
        let mut state = begun(steps.clone());
        for attempt in 1..=4 {
            apply(&mut state, RunEvent::StepStarted { step: name("production"), attempt });
            apply(&mut state, ended("production", attempt, AttemptEnd::DeployFailed { detail: "no image".into() }));
        }
        assert_eq!(status_seen_by(&state, &steps[1]), "failure");
        run_to_end(&mut state, |_, _| 0);
        assert_eq!(ran(&state), ["failed"]);
    }

    #[test]
    fn a_run_is_parked_only_while_nothing_but_waits_is_under_way() {
        let mut state = begun(vec![
            step("build", &[]),
            approval("go", &["build"]),
            step("beside", &["build"]),
            step("after", &["go"]),
        ]);
        let space = space(&mut state);
        let parked = RunEvent::Parked { space: Some(space.clone()) };
        assert!(!only_waits(&state) && needs_space(&state), "nothing is under way");
        start(&mut state, "build");
        assert!(!only_waits(&state) && state.clone().apply(&parked, Timestamp::UNIX_EPOCH).is_err());
        apply(&mut state, ended("build", 1, good()));
        start(&mut state, "go");
        assert!(only_waits(&state), "the caller sees that `beside` is ready");
        start(&mut state, "beside");
        assert!(!only_waits(&state));
        apply(&mut state, ended("beside", 1, good()));
        let ahead: Vec<_> = likely_next(&state).into_iter().map(|step| step.name.to_string()).collect();
        assert!(ahead.is_empty(), "nothing is made ahead behind an approval: {ahead:?}");
        apply(&mut state, parked.clone());
        assert!(state.clone().apply(&parked, Timestamp::UNIX_EPOCH).is_err(), "twice");
        let lost = RunEvent::SpaceLost { space: space.clone() };
        assert!(state.clone().apply(&lost, Timestamp::UNIX_EPOCH).is_err(), "its workspace is all it has");

        apply(&mut state, ended("go", 1, good()));
        let begin = RunEvent::StepStarted { step: name("after"), attempt: 1 };
        assert!(decide(&state).contains(&Decision::Start { step: name("after"), attempt: 1 }));
        assert!(state.clone().apply(&begin, Timestamp::UNIX_EPOCH).is_err(), "in a space that is not there");
        apply(&mut state, RunEvent::Unparked { space });
        run_to_end(&mut state, |_, _| 0);
        assert_eq!(state.status, RunStatus::Succeeded);
    }

    #[test]
    fn a_run_without_containers_is_parked_without_a_space() {
        let mut state = begun(vec![approval("go", &[]), deploy("production", &["go"])]);
        assert!(!needs_space(&state));
        start(&mut state, "go");
        assert!(only_waits(&state));
        apply(&mut state, RunEvent::Parked { space: None });
        apply(&mut state, ended("go", 1, good()));
        // Steps that wait themselves need no place.
        run_to_end(&mut state, |_, _| 0);
        assert_eq!(state.status, RunStatus::Succeeded);
    }
}
