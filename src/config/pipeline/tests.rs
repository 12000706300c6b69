use super::*;
use crate::model::ByteSize;

fn read(text: &str) -> Result<Pipeline, Findings> {
    parse(PipelineName::new("build").unwrap(), ".mainstay/build.yml", text)
}

fn good(text: &str) -> Pipeline {
    read(text).unwrap_or_else(|findings| panic!("{findings}"))
}

#[test]
fn everything_the_language_has_is_understood() {
    let pipeline = good(
        "
on:
  push: { branches: [main, '!old/*'], tags: 'v*' }
  schedule: ['0 3 * * * Europe/Paris', '*/15 * * * *']
  manual: { inputs: { level: { type: choice, options: [quick, full], default: quick } } }
steps:
  test:
    image: rust:1.95
    commands: [cargo test --locked]
    environment: { VERSION: 3.10, DEBUG: true, LEVEL: '${{ inputs.level }}', EMPTY: '' }
    secrets: [TOKEN]
    timeout: 15m
    retries: { max: 1, on: [lost-container, image-pull] }
    resources: { cpus: 0.5, memory: 512MiB, pids: 100 }
  lint: { image: 'host:5000/lint@sha256:00', args: [--all], needs: [], allow-failure: true, retries: 2 }
  tell:
    image: alpine:3
    needs: [test, lint]
    commands: |
      echo one
      echo two
    once: true
    retries: 1
    environment: { DIGEST: '${{ steps.test.digest }}' }
    when: { status: always }
",
    );
    let names: Vec<_> = pipeline.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["test", "lint", "tell"]);
    let [test, lint, tell] = &pipeline.steps[..] else { panic!() };
    assert_eq!(test.environment["VERSION"], "3.10");
    assert_eq!(test.environment["DEBUG"], "true");
    assert_eq!(test.environment["EMPTY"], "");
    assert_eq!(test.timeout.unwrap().to_string(), "15m");
    assert_eq!(test.resources.millicpus, Some(500));
    assert_eq!(test.resources.memory, Some(ByteSize(512 << 20)));
    assert_eq!(test.when_status, [WhenStatus::Success]);
    assert!(test.needs.is_empty() && lint.needs.is_empty() && lint.allow_failure);
    assert_eq!(lint.retries, Retries { max: 2, on: vec![RetryOn::LostContainer, RetryOn::ImagePull] });
    assert_eq!(tell.commands, ["echo one\necho two\n"]);
    assert_eq!(tell.retries, Retries { max: 1, on: vec![RetryOn::ImagePull] });
    assert_eq!(tell.when_status, ALL_STATUS);
    assert_eq!(pipeline.on.schedule.len(), 2);
}

#[test]
fn without_needs_steps_run_in_the_order_written() {
    let needs = |text: &str| -> Vec<Vec<String>> {
        good(text).steps.iter().map(|s| s.needs.iter().map(ToString::to_string).collect()).collect()
    };
    assert_eq!(
        needs("steps: {c: {image: x}, a: {image: x}, b: {image: x}}"),
        [vec![], vec!["c".into()], vec!["a".to_owned()]]
    );
    assert_eq!(needs("steps: [{name: b, image: x}, {name: a, image: x}]"), [vec![], vec!["b".to_owned()]]);
    assert_eq!(
        needs("steps: {a: {image: x}, b: {image: x, depends_on: a}, c: {image: x}}"),
        [vec![], vec!["a".to_owned()], vec![]]
    );
    // An empty `needs` is one too: both start at once.
    assert_eq!(needs("steps: {a: {image: x}, b: {image: x, needs: []}}"), [Vec::<String>::new(), vec![]]);
}

