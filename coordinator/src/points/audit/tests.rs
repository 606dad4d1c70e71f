//! Audits of a modelled source that is written to while it is audited: what tracking sees, and what it does not.

use std::{collections::BTreeSet, time::Duration};

use holdfast_common::{
    ids::Interval,
    units::{BlockCount, BlockRange},
    wire::AuditDigests,
};

use super::{Ask, AuditFigures, AuditPass, AuditStep, Held, ORDERS_MAX, Verdict};

/// No multiple of a chunk, and more than one order.
const BLOCKS: u64 = 3000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// Source and replica; a digest is the sum of what it covers.
struct World {
    random: Random,
    source: Vec<u64>,
    replica: Vec<u64>,
    /// Blocks that tracking saw written in the open interval.
    marked: BTreeSet<u64>,
    interval: u64,
    pass: AuditPass,
    asked: Vec<Ask>,
    found: BTreeSet<u64>,
    now: Duration,
    /// Each block's number of decisions.
    decided: Vec<u32>,
    most_asked: usize,
    cuts_asked: usize,
}

fn digest(blocks: &[u64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for block in blocks {
        hasher.update(&block.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

impl World {
    fn new(seed: u64) -> Self {
        let blocks: Vec<u64> = (0..BLOCKS).collect();
        Self {
            random: Random(seed),
            source: blocks.clone(),
            replica: blocks,
            marked: BTreeSet::new(),
            interval: 7,
            pass: AuditPass::new(BlockCount(BLOCKS), 0, AuditFigures::default()),
            asked: Vec::new(),
            found: BTreeSet::new(),
            now: Duration::ZERO,
            decided: vec![0; 3000],
            most_asked: 0,
            cuts_asked: 0,
        }
    }

    fn part(list: &[u64], range: BlockRange) -> &[u64] {
        &list[usize::try_from(range.start.0).unwrap()..usize::try_from(range.end().0).unwrap()]
    }

    fn answer(&mut self, ask: Ask) {
        let digests =
            self.parts(ask).into_iter().map(|part| digest(Self::part(&self.source, part))).collect();
        self.pass.answered(ask.number, AuditDigests { interval: Interval(self.interval), digests });
    }

    fn parts(&self, ask: Ask) -> Vec<BlockRange> {
        let end = ask.range.end().0;
        let starts = (ask.range.start.0..end).step_by(usize::try_from(ask.digest_blocks).unwrap());
        starts.map(|start| BlockRange::new(start, ask.digest_blocks.min(end - start))).collect()
    }

    /// The interval ends: what was marked is in the replica, and answers are judged.
    fn cut(&mut self) {
        for block in &self.marked {
            let at = usize::try_from(*block).unwrap();
            self.replica[at] = self.source[at];
        }
        for held in self.pass.ended(Interval(self.interval)) {
            if self.random.below(10) == 0 {
                self.pass.cannot_judge(held);
                continue;
            }
            self.judge(&held);
        }
        self.marked.clear();
        self.interval += 1;
    }

    fn judge(&mut self, held: &Held) {
        assert_eq!(held.digests.interval, Interval(self.interval), "an answer of an older interval was kept");
        let parts = self.parts(held.ask);
        let verdict = |(part, found): (&BlockRange, &[u8; 32])| {
            if (part.start.0..part.end().0).any(|block| self.marked.contains(&block)) {
                Verdict::Changed
            } else if digest(Self::part(&self.replica, *part)) == *found {
                Verdict::Equal
            } else {
                Verdict::Differs
            }
        };
        let verdicts: Vec<Verdict> = parts.iter().zip(&held.digests.digests).map(verdict).collect();
        for (part, verdict) in parts.iter().zip(&verdicts) {
            if held.ask.digest_blocks == 1 || *verdict == Verdict::Equal {
                (part.start.0..part.end().0)
                    .for_each(|block| self.decided[usize::try_from(block).unwrap()] += 1);
            }
        }
        for range in self.pass.judged(held, &verdicts) {
            self.found.extend(range.start.0..range.end().0);
        }
    }

    fn run(&mut self, writes: u64) {
        for _ in 0..200_000 {
            self.now += Duration::from_millis(self.random.below(50));
            for _ in 0..self.random.below(writes + 1) {
                let block =
                    if self.random.below(2) == 0 { self.random.below(40) } else { self.random.below(BLOCKS) };
                self.source[usize::try_from(block).unwrap()] += 1 << 32;
                self.marked.insert(block);
            }
            match self.random.below(40) {
                0 => self.cut(),
                1 => {
                    self.asked.clear();
                    self.pass.disconnected();
                }
                // An answer is lost.
                2 => drop(self.asked.pop()),
                3..=9 => {
                    if let Some(ask) = self.asked.pop() {
                        if self.random.below(12) == 0 {
                            self.pass.refused(ask.number)
                        } else {
                            self.answer(ask)
                        }
                    }
                }
                _ => match self.pass.step(self.now) {
                    AuditStep::Ask(ask) => self.asked.push(ask),
                    AuditStep::Cut => self.cuts_asked += 1,
                    AuditStep::Wait => {}
                    AuditStep::Done => return,
                },
            }
            self.most_asked = self.most_asked.max(self.pass.asked.len());
            let position = usize::try_from(self.pass.position()).unwrap();
            assert!(self.decided[..position].iter().all(|count| *count == 1), "position is ahead");
        }
        panic!("the audit never ends: {:?}", self.pass.figures());
    }
}

#[test]
fn every_block_is_decided_once_whatever_is_written_and_lost_meanwhile() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.run(seed % 4);
        assert!(world.decided.iter().all(|count| *count == 1), "seed {seed}");
        assert!(world.found.is_empty(), "seed {seed}: {:?}", world.found);
        assert!(world.most_asked <= ORDERS_MAX);
        let figures = *world.pass.figures();
        assert_eq!((figures.blocks, figures.differed), (BLOCKS, 0), "seed {seed}");
        assert!(seed % 4 == 0 || figures.sent_anew > 0, "seed {seed}: {figures:?}");
        assert_eq!(world.pass.position(), BLOCKS);
    }
}

#[test]
fn what_differs_is_found_block_by_block_and_nothing_else() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        let unseen: BTreeSet<u64> = (0..30).map(|_| 40 + world.random.below(BLOCKS - 40)).collect();
        for block in &unseen {
            world.source[usize::try_from(*block).unwrap()] = (1 << 60) + block;
        }
        world.run(seed % 3);
        // A block that is written in the very interval in which it is read is sent anew.
        assert!(world.found.is_subset(&unseen), "seed {seed}");
        assert!(seed % 3 > 0 || world.found == unseen, "seed {seed}: {:?}", unseen.difference(&world.found));
        assert!(
            world.found.len() * 4 > unseen.len() * 3,
            "seed {seed}: {} of {}",
            world.found.len(),
            unseen.len()
        );
        assert_eq!(world.pass.figures().differed, world.found.len() as u64);
    }
}

