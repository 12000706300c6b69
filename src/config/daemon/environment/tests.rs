use super::*;
use crate::config::Findings;
use crate::config::daemon::{Daemon, parse};
use crate::config::secret::SecretStore;
use crate::model::approval::Channel;
use std::path::Path;
use std::time::Duration;

/// Whom environments may name.
const AROUND: &str = "
repos:
  shop: /x
  infra: { url: 'https://h/x', webhook: { kind: gitea, secret: s }, auth: { username: ci, password: t0ken } }
people:
  users: { ana: { mail: ana@example.com }, ben: { mail: ben@example.com }, cem: {} }
  groups: { managers: [ana, ben], nobody: [] }
";
const NOTIFY: &str = "
notify:
  smtp: { url: 'smtps://h', from: ci@example.com }
  webhooks: { desk: { url: 'https://h/x', inbound: { secret: 0123456789abcdef, people: [ana] } } }
";

const EVERYTHING: &str = r#"
  staging:
    from: [{ repo: infra, branches: [main, "release/*"], pipelines: [release, hotfix] }]
    target: { compose: { file: ./deploy/compose.yml, repo: infra, project: shop-staging, host: "tcp://10.0.0.5:2375", switch: "./switch.sh" } }
    watch: 0s
  Tools:
    from: [{ repo: shop, branches: { exclude: ["wip/*"] } }]
    target: { command: { image: "debian:12", repo: shop, up: [./up.sh, "echo done"], status: ./status.sh, down: ./down.sh } }
    downtime: allowed
  production:
    from: [{ repo: infra, branches: ["**"], pipelines: release }]
    target: { swarm: { stack: deploy/stack.yml, repo: infra, name: shop, host: "unix:///run/docker.sock" } }
    health:
      - { http: "http://127.0.0.1:${PORT}/healthz", status: [200, 204], body: ok, latency: 500ms, every: 2s, failures: 5, within: 90s, timeout: 1s }
      - { http: "https://probe:pa55word@h/x" }
      - { tcp: "db.example.com:5432" }
      - { command: "./check.sh" }
      - { restarts: 2 }
      - { prometheus: { url: "http://127.0.0.1:9090", query: "rate(errors[1m])", expect: "< 0.01" } }
    watch: 10m
    timeout: 5m
    rollback: { auto: false, git: tag }
    approval: { from: [managers, cem], required: 2, expires: 12h, by: [mail, cli], allow-self: true, allow-unknown-pusher: true, newer: wait }
    freeze:
      - { from: "Fri 16:00 Europe/Paris", to: "Mon 08:00 Europe/Paris" }
      - { from: "2026-12-23 18:00 Europe/Paris", to: "2027-01-04 08:00 Europe/Paris" }
    lease: 5s
    reconcile: 30s
    self-heal: true
    downtime: never
    promote-from: staging
    hooks: { before: ./before.sh, after: [./a.sh, ./b.sh], rollback: ./undo.sh }
    schema: { version: "psql -Atc 'select max(v) from schema'", reversible: ./reversible.sh }
    variables: { LEVEL: info, REPLICAS: 3, LITERAL: "$${X}", URL: "postgres://app:${secret:DB}@db/shop", PORT: "${PORT}" }
"#;

fn read_in(folder: &Path, environments: &str, more: &str) -> Result<Daemon, Findings> {
    let env = |name: &str| match name {
        "HUSH" => Some("hush-hush".to_owned()),
        "PORT" => Some("8080".to_owned()),
        _ => None,
    };
    parse("mainstay.yml", &format!("environments: {environments}{AROUND}{more}"), &env, folder)
}

fn read(environments: &str) -> Result<Daemon, Findings> {
    read_in(Path::new("/srv/ci"), environments, NOTIFY)
}

fn span(text: &str) -> Span {
    text.parse().unwrap()
}

