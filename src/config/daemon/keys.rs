//! Every key that `mainstay.yml` may have, by the part it stands in. The reader refuses all others, and the schema is held
//! against these lists.

pub(in crate::config) const TOP_KEYS: &[&str] = &[
    "server",
    "state",
    "repository",
    "runtime",
    "registries",
    "limits",
    "keep",
    "people",
    "repos",
    "environments",
    "releases",
    "notify",
];
pub(in crate::config) const REPOSITORY_KEYS: &[&str] = &[
    "url",
    "endpoint",
    "region",
    "path-style",
    "ca",
    "access-key",
    "secret-key",
    "delete-access-key",
    "delete-secret-key",
    "encrypt-to",
    "sign-with",
    "identity",
    "trust",
    "object-lock",
    "piece-lock",
    "checksums",
];
pub(in crate::config) const REPOSITORY_LATER: &[&str] = &["working-key"];
pub(in crate::config) const SERVER_KEYS: &[&str] = &["listen", "public-url"];
pub(in crate::config) const DOCKER_KEYS: &[&str] = &["host", "networks"];
pub(in crate::config) const CREDENTIAL_KEYS: &[&str] = &["username", "password"];
pub(in crate::config) const LIMIT_KEYS: &[&str] =
    &["steps", "waiting", "runs-per-push", "log", "cpus", "memory", "pids", "timeout"];
pub(in crate::config) const KEEP_KEYS: &[&str] = &["for", "runs"];
pub(in crate::config) const PEOPLE_KEYS: &[&str] = &["users", "groups"];
pub(in crate::config) const PERSON_KEYS: &[&str] = &["mail", "git", "forge", "unix"];
pub(in crate::config) const REPO_KEYS: &[&str] =
    &["url", "branch", "poll", "webhook", "secrets", "trusted", "runtime", "auth", "forge"];
pub(in crate::config) const WEBHOOK_KEYS: &[&str] = &["kind", "secret"];
pub(in crate::config) const FORGE_KEYS: &[&str] = &["kind", "url", "project", "token"];
pub(in crate::config) const ENVIRONMENT_KEYS: &[&str] = &[
    "from",
    "target",
    "health",
    "watch",
    "timeout",
    "rollback",
    "approval",
    "freeze",
    "lease",
    "reconcile",
    "self-heal",
    "downtime",
    "promote-from",
    "hooks",
    "schema",
    "variables",
];
pub(in crate::config) const RELEASES_KEYS: &[&str] = &["trusted"];
pub(in crate::config) const SOURCE_KEYS: &[&str] = &["repo", "branches", "pipelines"];
pub(in crate::config) const TARGET_KEYS: &[&str] = &["swarm", "compose", "command"];
pub(in crate::config) const SWARM_KEYS: &[&str] = &["stack", "repo", "name", "host"];
pub(in crate::config) const COMPOSE_KEYS: &[&str] = &["file", "repo", "project", "host", "switch"];
pub(in crate::config) const COMMAND_TARGET_KEYS: &[&str] = &["image", "repo", "up", "status", "down"];
/// What a health rule asks; it has exactly one of these.
pub(in crate::config) const CHECK_KEYS: [&str; 5] = ["http", "tcp", "command", "restarts", "prometheus"];
pub(in crate::config) const HEALTH_KEYS: &[&str] = &[
    "http",
    "tcp",
    "command",
    "restarts",
    "prometheus",
    "status",
    "body",
    "latency",
    "every",
    "failures",
    "within",
    "timeout",
];
pub(in crate::config) const PROMETHEUS_KEYS: &[&str] = &["url", "query", "expect"];
pub(in crate::config) const ROLLBACK_KEYS: &[&str] = &["auto", "git"];
pub(in crate::config) const APPROVAL_KEYS: &[&str] =
    &["from", "required", "expires", "by", "allow-self", "allow-unknown-pusher", "newer"];
pub(in crate::config) const FREEZE_KEYS: &[&str] = &["from", "to"];
pub(in crate::config) const HOOKS_KEYS: &[&str] = &["before", "after", "rollback"];
pub(in crate::config) const SCHEMA_KEYS: &[&str] = &["version", "reversible"];
pub(in crate::config) const NOTIFY_KEYS: &[&str] = &["smtp", "webhooks", "alerts"];
pub(in crate::config) const SMTP_KEYS: &[&str] = &["url", "from", "user", "password", "authority"];
pub(in crate::config) const NOTIFY_WEBHOOK_KEYS: &[&str] = &["url", "format", "secret", "inbound"];
pub(in crate::config) const INBOUND_KEYS: &[&str] = &["secret", "people"];
