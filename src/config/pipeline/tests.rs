use super::*;

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
    deploy: { environment: staging }
    when: { status: [sucess], branch: main }
",
    )
    .unwrap_err();
    insta::assert_snapshot!(findings.to_string(), @"");
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
        (&step("when: {status: [rolled-back]}"), "`rolled-back` is part of the language"),
        (&step("when: {status: []}"), "would never run"),
        (&step("when: {event: push}"), "`event` is part of the language"),
        (&step("matrix: {a: [1]}"), "`matrix` is part of the language"),
    ];
    for (text, words) in table {
        let said = read(text).expect_err(text).to_string();
        assert!(said.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{said}");
    }
}