#[test]
fn with_little_said_the_rest_is_as_documented() {
    let text =
        "{ live: { from: [{ repo: shop, branches: main }], target: { swarm: { stack: stack.yml, repo: shop } } } }";
    let daemon = read_in(Path::new("/srv/ci"), text, "").unwrap();
    let live = &daemon.environments["live"];
    assert_eq!(live.target.kind(), "swarm");
    let TargetConfig::Swarm(swarm) = &live.target else { panic!() };
    assert_eq!((swarm.name.as_str(), swarm.host.as_deref()), ("live", None));
    assert_eq!((live.watch.0, live.timeout, live.lease), (Duration::ZERO, span("10m"), span("30s")));
    assert_eq!((live.reconcile, live.self_heal, live.downtime_allowed), (span("60s"), false, false));
    assert_eq!(live.rollback, Rollback { auto: true, git: RollbackGit::None });
    assert!(live.approval.is_none() && live.freeze.is_empty() && live.health.is_empty());
    assert!(live.promote_from.is_none() && live.schema.is_none() && live.hooks == Hooks::default());
    let ruled = text.replace("} } } }", "} }, health: [{ tcp: '127.0.0.1:80' }] } }");
    assert_eq!(read_in(Path::new("/srv/ci"), &ruled, "").unwrap().environments["live"].watch, span("5m"));
    let allows = |repo: &str, git_ref: &str, pipeline: &str| {
        live.from[0].allows(&repo.parse().unwrap(), git_ref, &pipeline.parse().unwrap())
    };
    assert!(allows("shop", "refs/heads/main", "any"));
    assert!(!allows("shop", "refs/tags/main", "any") && !allows("infra", "refs/heads/main", "any"));
    assert!(!allows("shop", "refs/heads/mainly", "any"));
}

#[test]
fn everything_is_understood_and_secrets_are_told_from_plain_texts() {
    let folder = tempfile::tempdir().unwrap();
    let store = SecretStore::new(&folder.path().join("mainstay-data"));
    store.set("DB", &Secret::new("db-secret")).unwrap();
    let daemon = read_in(folder.path(), EVERYTHING, NOTIFY).unwrap_or_else(|findings| panic!("{findings}"));
    let staging = &daemon.environments["staging"];
    let TargetConfig::Compose(compose) = &staging.target else { panic!() };
    assert_eq!((compose.file.as_str(), compose.project.as_str()), ("deploy/compose.yml", "shop-staging"));
    assert_eq!(compose.switch.as_deref(), Some("./switch.sh"));
    assert_eq!((staging.watch.0, staging.from[0].pipelines.len()), (Duration::ZERO, 2));
    let tools = &daemon.environments["Tools"];
    let TargetConfig::Command(command) = &tools.target else { panic!() };
    assert_eq!(command.up, ["./up.sh", "echo done"]);
    assert_eq!((command.status.len(), command.down.len(), tools.downtime_allowed), (1, 1, true));
    assert!(tools.from[0].branches.matches("main") && !tools.from[0].branches.matches("wip/x"));

    let live = &daemon.environments["production"];
    let TargetConfig::Swarm(swarm) = &live.target else { panic!() };
    assert_eq!((swarm.name.as_str(), swarm.host.as_deref()), ("shop", Some("unix:///run/docker.sock")));
    assert_eq!(
        (live.watch, live.timeout, live.lease, live.reconcile),
        (span("10m"), span("5m"), span("5s"), span("30s"))
    );
    assert!(live.self_heal && !live.downtime_allowed);
    assert_eq!(live.rollback, Rollback { auto: false, git: RollbackGit::Tag });
    assert_eq!(live.promote_from.as_ref().unwrap().as_str(), "staging");
    let approval = live.approval.as_ref().unwrap();
    assert_eq!(approval.newer, crate::model::approval::Newer::Wait);
    assert_eq!(
        (approval.from.as_slice(), approval.required),
        (["managers".to_owned(), "cem".to_owned()].as_slice(), 2)
    );
    assert_eq!((approval.by.as_slice(), approval.expires), ([Channel::Mail, Channel::Cli].as_slice(), span("12h")));
    assert!(approval.allow_self && approval.allow_unknown_pusher);
    assert_eq!(live.freeze.len(), 2);
    assert_eq!(live.hooks.before, ["./before.sh"]);
    assert_eq!((live.hooks.after.len(), live.hooks.rollback.len()), (2, 1));
    assert_eq!(live.schema.as_ref().unwrap().reversible.as_deref(), Some("./reversible.sh"));

    let [http, probe, tcp, command, restarts, prometheus] = &live.health[..] else { panic!() };
    let HealthCheck::Http { url, status, body, latency } = &http.check else { panic!() };
    assert_eq!((url.as_str(), status.as_slice()), ("http://127.0.0.1:8080/healthz", [200, 204].as_slice()));
    assert_eq!((body.as_deref(), *latency), (Some("ok"), Some(span("500ms"))));
    assert_eq!((http.every, http.failures, http.within, http.timeout), (span("2s"), 5, span("90s"), span("1s")));
    assert_eq!((probe.every, probe.failures, probe.within, probe.timeout), (span("1s"), 3, span("60s"), span("5s")));
    assert_eq!(tcp.check, HealthCheck::Tcp("db.example.com:5432".to_owned()));
    assert_eq!(command.check, HealthCheck::Command("./check.sh".to_owned()));
    assert_eq!(restarts.check, HealthCheck::Restarts(2));
    let HealthCheck::Prometheus { expect, .. } = &prometheus.check else { panic!() };
    assert_eq!(*expect, Expect { compare: Compare::Less, than: 0.01 });

    assert_eq!(live.variables["LEVEL"], Variable::Plain("info".to_owned()));
    assert_eq!(live.variables["REPLICAS"], Variable::Plain("3".to_owned()));
    assert_eq!(live.variables["LITERAL"], Variable::Plain("${X}".to_owned()));
    assert_eq!(live.variables["URL"], Variable::Secret(Secret::new("postgres://app:db-secret@db/shop")));
    assert_eq!(live.variables["PORT"], Variable::Secret(Secret::new("8080")));
    let masked: Vec<_> = daemon.secret_values().iter().map(Secret::expose).collect();
    for value in ["db-secret", "postgres://app:db-secret@db/shop", "pa55word"] {
        assert!(masked.contains(&value), "{value} is not in {masked:?}");
    }
    assert!(!format!("{:?}", live.variables).contains("db-secret"));
}