#[test]
fn one_reading_tells_everything_that_is_wrong() {
    let findings = read(
        "steps:
  build:
    image: rust:1.95
    comands: [make]
    timeout: 5 minutes
  test:
    image: rust
    needs: [biuld]
    load: { url: x }
    when: { status: [sucess], branch: main }
",
    )
    .unwrap_err();
    insta::assert_snapshot!(findings.to_string(), @r"
    error: unknown key `comands` in the step `build`
     --> .mainstay/build.yml:4:5
      |
    4 |     comands: [make]
      |     ^^^^^^^
      |
      = hint: did you mean `commands`?

    error: `timeout`: `5 minutes` is not a duration; write `90s`, `15m`, `2h` or `7d`
     --> .mainstay/build.yml:5:14
      |
    5 |     timeout: 5 minutes
      |              ^^^^^^^^^

    error: there is no step `biuld`
     --> .mainstay/build.yml:8:13
      |
    8 |     needs: [biuld]
      |             ^^^^^
      |
      = hint: did you mean `build`?

    error: `load` is part of the language, but not of this version
     --> .mainstay/build.yml:9:5
      |
    9 |     load: { url: x }
      |     ^^^^

    error: `sucess` is not known for `status`
      --> .mainstay/build.yml:10:22
       |
    10 |     when: { status: [sucess], branch: main }
       |                      ^^^^^^
       |
       = hint: did you mean `success`?

    error: `branch` is part of the language, but not of this version
      --> .mainstay/build.yml:10:31
       |
    10 |     when: { status: [sucess], branch: main }
       |                               ^^^^^^
    ");
}

#[test]
fn cycles_are_shown_whole() {
    let findings = read(
        "steps:\n  a: {image: x, needs: c}\n  b: {image: x, needs: a}\n  c: {image: x, needs: [b]}\n  d: {image: x, needs: d}\n",
    );
    let text = findings.unwrap_err().to_string();
    assert!(text.contains("a -> c -> b -> a"), "{text}");
    assert!(text.contains("the step `d` needs itself"), "{text}");
}

#[test]
fn each_mistake_has_its_sentence() {
    let step = |rest: &str| format!("steps:\n  a:\n    image: x\n    {rest}\n");
    let table = [
        ("steps: {}", "there are no steps"),
        ("on: push", "there is no `steps`"),
        ("- a", "a pipeline is a map, but here is a list"),
        ("steps: {a: {commands: [x]}}", "has no `image`"),
        ("steps: {'a b': {image: x}}", "may hold only letters"),
        ("steps: [{image: x}]", "this step has no name"),
        ("steps: [{name: a, image: x}, {name: a, image: x}]", "two steps named `a`"),
        ("steps: {a: {image: x}, a: {image: y}}", "duplicate"),
        ("services: {db: {}}\nsteps: {a: {image: x}}", "`services` is part of the language, but not of this version"),
        ("on: {pull_request: {}}\nsteps: {a: {image: x}}", "`pull_request` is part of the language"),
        ("on: {push: {branches: ['[a']}}\nsteps: {a: {image: x}}", "this pattern does not read"),
        ("on: {push: {branches: [!x]}}\nsteps: {a: {image: x}}", "quote a text that begins with `!`"),
        ("on: {push: {branches: [*]}}\nsteps: {a: {image: x}}", "must be in quotes"),
        ("on: {schedule: ['0 3 * *']}\nsteps: {a: {image: x}}", "five fields"),
        ("on: {schedule: ['0 0 30 2 *']}\nsteps: {a: {image: x}}", "never comes"),
        ("on: {manual: {inputs: {l: {type: choice}}}}\nsteps: {a: {image: x}}", "needs `options`"),
        ("on: {manual: {inputs: {l: {type: number, default: x}}}}\nsteps: {a: {image: x}}", "must be a number"),
        (&step("image: -v"), "duplicate"),
        ("steps: {a: {image: '-v'}}", "is not an image reference"),
        ("steps: {a: {image: 'x$Y'}}", "is not an image reference"),
        ("steps: {a: {image: }}", "`image` has no value"),
        (&step("commands: []"), "is empty"),
        (&step("commands: [echo: hi]"), "put the whole command in quotes"),
        (&step("commands: ['echo ${{ inputs.x }}']"), "could run as a command"),
        (&step("commands: [x]\n    args: [y]"), "both `commands` and `args`"),
        (&step("environment: {1A: x}"), "is not a name for a variable"),
        (&step("environment: {MAINSTAY_OUTPUT: x}"), "set by Mainstay itself"),
        (&step("environment: {A: [x]}"), "is a text, but here is a list"),
        (&step("environment: {A: '${{ steps.b.k }}'}"), "there is no step `b`"),
        (&step("environment: {A: '${{ steps.a.k }}'}"), "does not wait for `a`"),
        (&step("environment: {A: '${{ inputs.k }}'}"), "there is no input `k`"),
        (&step("environment: {A: '${{ env.k }}'}"), "is not a value that can be used here"),
        (&step("environment: {A: '${{ steps.a.k'}"), "has no `}}`"),
        (&step("secrets: {TOKEN: abc}"), "never in the file"),
        (&step("environment: {T: x}\n    secrets: [T]"), "both a secret and in `environment`"),
        (&step("needs: [b, b]"), "`b` is named twice"),
        (&step("needs: a\n    depends_on: a"), "write only one of them"),
        (&step("timeout: 5"), "is not a duration"),
        (&step("timeout: 10ms"), "at least 1s"),
        (&step("retries: 11"), "from 0 to 10"),
        (&step("retries: {on: failure}"), "needs `max`"),
        (&step("retries: {max: 1, on: [lost_container]}"), "did you mean `lost-container`?"),
        (&step("once: true\n    retries: {max: 1, on: timeout}"), "never begun a second time"),
        (&step("allow_failure: true"), "did you mean `allow-failure`?"),
        (&step("once: yes"), "`true` or `false`"),
        (&step("resources: {cpus: 0}"), "from 0.1 to 1024"),
        (&step("resources: {memory: 1MiB}"), "at least 6MiB"),
        (&step("resources: {memory: 5MB}"), "is not a size"),
        (&step("resources: {pids: 1}"), "from 10 to"),
        (&step("when: {status: [rolledback]}"), "did you mean `rolled-back`?"),
        (&step("when: {status: []}"), "would never run"),
        (&step("when: {event: push}"), "`event` is part of the language"),
        (&step("matrix: {a: [1]}"), "`matrix` is part of the language"),
    ];
    for (text, words) in table {
        let said = read(text).expect_err(text).to_string();
        assert!(said.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{said}");
    }
}

#[test]
fn deploys_and_approvals_are_understood() {
    let pipeline = good(
        "
on: { manual: { inputs: { to: { default: previous }, tag: {} } } }
steps:
  image: { image: x, needs: [] }
  staging:
    needs: image
    deploy: { environment: staging, images: { api: 'reg:5000/api@${{ steps.image.digest }}', web: 'web:${{ inputs.tag }}', db: 'postgres:17' } }
    timeout: 1h
    allow-failure: true
  ask:
    needs: staging
    approval: { environment: production, message: Look at the till, inputs: { window: { type: choice, options: [now, night], default: now } } }
  own:
    needs: staging
    approval: { from: [ana, release-managers], required: 2, expires: 48h }
  plain: { needs: staging, approval: { from: ana } }
  production:
    needs: [ask, own]
    deploy: { environment: production, promote: staging }
  back: { needs: production, deploy: { environment: production, rollback: '${{ inputs.to }}' }, when: { status: rolled-back } }
  older: { needs: back, deploy: { environment: production, rollback: 12 } }
  bare: { needs: [], deploy: { environment: docs } }
  tell: { image: y, needs: [older], environment: { WHEN: '${{ steps.ask.window }}' }, when: { status: [success, rolled-back] } }
",
    );
    let step = |name: &str| pipeline.steps.iter().find(|s| s.name.as_str() == name).unwrap();
    let deploy = |name: &str| match &step(name).kind {
        StepKind::Deploy(deploy) => deploy.clone(),
        other => panic!("{name}: {other:?}"),
    };
    let approval = |name: &str| match &step(name).kind {
        StepKind::Approval(approval) => approval.clone(),
        other => panic!("{name}: {other:?}"),
    };
    let staging = deploy("staging");
    assert_eq!(staging.environment.as_str(), "staging");
    assert_eq!(staging.images["api"], "reg:5000/api@${{ steps.image.digest }}");
    assert_eq!((staging.images.len(), staging.promote, staging.rollback), (3, None, None));
    assert!(step("staging").allow_failure && step("staging").image.is_empty());
    assert_eq!(deploy("production").promote.unwrap().as_str(), "staging");
    assert_eq!(deploy("back").rollback.as_deref(), Some("${{ inputs.to }}"));
    assert_eq!(step("back").when_status, [WhenStatus::RolledBack]);
    assert_eq!(deploy("older").rollback.as_deref(), Some("12"));
    assert!(deploy("bare").images.is_empty());
    let ask = approval("ask");
    assert_eq!((ask.environment.unwrap().as_str(), ask.from.len(), ask.expires), ("production", 0, None));
    assert_eq!((ask.message.as_deref(), ask.inputs[0].name.as_str()), (Some("Look at the till"), "window"));
    let own = approval("own");
    assert_eq!((own.from.as_slice(), own.required), (["ana".to_owned(), "release-managers".to_owned()].as_slice(), 2));
    assert_eq!(own.expires.unwrap().to_string(), "2d");
    assert_eq!((approval("plain").required, approval("plain").expires.unwrap().to_string()), (1, "1d".to_owned()));
    let named: Vec<_> =
        pipeline.environments().map(|(step, environment, deploys)| format!("{step} {environment} {deploys}")).collect();
    let wanted = [
        "staging staging true",
        "ask production false",
        "production production true",
        "production staging false",
        "back production true",
        "older production true",
        "bare docs true",
    ];
    assert_eq!(named, wanted);

    let plan = crate::plan::make(&pipeline, "f", "d", &crate::plan::Defaults::default()).unwrap();
    let timeout = |name: &str| plan.step(&name.parse().unwrap()).unwrap().timeout.to_string();
    let timeouts = ["image", "staging", "ask", "own", "plain", "production"].map(timeout);
    assert_eq!(timeouts, ["1h", "1h", "1d", "2881m", "1441m", "1d"]);
    assert!(plan.steps.iter().all(|step| !step.shares_holder || step.kind.is_container()));
    assert!(plan.steps.iter().zip(&pipeline.steps).all(|(planned, _)| {
        pipeline.steps.iter().any(|step| step.name == planned.name && step.kind == planned.kind)
    }));
}

#[test]
fn backups_and_restores_are_read_as_they_are_written() {
    let pipeline = good(
        "on: { manual: { inputs: { when: {} } } }
steps:
  save: { backup: { source: shop-db } }
  newest: { restore: { source: shop-db }, timeout: 2h }
  then: { restore: { source: shop-db, at: '${{ inputs.when }}' } }
  fixed: { restore: { source: shop-db, at: 2026-11-23T02:59:59+01:00 } }
  place: { restore: { source: shop-db, lsn: 0/16B3748 } }
  named: { restore: { source: shop-db, point: before migration } }
  whole: { restore: { source: shop-db, backup: '${{ steps.save.backup }}' } }
",
    );
    let words: Vec<_> = pipeline.steps.iter().filter_map(|step| step.kind.words()).collect();
    assert_eq!(
        words,
        [
            "back up shop-db",
            "restore shop-db --latest",
            "restore shop-db --at ${{ inputs.when }}",
            "restore shop-db --at 2026-11-23T02:59:59+01:00",
            "restore shop-db --lsn 0/16B3748",
            "restore shop-db --point before migration",
            "restore shop-db --backup ${{ steps.save.backup }}",
        ]
    );
    assert_eq!(pipeline.sources().count(), 7);
    let plan = crate::plan::make(&pipeline, "f", "d", &crate::plan::Defaults::default()).unwrap();
    let timeout = |name: &str| plan.step(&name.parse().unwrap()).unwrap().timeout.to_string();
    assert_eq!((timeout("save"), timeout("newest")), ("1d".to_owned(), "2h".to_owned()));
    // Stored with the run and read again.
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<crate::model::Plan>(&text).unwrap(), plan);
}

#[test]
fn each_mistake_with_backups_and_restores_has_its_sentence_and_its_place() {
    let step = |rest: &str| format!("steps: {{ a: {{ {rest} }} }}");
    let restore = |rest: &str| step(&format!("restore: {{ source: db, {rest} }}"));
    let table = [
        (step("backup: db"), "`backup` is a map", "db"),
        (step("backup: {}"), "`backup` needs `source`", "{} }"),
        (step("restore: { at: 2026-11-23T02:59:59Z }"), "`restore` needs `source`", "{ at"),
        (step("backup: { source: '${{ inputs.x }}' }"), "named, never computed", "'${{"),
        (step("backup: { source: a/b }"), "`a/b`", "a/b"),
        (step("backup: { source: db, at: x }"), "unknown key `at`", "at"),
        (step("backup: { source: db }, restore: { source: db }"), "a step does one thing", "restore"),
        (step("image: x, backup: { source: db }"), "`image` means nothing beside `backup`", "image"),
        (step("secrets: [A], backup: { source: db }"), "its file in `backups/` names them", "secrets"),
        (step("once: true, restore: { source: db }"), "never begins twice", "once"),
        (restore("at: tomorrow"), "`tomorrow` is no moment", "tomorrow"),
        (restore("at: 2026-11-23T02:59:59"), "with its time zone", "2026"),
        (restore("lsn: 16B3748"), "is no place in a log", "16B"),
        (restore("lsn: 0/1, point: x"), "both `lsn` and `point`", "point"),
        (restore("point: ''"), "has 1 to 200 bytes", "''"),
        (restore("point: '${{ steps.b.k }}'"), "there is no step `b`", "'${{"),
        (restore("target: /"), "unknown key `target`", "target"),
    ];
    for (text, words, place) in table {
        one_mistake(&text, words, place);
    }
}

#[test]
fn what_ships_for_deploys_says_what_it_seems_to_say() {
    let kinds = |name: &str, text: &str| -> Vec<String> {
        let pipeline = parse(name.parse().unwrap(), name, text).unwrap_or_else(|e| panic!("{e}"));
        assert!(pipeline.warnings.is_empty());
        pipeline.steps.iter().map(|step| step.kind.words().unwrap_or_else(|| step.name.to_string())).collect()
    };
    assert_eq!(
        kinds("deploy", include_str!("../../../pipelines/deploy.yml")),
        ["test", "image", "deploy → staging", "load", "approval · production", "deploy → production", "tell"]
    );
    assert_eq!(
        kinds("rollback", include_str!("../../../pipelines/rollback.yml")),
        ["roll back production", "check", "tell"]
    );
}

#[test]
fn each_mistake_with_deploys_and_approvals_has_its_sentence_and_its_place() {
    let step = |rest: &str| format!("steps: {{ a: {{ {rest} }} }}");
    let deploy = |rest: &str| step(&format!("deploy: {{ environment: live, {rest} }}"));
    let approval = |rest: &str| step(&format!("approval: {{ {rest} }}"));
    // What is wrong, its sentence, and the text that it points at.
    let table = [
        (step("deploy: live"), "`deploy` is a map", "live"),
        (step("deploy: {}"), "`deploy` needs `environment`", "{} }"),
        (step("deploy: { enviroment: live, environment: live }"), "did you mean `environment`?", "enviroment"),
        (step("deploy: { environment: a/b }"), "the environment's name `a/b`", "a/b"),
        (step("deploy: { environment: '${{ inputs.x }}' }"), "named, never computed", "'${{"),
        (step("deploy: { environment: a }, approval: { from: x }"), "a step does one thing", "approval"),
        (step("approval: { from: x }, deploy: { environment: a }"), "a step does one thing", "deploy"),
        (step("image: x, deploy: { environment: a }"), "`image` means nothing beside `deploy`", "image"),
        (step("commands: [x], deploy: { environment: a }"), "`commands` means nothing", "commands"),
        (step("args: [x], deploy: { environment: a }"), "`args` means nothing", "args"),
        (step("environment: { A: b }, deploy: { environment: a }"), "under `variables` of the environment", "environment"),
        (step("secrets: [A], deploy: { environment: a }"), "`secrets` means nothing", "secrets"),
        (step("resources: { cpus: 1 }, approval: { from: x }"), "`resources` means nothing beside `approval`", "resources"),
        (step("once: true, deploy: { environment: a }"), "never done twice", "once"),
        (step("retries: 1, approval: { from: x }"), "`mainstay retry", "retries"),
        (deploy("images: [x]"), "`images` is a map", "[x]"),
        (deploy("images: { 'a b': x }"), "is no name of a service", "'a b'"),
        (deploy("images: { api: '' }"), "an image has 1 to 512 bytes", "''"),
        (deploy("images: { api: '-v' }"), "is not an image reference", "'-v'"),
        (deploy("images: { api: 'x$Y' }"), "is not an image reference", "'x$Y'"),
        (deploy("images: { api: [x] }"), "the image of `api` is a text", "[x]"),
        (deploy("images: { api: '${{ env.X }}' }"), "is not a value that can be used here", "'${{"),
        (deploy("images: { api: '${{ steps.b.k }}' }"), "there is no step `b`", "'${{"),
        (deploy("images: { api: '${{ steps.a.k }}' }"), "does not wait for `a`", "'${{"),
        (deploy("images: { api: '${{ inputs.k }}' }"), "there is no input `k`", "'${{"),
        (deploy("promote: live"), "not promoted from itself", "live } } }"),
        (deploy("promote: staging, images: { api: x }"), "both `images` and `promote`", "promote"),
        (deploy("promote: staging, rollback: previous"), "both `promote` and `rollback`", "rollback"),
        (deploy("rollback: last"), "no release to go back to", "last"),
        (deploy("rollback: 0"), "no release to go back to", "0 }"),
        (deploy("rollback: '${{ steps.b.k }}'"), "there is no step `b`", "'${{"),
        (step("approval: {}"), "`approval` needs `environment` or `from`", "{} }"),
        (approval("from: []"), "`from` is empty", "[] }"),
        (approval("from: ['a b']"), "is no name of a person or group", "'a b'"),
        (approval("from: [ana, ana]"), "named twice", "ana] }"),
        (approval("environment: live, from: ana"), "`from` cannot stand beside `environment`", "from"),
        (approval("environment: live, required: 2"), "`required` cannot stand beside", "required"),
        (approval("environment: live, expires: 2h"), "`expires` cannot stand beside", "expires"),
        (approval("from: ana, required: 0"), "from 1 to 100", "0 }"),
        (approval("from: ana, expires: 1ms"), "at least 1s", "1ms"),
        (approval("from: ana, by: [mail]"), "unknown key `by`", "by"),
        (approval("from: ana, message: 'x ${{ inputs.y }}'"), "is not read in `message`", "'x $"),
        (approval(&format!("from: ana, message: {}", "x".repeat(501))), "at most 500 characters", "xxx"),
        (approval("from: ana, inputs: { l: { type: choice } }"), "needs `options`", "l: { type"),
        (step("approval: { from: ana }, allow-failure: true"), "cannot be allowed to fail", "allow-failure"),
        (step("approval: { from: ana }, when: { status: failure }"), "its `status` needs `success`", "{ status"),
        (step("approval: { from: ana }, when: { status: [rolled-back, cancelled] }"), "needs `success`", "{ status"),
        (
            "steps: { q: { approval: { from: ana, inputs: { w: {} } } }, b: { image: x, environment: { A: '${{ steps.q.v }}' } } }".to_owned(),
            "there is no input of the approval `q` `v`",
            "'${{",
        ),
        (
            "steps: { i: { image: x, needs: [] }, q: { approval: { environment: live } }, d: { needs: [i, q], deploy: { environment: live, images: { api: '${{ steps.i.k }}' } } } }".to_owned(),
            "`q` would not know what it approves: `d` deploys what `i` makes",
            "approval",
        ),
        (
            "steps: { q: { approval: { environment: live, inputs: { tag: {} } } }, d: { deploy: { environment: live, images: { api: 'x:${{ steps.q.tag }}' } } } }".to_owned(),
            "`q` would not know what it approves",
            "approval",
        ),
    ];
    for (text, words, place) in table {
        one_mistake(&text, words, place);
    }
}

/// The text has one mistake, told in these words among others, at the first place where `place` stands.
fn one_mistake(text: &str, words: &str, place: &str) {
    let findings = read(text).expect_err(text);
    let [finding] = findings.list.as_slice() else { panic!("{text}\n{findings}") };
    let said = finding.hints.iter().fold(finding.message.clone(), |all, hint| all + "\n" + hint);
    assert!(said.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{findings}");
    let column = text.find(place).unwrap_or_else(|| panic!("`{place}` is not in {text}")) + 1;
    assert_eq!((finding.line, finding.column), (1, column), "{findings}");
}

#[test]
fn an_approval_need_not_know_what_goes_elsewhere_or_before_it() {
    for fine in [
        // Another environment's images.
        "steps: { i: { image: x, needs: [] }, q: { approval: { environment: live } }, d: { needs: [i, q], deploy: { environment: staging, images: { api: '${{ steps.i.k }}' } } } }",
        // A deploy that does not wait for the approval.
        "steps: { i: { image: x, needs: [] }, q: { approval: { environment: live } }, d: { needs: [i], deploy: { environment: live, images: { api: '${{ steps.i.k }}' } } } }",
        // A gate of the pipeline's own.
        "steps: { i: { image: x, needs: [] }, q: { approval: { from: ana } }, d: { needs: [i, q], deploy: { environment: live, images: { api: '${{ steps.i.k }}' } } } }",
        // Made far before.
        "steps: { i: { image: x }, j: { image: y }, q: { approval: { environment: live } }, d: { deploy: { environment: live, images: { api: '${{ steps.i.k }}' } } } }",
        "steps: { q: { approval: { from: ana }, allow-failure: false, when: { status: always } } }",
    ] {
        good(fine);
    }
}

/// Every one must be refused quickly, in few words, with nothing in them that drives a terminal.
#[test]
fn hostile_files_are_refused_quickly_and_shortly() {
    let bomb = {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            let uses = vec![format!("*a{}", n - 1); 10].join(",");
            text += &format!("a{n}: &a{n} [{uses}]\n");
        }
        text + "steps: {a: {image: x}}\n"
    };
    let many_unknown: String = (0..3_000).map(|n| format!("key{n}: 1\n")).collect();
    let quadratic = format!("steps:\n{}", "  a: {image: &x y, needs: *x}\n".repeat(900));
    let deep_map: String = (0..3_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    let table = [
        ("10 MiB", "steps: 1\n".repeat(10 * 1024 * 1024 / 9)),
        ("alias bomb", bomb),
        ("deep lists", "[".repeat(20_000)),
        ("closed deep lists", format!("{}{}", "[".repeat(20_000), "]".repeat(20_000))),
        ("deep maps", deep_map.chars().take(900_000).collect()),
        ("deep flow maps", "{a: ".repeat(20_000)),
        ("binary", "\u{7f}ELF\0\u{1}\u{2}".to_owned()),
        ("escape sequences", "steps: {\"\\e[31m\": {image: x}}".to_owned()),
        ("raw escape", "\u{1b}]0;owned\u{7}: x".to_owned()),
        ("empty", String::new()),
        ("byte order mark alone", "\u{feff}".to_owned()),
        ("only a comment", "# nothing".to_owned()),
        ("tabs", "steps:\n\ta:\n\t\timage: x\n".to_owned()),
        ("huge key", format!("{}: 1", "k".repeat(900_000))),
        ("huge value", format!("steps: {}", "v".repeat(900_000))),
        ("huge image", format!("steps: {{a: {{image: {}}}}}", "v".repeat(900_000))),
        ("huge expression", format!("steps: {{a: {{image: '{}'}}}}", "${{ x }}".repeat(60))),
        (
            "many open expressions",
            format!("steps: {{a: {{image: x, environment: {{A: '{}'}}}}}}", "${{".repeat(200_000)),
        ),
        ("many unknown keys", many_unknown),
        ("a megabyte of unknown keys", (0..9_900).map(|n| format!("{}{n}: 1\n", "k".repeat(90))).collect()),
        ("unknown names without end", {
            let needs: String = (0..15).map(|n| format!("{}{n},", "x".repeat(38))).collect();
            let step = |n: usize| format!("  {}{n}: {{image: x, needs: [{needs}]}}\n", "y".repeat(35));
            format!("steps:\n{}", (0..950).map(step).collect::<String>())
        }),
        ("references without end", {
            let value = "${{ steps.a.k }}${{ inputs.b }}".repeat(20_000);
            format!("steps: {{a: {{image: x, environment: {{A: '{value}'}}}}}}")
        }),
        ("approvals and deploys without end", {
            let approval = |n: usize| format!("  q{n}: {{needs: [], approval: {{environment: live}}}}\n");
            let all: String = (0..490).map(|n| format!("q{n},")).collect();
            let deploy = |n: usize| {
                format!(
                    "  d{n}: {{needs: [m, {all}], deploy: {{environment: live, images: {{a: '${{{{ steps.m.k }}}}'}}}}}}\n"
                )
            };
            let deploys: String = (0..30).map(deploy).collect();
            format!("steps:\n  m: {{image: x, needs: []}}\n{}{deploys}", (0..490).map(approval).collect::<String>())
        }),
        ("duplicate keys with anchors", quadratic),
        ("two documents", "steps: {}\n---\nsteps: {}\n".to_owned()),
        ("bad quote", "steps: 'x".to_owned()),
        ("odd tag", "steps: !!python/object:os.system {a: 1}".to_owned()),
        ("self reference", "steps: &a [*a]".to_owned()),
        ("direction marks", "steps: {a: {image: \"x\u{202e}y\"}}".to_owned()),
        ("not a number", "steps: {a: {image: x, resources: {cpus: .nan, pids: 1e400}}}".to_owned()),
    ];
    for (what, text) in table {
        let began = std::time::Instant::now();
        let said = read(&text).map(|p| p.steps.len()).expect_err(what).render(true);
        let took = began.elapsed();
        // Far above what it takes, far below what a hang takes: the machine may be busy.
        assert!(took.as_millis() < 5_000, "{what} took {took:?}");
        assert!(said.len() < 60_000, "{what}: {} bytes", said.len());
        assert!(said.lines().all(|line| line.chars().count() < 800), "{what}: {said}");
        let plain = read(&text).unwrap_err().render(false);
        let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!plain.contains(bad), "{what}: {plain:?}");
        assert!(plain.contains("error"), "{what}: {plain}");
    }
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_taken() {
    assert_eq!(good("\u{feff}steps:\r\n  a:\r\n    image: x\r\n").steps.len(), 1);
    let findings = read("\u{feff}steps:\r\n  a: {imagee: x}\r\n").unwrap_err();
    let places: Vec<_> = findings.list.iter().map(|f| (f.line, f.column)).collect();
    // The step that has no image, and the unknown key.
    assert_eq!(places, [(2, 3), (2, 7)]);
}

#[test]
fn a_thousand_steps_are_read_and_one_more_is_not() {
    let text = |n: usize| -> String {
        let step = |n: usize| {
            format!(
                "  s{n}:\n    image: x\n    commands: [a, b]\n    environment: {{A: b}}\n    needs: [{}]\n",
                if n == 0 { String::new() } else { format!("s{}", n - 1) }
            )
        };
        format!("steps:\n{}", (0..n).map(step).collect::<String>())
    };
    assert_eq!(good(&text(1_000)).steps.len(), 1_000);
    assert!(read(&text(1_001)).unwrap_err().to_string().contains("at most 1000"));
}

mod any {
    use super::*;
    use proptest::prelude::*;

    const SEEDS: [&str; 2] =
        [include_str!("../../../pipelines/fan-out.yml"), include_str!("../../../pipelines/deploy.yml")];
    const LONGEST: usize = if SEEDS[0].len() > SEEDS[1].len() { SEEDS[0].len() } else { SEEDS[1].len() };

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

        #[test]
        fn bytes_never_make_it_panic_or_wait(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let text = String::from_utf8_lossy(&bytes);
            let began = std::time::Instant::now();
            if let Err(findings) = read(&text) {
                prop_assert!(!findings.list.is_empty());
                findings.render(true);
            }
            prop_assert!(began.elapsed().as_secs() < 2);
        }

        #[test]
        fn a_good_file_with_a_few_bytes_changed(
            seed in 0..SEEDS.len(),
            edits in proptest::collection::vec((0..LONGEST, prop_oneof![
                Just(""), Just("\n"), Just("  "), Just(":"), Just("- "), Just("["), Just("}"), Just("'"), Just("\""),
                Just("&a "), Just("*a"), Just("!"), Just("|"), Just("${{"), Just("\u{e9}"), Just("\t"), Just("#"),
            ]), 1..6),
        ) {
            let mut text = SEEDS[seed].to_owned();
            for (at, what) in edits {
                let at = text.floor_char_boundary(at.min(text.len()));
                let end = text.floor_char_boundary((at + 2).min(text.len()));
                text.replace_range(at..end, what);
            }
            let began = std::time::Instant::now();
            match read(&text) {
                Ok(pipeline) => {
                    let plan = crate::plan::make(&pipeline, "f", "d", &crate::plan::Defaults::default());
                    prop_assert_eq!(plan.unwrap().steps.len(), pipeline.steps.len());
                }
                Err(findings) => {
                    prop_assert!(findings.has_errors());
                    findings.render(false);
                }
            }
            prop_assert!(began.elapsed().as_secs() < 2);
        }
    }
}
