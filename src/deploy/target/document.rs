//! A Compose file, with images and variables put in. No I/O.
//!
//! In comes the file's text; out goes one JSON document (which is YAML) with sorted keys, the same for the same content.
//! Plain variables are put in, secrets stay `${NAME}`, and a literal dollar is `$$`, as Compose reads it too.

use super::{RenderInput, Rendered};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Where a rendered file says which commit its other files are of.
const OWN: &str = "x-mainstay";

/// Puts images and variables into a Compose file. `project` names what all versions share: volumes.
pub(super) fn render(input: &RenderInput, project: &str, side_by_side: bool) -> Result<Rendered, String> {
    let text = input.file.as_deref().ok_or("there is no Compose file at this commit")?;
    let mut document = crate::config::yaml::json("the Compose file", text).map_err(|wrong| wrong.to_string())?;
    fill(&mut document, input, "")?;
    let top = document.as_object_mut().ok_or("the Compose file is no mapping")?;
    // The file's version says nothing to a tool of today, and an old one would forbid what is put in here.
    top.remove("version");
    let services = top.get_mut("services").and_then(Value::as_object_mut).filter(|services| !services.is_empty());
    let services = services.ok_or("the Compose file has no `services`")?;
    if let Some(service) = input.images.keys().find(|service| !services.contains_key(*service)) {
        return Err(format!("the release has an image for `{service}`, and the Compose file has no such service"));
    }
    let mut replicas = BTreeMap::new();
    for (name, service) in services.iter_mut() {
        let service = service.as_object_mut().ok_or_else(|| format!("the service `{name}` is no mapping"))?;
        if let Some(image) = input.images.get(name) {
            service.insert("image".to_owned(), json!(image.replace('$', "$$")));
            service.remove("build");
        }
        check(name, service, side_by_side)?;
        replicas.insert(name.clone(), count(name, service)?);
    }
    share_volumes(top, project)?;
    top.insert(OWN.to_owned(), json!({ "commit": input.commit.as_str() }));
    document.sort_all_objects();
    let text = serde_json::to_string_pretty(&document).map_err(|error| error.to_string())?;
    Ok(Rendered { text: text + "\n", replicas })
}

fn check(name: &str, service: &Map<String, Value>, side_by_side: bool) -> Result<(), String> {
    if !service.contains_key("image") {
        return Err(format!(
            "the service `{name}` has no image: nothing is built at a deploy\nhint: build it in a step and give it as `images: {{ {name}: … }}`"
        ));
    }
    if service.contains_key("container_name") {
        return Err(format!(
            "the service `{name}` has a `container_name`, which the old and the new version cannot both have"
        ));
    }
    let ports = service.get("ports").and_then(Value::as_array).filter(|_| side_by_side);
    for port in ports.into_iter().flatten() {
        let fixed = match port {
            Value::String(text) => text.split('/').next().unwrap_or_default().contains(':'),
            Value::Object(port) => port.get("published").is_some_and(|p| !p.is_null() && p != 0 && p != "0"),
            _ => false,
        };
        if fixed {
            return Err(format!(
                "the service `{name}` has the host's port {port}, which the old and the new version cannot both have\nhint: give the container's port alone, and let `switch` lead the traffic"
            ));
        }
    }
    Ok(())
}

fn count(name: &str, service: &Map<String, Value>) -> Result<u64, String> {
    let written = service.get("scale").or_else(|| service.get("deploy")?.get("replicas"));
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    match written {
        None => Ok(1),
        Some(value) => {
            number(value).ok_or_else(|| format!("the service `{name}` has {value} replicas, which is no number"))
        }
    }
}

/// Data outlives a version: volumes get names that do not change with the project of each.
fn share_volumes(top: &mut Map<String, Value>, project: &str) -> Result<(), String> {
    let Some(volumes) = top.get_mut("volumes").and_then(Value::as_object_mut) else { return Ok(()) };
    for (name, volume) in volumes.iter_mut() {
        if volume.is_null() {
            *volume = json!({});
        }
        let settings = volume.as_object_mut().ok_or_else(|| format!("the volume `{name}` is no mapping"))?;
        if !is_external(settings) && !settings.contains_key("name") {
            settings.insert("name".to_owned(), json!(format!("{project}_{name}")));
        }
    }
    Ok(())
}

