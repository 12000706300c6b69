use super::*;

fn read_in(folder: &Path, text: &str) -> Result<Daemon, Findings> {
    let env = |name: &str| match name {
        "PORT" => Some("9000".to_owned()),
        "EMPTY" => Some(String::new()),
        "HUSH" => Some("hush-hush".to_owned()),
        _ => None,
    };
    parse("mainstay.yml", text, &env, folder)
}

fn read(text: &str) -> Result<Daemon, Findings> {
    read_in(Path::new("/srv/ci"), text)
}

#[test]
fn with_nothing_but_repos_it_works() {
    let daemon = read("repos: { shop: ../git/shop.git }").unwrap();
    assert_eq!(daemon.state, Path::new("/srv/ci/mainstay-data"));
    assert_eq!(daemon.server.listen.to_string(), "127.0.0.1:8420");
    assert_eq!(daemon.server.public_url, "http://127.0.0.1:8420");
    assert_eq!(daemon.runtime, RuntimeChoice::Docker(DockerSettings::default()));
    assert_eq!(daemon.limits, Limits::default());
    let repo = &daemon.repos["shop"];
    assert_eq!((repo.url.as_str(), repo.poll.to_string().as_str()), ("/srv/git/shop.git", "1m"));
    assert!(!repo.trusted && daemon.secret_values().is_empty());
}

#[test]
fn everything_is_understood_and_secrets_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let store = SecretStore::new(&folder.path().join("data"));
    store.set("SHOP_HOOK", &Secret::new("hook-value")).unwrap();
    store.set("TOKEN", &Secret::new("token-value")).unwrap();
    std::fs::write(folder.path().join("password"), "file-value\n").unwrap();
    let daemon = read_in(
        folder.path(),
        r#"
server: { listen: "127.0.0.1:${PORT}", public-url: "https://ci.example.com/" }
state: data
runtime: { docker: { host: "unix:///run/docker.sock", networks: 10.64.0.0/12 } }
registries: { "registry.example.com:5000": { username: ci, password: "${file:password}" } }
limits: { steps: 2, waiting: 0, runs-per-push: 3, log: 1MiB, cpus: 1.5, memory: 1GiB, pids: 100, timeout: 10m }
repos:
  shop:
    url: https://git.example.com/team/shop.git
    branch: main
    poll: 5s
    webhook: { kind: gitea, secret: "${secret:SHOP_HOOK}" }
    secrets: [TOKEN]
    auth: { username: ci, password: "$${HUSH} ${HUSH}" }
    forge: { kind: forgejo, token: "${secret:TOKEN}" }
  tools: { url: "git@git.example.com:tools.git", trusted: true, runtime: process }
"#,
    )
    .unwrap();
    assert_eq!(daemon.server.listen.port(), 9000);
    assert_eq!(daemon.server.public_url, "https://ci.example.com");
    let RuntimeChoice::Docker(docker) = &daemon.runtime else { panic!() };
    assert_eq!(docker.networks.to_string(), "10.64.0.0/12");
    assert_eq!(daemon.registries["registry.example.com:5000"].password.expose(), "file-value");
    assert_eq!(
        daemon.limits.resources,
        Resources { millicpus: Some(1500), memory: Some(ByteSize(1 << 30)), pids: Some(100) }
    );
    let shop = &daemon.repos["shop"];
    assert_eq!(shop.webhook.as_ref().unwrap().secret.expose(), "hook-value");
    assert_eq!(shop.auth.as_ref().unwrap().password.expose(), "${HUSH} hush-hush");
    assert_eq!(shop.secrets, ["TOKEN"]);
    let forge = shop.forge.as_ref().unwrap();
    assert_eq!((forge.kind, forge.token.expose()), (ForgeKind::Forgejo, "token-value"));
    assert_eq!((forge.url.as_str(), forge.project.as_str()), ("https://git.example.com/api/v1", "team/shop"));
    assert_eq!(*daemon.runtime_of(&daemon.repos["tools"]), RuntimeChoice::Process);
    let values: Vec<_> = daemon.secret_values().iter().map(Secret::expose).collect();
    assert_eq!(values, ["${HUSH} hush-hush", "file-value", "hook-value", "token-value"]);
    let printed = format!("{daemon:?}");
    for value in ["hush-hush", "file-value", "hook-value"] {
        assert!(!printed.contains(value), "{printed}");
    }
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

fn trusted(keys: &[&str]) -> String {
    format!("releases: {{trusted: [{}]}}\nrepos: {{a: /x}}", keys.join(", "))
}

#[test]
fn keys_that_are_trusted_with_histories_are_the_lines_of_their_files() {
    let commented = format!("\"{KEY} the machine before\"");
    assert_eq!(read(&trusted(&[&commented])).unwrap().trusted_releases, [KEY.parse().unwrap()]);
    assert!(read("repos: {a: /x}").unwrap().trusted_releases.is_empty());
}

