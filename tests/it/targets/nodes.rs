//! A swarm of three nodes, one of which is lost. Part of `make soak`.

use super::lab::release_of;
use crate::support::nodes::Nodes;
use mainstay::config::daemon::environment::SwarmTarget;
use mainstay::deploy::target::swarm::Swarm;
use mainstay::deploy::target::{Apply, RenderInput, Target, TargetError};
use mainstay::model::EnvironmentName;
use mainstay::model::deploy::Release;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const STACK: &str = "
services:
  app:
    networks: [net]
    healthcheck: { test: [CMD, /app, health] }
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
      placement: { max_replicas_per_node: 2, preferences: [{ spread: node.id }] }
networks: { net: {} }
";

fn swarm(nodes: &Nodes) -> Swarm {
    let config = SwarmTarget {
        stack: "stack.yml".to_owned(),
        repo: "shop".parse().unwrap(),
        name: "shop".to_owned(),
        host: Some(nodes.host(1)),
    };
    Swarm::new(&config, false).unwrap()
}

fn release(target: &Swarm, number: u64, image: &str) -> Release {
    let environment: EnvironmentName = "production".parse().unwrap();
    let images = BTreeMap::from([("app".to_owned(), image.to_owned())]);
    let rendered = target.render(&RenderInput {
        environment: environment.clone(),
        file: Some(STACK.to_owned()),
        commit: "1".repeat(40).parse().unwrap(),
        images: images.clone(),
        variables: BTreeMap::new(),
        secret_names: Vec::new(),
    });
    release_of("swarm", &environment, number, images, rendered.unwrap())
}

async fn apply(target: &Swarm, release: &Release, within: u64) -> Result<(), TargetError> {
    let began = Instant::now();
    let apply = Apply {
        release,
        secrets: &BTreeMap::new(),
        name: "mainstay-production",
        timeout: Duration::from_secs(within),
        progress: &|line| println!("{:6} ms {line}", began.elapsed().as_millis()),
    };
    target.apply(&apply).await
}

async fn healthy(target: &Swarm) -> usize {
    let seen = target.observe().await.unwrap_or_else(|error| panic!("failed to {error}"));
    seen.instances.iter().filter(|instance| instance.healthy).count()
}

#[tokio::test]
async fn soak_a_lost_node_takes_no_service_with_it_and_a_deploy_meanwhile_ends() {
    let nodes = Nodes::start(3);
    let (one, two) =
        (nodes.publish("mainstay-test/app:one", "app:one"), nodes.publish("mainstay-test/app:two", "app:two"));
    let target = swarm(&nodes);
    println!("{}", target.ping().await.unwrap());

    // An image of one node alone is refused.
    let local = nodes.docker(1, &["image", "inspect", "--format", "{{.Id}}", &one]);
    match apply(&target, &release(&target, 1, &local), 120).await {
        Err(TargetError::Missing(why)) => assert!(why.contains("only on one of the 3 nodes"), "{why}"),
        other => panic!("{other:?}"),
    }

    let first = release(&target, 1, &one);
    apply(&target, &first, 120).await.unwrap_or_else(|error| panic!("failed to {error}"));
    assert_eq!(healthy(&target).await, 2);
    // The worker with a task on it, so that something is lost.
    let running =
        nodes.docker(1, &["stack", "ps", "shop", "--filter", "desired-state=running", "--format", "{{.Node}}"]);
    let lost = (2..=3).find(|n| running.lines().any(|node| node == nodes.names[n - 1])).expect("a worker has a task");
    println!("node {lost} of {running:?} is lost");
    let began = Instant::now();
    nodes.lose(lost);

    // A deploy that begins before the managers have noticed.
    let second = release(&target, 2, &two);
    let ended = apply(&target, &second, 120).await;
    println!("swarm: a deploy during the loss of a node ended after {} ms: {ended:?}", began.elapsed().as_millis());
    let shown = match ended {
        Ok(()) => &two,
        Err(TargetError::Bad { why, left }) => {
            println!("{left:?}: {why}");
            apply(&target, &first, 120).await.unwrap_or_else(|error| panic!("failed to {error}"));
            &one
        }
        Err(other) => panic!("failed to {other}"),
    };
    let seen = target.observe().await.unwrap();
    assert_eq!(&seen.items["app.image"], shown);
    assert_eq!(healthy(&target).await, 2, "{:?}", seen.instances);
    println!("swarm: two of two replicas on the nodes left, {} ms after the loss", began.elapsed().as_millis());
}
