//! Turns under a limit, fair between repositories: next is the repository that holds the fewest, and among those the one
//! whose last turn is longest ago.
//!
//! `drive` asks for a turn before every attempt and gives it back when the attempt ended. A repository that queues a
//! thousand steps therefore delays another one's single step by at most one turn.

use crate::model::RepoName;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Hands out at most `limit` turns at once.
#[derive(Debug, Clone)]
pub struct Turns {
    shared: Arc<Mutex<Queue>>,
}

#[derive(Debug)]
struct Queue {
    limit: usize,
    held: BTreeMap<RepoName, usize>,
    /// When each repository last got a turn, as a count of all turns: settles ties.
    last: BTreeMap<RepoName, u64>,
    granted: u64,
    waiting: BTreeMap<RepoName, VecDeque<oneshot::Sender<()>>>,
}

/// A turn; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    repo: RepoName,
}

impl Turns {
    /// At most `limit` at once; 0 counts as 1.
    pub fn new(limit: usize) -> Self {
        let queue = Queue {
            limit: limit.max(1),
            held: BTreeMap::new(),
            last: BTreeMap::new(),
            granted: 0,
            waiting: BTreeMap::new(),
        };
        Turns { shared: Arc::new(Mutex::new(queue)) }
    }

    /// Changes the limit; turns that are held stay held.
    pub fn set_limit(&self, limit: usize) {
        let mut queue = self.queue();
        queue.limit = limit.max(1);
        queue.hand_out();
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    pub async fn take(&self, repo: &RepoName) -> Turn {
        let receiver = {
            let mut queue = self.queue();
            let (sender, receiver) = oneshot::channel();
            queue.waiting.entry(repo.clone()).or_default().push_back(sender);
            queue.hand_out();
            receiver
        };
        let ticket = Ticket { turns: self.clone(), repo: repo.clone(), receiver };
        ticket.wait().await
    }

    /// A turn, when one is free and nobody waits for it.
    pub fn try_take(&self, repo: &RepoName) -> Option<Turn> {
        let mut queue = self.queue();
        // Whoever stopped waiting has left its place behind.
        queue.hand_out();
        if !queue.waiting.is_empty() || queue.held.values().sum::<usize>() >= queue.limit {
            return None;
        }
        queue.grant(repo.clone());
        drop(queue);
        Some(Turn { turns: self.clone(), repo: repo.clone() })
    }

    /// Takes over a turn for something that already runs (after a restart), even above the limit.
    pub fn seize(&self, repo: &RepoName) -> Turn {
        *self.queue().held.entry(repo.clone()).or_default() += 1;
        Turn { turns: self.clone(), repo: repo.clone() }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, repo: &RepoName) {
        let mut queue = self.queue();
        if let Some(held) = queue.held.get_mut(repo) {
            *held -= 1;
            if *held == 0 {
                queue.held.remove(repo);
            }
        }
        queue.hand_out();
    }
}

/// A place in the queue whose turn, when granted but never picked up, goes back.
struct Ticket {
    turns: Turns,
    repo: RepoName,
    receiver: oneshot::Receiver<()>,
}

impl Ticket {
    async fn wait(mut self) -> Turn {
        // The sender lives in the queue until it is granted, and the queue lives as long as `turns`.
        let _ = (&mut self.receiver).await;
        let turn = Turn { turns: self.turns.clone(), repo: self.repo.clone() };
        // Picked up: from here the turn itself gives back.
        self.receiver.close();
        turn
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Granted between the last poll and this drop: nobody will use it.
        if self.receiver.try_recv().is_ok() {
            self.turns.give_back(&self.repo);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.give_back(&self.repo);
    }
}

impl Queue {
    fn hand_out(&mut self) {
        while self.held.values().sum::<usize>() < self.limit {
            let Some(repo) = self.next_repo() else { return };
            let Some(waiting) = self.waiting.get_mut(&repo) else { return };
            let granted = waiting.pop_front().is_some_and(|ticket| ticket.send(()).is_ok());
            if waiting.is_empty() {
                self.waiting.remove(&repo);
            }
            if granted {
                self.grant(repo);
            }
        }
    }

    fn grant(&mut self, repo: RepoName) {
        self.granted += 1;
        self.last.insert(repo.clone(), self.granted);
        *self.held.entry(repo).or_default() += 1;
    }

    fn next_repo(&self) -> Option<RepoName> {
        let rank =
            |repo: &&RepoName| (self.held.get(*repo).copied().unwrap_or(0), self.last.get(*repo).copied().unwrap_or(0));
        self.waiting.keys().min_by_key(rank).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn repo(name: &str) -> RepoName {
        RepoName::new(name).unwrap()
    }

    #[tokio::test]
    async fn never_more_than_the_limit_and_each_turn_comes_back() {
        let turns = Turns::new(2);
        let (a, b) = (turns.take(&repo("a")).await, turns.take(&repo("a")).await);
        let third = tokio::time::timeout(Duration::from_millis(20), turns.take(&repo("a"))).await;
        assert!(third.is_err(), "a third turn under a limit of two");
        drop(a);
        let c = turns.take(&repo("a")).await;
        drop((b, c));
        assert!(turns.queue().held.is_empty());
        assert!(turns.queue().waiting.values().all(VecDeque::is_empty), "a dropped wait left its place behind");
    }

    #[tokio::test]
    async fn a_free_turn_is_had_at_once_but_never_before_those_who_wait() {
        let turns = Turns::new(1);
        let held = turns.try_take(&repo("a")).expect("nobody holds it");
        assert!(turns.try_take(&repo("b")).is_none(), "a second turn under a limit of one");
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(&repo("b")).await }
        });
        tokio::task::yield_now().await;
        drop(held);
        assert!(turns.try_take(&repo("a")).is_none(), "the turn of the one who waited was taken");
        drop(waiting.await.unwrap());
        assert!(turns.try_take(&repo("a")).is_some());
    }

    #[tokio::test]
    async fn a_small_repository_is_not_kept_waiting_by_a_big_one() {
        let turns = Turns::new(1);
        let first = turns.take(&repo("big")).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in ["big", "big", "big", "small"] {
            let (turns, order) = (turns.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(&repo(name)).await;
                order.lock().unwrap().push(name);
            }));
            tokio::task::yield_now().await;
        }
        // `big` holds a turn while `small` waits with none: `small` is next, whatever came first.
        let second_slot = turns.seize(&repo("big"));
        drop(first);
        drop(second_slot);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(order.lock().unwrap().len(), 4);
        assert_eq!(order.lock().unwrap()[0], "small");
    }
}
