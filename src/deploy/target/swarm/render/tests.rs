use super::*;

fn input(file: &str, images: &[(&str, &str)]) -> RenderInput {
    RenderInput {
        environment: "production".parse().unwrap(),
        file: Some(file.to_owned()),
        commit: "1".repeat(40).parse().unwrap(),
        images: images.iter().map(|(name, image)| ((*name).to_owned(), (*image).to_owned())).collect(),
        variables: [("LEVEL", "info"), ("COUNT", "3"), ("PRICE", "5$")]
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .into(),
        secret_names: vec!["PASSWORD".to_owned()],
    }
}

fn good(file: &str, images: &[(&str, &str)]) -> Value {
    let rendered = render("stack.yml", &input(file, images), false).unwrap_or_else(|e| panic!("{}", e.render(false)));
    serde_json::from_str(&rendered.text).unwrap()
}

fn wrong(file: &str, images: &[(&str, &str)], downtime: bool) -> Vec<(usize, String)> {
    match render("stack.yml", &input(file, images), downtime) {
        Ok(rendered) => panic!("taken: {}", rendered.text),
        Err(findings) => findings.list.into_iter().map(|one| (one.line, one.message)).collect(),
    }
}

#[test]
fn images_variables_and_the_manner_of_updates_are_put_in() {
    let file = "
services:
  api:
    build: .
    environment: { LEVEL: '${LEVEL}', PASSWORD: '${PASSWORD}', PRICE: '${PRICE} or $$6', OLD: '${OLD:-none}' }
    healthcheck: { test: [CMD, true], interval: 30s, retries: 3, start_period: 20s }
    deploy: { replicas: '${COUNT}', update_config: { parallelism: 2, monitor: 500ms, delay: 2s } }
  web: { image: 'web:1', x-note: nothing }
x-note: { of: [no, interest] }
";
    let found = good(file, &[("api", "api@sha256:1")]);
    let api = &found["services"]["api"];
    assert_eq!(api["image"], "api@sha256:1");
    assert!(api["build"].is_null());
    assert_eq!(
        api["environment"],
        json!({ "LEVEL": "info", "PASSWORD": "${PASSWORD}", "PRICE": "5$$ or $$6", "OLD": "none" })
    );
    assert_eq!(api["deploy"]["replicas"], 3);
    assert_eq!(
        api["deploy"]["update_config"],
        json!({ "parallelism": 2, "monitor": "500ms", "delay": "2s", "order": "start-first", "failure_action": "rollback" })
    );
    assert_eq!(
        api["deploy"]["rollback_config"],
        json!({ "parallelism": 0, "order": "start-first", "failure_action": "pause", "monitor": "1s" })
    );
    // As patient as before: 90 s of failures.
    assert_eq!(
        api["healthcheck"],
        json!({ "test": ["CMD", true], "interval": "1s", "retries": 90, "start_period": "20s" })
    );
    assert_eq!(found["services"]["web"]["deploy"]["update_config"]["parallelism"], 1);
    assert_eq!(found["version"], "3.9");
    assert!(found["x-note"].is_null() && found["services"]["web"]["x-note"].is_null());
}

