//! The shape of the files for editors, as JSON Schema (draft 2020-12). The checks that a file must pass are in
//! `pipeline`, `daemon` and `backup`; a test holds the keys here and there together.
#![allow(dead_code, reason = "the fields exist for their names and types; values are read by deserialising in tests")]

mod deploys;
mod pipelines;
mod recovery;
mod settings;

use pipelines::PipelineFile;
use schemars::JsonSchema;
use serde::Deserialize;
use settings::DaemonFile;

/// The schema of a pipeline file.
pub fn pipeline() -> serde_json::Value {
    titled(schemars::schema_for!(PipelineFile).to_value(), "Mainstay pipeline")
}

/// The schema of `mainstay.yml`.
pub fn daemon() -> serde_json::Value {
    titled(schemars::schema_for!(DaemonFile).to_value(), "Mainstay settings")
}

/// The schema of a file of `backups`.
pub fn backup() -> serde_json::Value {
    titled(schemars::schema_for!(recovery::SourceFile).to_value(), "Mainstay source of backups")
}

fn titled(mut schema: serde_json::Value, title: &str) -> serde_json::Value {
    schema["title"] = title.into();
    schema
}

/// One value, or a list of them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// A text; numbers and booleans count as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Text {
    Words(String),
    Bool(bool),
    Number(f64),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Patterns {
    List(OneOrMany<Text>),
    Both(IncludeExclude),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct IncludeExclude {
    include: Option<OneOrMany<Text>>,
    exclude: Option<OneOrMany<Text>>,
}

#[cfg(test)]
mod tests {
    use super::super::{backup as sources, daemon as settings, pipeline as language};
    use super::*;

    fn deserialise<T: serde::de::DeserializeOwned>(file: &str, text: &str) {
        // As editors read it: `on` is a text in YAML 1.2.
        let options = serde_saphyr::options! { strict_booleans: true };
        serde_saphyr::from_str_with_options::<T>(text, options).unwrap_or_else(|e| panic!("{file}: {e}"));
    }

    fn keys(schema: &serde_json::Value) -> Vec<&str> {
        let mut keys: Vec<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn the_schemas_and_the_readers_know_the_same_keys() {
        let (pipeline, daemon, backup) = (pipeline(), daemon(), backup());
        for schema in [&pipeline, &daemon, &backup] {
            assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        }
        let table: &[(&serde_json::Value, &[&str])] = &[
            (&pipeline, language::TOP_KEYS),
            (&pipeline["$defs"]["OnSettings"], language::ON_KEYS),
            (&pipeline["$defs"]["Push"], language::PUSH_KEYS),
            (&pipeline["$defs"]["Input"], language::INPUT_KEYS),
            (&pipeline["$defs"]["Step"], language::STEP_KEYS),
            (&pipeline["$defs"]["RetrySettings"], language::RETRIES_KEYS),
            (&pipeline["$defs"]["Resources"], language::RESOURCES_KEYS),
            (&pipeline["$defs"]["Deploy"], language::DEPLOY_KEYS),
            (&pipeline["$defs"]["Approval"], language::APPROVAL_KEYS),
            (&pipeline["$defs"]["Backup"], language::BACKUP_KEYS),
            (&pipeline["$defs"]["Restored"], language::RESTORE_KEYS),
            (&daemon, settings::TOP_KEYS),
            (&daemon["$defs"]["Server"], settings::SERVER_KEYS),
            (&daemon["$defs"]["Docker"], settings::DOCKER_KEYS),
            (&daemon["$defs"]["Credentials"], settings::CREDENTIAL_KEYS),
            (&daemon["$defs"]["Limits"], settings::LIMIT_KEYS),
            (&daemon["$defs"]["Keep"], settings::KEEP_KEYS),
            (&daemon["$defs"]["Releases"], settings::RELEASES_KEYS),
            (&daemon["$defs"]["People"], settings::PEOPLE_KEYS),
            (&daemon["$defs"]["Person"], settings::PERSON_KEYS),
            (&daemon["$defs"]["Repo"], settings::REPO_KEYS),
            (&daemon["$defs"]["Forge"], settings::FORGE_KEYS),
            (&daemon["$defs"]["Webhook"], settings::WEBHOOK_KEYS),
            (&daemon["$defs"]["Environment"], settings::ENVIRONMENT_KEYS),
            (&daemon["$defs"]["Source"], settings::SOURCE_KEYS),
            (&daemon["$defs"]["Target"], settings::TARGET_KEYS),
            (&daemon["$defs"]["SwarmTarget"], settings::SWARM_KEYS),
            (&daemon["$defs"]["ComposeTarget"], settings::COMPOSE_KEYS),
            (&daemon["$defs"]["CommandTarget"], settings::COMMAND_TARGET_KEYS),
            (&daemon["$defs"]["HealthRule"], settings::HEALTH_KEYS),
            (&daemon["$defs"]["Prometheus"], settings::PROMETHEUS_KEYS),
            (&daemon["$defs"]["Rollback"], settings::ROLLBACK_KEYS),
            (&daemon["$defs"]["EnvironmentApproval"], settings::APPROVAL_KEYS),
            (&daemon["$defs"]["Freeze"], settings::FREEZE_KEYS),
            (&daemon["$defs"]["Hooks"], settings::HOOKS_KEYS),
            (&daemon["$defs"]["Schema"], settings::SCHEMA_KEYS),
            (&daemon["$defs"]["Notify"], settings::NOTIFY_KEYS),
            (&daemon["$defs"]["Smtp"], settings::SMTP_KEYS),
            (&daemon["$defs"]["NotifyWebhook"], settings::NOTIFY_WEBHOOK_KEYS),
            (&daemon["$defs"]["Inbound"], settings::INBOUND_KEYS),
            (&daemon["$defs"]["Repository"], settings::REPOSITORY_KEYS),
            (&backup, sources::TOP_KEYS),
            (&backup["$defs"]["Incremental"], sources::INCREMENTAL_KEYS),
            (&backup["$defs"]["KeepBackups"], sources::KEEP_KEYS),
            (&backup["$defs"]["WalLag"], sources::WAL_LAG_KEYS),
            (&backup["$defs"]["Restore"], sources::RESTORE_KEYS),
            (&backup["$defs"]["SqlCheck"], sources::CHECK_KEYS),
            (&backup["$defs"]["Source"], settings::SOURCE_KEYS),
        ];
        for (schema, known) in table {
            let mut known = known.to_vec();
            known.sort_unstable();
            assert_eq!(keys(schema), known);
            assert_eq!(schema["additionalProperties"], false);
        }
    }

    #[test]
    fn what_ships_has_the_shape_of_the_schema() {
        let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines")];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.extension().is_none_or(|e| e != "yml") {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                let file = path.display().to_string();
                deserialise::<PipelineFile>(&file, &text);
                let name = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
                let pipeline = language::parse(name, &file, &text).unwrap_or_else(|e| panic!("{e}"));
                assert!(pipeline.warnings.is_empty(), "{file}: {:?}", pipeline.warnings);
                seen += 1;
            }
        }
        assert!(seen >= 5, "only {seen} examples were found");
        deserialise::<DaemonFile>("mainstay.yml", crate::cli::init::MAINSTAY_YML);
        deserialise::<recovery::SourceFile>("postgres.yml", include_str!("../../backups/postgres.yml"));
        deserialise::<PipelineFile>("build.yml", crate::cli::init::BUILD_YML);
    }

    fn examples_in(page: &str) -> Vec<String> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/user-guide").join(page);
        let text = std::fs::read_to_string(path).unwrap();
        let blocks = text.split("```yaml\n").skip(1);
        blocks.map(|block| block.split("\n```").next().unwrap_or_default().to_owned() + "\n").collect()
    }

    #[test]
    fn the_examples_of_the_user_guide_are_right() {
        let pipelines = examples_in("pipelines.md");
        assert!(pipelines.len() >= 2);
        for text in pipelines {
            deserialise::<PipelineFile>("pipelines.md", &text);
            let read = language::parse("example".parse().unwrap(), "pipelines.md", &text);
            assert!(read.unwrap_or_else(|e| panic!("{e}")).warnings.is_empty(), "{text}");
        }
        // Each part of the settings stands by itself there; together they are one file.
        let parts = examples_in("configuration.md");
        assert!(parts.len() >= 3);
        let text = parts.concat();
        deserialise::<DaemonFile>("configuration.md", &text);
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let store = crate::config::secret::SecretStore::new(&state);
        for name in text.split("${secret:").skip(1).filter_map(|rest| rest.split('}').next()) {
            let board = name == "BOARD_URL";
            let value = if board { "https://chat.example.com/hook".into() } else { format!("0123456789abcdef-{name}") };
            store.set(name, &crate::config::secret::Secret::new(value)).unwrap();
        }
        store.set("DEPLOY_TOKEN", &crate::config::secret::Secret::new("x")).unwrap();
        let text = text
            .replace("${file:/run/keys/git}", "x")
            .replace("state: /var/lib/mainstay", &format!("state: {}", state.display()));
        let read = settings::parse("configuration.md", &text, &|_| None, folder.path());
        let read = read.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((read.environments.len(), read.notify.webhooks.len()), (2, 2));
        let repository = read.repository;
        assert!(matches!(repository.place, settings::RepositoryPlace::Bucket(_)) && repository.encrypt_to.len() == 1);
        let examples = examples_in("recovery.md");
        assert!(examples.len() >= 3);
        for text in examples {
            deserialise::<recovery::SourceFile>("recovery.md", &text);
            let name = "shop-db".parse().unwrap();
            for name in ["SHOP_DB", "CRM_DB", "NEW_DB"] {
                store.set(name, &crate::config::secret::Secret::new("x")).unwrap();
            }
            let (env, folder) = (|_: &str| None, folder.path());
            let around = sources::Around { env: &env, folder, store: &store, repos: Some(&["shop"]) };
            sources::parse(&name, "recovery.md", &text, &around).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}