/// The commit that a rendered file's other files are of.
pub(super) fn commit_of(document: &Value) -> Option<crate::model::Oid> {
    document.get(OWN)?.get("commit")?.as_str()?.parse().ok()
}

/// Puts labels on every container of a rendered file.
pub(super) fn label(document: &mut Value, labels: &[(&str, String)]) {
    let services = document.get_mut("services").and_then(Value::as_object_mut).into_iter().flatten();
    for service in services.filter_map(|(_, service)| service.as_object_mut()) {
        add_labels(service, labels);
    }
}

/// Puts labels on every network that the project makes, also on the one that no file names: a try that was cut off may
/// have left its networks and nothing else.
pub(super) fn label_networks(document: &mut Value, labels: &[(&str, String)]) {
    let Some(top) = document.as_object_mut() else { return };
    let networks = top.entry("networks").or_insert_with(|| json!({}));
    if networks.is_null() {
        *networks = json!({});
    }
    let Some(networks) = networks.as_object_mut() else { return };
    networks.entry("default").or_insert(Value::Null);
    for (_, network) in networks.iter_mut() {
        if network.is_null() {
            *network = json!({});
        }
        let made = network.as_object_mut().filter(|network| !is_external(network));
        if let Some(network) = made {
            add_labels(network, labels);
        }
    }
}

fn is_external(settings: &Map<String, Value>) -> bool {
    settings.get("external").is_some_and(|external| *external != json!(false))
}

fn add_labels(of: &mut Map<String, Value>, labels: &[(&str, String)]) {
    let all = of.entry("labels").or_insert_with(|| json!({}));
    if let Value::Array(list) = all {
        list.extend(labels.iter().map(|(name, value)| json!(format!("{name}={value}"))));
    } else if let Value::Object(map) = all {
        map.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    }
}

/// Puts variables into every text of a document; `at` says where, for people.
fn fill(value: &mut Value, input: &RenderInput, at: &str) -> Result<(), String> {
    match value {
        Value::String(text) if text.contains('$') => {
            *text = fill_text(text, input).map_err(|why| format!("{at}: {why}"))?;
        }
        Value::Array(list) => {
            for (index, one) in list.iter_mut().enumerate() {
                fill(one, input, &format!("{at}[{index}]"))?;
            }
        }
        Value::Object(map) => {
            for (name, one) in map.iter_mut() {
                fill(one, input, &if at.is_empty() { name.clone() } else { format!("{at}.{name}") })?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn fill_text(text: &str, input: &RenderInput) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push_str("$$");
            rest = after;
            continue;
        }
        let inside = match rest.strip_prefix('{') {
            Some(after) => {
                let end = after.find('}').ok_or_else(|| format!("`{text}` has a `${{` without its `}}`"))?;
                rest = &after[end + 1..];
                &after[..end]
            }
            None => {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                rest = after;
                name
            }
        };
        let (name, otherwise) = inside.split_at(inside.find(|c| !is_name(c)).unwrap_or(inside.len()));
        if name.is_empty() {
            return Err(format!("`{text}` has a `$` that begins no name\nhint: a literal dollar is `$$`"));
        }
        if input.secret_names.iter().any(|secret| secret == name) {
            out.push_str(&format!("${{{name}}}"));
            continue;
        }
        let value = input.variables.get(name);
        let value = match otherwise.strip_prefix(":-") {
            Some(default) => value.filter(|value| !value.is_empty()).map_or(default, String::as_str),
            None => match (value, otherwise.strip_prefix('-')) {
                (Some(value), _) => value,
                (None, Some(default)) => default,
                (None, None) => {
                    return Err(format!(
                        "`${{{name}}}` is no variable of the environment\nhint: name it under `variables` of the environment in mainstay.yml"
                    ));
                }
            },
        };
        out.push_str(&value.replace('$', "$$"));
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
