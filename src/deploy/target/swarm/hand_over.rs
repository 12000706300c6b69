//! What of a release is handed to the engine's client: the rendered document, with the secrets' values and with our labels.

use crate::deploy::target::TargetError;
use crate::model::deploy::Release;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// On every service: whose it is.
pub(super) const ENVIRONMENT: &str = "mainstay.environment";
/// On every service: the number of the release it was last brought to.
pub(super) const RELEASE: &str = "mainstay.release";
/// On a service with secrets: which of its settings hold one, so that they are shown as digests.
pub(super) const SECRETS: &str = "mainstay.secrets";

/// How one service is to be brought to the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Manner {
    /// What it was before is nothing the engine should put back by itself: when it fails it stays as it is.
    pub(super) no_way_back: bool,
    /// All replicas at once: it is on its way back, or does not serve.
    pub(super) at_once: bool,
}

/// The document for the client. `manners` by service; the usual one where it names none.
pub(super) fn document(
    release: &Release,
    secrets: &BTreeMap<String, String>,
    manners: &BTreeMap<String, Manner>,
) -> Result<Value, TargetError> {
    let broken = |why: String| TargetError::Render(format!("release {} is no stack: {why}", release.number));
    let mut document: Value = serde_json::from_str(&release.rendered).map_err(|error| broken(error.to_string()))?;
    let services = document["services"].as_object_mut().ok_or_else(|| broken("it has no services".to_owned()))?;
    for (name, service) in services.iter_mut() {
        let mut labels = vec![(ENVIRONMENT, release.environment.to_string()), (RELEASE, release.number.to_string())];
        let hidden = with_secrets(service);
        if !hidden.is_empty() {
            labels.push((SECRETS, hidden.join(",")));
        }
        let deploy = &mut service["deploy"];
        for (label, value) in labels {
            match &mut deploy["labels"] {
                Value::Array(list) => list.push(json!(format!("{label}={value}"))),
                labels => labels[label] = json!(value),
            }
        }
        let manner = manners.get(name).copied().unwrap_or_default();
        if manner.no_way_back {
            deploy["update_config"]["failure_action"] = json!("pause");
        }
        if manner.at_once {
            deploy["update_config"]["parallelism"] = json!(0);
        }
    }
    fill(&mut document, secrets)?;
    Ok(document)
}

/// The names of a service's settings that hold a secret: `env.NAME`, or the key of the file.
fn with_secrets(service: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in service.as_object().into_iter().flatten() {
        match (key.as_str(), value) {
            ("environment", Value::Object(entries)) => {
                names.extend(entries.iter().filter(|(_, value)| holds(value)).map(|(name, _)| format!("env.{name}")));
            }
            ("environment", Value::Array(list)) => {
                names.extend(list.iter().filter(|entry| holds(entry)).map(|entry| {
                    let name = entry.as_str().unwrap_or_default().split('=').next().unwrap_or_default();
                    format!("env.{name}")
                }));
            }
            _ if holds(value) => names.push(key.clone()),
            _ => {}
        }
    }
    names
}

fn holds(value: &Value) -> bool {
    match value {
        Value::String(text) => fill_text(text, &mut |_| None).is_err(),
        Value::Array(items) => items.iter().any(holds),
        Value::Object(entries) => entries.values().any(holds),
        _ => false,
    }
}

fn fill(value: &mut Value, secrets: &BTreeMap<String, String>) -> Result<(), TargetError> {
    match value {
        Value::String(text) => {
            let filled = fill_text(text, &mut |name| secrets.get(name).cloned());
            *text = filled.map_err(|name| {
                TargetError::Render(format!(
                    "the secret `{name}` has no value\nhint: `mainstay secrets set {name}`, or name it under `variables` of the environment"
                ))
            })?;
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| fill(item, secrets)),
        Value::Object(entries) => entries.values_mut().try_for_each(|value| fill(value, secrets)),
        _ => Ok(()),
    }
}

/// Puts in values; `$$` stays, for the client reads it as a dollar. The error is the name that has no value.
fn fill_text(text: &str, value_of: &mut dyn FnMut(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push_str("$$");
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            out.push_str(&value_of(name).ok_or_else(|| name.to_owned())?.replace('$', "$$"));
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RunId;
    use crate::model::deploy::Provenance;

    fn release(rendered: Value) -> Release {
        Release {
            environment: "production".parse().unwrap(),
            number: 7,
            at: jiff::Timestamp::UNIX_EPOCH,
            provenance: Provenance {
                repo: "shop".parse().unwrap(),
                git_ref: "refs/heads/main".to_owned(),
                commit: "1".repeat(40).parse().unwrap(),
                pipeline: "deploy".parse().unwrap(),
                run: RunId(1),
                actor: None,
            },
            images: BTreeMap::new(),
            target: "swarm".to_owned(),
            rendered: rendered.to_string(),
            config_hash: String::new(),
            replicas: BTreeMap::new(),
            secrets: BTreeMap::new(),
            schema: None,
            recovery_point: "none".to_owned(),
            promoted_from: None,
        }
    }

    #[test]
    fn secrets_and_labels_are_put_in_and_dollars_stay_dollars() {
        let release = release(json!({ "services": {
            "api": {
                "command": ["run", "$${HOME}", "--key=${KEY}"],
                "environment": { "PASSWORD": "${PASSWORD}", "PLAIN": "5$$" },
                "deploy": { "labels": ["team=a"], "update_config": { "failure_action": "rollback", "parallelism": 1 } },
            },
            "web": { "environment": ["TOKEN=x${KEY}"], "deploy": { "update_config": {} } },
        } }));
        let secrets =
            [("KEY", "k"), ("PASSWORD", "a$b${KEY}")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let manners = BTreeMap::from([("api".to_owned(), Manner { no_way_back: true, at_once: true })]);
        let found = document(&release, &secrets.into(), &manners).unwrap();
        let api = &found["services"]["api"];
        assert_eq!(api["command"], json!(["run", "$${HOME}", "--key=k"]));
        assert_eq!(api["environment"], json!({ "PASSWORD": "a$$b$${KEY}", "PLAIN": "5$$" }));
        assert_eq!(
            api["deploy"]["labels"],
            json!([
                "team=a",
                "mainstay.environment=production",
                "mainstay.release=7",
                "mainstay.secrets=command,env.PASSWORD"
            ])
        );
        assert_eq!(api["deploy"]["update_config"], json!({ "failure_action": "pause", "parallelism": 0 }));
        let web = &found["services"]["web"];
        assert_eq!(web["environment"], json!(["TOKEN=xk"]));
        assert_eq!(web["deploy"]["labels"]["mainstay.secrets"], "env.TOKEN");
        assert_eq!(web["deploy"]["update_config"], json!({}));
    }

    #[test]
    fn a_secret_without_a_value_is_named() {
        let release = release(json!({ "services": { "api": { "user": "${KEY}" } } }));
        let error = document(&release, &BTreeMap::new(), &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.starts_with("render the release: the secret `KEY` has no value\nhint: "), "{error}");
    }
}
