//! Whether the new version of a service may run beside the old one.

use serde_json::Value;

/// Which of two versions of a service goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The old one is stopped when the new one is well: no gap.
    StartFirst,
    /// The old one is stopped first: there is a gap, which the environment has to allow.
    StopFirst,
}

/// What a rendered service wants. The error is a message and what to try.
pub(super) fn order_of(name: &str, service: &Value, downtime_allowed: bool) -> Result<Order, (String, String)> {
    let allow = "say `downtime: allowed` in the environment";
    if let Some(port) = host_port(service) {
        if downtime_allowed {
            return Ok(Order::StopFirst);
        }
        return Err((
            format!(
                "service `{name}` publishes port {port} of its node: the new version cannot open it before the old one is stopped"
            ),
            format!("put a proxy before it that publishes the port and stays, or {allow}"),
        ));
    }
    match service["deploy"]["update_config"]["order"].as_str() {
        Some("stop-first") if downtime_allowed => Ok(Order::StopFirst),
        Some("stop-first") => Err((
            format!("service `{name}` wants the old version stopped before the new one serves"),
            format!("leave out `order: stop-first`, or {allow}"),
        )),
        Some(_) => Ok(Order::StartFirst),
        None => match kept(service) {
            Some(volume) => Err((
                format!("service `{name}` writes to `{volume}`, and for a moment two versions of it run at once"),
                format!(
                    "where that is harmless say `deploy: {{ update_config: {{ order: start-first }} }}`; for a database \
                     say `stop-first`, and {allow}"
                ),
            )),
            None => Ok(Order::StartFirst),
        },
    }
}

fn host_port(service: &Value) -> Option<String> {
    let ports = service["ports"].as_array()?;
    let port = ports.iter().find(|port| port["mode"] == "host" && !port["published"].is_null())?;
    Some(port["published"].as_str().map_or_else(|| port["published"].to_string(), str::to_owned))
}

/// What outlives a task and may be written to.
fn kept(service: &Value) -> Option<String> {
    service["volumes"].as_array()?.iter().find_map(|volume| match volume {
        Value::String(text) => {
            let parts: Vec<_> = text.split(':').collect();
            let read_only = parts.get(2).is_some_and(|options| options.split(',').any(|option| option == "ro"));
            (parts.len() > 1 && !read_only).then(|| parts[0].to_owned())
        }
        volume => {
            let kept = volume["type"] != "tmpfs" && volume["read_only"] != true;
            volume["source"].as_str().filter(|_| kept).map(str::to_owned)
        }
    })
}
