//! The core against a store that is only a set of ranges: any chunking, any order of answers, crashes anywhere.

use super::super::resume::Archive;
use super::*;
use crate::backup::repository::{Cluster, Item, Key};
use crate::model::{SourceName, SystemId, Timeline};
use proptest::prelude::*;
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
const EVERY: Duration = Duration::from_secs(1);

fn rules(segment: u64, synchronous: bool) -> Rules {
    Rules { segment: SegmentSize::new(segment).unwrap(), ship_every: EVERY, synchronous }
}

/// The log: each byte follows from its place. It repeats, at no length that anything here is cut at.
fn log(first: u64, last: u64) -> Vec<u8> {
    const PERIOD: usize = (1 << 20) - 3;
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let bytes = BYTES
        .get_or_init(|| (0..PERIOD as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29) as u8).collect());
    let mut log = Vec::with_capacity((last - first) as usize);
    while log.len() < (last - first) as usize {
        let at = (first as usize + log.len()) % PERIOD;
        let left = (last - first) as usize - log.len();
        log.extend_from_slice(&bytes[at..PERIOD.min(at + left)]);
    }
    log
}

fn feed(assembler: &mut Assembler, bytes: u64, now: Instant) -> Vec<Cut> {
    let from = assembler.received();
    assembler.bytes(from, &log(from.0, from.0 + bytes), now).unwrap()
}

#[test]
fn a_lone_commit_goes_at_once_and_a_busy_servers_after_ship_every() {
    let began = Instant::now();
    let mut assembler = Assembler::new(rules(MIB, false), Lsn(MIB), Lsn(MIB), Vec::new(), began);
    let at = |millis| began + Duration::from_millis(millis);
    assert_eq!(assembler.due(at(5000)), None);
    feed(&mut assembler, 100, at(5000));
    let cut = assembler.due(at(5000)).unwrap();
    assert_eq!((cut.range, cut.segment), ((Lsn(MIB), Lsn(MIB + 100)), false));
    feed(&mut assembler, 100, at(5100));
    assert_eq!((assembler.due(at(5999)), assembler.next_due(at(5999))), (None, Some(at(6000))));
    assert_eq!(assembler.due(at(6000)).unwrap().range, (Lsn(MIB + 100), Lsn(MIB + 200)));
    assert_eq!(assembler.oldest_waiting(), Some(at(5000)));
    // Stored out of order: nothing is durable until the first one is.
    assembler.stored((Lsn(MIB + 100), Lsn(MIB + 200)), false);
    assert_eq!(assembler.durable(), Lsn(MIB));
    assembler.stored(cut.range, false);
    assert_eq!((assembler.durable(), assembler.oldest_waiting()), (Lsn(MIB + 200), None));
}

#[test]
fn a_segment_that_fills_within_ship_every_has_no_piece_and_a_slow_one_replaces_its_pieces() {
    let now = Instant::now();
    let mut assembler = Assembler::new(rules(MIB, false), Lsn(0), Lsn(0), Vec::new(), now);
    let whole = feed(&mut assembler, MIB + 10, now);
    assert_eq!(whole.len(), 1);
    assert_eq!((whole[0].range, whole[0].segment, &whole[0].bytes[..]), ((Lsn(0), Lsn(MIB)), true, &log(0, MIB)[..]));
    let piece = assembler.due(now + EVERY).unwrap();
    assert_eq!(piece.range, (Lsn(MIB), Lsn(MIB + 10)));
    assert_eq!(assembler.stored(piece.range, false), []);
    let next = feed(&mut assembler, MIB - 10, now + EVERY);
    assert_eq!(next[0].range, (Lsn(MIB), Lsn(2 * MIB)));
    assert_eq!(assembler.stored(next[0].range, true), [piece.range]);
    assert_eq!(assembler.durable(), Lsn(0));
    assembler.stored(whole[0].range, true);
    assert_eq!(assembler.durable(), Lsn(2 * MIB));
}

#[test]
fn a_store_that_hangs_makes_pieces_larger_and_then_stops_the_reading() {
    let began = Instant::now();
    let mut assembler = Assembler::new(rules(MIB, false), Lsn(0), Lsn(0), Vec::new(), began);
    let mut cuts = 0;
    for second in 1..60 {
        feed(&mut assembler, 100, began + EVERY * second);
        cuts += usize::from(assembler.due(began + EVERY * second).is_some());
    }
    assert_eq!(cuts, PIECES_AT_ONCE);
    assert!(assembler.room());
    feed(&mut assembler, 2 * MIB, began);
    assert!(!assembler.room());
    assembler.stored((Lsn(0), Lsn(MIB)), true);
    assert!(assembler.room());
}

