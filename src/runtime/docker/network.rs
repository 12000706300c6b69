//! One small network per run, from a range of our own: the engine's own pools end after some thirty networks.

use super::engine::{Engine, status};
use crate::runtime::{RuntimeError, SpaceName};
use bollard::models::{Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptions;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Mutex;

/// A range of addresses, `10.213.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    start: u32,
    prefix: u8,
}

impl Cidr {
    fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    fn overlaps(self, other: Cidr) -> bool {
        let end = |range: Cidr| u64::from(range.start) + range.size();
        u64::from(self.start) < end(other) && u64::from(other.start) < end(self)
    }
}

impl FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no range of IPv4 addresses; write `10.213.0.0/16`");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| (1..=32).contains(p)).ok_or_else(bad)?;
        let mask = u32::MAX << (32 - prefix);
        Ok(Cidr { start: address.to_bits() & mask, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.start), self.prefix)
    }
}

/// Where Linux shows this machine's IPv4 routes: `man 5 proc_pid_net`, addresses in the machine's byte order.
const ROUTES: &str = "/proc/net/route";

/// Networks to which this machine has routes. What cannot be read says nothing: the engine may be far away.
fn routes(table: &str) -> impl Iterator<Item = Cidr> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let mut hex = |nth| Some(u32::from_be(u32::from_str_radix(words.nth(nth)?, 16).ok()?));
        let (start, mask) = (hex(1)?, hex(5)?);
        Some(Cidr { start: start & mask, prefix: mask.leading_ones() as u8 })
    })
}

/// Gives out subnets of the range that nobody in the engine uses, ours or not.
pub(super) struct Subnets {
    range: Cidr,
    prefix: u8,
    /// Numbers of subnets for which a create call is under way in this process.
    claimed: Mutex<BTreeSet<u32>>,
}

impl Subnets {
    /// The range must hold at least one subnet.
    pub(super) fn new(range: Cidr, prefix: u8) -> Result<Self, String> {
        if prefix < range.prefix || prefix > 29 {
            return Err(format!(
                "subnets of /{prefix} do not fit into {range}; take one between /{} and /29",
                range.prefix
            ));
        }
        Ok(Subnets { range, prefix, claimed: Mutex::default() })
    }

    /// How many runs can have a network at once.
    pub(super) fn total(&self) -> usize {
        1 << (self.prefix - self.range.prefix)
    }

    fn subnet(&self, number: u32) -> Cidr {
        Cidr { start: self.range.start + (number << (32 - self.prefix)), prefix: self.prefix }
    }

    /// Claims the first subnet that overlaps nothing of `taken`.
    fn claim(&self, taken: &[Cidr]) -> Option<Claim<'_>> {
        let mut claimed = self.claimed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let free = |number: &u32| !claimed.contains(number) && !taken.iter().any(|t| t.overlaps(self.subnet(*number)));
        let number = (0..self.total() as u32).find(free)?;
        claimed.insert(number);
        Some(Claim { subnets: self, number })
    }

    /// Makes a network for a space.
    pub(super) async fn create(&self, engine: &Engine, space: &SpaceName) -> Result<(), RuntimeError> {
        let mut taken = Vec::new();
        let listed = engine.api.list_networks(None::<ListNetworksOptions>).await;
        for network in listed.map_err(|e| engine.error("list the engine's networks", &e))? {
            let configs = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
            taken.extend(configs.iter().filter_map(|c| c.subnet.as_ref()?.parse::<Cidr>().ok()));
        }
        // Bridges of an engine that was killed stay without it, and would get the answers. A route to more than our
        // range, such as a VPN's, is no such thing: ours are the closer ones.
        let table = tokio::fs::read_to_string(ROUTES).await.unwrap_or_default();
        taken.extend(routes(&table).filter(|route| route.prefix > self.range.prefix));
        loop {
            let Some(claim) = self.claim(&taken) else {
                return Err(RuntimeError::NoNetworkLeft { range: self.range.to_string(), total: self.total() });
            };
            let subnet = self.subnet(claim.number);
            let request = NetworkCreateRequest {
                name: space.0.clone(),
                driver: Some("bridge".to_owned()),
                ipam: Some(Ipam {
                    config: Some(vec![IpamConfig { subnet: Some(subnet.to_string()), ..Default::default() }]),
                    ..Default::default()
                }),
                labels: Some(engine.space_labels(space)),
                ..Default::default()
            };
            match engine.api.create_network(request).await {
                Ok(made) => return only_one(engine, &space.0, &made.id).await,
                // Somebody else took it since we looked, or a route of the host is in the way: the next one.
                Err(e) if status(&e).is_some() && e.to_string().contains("overlap") => taken.push(subnet),
                Err(e) => return Err(engine.error("make the run's network", &e)),
            }
        }
    }
}

/// The engine lets two networks have one name. A daemon that was killed may have asked for one that is made only now, and no
/// container could join by the name: the others go.
async fn only_one(engine: &Engine, name: &str, ours: &str) -> Result<(), RuntimeError> {
    for other in ids_of(engine, name).await?.into_iter().filter(|id| id != ours) {
        super::space::remove_network(engine, &other).await?;
    }
    Ok(())
}

/// All networks of exactly this name.
pub(super) async fn ids_of(engine: &Engine, name: &str) -> Result<Vec<String>, RuntimeError> {
    let filters = HashMap::from([("name".to_owned(), vec![name.to_owned()])]);
    let listed = engine.api.list_networks(Some(ListNetworksOptions { filters: Some(filters) })).await;
    let listed = listed.map_err(|e| engine.error(format!("find the networks called {name}"), &e))?;
    Ok(listed.into_iter().filter(|network| network.name.as_deref() == Some(name)).filter_map(|one| one.id).collect())
}

struct Claim<'a> {
    subnets: &'a Subnets,
    number: u32,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = self.subnets.claimed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        claimed.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_in_use_by_anybody_are_not_given_out() {
        let subnets = Subnets::new(range("10.213.0.0/23"), 25).unwrap();
        assert_eq!(subnets.total(), 4);
        let taken = [range("10.213.0.128/25"), range("10.213.1.64/30"), range("172.17.0.0/16")];
        let first = subnets.claim(&taken).unwrap();
        assert_eq!(subnets.subnet(first.number).to_string(), "10.213.0.0/25");
        let second = subnets.claim(&taken).unwrap();
        assert_eq!(subnets.subnet(second.number).to_string(), "10.213.1.128/25");
        assert!(subnets.claim(&taken).is_none());
        drop(first);
        assert_eq!(subnets.claim(&taken).map(|c| c.number), Some(0));
        assert!(subnets.claim(&[range("10.0.0.0/8")]).is_none());
    }

    #[test]
    fn routes_are_read_as_the_kernel_writes_them() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     br-1\t8000D50A\t00000000\t0001\t0\t0\t0\t80FFFFFF\t0\t0\t0\n\
                     half a line\n";
        let found: Vec<_> = routes(table).map(|route| route.to_string()).collect();
        assert_eq!(found, ["0.0.0.0/0", "10.213.0.128/25"]);
    }

    #[test]
    fn nonsense_ranges_are_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.0/0", "10.0.0.0/33", "10.0.0/8", "::/64"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert!(Subnets::new(range("10.0.0.0/26"), 25).is_err());
        assert!(Subnets::new(range("10.0.0.0/16"), 30).is_err());
    }
}
