//! Two hundred steps, fifty wide, against the same containers made, started and waited for by a bare loop.

use crate::lab::{Lab, docker, now, seconds};
use crate::numbers::{Budget, Report, Samples, print};
use crate::{Effort, tree};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, MountType};
use bollard::query_parameters::{CreateContainerOptions, InspectContainerOptions, WaitContainerOptions};
use futures_util::StreamExt;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Names what the floor makes, beside our process id.
const FLOOR: &str = "mainstay-bench-floor";

pub(crate) fn measure(lab: &Lab, effort: Effort, report: &mut Report) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let api = Docker::connect_with_local_defaults().expect("the engine answers");
    let like = runtime.block_on(host_config(lab, &api));
    let (mut mine, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..effort.of(4, 1) {
        let ended = lab.with(|daemon| {
            let asked = now();
            let detail = daemon.ended(daemon.trigger("wide"));
            daemon.rest();
            seconds(&detail["finished_at"]) - asked
        });
        mine.push(ended * 1e3);
        floor.push(runtime.block_on(bare_loop(&api, &like)) * 1e3);
    }
    print(format_args!("  ours: `mainstay trigger` typed -> run ended  {}", mine.shown("ms")));
    print(format_args!("  floor: create, start, wait, {} at once       {}", tree::WIDE, floor.shown("ms")));
    report.figure(
        "wide: 200 steps, 50 wide / the engine's floor",
        mine.median() / floor.median(),
        "x",
        Budget::AtMost(1.1),
    );
}

/// How a step of ours is set up in the engine: copied from one that runs, so that the floor has the same work to do.
async fn host_config(lab: &Lab, api: &Docker) -> HostConfig {
    let (run, name) = lab.with(|daemon| {
        let run = daemon.trigger("beside");
        let name = format!("mainstay-{}-r{run}-s1-a1", daemon.instance());
        (run, name)
    });
    let mut found = None;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(seen) = api.inspect_container(&name, None::<InspectContainerOptions>).await else { continue };
        if seen.state.as_ref().and_then(|state| state.running) == Some(true) {
            found = seen.host_config;
            break;
        }
    }
    lab.with(|daemon| {
        daemon.command(&["cancel", &run.to_string()]);
        daemon.rest();
    });
    found.expect("a step's container was seen")
}

async fn bare_loop(api: &Docker, like: &HostConfig) -> f64 {
    // Of its own each time: see `remove_network`.
    static ROUND: AtomicU8 = AtomicU8::new(0);
    let round = ROUND.fetch_add(1, Ordering::Relaxed);
    let own = format!("{FLOOR}-{}-{round}", std::process::id());
    docker(&["network", "create", "--subnet", &format!("10.212.{}.0/24", 255 - round), &own]);
    docker(&["volume", "create", &own]);
    let mut host_config = like.clone();
    host_config.network_mode = Some(own.clone());
    for mount in host_config.mounts.iter_mut().flatten() {
        if mount.typ == Some(MountType::VOLUME) && mount.target.as_deref() == Some("/workspace") {
            mount.source = Some(own.clone());
        }
    }
    let body = ContainerCreateBody {
        image: Some(tree::IMAGE.to_owned()),
        entrypoint: Some(vec!["true".to_owned()]),
        host_config: Some(host_config),
        ..Default::default()
    };
    let before = now();
    futures_util::stream::iter(0..tree::WIDE * tree::LAYERS)
        .for_each_concurrent(tree::WIDE, |n| {
            let (name, body) = (format!("{own}-{n}"), body.clone());
            async move {
                let options = CreateContainerOptions { name: Some(name.clone()), ..Default::default() };
                api.create_container(Some(options), body).await.expect("a container is made");
                api.start_container(&name, None).await.expect("a container starts");
                let options = WaitContainerOptions { condition: "not-running".to_owned() };
                let ended = api.wait_container(&name, Some(options)).boxed().next().await;
                ended.expect("the wait ends").expect("the container ends well");
            }
        })
        .await;
    let took = now() - before;
    let names: Vec<String> = (0..tree::WIDE * tree::LAYERS).map(|n| format!("{own}-{n}")).collect();
    let mut remove = vec!["rm", "-f"];
    remove.extend(names.iter().map(String::as_str));
    docker(&remove);
    remove_network(&own);
    docker(&["volume", "rm", &own]);
    took
}

/// Engines under load now and then keep an endpoint of a container that is gone for a while, some until they restart.
/// A network left behind is said and does not spoil the figure.
fn remove_network(name: &str) {
    for _ in 0..10 {
        let removed = Command::new("docker").args(["network", "rm", name]).output().expect("docker starts");
        if removed.status.success() {
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    print(format_args!("  the engine does not let go of the network {name}; `docker network rm` it after its restart"));
}
