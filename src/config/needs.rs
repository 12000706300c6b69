//! The graph that the steps' `needs` make: order without `needs`, whole cycles by name, and what comes before what.

use crate::model::StepName;
use petgraph::algo::tarjan_scc;
use petgraph::graph::DiGraph;
use std::collections::{HashMap, HashSet};

/// The needs of each step, as positions in the list of steps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needs(pub(crate) Vec<Vec<usize>>);

impl Needs {
    /// From names; a name that no step has is left out.
    pub(crate) fn of<'a>(steps: impl Iterator<Item = (&'a StepName, &'a [StepName])> + Clone) -> Self {
        let positions: HashMap<&StepName, usize> = steps.clone().enumerate().map(|(n, (name, _))| (name, n)).collect();
        Needs(steps.map(|(_, needs)| needs.iter().filter_map(|name| positions.get(name).copied()).collect()).collect())
    }

    /// Every cycle, whole and in the order in which its steps need each other. At most one per knot of cycles.
    pub(crate) fn cycles(&self) -> Vec<Vec<usize>> {
        let mut graph = DiGraph::<(), ()>::new();
        let nodes: Vec<_> = self.0.iter().map(|_| graph.add_node(())).collect();
        for (step, needs) in self.0.iter().enumerate() {
            for need in needs {
                graph.add_edge(nodes[step], nodes[*need], ());
            }
        }
        let mut cycles = Vec::new();
        for component in tarjan_scc(&graph) {
            let members: HashSet<usize> = component.iter().map(|n| n.index()).collect();
            let Some(first) = members.iter().copied().min() else { continue };
            if members.len() > 1 || self.0[first].contains(&first) {
                cycles.push(self.walk(first, &members));
            }
        }
        cycles.sort();
        cycles
    }

    /// The shortest way from `start` back to itself inside one knot.
    fn walk(&self, start: usize, members: &HashSet<usize>) -> Vec<usize> {
        let mut came_from: HashMap<usize, usize> = HashMap::new();
        let mut queue = std::collections::VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for &need in self.0[at].iter().filter(|need| members.contains(need)) {
                if need == start {
                    let mut way = vec![at];
                    while let Some(&before) = came_from.get(way.last().unwrap_or(&start)) {
                        way.push(before);
                    }
                    way.reverse();
                    return way;
                }
                if let std::collections::hash_map::Entry::Vacant(slot) = came_from.entry(need) {
                    slot.insert(at);
                    queue.push_back(need);
                }
            }
        }
        vec![start]
    }

    /// Positions in an order in which each step comes after all it needs, and otherwise as written. Only without cycles;
    /// what hangs on a cycle is left out.
    pub(crate) fn order(&self) -> Vec<usize> {
        let mut missing: Vec<usize> = self.0.iter().map(Vec::len).collect();
        let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); self.0.len()];
        for (step, needs) in self.0.iter().enumerate() {
            for &need in needs {
                needed_by[need].push(step);
            }
        }
        let mut ready: std::collections::BTreeSet<usize> =
            missing.iter().enumerate().filter(|(_, left)| **left == 0).map(|(n, _)| n).collect();
        let mut order = Vec::with_capacity(self.0.len());
        while let Some(step) = ready.pop_first() {
            order.push(step);
            for &next in &needed_by[step] {
                missing[next] -= 1;
                if missing[next] == 0 {
                    ready.insert(next);
                }
            }
        }
        order
    }

    /// All steps that must have ended before this one starts, however indirectly.
    pub(crate) fn before(&self, step: usize) -> HashSet<usize> {
        let mut seen = HashSet::new();
        let mut stack = self.0[step].clone();
        while let Some(at) = stack.pop() {
            if seen.insert(at) {
                stack.extend(&self.0[at]);
            }
        }
        seen
    }

    /// A longest chain in which each step is needed by the next: steps of which no two can ever run at once.
    pub(crate) fn longest_chain(&self) -> Vec<usize> {
        let mut best: Vec<(usize, Option<usize>)> = vec![(0, None); self.0.len()];
        let mut end = None;
        for step in self.order() {
            let before = self.0[step].iter().copied().max_by_key(|&need| (best[need].0, std::cmp::Reverse(need)));
            best[step] = (before.map_or(1, |need| best[need].0 + 1), before);
            if end.is_none_or(|e: usize| best[step].0 > best[e].0) {
                end = Some(step);
            }
        }
        let mut chain: Vec<usize> = std::iter::successors(end, |&step| best[step].1).collect();
        chain.reverse();
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cycles_are_whole_and_in_order() {
        // 0 needs 2, 2 needs 1, 1 needs 0; 3 needs itself; 4 needs 0 but is in no cycle.
        let needs = Needs(vec![vec![2], vec![0], vec![1], vec![3], vec![0]]);
        assert_eq!(needs.cycles(), [vec![0, 2, 1], vec![3]]);
        assert!(Needs(vec![vec![], vec![0], vec![0, 1]]).cycles().is_empty());
    }

    fn graphs() -> impl Strategy<Value = Needs> {
        (1_usize..25).prop_flat_map(|n| {
            proptest::collection::vec((0..n, 0..n), 0..60).prop_map(move |edges| {
                let mut needs = vec![Vec::new(); n];
                for (a, b) in edges {
                    if a != b && !needs[a.max(b)].contains(&a.min(b)) {
                        needs[a.max(b)].push(a.min(b));
                    }
                }
                Needs(needs)
            })
        })
    }

    proptest! {
        #[test]
        fn no_two_steps_of_the_chain_can_run_at_once(needs in graphs()) {
            let n = needs.0.len();
            // Reachability by brute force: Floyd and Warshall.
            let mut reach = vec![vec![false; n]; n];
            for (step, list) in needs.0.iter().enumerate() {
                for &need in list { reach[step][need] = true; }
            }
            for k in 0..n { for i in 0..n { for j in 0..n {
                reach[i][j] |= reach[i][k] && reach[k][j];
            }}}
            let chain = needs.longest_chain();
            prop_assert!(!chain.is_empty());
            for (i, &a) in chain.iter().enumerate() {
                for &b in &chain[i + 1..] {
                    prop_assert!(reach[b][a], "{a} and {b} may run at once");
                }
            }
            for (step, reached) in reach.iter().enumerate() {
                let before = needs.before(step);
                for (other, reached) in reached.iter().enumerate() {
                    prop_assert_eq!(*reached, before.contains(&other));
                }
            }
            let order = needs.order();
            prop_assert_eq!(order.len(), n);
            for (i, step) in order.iter().enumerate() {
                for need in &needs.0[*step] {
                    prop_assert!(order[..i].contains(need));
                }
            }
        }
    }
}