#[test]
fn a_commit_that_waits_is_put_as_soon_as_the_last_put_is_over_with_all_that_came_meanwhile() {
    let now = Instant::now();
    let mut assembler = Assembler::new(rules(MIB, true), Lsn(0), Lsn(0), Vec::new(), now);
    feed(&mut assembler, 10, now);
    let first = assembler.due(now).unwrap();
    feed(&mut assembler, 10, now);
    feed(&mut assembler, 10, now);
    assert_eq!(assembler.due(now), None);
    assembler.stored(first.range, false);
    assert_eq!(assembler.due(now).unwrap().range, (Lsn(10), Lsn(30)));
    // And it does not wait for a whole segment.
    let end = feed(&mut assembler, MIB - 30, now);
    assert_eq!(
        end.iter().map(|cut| (cut.range, cut.segment)).collect::<Vec<_>>(),
        [((Lsn(30), Lsn(MIB)), false), ((Lsn(0), Lsn(MIB)), true)]
    );
}

#[test]
fn a_segment_that_takes_hours_has_hundreds_of_pieces_not_thousands() {
    let began = Instant::now();
    let mut assembler = Assembler::new(rules(MIB, false), Lsn(0), Lsn(0), Vec::new(), began);
    let mut left = BTreeSet::new();
    for second in 1..=8000 {
        feed(&mut assembler, 100, began + EVERY * second);
        let cut = assembler.due(began + EVERY * second).unwrap();
        left.insert(cut.range);
        for gone in assembler.stored(cut.range, false) {
            assert!(left.remove(&gone));
        }
    }
    assert_eq!(left.len(), 8000 / MERGE_AFTER);
    let covered = left.iter().try_fold(Lsn(0), |at, range| (range.0 == at).then_some(range.1));
    assert_eq!(covered, Some(Lsn(800_000)));
}

#[test]
fn r03_bytes_that_do_not_follow_are_refused_from_the_first_on() {
    let now = Instant::now();
    let mut assembler = Assembler::new(rules(MIB, false), Lsn(MIB), Lsn(MIB), Vec::new(), now);
    for got in [Lsn(0), Lsn(MIB + 1)] {
        assert_eq!(assembler.bytes(got, &[0], now), Err(Wrong::Hole { expected: Lsn(MIB), got }));
    }
}

#[test]
fn r05_what_comes_again_must_be_what_is_stored() {
    let now = Instant::now();
    let known = |bytes: &[u8]| vec![Known { range: (Lsn(10), Lsn(20)), sha256: hex::encode(Sha256::digest(bytes)) }];
    let mut good = Assembler::new(rules(MIB, false), Lsn(0), Lsn(20), known(&log(10, 20)), now);
    feed(&mut good, 100, now);
    assert_eq!(good.due(now + EVERY).unwrap().range, (Lsn(20), Lsn(100)));
    let mut other = Assembler::new(rules(MIB, false), Lsn(0), Lsn(20), known(&log(11, 21)), now);
    assert_eq!(other.bytes(Lsn(0), &log(0, 19), now), Ok(vec![]));
    assert_eq!(other.bytes(Lsn(19), &log(19, 20), now), Err(Wrong::Differs((Lsn(10), Lsn(20)))));
}

#[test]
fn long_segments_go_in_parts_and_memory_stays_what_it_is() {
    let now = Instant::now();
    let mut assembler = Assembler::new(rules(64 * MIB, false), Lsn(0), Lsn(0), Vec::new(), now);
    let cuts = feed(&mut assembler, 17 * MIB, now);
    assert_eq!((cuts[0].range, cuts[0].segment), ((Lsn(0), Lsn(16 * MIB)), false));
    assert_eq!(assembler.stored(cuts[0].range, false), []);
    assert_eq!(assembler.due(now + EVERY).unwrap().range, (Lsn(16 * MIB), Lsn(17 * MIB)));
}

#[derive(Debug, Clone)]
enum Act {
    Feed(u64),
    Wait(u64),
    /// One of the puts under way is stored.
    Store(usize),
    /// The process dies; of the puts under way those with a bit set were stored all the same.
    Die(u8),
    /// The server goes away: everything that came is put, in any order, then it begins anew.
    ServerGoes,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => prop_oneof![1..2000_u64, (MIB / 4)..(2 * MIB)].prop_map(Act::Feed),
        3 => (0..1500_u64).prop_map(Act::Wait),
        5 => any::<usize>().prop_map(Act::Store),
        1 => any::<u8>().prop_map(Act::Die),
        1 => Just(Act::ServerGoes),
    ];
    proptest::collection::vec(act, 1..60)
}

/// A repository, a server that keeps what was not acknowledged, and a writer between them.
struct World {
    rules: Rules,
    begin: Lsn,
    stored: BTreeMap<(Range, bool), Bytes>,
    under_way: Vec<Cut>,
    writer: Assembler,
    acknowledged: Lsn,
    /// What was stored when this writer began: it is streamed again from before.
    resumed: Lsn,
    now: Instant,
}