#[test]
fn a_cut_is_asked_for_when_nothing_else_is_waited_for() {
    let mut pass = AuditPass::new(BlockCount(10), 0, AuditFigures::default());
    let AuditStep::Ask(ask) = pass.step(Duration::ZERO) else { panic!("something to ask") };
    assert_eq!(pass.step(Duration::ZERO), AuditStep::Wait);
    pass.answered(ask.number, AuditDigests { interval: Interval(3), digests: vec![[0; 32]] });
    assert_eq!(pass.step(Duration::ZERO), AuditStep::Cut);
    assert_eq!(pass.step(Duration::ZERO), AuditStep::Wait);
    assert!(pass.ended(Interval(2)).is_empty());
    let held = pass.ended(Interval(3)).pop().unwrap();
    assert!(pass.judged(&held, &[Verdict::Equal]).is_empty());
    assert_eq!(pass.step(Duration::ZERO), AuditStep::Done);
}

#[test]
fn it_goes_on_where_it_was() {
    let done = AuditFigures { blocks: 2048, differed: 1, ..AuditFigures::default() };
    let mut pass = AuditPass::new(BlockCount(BLOCKS), 2048, done);
    assert_eq!(pass.position(), 2048);
    let AuditStep::Ask(ask) = pass.step(Duration::ZERO) else { panic!("something to ask") };
    assert_eq!(ask.range, BlockRange::new(2048, BLOCKS - 2048));
    assert_eq!(pass.position(), 2048);
    assert_eq!(pass.figures().differed, 1);
}
