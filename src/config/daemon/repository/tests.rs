use super::*;
use crate::config::Findings;
use crate::config::daemon::{Daemon, parse};

const ANA: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
const BEN: &str = "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg";
const SIGNER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

fn read_in(folder: &Path, repository: &str) -> Result<Daemon, Findings> {
    let env = |name: &str| match name {
        "ID" => Some("AKIAHUSHHUSH".to_owned()),
        "KEY" => Some("hush-hush".to_owned()),
        "ODD" => Some("hush hush".to_owned()),
        _ => None,
    };
    parse("mainstay.yml", &format!("repository: {repository}\nrepos: {{a: /x}}\n"), &env, folder)
}

fn read(repository: &str) -> Result<Daemon, Findings> {
    read_in(Path::new("/srv/ci"), repository)
}

fn place(repository: &str) -> RepositoryPlace {
    read(repository).unwrap_or_else(|e| panic!("{e}")).repository.place
}

fn bucket(more: &str) -> Bucket {
    match place(&format!("{{ url: 's3://shop-recovery/mainstay', {more} }}")) {
        RepositoryPlace::Bucket(bucket) => *bucket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_word_it_is_a_folder_in_the_state_folder() {
    let usual = parse("mainstay.yml", "repos: {a: /x}", &|_| None, Path::new("/srv/ci")).unwrap().repository;
    assert_eq!(usual.place, RepositoryPlace::Folder("/srv/ci/mainstay-data/repository".into()));
    assert!(usual.encrypt_to.is_empty() && usual.sign_with.is_none() && usual.trust.is_empty());
    // A daemon for backups alone watches nothing.
    let alone = parse("mainstay.yml", "repository: {url: b}", &|_| None, Path::new("/srv/ci")).unwrap();
    assert!(alone.repos.is_empty());
    let recipients_only = read(&format!("{{ encrypt-to: {ANA} }}")).unwrap().repository;
    assert_eq!((recipients_only.place, recipients_only.encrypt_to), (usual.place, vec![ANA.to_owned()]));
}

#[test]
fn a_folder_has_a_path_or_a_file_address() {
    for (url, path) in [
        ("../copies", "/srv/copies"),
        ("/mnt/disk/./b", "/mnt/disk/b"),
        ("file:///mnt/b", "/mnt/b"),
        ("b", "/srv/ci/b"),
    ] {
        assert_eq!(place(&format!("{{ url: '{url}' }}")), RepositoryPlace::Folder(path.into()), "{url}");
    }
}

#[test]
fn everything_about_a_bucket_is_understood_and_its_keys_do_not_print() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "sign.key"] {
        std::fs::write(folder.path().join(file), "x").unwrap();
    }
    let daemon = read_in(
        folder.path(),
        &format!(
            r#"
  url: "s3://shop-recovery/mainstay/"
  endpoint: "https://s3.example.com:9000/"
  region: eu-central-1
  path-style: false
  ca: ca.pem
  access-key: "${{ID}}"
  secret-key: "${{KEY}}"
  delete-access-key: AKIADELETE
  delete-secret-key: plain-text-2
  encrypt-to: [{ANA}, {BEN}]
  sign-with: sign.key
  trust: ["{SIGNER_KEY} the machine before"]
  object-lock: 14d
  checksums: when-required"#
        ),
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let RepositoryPlace::Bucket(bucket) = &daemon.repository.place else { panic!() };
    assert_eq!((bucket.name.as_str(), bucket.prefix.as_str()), ("shop-recovery", "mainstay"));
    assert_eq!(bucket.endpoint.as_deref(), Some("https://s3.example.com:9000"));
    assert_eq!((bucket.region.as_deref(), bucket.path_style), (Some("eu-central-1"), false));
    assert_eq!(bucket.ca.as_deref(), Some(folder.path().join("ca.pem").as_path()));
    let ids = [&bucket.keys, &bucket.delete_keys].map(|keys| keys.as_ref().unwrap().id.expose().to_owned());
    assert_eq!(ids, ["AKIAHUSHHUSH", "AKIADELETE"]);
    let day = Span(Duration::from_secs(86_400));
    assert_eq!((bucket.object_lock, bucket.piece_lock), (Some("14d".parse().unwrap()), Some(day)));
    assert_eq!(bucket.checksums, Checksums::WhenRequired);
    assert_eq!(daemon.repository.encrypt_to, [ANA, BEN]);
    assert_eq!(daemon.repository.sign_with.as_deref(), Some(folder.path().join("sign.key").as_path()));
    assert_eq!(daemon.repository.trust, [SIGNER_KEY.parse().unwrap()]);
    let masked: Vec<_> = daemon.secret_values().iter().map(Secret::expose).collect();
    assert_eq!(masked, ["AKIADELETE", "AKIAHUSHHUSH", "hush-hush", "plain-text-2"]);
    let printed = format!("{daemon:?}");
    assert!(!masked.iter().any(|secret| printed.contains(secret)), "{printed}");
}

#[test]
fn what_is_not_said_about_a_bucket() {
    let plain = bucket("");
    assert_eq!((plain.endpoint, plain.region, plain.path_style, plain.ca), (None, None, false, None));
    assert_eq!((plain.keys, plain.delete_keys, plain.checksums), (None, None, Checksums::WhenSupported));
    assert_eq!((plain.object_lock, plain.piece_lock), (None, None));
    assert!(bucket("endpoint: 'http://127.0.0.1:8333'").path_style);
    // A lock that is shorter than a day is as long for pieces.
    let short = bucket("object-lock: 1h");
    assert_eq!(short.piece_lock, short.object_lock);
    assert_eq!(bucket("object-lock: 7d, piece-lock: 2h").piece_lock, Some("2h".parse().unwrap()));
    let RepositoryPlace::Bucket(whole) = place("{ url: 's3://a.b', path-style: true }") else { panic!() };
    assert_eq!((whole.name.as_str(), whole.prefix.as_str()), ("a.b", ""));
}

#[test]
fn each_mistake_has_its_sentence_and_its_place() {
    let s3 = |rest: &str| format!("{{ url: 's3://abc', {rest} }}");
    let url = |url: &str| format!("{{ url: '{url}' }}");
    let table = [
        ("[]".to_owned(), "`repository` is a map", "[]"),
        ("{ encrypt_to: x }".to_owned(), "unknown key `encrypt_to`", "encrypt_to"),
        ("{ working-key: x }".to_owned(), "but not of this version", "working-key"),
        (url(""), "`url` has 1 to 2000 bytes", "''"),
        ("{ url: \"/a\\tb\" }".to_owned(), "control characters", "\"/a"),
        (url("/"), "would hold the state folder", "'/'"),
        (url("mainstay-data"), "would hold the state folder", "'main"),
        (url("file://b"), "names no absolute path", "'file"),
        (url("https://s3.example.com/abc"), "names a store, and no bucket", "'https"),
        (url("gs://abc"), "a scheme that is not known", "'gs"),
        (url("s3://AKIA:hush@abc/x"), "more than a bucket and a prefix", "'s3"),
        (url("s3://ab"), "no name of a bucket", "'s3"),
        (url("s3://Abc"), "no name of a bucket", "'s3"),
        (url("s3://a..b"), "no name of a bucket", "'s3"),
        (url("s3://abc/a//b"), "a prefix that stores", "'s3"),
        (url("s3://abc/../b"), "a prefix that stores", "'s3"),
        (url("s3://abc/a b"), "a prefix that stores", "'s3"),
        (url("s3://a.b"), "fits no certificate", "'s3"),
        (s3("endpoint: s3.example.com"), "`endpoint` is an address", "s3.example"),
        (s3("endpoint: 'https://h/path'"), "more than a host and a port", "'https"),
        (s3("endpoint: 'https://u:hush@h'"), "more than a host and a port", "'https"),
        (s3("region: 'eu central'"), "`eu central` is no region", "'eu"),
        (s3("region: '${ODD}'"), "(a value that is not shown)", "'${ODD"),
        (s3("path-style: yes"), "`path-style` is `true` or `false`", "yes"),
        (s3("ca: nope.pem"), "there is no file `/srv/ci/nope.pem`", "nope"),
        (s3("access-key: x"), "`access-key` has no `secret-key` beside it", "access-key"),
        (s3("secret-key: x"), "`secret-key` has no `access-key` beside it", "secret-key"),
        (s3("delete-access-key: x"), "`delete-access-key` has no `delete-secret-key`", "delete-access"),
        (s3("access-key: x, secret-key: '${ODD}'"), "holds what no key holds", "'${ODD"),
        (s3("access-key: '', secret-key: y"), "`access-key` is empty", "''"),
        (
            s3("access-key: x, secret-key: y, delete-access-key: x, delete-secret-key: z"),
            "the key that everything is written with",
            "delete-access-key",
        ),
        (s3("object-lock: 14"), "`14` is not a duration", "14 }"),
        (s3("object-lock: 0s"), "at least 1s", "0s"),
        (s3("piece-lock: 1d"), "there is no `object-lock`", "piece-lock"),
        (s3("object-lock: 1d, piece-lock: 2d"), "longer than `object-lock`, 1d", "piece-lock"),
        (s3("checksums: always"), "`always` is not known for `checksums`", "always"),
        ("{ endpoint: 'https://h' }".to_owned(), "`endpoint` is about a bucket", "endpoint"),
        ("{ url: /b, object-lock: 1d }".to_owned(), "`object-lock` is about a bucket", "object-lock"),
        ("{ encrypt-to: [] }".to_owned(), "nobody could ever open", "[]"),
        ("{ encrypt-to: age1x }".to_owned(), "has another length", "age1x"),
        (format!("{{ encrypt-to: [{ANA}, {ANA}] }}"), "stands here twice", "age1ql"),
        ("{ encrypt-to: AGE-SECRET-KEY-1HUSH }".to_owned(), "the secret half", "AGE-"),
        ("{ encrypt-to: '${KEY}' }".to_owned(), "the value put in here does not begin with", "'${KEY"),
        ("{ sign-with: '' }".to_owned(), "`sign-with` is empty", "''"),
        ("{ trust: ssh-rsa AAAA }".to_owned(), "does not begin with `ssh-ed25519`", "ssh-rsa"),
        (format!("{{ trust: ['{SIGNER_KEY} a', '{SIGNER_KEY} b'] }}"), "stands here twice", "'ssh"),
    ];
    for (text, words, place) in table {
        let findings = read(&text).expect_err(&text);
        let [finding] = findings.list.as_slice() else { panic!("{text}\n{findings}") };
        assert!(finding.message.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{findings}");
        let line = format!("repository: {text}");
        // Of two that are alike, the second is wrong.
        let column = if words.contains("twice") { line.rfind(place) } else { line.find(place) }.unwrap() + 1;
        assert_eq!((finding.line, finding.column), (1, column), "{findings}");
        let said = finding.hints.iter().fold(finding.message.clone(), |all, hint| all + hint).to_lowercase();
        assert!(!said.contains("hush"), "{findings}");
    }
}

#[test]
fn one_reading_tells_everything_that_is_wrong() {
    let findings = read(
        "
  url: /mnt/backups
  endpiont: https://s3.example.com
  object-lock: 14 days
  encrypt-to:
    - age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8q
  sign-with: keys/sign.key",
    )
    .unwrap_err();
    insta::assert_snapshot!(findings.to_string());
}

#[test]
fn a_command_may_name_it_and_the_environment_says_the_rest() {
    let set = |name: &str| match name {
        "AWS_ENDPOINT_URL" => Some("http://127.0.0.1:8333/".to_owned()),
        "AWS_REGION" => Some(String::new()),
        "AWS_DEFAULT_REGION" => Some("eu-west-3".to_owned()),
        "AWS_CA_BUNDLE" => Some("/etc/ca.pem".to_owned()),
        _ => None,
    };
    let folder = Path::new("/home/ana");
    let RepositoryPlace::Bucket(bucket) = named("s3://abc/x", folder, &set).unwrap() else { panic!() };
    assert_eq!((bucket.name.as_str(), bucket.prefix.as_str(), bucket.path_style), ("abc", "x", true));
    assert_eq!(bucket.endpoint.as_deref(), Some("http://127.0.0.1:8333"));
    assert_eq!((bucket.region.as_deref(), bucket.ca.as_deref()), (Some("eu-west-3"), Some(Path::new("/etc/ca.pem"))));
    let RepositoryPlace::Bucket(bucket) = named("s3://a.b", folder, &|_| None).unwrap() else { panic!() };
    assert_eq!((bucket.endpoint, bucket.region, bucket.path_style), (None, None, true));
    let at = named("copies", folder, &set).unwrap();
    assert_eq!(at, RepositoryPlace::Folder("/home/ana/copies".into()));
    let said = named("s3://hush:hush@abc", folder, &set).unwrap_err();
    assert!(said.contains("more than a bucket") && said.contains("\nhint: ") && !said.contains("hush"), "{said}");
    let odd = |_: &str| Some("hush".to_owned());
    let said = named("s3://abc", folder, &odd).unwrap_err();
    assert!(said.contains("the endpoint of the environment") && !said.contains("hush"), "{said}");
}