impl World {
    fn new(rules: Rules, begin: Lsn) -> World {
        let now = Instant::now();
        let writer = Assembler::new(rules, begin, begin, Vec::new(), now);
        World {
            rules,
            begin,
            stored: BTreeMap::new(),
            under_way: Vec::new(),
            writer,
            acknowledged: begin,
            resumed: begin,
            now,
        }
    }

    fn put(&mut self, cuts: impl IntoIterator<Item = Cut>) {
        for cut in cuts {
            assert_eq!(&cut.bytes[..], &log(cut.range.0.0, cut.range.1.0)[..], "a put holds the log's own bytes");
            assert_eq!(
                self.rules.unit_start(cut.range.0),
                self.rules.unit_start(Lsn(cut.range.1.0 - 1)),
                "and crosses no border"
            );
            self.under_way.push(cut);
        }
    }

    fn lands(&mut self, cut: &Cut) {
        if let Some(before) = self.stored.insert((cut.range, cut.segment), cut.bytes.clone()) {
            assert_eq!(before, cut.bytes);
        }
    }

    fn store(&mut self, which: usize) {
        if self.under_way.is_empty() {
            return;
        }
        let cut = self.under_way.swap_remove(which % self.under_way.len());
        self.lands(&cut);
        for gone in self.writer.stored(cut.range, cut.segment) {
            assert!(self.stored.remove(&(gone, false)).is_some(), "{gone:?} was not there");
        }
        let durable = self.writer.durable();
        assert!(durable >= self.acknowledged && durable <= self.writer.received().max(self.resumed));
        self.acknowledged = durable;
        self.check();
    }

    /// Whatever was acknowledged is there, and is the log.
    fn check(&self) {
        let mut at = self.begin;
        for ((range, _), bytes) in &self.stored {
            assert_eq!(bytes.len() as u64, range.1.0 - range.0.0);
            if range.0 <= at {
                at = at.max(range.1);
            }
        }
        assert!(at >= self.acknowledged, "acknowledged to {}, stored to {at}", self.acknowledged);
    }

    /// A new writer, which knows nothing but what is stored. The server gives everything from what was acknowledged on.
    fn begin_anew(&mut self) {
        self.under_way.clear();
        let cluster = Cluster { source: SourceName::new("db").unwrap(), system: SystemId(7) };
        let name = |((range, segment), _): (&(Range, bool), _)| {
            let item = match segment {
                true => Item::Segment(self.rules.segment.name(Timeline(1), range.0)),
                false => Item::Piece { timeline: Timeline(1), first: range.0, last: range.1 },
            };
            Key::Of(cluster.clone(), item).to_string()
        };
        let names: Vec<String> = self.stored.iter().map(name).collect();
        let archive = Archive::read(names.iter().map(String::as_str), &cluster, self.rules).unwrap();
        let leg = archive.next_leg(self.rules, Timeline(1), &[]).unwrap();
        // Nothing stored, or not from the beginning: the slot is where it was.
        let (start, frontier) = match leg {
            Some(leg) if self.stored.keys().any(|(range, _)| range.0 <= self.begin) => (leg.start, leg.frontier),
            _ => (self.begin, self.begin),
        };
        assert!(frontier >= self.acknowledged, "it goes on at {frontier}, {} was acknowledged", self.acknowledged);
        assert!(start >= self.begin && start <= self.acknowledged.max(frontier));
        let known = archive
            .pieces(Timeline(1), start)
            .into_iter()
            .map(|range| Known { range, sha256: hex::encode(Sha256::digest(log(range.0.0, range.1.0))) });
        self.writer = Assembler::new(self.rules, start, frontier, known.collect(), self.now);
        (self.acknowledged, self.resumed) = (frontier, frontier);
        self.check();
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Feed(bytes) => {
                if self.writer.room() {
                    let cuts = feed(&mut self.writer, *bytes, self.now);
                    self.put(cuts);
                }
            }
            Act::Wait(millis) => {
                self.now += Duration::from_millis(*millis);
                while let Some(cut) = self.writer.due(self.now) {
                    self.put([cut]);
                }
            }
            Act::Store(which) => self.store(*which),
            Act::Die(landed) => {
                for (bit, cut) in std::mem::take(&mut self.under_way).iter().enumerate() {
                    if landed >> (bit % 8) & 1 == 1 {
                        self.lands(cut);
                    }
                }
                self.begin_anew();
            }
            Act::ServerGoes => {
                let received = self.writer.received();
                let rest = self.writer.rest(self.now);
                self.put(rest);
                while !self.under_way.is_empty() {
                    self.store(self.now.elapsed().subsec_nanos() as usize);
                }
                assert!(self.acknowledged >= received, "what had come is stored although the server is gone");
                self.begin_anew();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_byte_is_lost_and_none_acknowledged_that_is_not_stored(acts in acts(), synchronous in any::<bool>()) {
        let mut world = World::new(rules(MIB, synchronous), Lsn(3 * MIB));
        for act in &acts {
            world.act(act);
        }
        world.act(&Act::ServerGoes);
        world.check();
    }
}