#[test]
fn comparisons() {
    for (text, compare, than) in [
        ("< 0.01", Compare::Less, 0.01),
        ("<=3", Compare::LessOrEqual, 3.0),
        (" > -1 ", Compare::Greater, -1.0),
        (">= 1e3", Compare::GreaterOrEqual, 1_000.0),
        ("== 0", Compare::Equal, 0.0),
    ] {
        assert_eq!(text.parse(), Ok(Expect { compare, than }), "{text}");
    }
    for bad in ["", "0.01", "<", "= 1", "< x", "< NaN", "< inf", "!= 1", "< 1 2"] {
        assert!(bad.parse::<Expect>().unwrap_err().contains("is no comparison"), "{bad}");
    }
}

#[test]
fn each_mistake_has_its_sentence_and_its_place() {
    let from = "from: [{ repo: shop, branches: main }]";
    let swarm = "target: { swarm: { stack: s.yml, repo: shop } }";
    // One environment whose `from` and target are good.
    let with = |rest: &str| format!("{{ live: {{ {from}, {swarm}, {rest} }} }}");
    let target = |rest: &str| format!("{{ live: {{ {from}, target: {{ {rest} }} }} }}");
    let source = |rest: &str| format!("{{ live: {{ from: {rest}, {swarm} }} }}");
    let rule = |rest: &str| with(&format!("health: [{{ {rest} }}]"));
    let approval = |rest: &str| with(&format!("approval: {{ {rest} }}"));
    let freeze = |rest: &str| with(&format!("freeze: [{{ {rest} }}]"));
    // What is wrong, its sentence, and the text that it points at.
    let table = [
        ("[live]".to_owned(), "`environments` is a map", "[live]"),
        ("{ 'a b': {} }".to_owned(), "the environment's name `a b` may hold only letters", "'a b'"),
        (
            format!("{{ a.lock: {{ {from}, target: {{ swarm: {{ stack: s, repo: shop, name: a }} }} }} }}"),
            "Git ref",
            "a.lock",
        ),
        (format!("{{ live: {{ {from} }} }}"), "the environment `live` needs `target`", "live"),
        (format!("{{ live: {{ {swarm} }} }}"), "the environment `live` needs `from`", "live"),
        (with("watchh: 1s"), "unknown key `watchh` in the environment `live`", "watchh"),
        // from
        (source("[]"), "`from` is empty", "[]"),
        (source("[shop]"), "an entry of `from` is a map", "shop]"),
        (source("[{ branches: main }]"), "needs `repo`", "{ branches"),
        (source("[{ repo: shop }]"), "needs `branches`", "{ repo: shop }]"),
        (source("[{ repo: shpo, branches: main }]"), "there is no repository `shpo`", "shpo"),
        (source("[{ repo: '${HUSH}', branches: main }]"), "the name of no repository", "'${HUSH}'"),
        (source("[{ repo: infra, branches: main }]"), "the target's file is in `shop`", "[{ repo: infra"),
        (source("[{ repo: shop, branches: [] }]"), "`branches` is empty", "[] }"),
        (source("[{ repo: shop, branches: {} }]"), "`branches` is empty", "{} }"),
        (source("[{ repo: shop, branches: '[a' }]"), "this pattern does not read", "'[a'"),
        (source("[{ repo: shop, branches: main, pipelines: [] }]"), "`pipelines` is empty", "[] }"),
        (source("[{ repo: shop, branches: main, pipelines: [a/b] }]"), "the pipeline name `a/b`", "a/b"),
        // target
        (target(""), "`target` names what is deployed to", "{  }"),
        (target("kubernetes: {}"), "`kubernetes` is part of the language, but not of this version", "kubernetes"),
        (target("swarms: {}"), "unknown key `swarms`", "swarms"),
        (target("swarm: { stack: s, repo: shop }, compose: { file: f, repo: shop }"), "has one target", "compose"),
        (target("swarm: { repo: shop }"), "`swarm` needs `stack`", "{ repo: shop } }"),
        (target("swarm: { stack: s }"), "`swarm` needs `repo`", "{ stack"),
        (target("swarm: { stack: s, repo: shopp }"), "did you mean `shop`?", "shopp"),
        (target("swarm: { stack: /etc/passwd, repo: shop }"), "stays there", "/etc/passwd"),
        (target("swarm: { stack: ../s.yml, repo: shop }"), "stays there", "../s.yml"),
        (target("swarm: { stack: a/../../s.yml, repo: shop }"), "stays there", "a/../../s.yml"),
        (target("swarm: { stack: '', repo: shop }"), "1 to 1000 bytes", "''"),
        (target("swarm: { stack: -c, repo: shop }"), "no `-`", "-c"),
        (target("swarm: { stack: \"a\\nb\", repo: shop }"), "control characters", "\"a"),
        (target("swarm: { stack: deploy/, repo: shop }"), "names a file", "deploy/"),
        (target("swarm: { stack: ., repo: shop }"), "names a file", "., repo"),
        (target("swarm: { stack: s, repo: shop, name: a.b }"), "`a.b` cannot be the name of a stack", "a.b"),
        (target("swarm: { stack: s, repo: shop, host: '/var/run/docker.sock' }"), "`host` is `unix:///PATH`", "'/var"),
        (format!("{{ v1.2: {{ {from}, {swarm} }} }}"), "`v1.2` cannot be the name of a stack in a swarm", "{ stack"),
        (target("compose: { file: f, repo: shop }"), "stops the old containers before", "target"),
        (with("downtime: yes"), "`yes` is not known for `downtime`", "yes"),
        (
            format!(
                "{{ live: {{ {from}, downtime: allowed, target: {{ compose: {{ file: f, repo: shop, switch: '' }} }} }} }}"
            ),
            "`switch` is empty",
            "''",
        ),
        (
            target("compose: { file: f, repo: shop, switch: x, project: Shop }"),
            "`Shop` cannot be the name of a Compose project",
            "Shop",
        ),
        (target("command: { repo: shop, up: a, status: b, down: c }"), "commands of your own", "target"),
        (
            format!(
                "{{ live: {{ {from}, downtime: allowed, target: {{ command: {{ repo: shop, status: b, down: c }} }} }} }}"
            ),
            "`command` needs `up`",
            "{ repo: shop, status",
        ),
        (
            format!(
                "{{ live: {{ {from}, downtime: allowed, target: {{ command: {{ repo: shop, up: [], status: b, down: c }} }} }} }}"
            ),
            "`up` is empty",
            "[], status",
        ),
        (
            format!(
                "{{ live: {{ {from}, downtime: allowed, target: {{ command: {{ repo: shop, up: [echo: x], status: b, down: c }} }} }} }}"
            ),
            "YAML reads a map here",
            "echo: x",
        ),
        // health
        (with("health: { tcp: 'h:1' }"), "`health` is a list", "{ tcp"),
        (rule(""), "a rule of `health` asks something", "{  }"),
        (rule("http: 'http://h', tcp: 'h:1'"), "a rule asks one thing", "tcp"),
        (rule("http: h"), "`http` is an address", "h }"),
        (rule("http: 'ftp://h'"), "`http` is an address", "'ftp"),
        (rule("http: 'http://h', status: [20]"), "from 100 to 599", "20]"),
        (rule("http: 'http://h', body: ''"), "`body` is empty", "''"),
        (rule("http: 'http://h', latency: 6s"), "at most the rule's `timeout`, 5s", "6s"),
        (rule("http: 'http://h', latency: 0s"), "above 0", "0s"),
        (rule("tcp: 'h:1', status: 200"), "`status` belongs to `http`", "status"),
        (rule("tcp: h"), "`tcp` is `HOST:PORT`", "h }"),
        (rule("tcp: 'http://h:1'"), "`tcp` is `HOST:PORT`", "'http"),
        (rule("tcp: 'u@h:1'"), "`tcp` is `HOST:PORT`", "'u@h"),
        (rule("command: ' '"), "`command` is empty", "' '"),
        (rule("restarts: -1"), "from 0 to 1000", "-1"),
        (rule("prometheus: { url: 'http://h', query: up }"), "`prometheus` needs `expect`", "{ url"),
        (rule("prometheus: { url: 'http://h', query: up, expect: 0.1 }"), "is no comparison", "0.1"),
        (rule("restarts: 1, every: 10ms"), "`every` is at least 100ms", "10ms"),
        (rule("restarts: 1, failures: 0"), "from 1 to 1000", "0 }"),
        (rule("restarts: 1, within: 1"), "is not a duration", "1 }]"),
        (rule("restarts: 1, timeout: 1ms"), "`timeout` is at least 10ms", "1ms"),
        // times
        (with("watch: 5"), "is not a duration", "5 }"),
        (with("timeout: 0s"), "`timeout` is at least 1s", "0s"),
        (with("lease: 4s"), "`lease` is at least 5s", "4s"),
        (with("reconcile: 10ms"), "`reconcile` is at least 1s", "10ms"),
        // rollback
        (with("rollback: { auto: maybe }"), "`true` or `false`", "maybe"),
        (with("rollback: { git: tags }"), "did you mean `tag`?", "tags"),
        (with("rollback: { git: revert-pr }"), "the repository `shop` has no `forge`", "revert-pr"),
        // approval
        (approval(""), "`approval` needs `from`", "{  }"),
        (approval("from: []"), "`from` is empty: nobody", "[] }"),
        (approval("from: [anna]"), "did you mean `ana`?", "anna"),
        (approval("from: [ana, ana]"), "named twice", "ana] }"),
        (approval("from: [nobody]"), "`from` names nobody", "[nobody]"),
        (approval("from: ana, required: 0"), "from 1 to 100", "0 }"),
        (approval("from: [managers, ana], required: 3"), "3 must say yes, but `from` names 2 people", "3 }"),
        (approval("from: ana, expires: 0s"), "`expires` is at least 1s", "0s"),
        (approval("from: ana, by: []"), "`by` is empty", "[] }"),
        (approval("from: ana, by: [post]"), "is not known for `by`", "post"),
        (approval("from: ana, newer: queue"), "is not known for `newer`", "queue"),
        (approval("from: cem, by: [mail]"), "`mail` reaches nobody", "[mail]"),
        (approval("from: ben, by: webhook"), "no `webhook` may speak", "webhook"),
        (approval("from: [managers, cem], required: 3, by: mail"), "open to 2 people only", "mail }"),
        // freeze
        (freeze("from: 'Fri 16:00'"), "needs `to`", "{ from: 'Fri"),
        (freeze("from: 'Fry 16:00', to: 'Mon 08:00'"), "is not a time of a freeze", "'Fry"),
        (freeze("from: '${HUSH}', to: 'Mon 08:00'"), "the value put in here is not valid", "'${HUSH}'"),
        (freeze("from: 'Fri 16:00 Europe/Pariss', to: 'Mon 08:00'"), "not a time zone", "'Fri"),
        (freeze("from: 'Fri 16:00', to: '2026-12-24 08:00'"), "of one kind", "{ from: 'Fri"),
        (freeze("from: '2026-12-24 08:00', to: '2026-12-23 08:00'"), "ends before it begins", "{ from: '2026"),
        (
            with("freeze: [{ from: Mon 00:00, to: Thu 12:00 }, { from: Thu 12:00, to: Mon 00:00 }]"),
            "leaves no moment",
            "[{ from: Mon",
        ),
        // the rest
        (with("promote-from: stagging"), "there is no environment `stagging`", "stagging"),
        (with("promote-from: live"), "not promoted from itself", "live }"),
        (with("hooks: { befor: x }"), "did you mean `before`?", "befor"),
        (with("hooks: { before: '' }"), "`before` is empty", "''"),
        (with("schema: {}"), "`schema` needs `version`", "{} }"),
        (with("variables: { 1A: x }"), "is not a name for a variable", "1A"),
        (with("variables: { MAINSTAY_X: x }"), "set by Mainstay itself", "MAINSTAY_X"),
        (with("variables: { A: [x] }"), "is a text, but here is a list", "[x]"),
        (with("variables: { A: '${secret:NOPE}' }"), "there is no secret `NOPE`", "'${secret"),
        (with("self-heal: sure"), "`true` or `false`", "sure"),
        (
            format!(
                "{{ a: {{ {from}, target: {{ swarm: {{ stack: s, repo: shop, name: x }} }} }}, b: {{ {from}, target: {{ swarm: {{ stack: s, repo: shop, name: x }} }} }} }}"
            ),
            "`b` and `a` are deployed to the same place",
            "b: { from",
        ),
    ];
    for (text, words, place) in table {
        let findings = read(&text).expect_err(&text);
        let [finding] = findings.list.as_slice() else { panic!("{text}\n{findings}") };
        let said = finding.hints.iter().fold(finding.message.clone(), |all, hint| all + "\n" + hint);
        assert!(said.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{findings}");
        let line = format!("environments: {text}");
        let column = line.find(place).unwrap_or_else(|| panic!("`{place}` is not in {line}")) + 1;
        assert_eq!((finding.line, finding.column), (1, column), "{findings}");
        assert!(!said.contains("hush-hush"), "{findings}");
    }
}

#[test]
fn mail_alone_needs_a_mail_server_and_by_nothing_said_does_not() {
    let with = |by: &str| {
        let text = format!(
            "{{ live: {{ from: [{{ repo: shop, branches: main }}], target: {{ swarm: {{ stack: s, repo: shop }} }}, approval: {{ from: [managers] {by} }} }} }}"
        );
        read_in(Path::new("/srv/ci"), &text, "")
    };
    let found = with("").unwrap().environments["live"].approval.clone().unwrap();
    assert_eq!(found.by, [Channel::Mail, Channel::Webhook, Channel::Cli]);
    assert_eq!((found.required, found.expires), (1, span("24h")));
    assert!(!found.allow_self && !found.allow_unknown_pusher);
    let said = with(", by: [mail]").unwrap_err().to_string();
    assert!(said.contains("`mail` needs a mail server"), "{said}");
    with(", by: [cli]").unwrap();
}

/// All that is wrong with a file is told at once, each at its place.
#[test]
fn one_reading_tells_everything() {
    let findings = read(
        "
  staging:
    from: [{ repo: shpo, branches: main }]
    target: { compose: { file: ../x.yml, repo: shop } }
    watch: soon
    health: [{ htp: x }]
  live:
    form: []
",
    )
    .unwrap_err();
    let lines: Vec<_> = findings.list.iter().map(|f| (f.line, f.message.as_str())).collect();
    let wanted = [
        (3, "there is no repository `shpo`"),
        (4, "is no file of a repository"),
        (5, "is not a duration"),
        (6, "unknown key `htp`"),
        (7, "needs `from`"),
        (7, "needs `target`"),
        (8, "unknown key `form`"),
    ];
    assert_eq!(lines.len(), wanted.len(), "{findings}");
    for ((line, said), (wanted_line, words)) in lines.iter().zip(wanted) {
        assert!(*line == wanted_line && said.contains(words), "{wanted_line} {words}: {findings}");
    }
}

mod any {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

        #[test]
        fn good_settings_with_a_few_bytes_changed_never_make_it_panic_or_wait(
            edits in proptest::collection::vec((0..EVERYTHING.len(), prop_oneof![
                Just(""), Just("\n"), Just("  "), Just(":"), Just("- "), Just("["), Just("}"), Just("'"), Just("\""),
                Just("&a "), Just("*a"), Just("!"), Just("|"), Just("${"), Just("\u{e9}"), Just("0"), Just("@"), Just("%"),
            ]), 1..6),
        ) {
            let mut text = EVERYTHING.to_owned();
            for (at, what) in edits {
                let at = text.floor_char_boundary(at.min(text.len()));
                let end = text.floor_char_boundary((at + 2).min(text.len()));
                text.replace_range(at..end, what);
            }
            let began = std::time::Instant::now();
            match read(&text) {
                Ok(daemon) => {
                    for environment in daemon.environments.values() {
                        let far = crate::config::daemon::freeze::frozen_until(&environment.freeze, jiff::Timestamp::MAX);
                        prop_assert_eq!(far, None);
                        crate::config::daemon::freeze::frozen_until(&environment.freeze, jiff::Timestamp::MIN);
                    }
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