#[test]
fn each_mistake_has_its_sentence_and_no_value_is_shown() {
    let repo = |rest: &str| format!("repos: {{ shop: {{ url: /x, {rest} }} }}");
    let table = [
        ("", "there is no `repos`"),
        ("repo: {a: /x}", "did you mean `repos`?"),
        ("repos: {'a/b': /x}", "may hold only letters"),
        ("backups: {}\nrepos: {a: /x}", "sources of backups stand in files of their own"),
        ("server: {listen: '0.0.0.0:8420'}\nrepos: {a: /x}", "can be reached from elsewhere"),
        ("server: {listen: 'localhost'}\nrepos: {a: /x}", "an address and a port"),
        ("server: {listen: '${HUSH}'}\nrepos: {a: /x}", "an address and a port"),
        ("state: '${NOPE}'\nrepos: {a: /x}", "the environment variable `NOPE` is not set"),
        ("state: '${secret:X}'\nrepos: {a: /x}", "cannot itself hold one"),
        ("runtime: podman\nrepos: {a: /x}", "is not known for `runtime`"),
        ("runtime: process\nrepos: {a: /x}", "whoever can push can do all that the daemon's user can"),
        ("runtime: {docker: {networks: 10.213.0.1/16}}\nrepos: {a: /x}", "does not begin at a border"),
        ("limits: {steps: 0}\nrepos: {a: /x}", "from 1 to 1000"),
        ("limits: {timeout: '${HUSH}'}\nrepos: {a: /x}", "the value put in here is not valid"),
        ("repos: {a: '-oProxyCommand=x'}", "begins with `-`"),
        ("repos: {a: \"/x\\ny\"}", "control characters"),
        ("runtime: {docker: {host: 'tcp://bad host:x'}}\nrepos: {a: /x}", "`tcp://HOST:PORT`"),
        ("runtime: {docker: {host: 'tcp://host:x'}}\nrepos: {a: /x}", "`tcp://HOST:PORT`"),
        ("runtime: {docker: {host: '/var/run/docker.sock'}}\nrepos: {a: /x}", "`unix:///PATH`"),
        ("repos: {a: 'https://ci:hush-hush@host/x'}", "put them under `auth"),
        ("repos: {a: 'ssh://-oX@host/x'}", "no usable host"),
        ("repos: {a: '-host:path'}", "begins with `-`"),
        ("repos: {a: 'git@-host:path'}", "no usable host"),
        ("repos: {a: 'ext::sh -c x'}", "no usable host"),
        ("repos: {a: 'ftp://host/x'}", "scheme that is not known"),
        (&repo("poll: 10ms"), "at least 1s"),
        (&repo("branch: '../x'"), "not the name of a branch"),
        (&repo("runtime: process"), "is not trusted"),
        (&repo("webhook: {kind: github}"), "`webhook` needs `secret`"),
        (&repo("webhook: {kind: svn, secret: x}"), "is not known for `kind`"),
        (&repo("webhook: {kind: github, secret: '${EMPTY}'}"), "`secret` is empty"),
        (&repo("webhook: {kind: github, secret: '${secret:NOPE}'}"), "mainstay secrets set NOPE"),
        (&repo("webhook: {kind: github, secret: '${file:nope}'}"), "failed to read `/srv/ci/nope`"),
        (&repo("webhook: {kind: github, secret: '${nope:x}'}"), "is not known here"),
        (&repo("webhook: {kind: github, secret: '${x'}"), "has no `}`"),
        (&repo("secrets: [NOPE]"), "there is no secret `NOPE`"),
        (&repo("auth: {username: x}"), "`auth` needs `password`"),
        ("releases: {trusts: []}\nrepos: {a: /x}", "did you mean `trusted`?"),
        ("releases: {trusted: [ssh-rsa AAAA]}\nrepos: {a: /x}", "the key does not begin with `ssh-ed25519`"),
        ("releases: {trusted: [ssh-ed25519 AAAA]}\nrepos: {a: /x}", "the line in `sign.pub` of the daemon that wrote"),
        (&trusted(&[KEY, KEY]), "stands here twice"),
        (&repo("forge: {kind: gitea}"), "`forge` needs `token`"),
        (&repo("forge: {kind: svn, token: x}"), "is not known for `kind`"),
        (&repo("forge: {kind: gitea, token: x}"), "`forge` needs `url`: the repository's own address"),
        (&repo("forge: {kind: gitea, token: x, url: 'https://h'}"), "`forge` needs `project`"),
        (&repo("forge: {kind: gitea, token: x, url: 'https://h?x', project: a/b}"), "a name, a password or a query"),
        (&repo("forge: {kind: gitea, token: x, url: h, project: a/b}"), "`url` is an address"),
        (&repo("forge: {kind: gitea, token: x, url: 'https://h', project: a}"), "`project` is `OWNER/NAME`, not `a`"),
        (
            &repo("forge: {kind: gitea, token: '${HUSH} ', url: 'https://h', project: a/b}"),
            "`token` holds what no token",
        ),
        (&repo("forge: {kind: gitea, token: '${secret:NOPE}'}"), "mainstay secrets set NOPE"),
    ];
    for (text, words) in table {
        let findings = read(text).expect_err(text);
        let said = findings.to_string();
        assert!(said.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{said}");
        let messages: Vec<_> = findings.list.iter().map(|f| f.message.as_str()).collect();
        assert!(!messages.join("\n").contains("hush-hush"), "{said}");
    }
}
