use super::*;

fn input(file: &str) -> RenderInput {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    RenderInput {
        environment: "production".parse().unwrap(),
        file: Some(file.to_owned()),
        commit: "a".repeat(40).parse().unwrap(),
        images: pairs(&[("app", "r/app@sha256:1")]),
        variables: pairs(&[("LEVEL", "5"), ("PRICE", "3$"), ("EMPTY", ""), ("TOKEN", "hunter2")]),
        secret_names: vec!["TOKEN".to_owned()],
    }
}

fn rendered(file: &str) -> Value {
    let once = render(&input(file), "shop", false).unwrap();
    assert_eq!(once, render(&input(file), "shop", false).unwrap());
    assert!(!once.text.contains("hunter2"), "{}", once.text);
    serde_json::from_str(&once.text).unwrap()
}

fn error(file: &str, side_by_side: bool) -> String {
    render(&input(file), "shop", side_by_side).unwrap_err()
}

#[test]
fn images_and_variables_are_put_in_and_secrets_stay_names() {
    let file = r#"
version: "3.1"
services:
  app:
    build: .
    environment:
      LEVEL: "${LEVEL}"
      PRICE: $PRICE
      TOKEN: "Bearer ${TOKEN}"
      DEFAULT: "${NOBODY:-five} ${EMPTY:-six} ${EMPTY-seven} ${LEVEL:-eight}"
      LITERAL: "$$HOME ${LEVEL}x"
    deploy: { replicas: 2 }
  db:
    image: postgres:17
    volumes: ["data:/var/lib/postgresql/data", "./conf:/conf"]
volumes:
  data:
  named: { name: own }
  far: { external: true }
"#;
    assert_eq!(render(&input(file), "shop", false).unwrap().replicas, [("app".into(), 2), ("db".into(), 1)].into());
    assert_eq!(
        rendered(file),
        json!({
            "services": {
                "app": {
                    "image": "r/app@sha256:1",
                    "environment": {
                        "LEVEL": "5",
                        "PRICE": "3$$",
                        "TOKEN": "Bearer ${TOKEN}",
                        "DEFAULT": "five six  5",
                        "LITERAL": "$$HOME 5x",
                    },
                    "deploy": { "replicas": 2 },
                },
                "db": { "image": "postgres:17", "volumes": ["data:/var/lib/postgresql/data", "./conf:/conf"] },
            },
            "volumes": { "data": { "name": "shop_data" }, "named": { "name": "own" }, "far": { "external": true } },
            "x-mainstay": { "commit": "a".repeat(40) },
        })
    );
}

#[test]
fn what_cannot_be_deployed_is_refused_with_a_reason() {
    let table = [
        ("", "no mapping", false),
        ("services: {}", "has no `services`", false),
        ("services: {other: {image: x}}", "has an image for `app`", false),
        ("services: {app: {}, b: {build: .}}", "`b` has no image", false),
        ("services: {app: {container_name: x}}", "`container_name`", false),
        (
            "services: {app: {environment: [\"A=${NOPE}\"]}}",
            "services.app.environment[0]: `${NOPE}` is no variable",
            false,
        ),
        ("services: {app: {command: \"echo ${\"}}", "without its `}`", false),
        ("services: {app: {command: \"100$ more\"}}", "begins no name", false),
        ("services: {app: {ports: [\"8080:80\"]}}", "host's port", true),
        ("services: {app: {ports: [{target: 80, published: 8080}]}}", "host's port", true),
        ("services: {app: {scale: many}}", "no number", false),
        ("services: [", "", false),
    ];
    for (file, wanted, side_by_side) in table {
        let why = error(file, side_by_side);
        assert!(why.contains(wanted), "{file}: {why}");
    }
    assert!(render(&input("services: {app: {ports: [\"8080:80\"]}}"), "shop", false).is_ok());
    assert!(render(&input("services: {app: {ports: [80, \"81/udp\", {target: 82}]}}"), "shop", true).is_ok());
}

#[test]
fn labels_reach_lists_and_mappings() {
    let mut document = json!({"services": {"a": {"labels": ["x=1"]}, "b": {"labels": {"x": "1"}}, "c": {}}});
    label(&mut document, &[("k", "v".to_owned()), ("n", "2".to_owned())]);
    let wanted = json!({"services": {
        "a": {"labels": ["x=1", "k=v", "n=2"]},
        "b": {"labels": {"x": "1", "k": "v", "n": "2"}},
        "c": {"labels": {"k": "v", "n": "2"}},
    }});
    assert_eq!(document, wanted);
}

#[test]
fn labels_reach_every_network_that_the_project_makes() {
    let labels = [("k", "v".to_owned())];
    let table = [
        (json!({}), json!({"default": {"labels": {"k": "v"}}})),
        (json!({"networks": null}), json!({"default": {"labels": {"k": "v"}}})),
        (
            json!({"networks": {"front": null, "far": {"external": true}, "default": {"labels": ["x=1"]}}}),
            json!({
                "front": {"labels": {"k": "v"}},
                "far": {"external": true},
                "default": {"labels": ["x=1", "k=v"]},
            }),
        ),
    ];
    for (mut document, wanted) in table {
        label_networks(&mut document, &labels);
        assert_eq!(document["networks"], wanted);
    }
}
