use super::*;

fn command(image: Option<&str>) -> Command {
    Command::new(CommandParts {
        environment: "production".parse().unwrap(),
        instance: InstanceId("0badcafe".to_owned()),
        config: CommandTarget {
            image: image.map(str::to_owned),
            repo: "shop".parse().unwrap(),
            up: vec!["./up".to_owned()],
            status: vec!["./status".to_owned()],
            down: vec!["./down".to_owned()],
        },
        mirror: PathBuf::from("/nowhere/shop.git"),
        dir: PathBuf::from("/nowhere/production"),
        shim: PathBuf::from("/nowhere/mainstay"),
        docker: None,
        secrets: BTreeMap::new(),
    })
}

fn input() -> RenderInput {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    RenderInput {
        environment: "production".parse().unwrap(),
        file: None,
        commit: "a".repeat(40).parse().unwrap(),
        images: pairs(&[("web-app", "r/web@sha256:1"), ("api", "r/api@sha256:2")]),
        variables: pairs(&[("LEVEL", "5"), ("TOKEN", "hunter2")]),
        secret_names: vec!["TOKEN".to_owned()],
    }
}

#[test]
fn the_rendered_form_is_the_same_every_time_and_holds_no_secret() {
    let target = command(Some("debian:12"));
    let rendered = target.render(&input()).unwrap();
    assert_eq!(rendered, target.render(&input()).unwrap());
    assert!(!rendered.text.contains("hunter2"), "{}", rendered.text);
    let document = Document::read(&rendered.text).unwrap();
    assert_eq!((document.secrets.as_slice(), document.variables["LEVEL"].as_str()), (&["TOKEN".to_owned()][..], "5"));
    assert_eq!(document.up, ["./up"]);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&rendered.text).unwrap(),
        serde_json::json!({
            "commit": "a".repeat(40),
            "image": "debian:12",
            "images": { "api": "r/api@sha256:2", "web-app": "r/web@sha256:1" },
            "variables": { "LEVEL": "5" },
            "secrets": ["TOKEN"],
            "up": ["./up"],
            "status": ["./status"],
            "down": ["./down"],
        })
    );
}

#[test]
fn a_command_knows_environment_release_commit_images_variables_and_secrets() {
    let document = Document::read(&command(None).render(&input()).unwrap().text).unwrap();
    let name = "production".parse().unwrap();
    let missing = document.environment(&name, 7, "/state", &BTreeMap::new()).unwrap_err().to_string();
    assert!(missing.contains("`TOKEN`") && missing.contains("hint: `mainstay secrets set TOKEN`"), "{missing}");
    let secrets = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned()), ("OTHER".to_owned(), "x".to_owned())]);
    let all: BTreeMap<_, _> = document.environment(&name, 7, "/state", &secrets).unwrap().into_iter().collect();
    let commit = "a".repeat(40);
    let wanted = [
        ("LEVEL", "5"),
        ("MAINSTAY_COMMIT", commit.as_str()),
        ("MAINSTAY_ENVIRONMENT", "production"),
        ("MAINSTAY_IMAGE_API", "r/api@sha256:2"),
        ("MAINSTAY_IMAGE_WEB_APP", "r/web@sha256:1"),
        ("MAINSTAY_RELEASE", "7"),
        ("MAINSTAY_STATE", "/state"),
        ("TOKEN", "hunter2"),
    ];
    assert_eq!(all, wanted.map(|(n, v)| (n.to_owned(), v.to_owned())).into());
}

#[test]
fn two_services_never_share_a_variable() {
    let mut input = input();
    input.images.insert("web_app".to_owned(), "r/other@sha256:3".to_owned());
    let error = command(None).render(&input).unwrap_err().to_string();
    assert!(error.contains("`web-app` and `web_app`"), "{error}");
}

#[test]
fn what_status_prints_becomes_items() {
    let secrets = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned())]);
    let printed = "looking\nurl=http://x/?a=b\n web.replicas=2 \nbad name=1\n=2\nauth=Bearer hunter2\nempty=\n";
    let items = items(printed, &secrets);
    let names: Vec<_> = items.keys().map(String::as_str).collect();
    assert_eq!(names, ["auth", "empty", "url", "web.replicas"]);
    assert_eq!((items["url"].as_str(), items["web.replicas"].as_str()), ("http://x/?a=b", "2"));
    assert!(items["auth"].starts_with("sha256:") && !items["auth"].contains("hunter2"), "{}", items["auth"]);
}

#[test]
fn the_reason_holds_the_last_lines_and_no_secret() {
    let secrets = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned())]);
    let tail = masked(vec!["login with hunter2".to_owned(), "denied".to_owned()], &secrets);
    let ended = Ended { name: "x".to_owned(), code: 3, timed_out: false, tail };
    let said = why("up", &ended, Duration::from_secs(600));
    assert_eq!(said, "`up` ended with exit code 3; it printed last:\n  login with ***\n  denied");
    let ended = Ended { timed_out: true, tail: Vec::new(), ..ended };
    assert_eq!(
        why("up", &ended, Duration::from_secs(600)),
        "`up` took longer than 10m and was stopped, and printed nothing"
    );
}