#[test]
fn the_same_content_is_the_same_text() {
    let one = "services: { a: { image: x, user: me }, b: { image: y } }";
    let two = "# other words\nservices:\n  b:\n    image: y\n  a: { user: me, image: 'x' }\n";
    let text = |file: &str| render("stack.yml", &input(file, &[]), false).unwrap();
    assert_eq!(text(one), text(two));
    assert_eq!(text(one).replicas, BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
    assert!(!text(one).text.contains("mainstay."), "the text is of the content only");
}

#[test]
fn whatever_is_wrong_is_said_with_its_place() {
    let cases: &[(&str, &[(usize, &str)])] = &[
        ("services:\n  a: { imag: x, image: x }", &[(2, "`imag` is not known in a service of a stack file")]),
        ("services:\n  a: { image: x }\nvolume: {}", &[(3, "`volume` is not known at the top of a stack file")]),
        ("services:\n  a: { image: '${NAME}:1' }", &[(2, "the variable `NAME` is not set")]),
        ("services:\n  a: { image: x, user: $USER }", &[(2, "a `$` stands alone")]),
        ("services:\n  a: { user: x }", &[(2, "service `a` has no image")]),
        (
            "services:\n  a:\n    image: x\n    env_file: .env",
            &[(4, "`env_file` names another file, and a release is this file alone")],
        ),
        (
            "services: { a: { image: x } }\nconfigs:\n  c: { file: ./c }",
            &[(3, "`file` names another file, and a release is this file alone")],
        ),
        (
            "services:\n  a:\n    image: x\n    deploy: { labels: [mainstay.instance=x] }",
            &[(4, "labels that begin with `mainstay.` are Mainstay's own")],
        ),
        (
            "services:\n  a:\n    image: x\n    labels: { mainstay.instance: x }",
            &[(4, "labels that begin with `mainstay.` are Mainstay's own")],
        ),
        ("version: '2.4'\nservices: { a: { image: x } }", &[(1, "a stack file has version 3")]),
        (
            "services:\n  a: { image: x, deploy: { mode: replicated-job } }",
            &[(2, "service `a` is a job (`mode: replicated-job`)")],
        ),
        ("services:\n  a: { image: x, deploy: once }", &[(2, "`deploy` is a map")]),
        ("services: [a]", &[(1, "`services` is a map of services by name")]),
        ("services:\n", &[(1, "`services` is a map of services by name")]),
        ("volumes: {}", &[(1, "there are no `services`")]),
    ];
    for (file, expected) in cases {
        let found = wrong(file, &[], false);
        let found: Vec<_> = found.iter().map(|(line, message)| (*line, message.as_str())).collect();
        assert_eq!(&found[..], *expected, "{file}");
    }
    let found = wrong("services: { a: { image: x } }", &[("b", "y")], false);
    assert_eq!(found, [(0, "the release has an image for `b`, and the file has no such service".to_owned())]);
}

#[test]
fn what_cannot_run_beside_itself_needs_downtime_to_be_allowed() {
    let cases = [
        ("ports: [{ target: 80, published: 80, mode: host }]", "publishes port 80 of its node"),
        ("deploy: { update_config: { order: stop-first } }", "wants the old version stopped"),
    ];
    for (part, said) in cases {
        let file = format!("services:\n  a:\n    image: x\n    {part}\n");
        let found = wrong(&file, &[], false);
        assert!(found.len() == 1 && found[0].0 == 2 && found[0].1.contains(said), "{found:?}");
        let rendered = render("stack.yml", &input(&file, &[]), true).unwrap();
        let found: Value = serde_json::from_str(&rendered.text).unwrap();
        for config in ["update_config", "rollback_config"] {
            assert_eq!(found["services"]["a"]["deploy"][config]["order"], "stop-first");
        }
    }
    // The engine opens these ports for all tasks of a service.
    good("services: { a: { image: x, ports: ['80:80', { target: 81, published: 81 }] } }", &[]);
}

#[test]
fn what_writes_to_a_volume_says_whether_two_of_it_may_run_at_once() {
    for volumes in ["['data:/var/lib/x']", "[{ type: volume, source: data, target: /x }]"] {
        let file = |more: &str| {
            format!("services:\n  db:\n    image: x\n    volumes: {volumes}\n{more}volumes: {{ data: {{}} }}\n")
        };
        for downtime in [false, true] {
            let found = wrong(&file(""), &[], downtime);
            assert!(found[0].1.contains("`db` writes to `data`"), "{found:?}");
        }
        let said = file("    deploy: { update_config: { order: start-first } }\n");
        assert_eq!(good(&said, &[])["services"]["db"]["deploy"]["update_config"]["order"], "start-first");
    }
    for volumes in [
        "['data:/x:ro', /tmp/x]",
        "[{ type: tmpfs, target: /x }, { type: bind, source: /etc, target: /y, read_only: true }]",
    ] {
        good(&format!("services: {{ a: {{ image: x, volumes: {volumes} }} }}"), &[]);
    }
}

#[test]
fn spans_and_numbers_are_read_as_the_engines_client_reads_them() {
    for (text, expected) in [("1s", 1e9), ("1m30s", 90e9), ("500ms", 5e8), ("1.5h", 5400e9), ("10us", 1e4), ("0s", 0.0)]
    {
        assert_eq!(nanos(text), Some(expected as u64), "{text}");
    }
    for text in ["", "1", "s", "1 s", "1sec", "-1s"] {
        assert_eq!(nanos(text), None, "{text}");
    }
    for (text, expected) in
        [("0440", json!(288)), ("0x10", json!(16)), ("0.5", json!(0.5)), ("-3", json!(-3)), ("0", json!(0))]
    {
        assert_eq!(number(text), Some(expected), "{text}");
    }
}
