//! The rule over single moments, and over simulated months with a changing rule.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use holdfast_common::{
    clock::Timestamp,
    ids::{GroupCutId, GroupId, PointId},
};
use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::{GroupPart, RetentionRule, Subject, Verdict, plan};

const SECOND: i64 = 1_000_000;

fn id(number: u64) -> PointId {
    PointId::from_bytes(u128::from(number).to_be_bytes())
}

fn point(number: u64, seconds: i64) -> Subject {
    let durable_at = Timestamp(seconds * SECOND);
    Subject {
        id: id(number),
        durable_at,
        usable: true,
        processed: true,
        app: false,
        intact: true,
        group: None,
    }
}

fn rule(text: &str) -> RetentionRule {
    text.parse().unwrap()
}

fn verdicts(points: &[Subject], leased: &[u64], text: &str, now: i64) -> Vec<Verdict> {
    let leased: HashSet<PointId> = leased.iter().map(|number| id(*number)).collect();
    let found = plan(points, &leased, &rule(text), Timestamp(now * SECOND));
    found.verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

#[test]
fn points_go_by_age_and_leased_ones_stay() {
    use Verdict::{Dense, Expired, Held, Newest};
    let points = [point(1, 10), point(2, 20), point(3, 30), point(4, 95)];
    assert_eq!(verdicts(&points, &[], "1m", 90), [Expired, Expired, Dense, Dense]);
    assert_eq!(verdicts(&points, &[1], "1m", 90), [Held, Expired, Dense, Dense]);
    assert_eq!(verdicts(&points, &[], "1m", 900), [Expired, Expired, Expired, Newest]);
    assert_eq!(verdicts(&[], &[], "1m", 900), []);
}

#[test]
fn the_newest_complete_and_the_newest_processed_point_stay_however_old() {
    use Verdict::{Expired, Newest, Void};
    let mut points = [point(1, 1), point(2, 2), point(3, 3), point(4, 4)];
    points[2].processed = false;
    points[3].usable = false;
    assert_eq!(verdicts(&points, &[], "1m", 900), [Expired, Newest, Newest, Void]);
    assert_eq!(verdicts(&points[3..], &[], "1m", 900), [Void]);
}

#[test]
fn of_a_stretch_the_best_stays() {
    let chosen = Verdict::Chosen { every_seconds: 600 };
    let thinned = |by| Verdict::Thinned { every_seconds: 600, by: id(by) };
    // Stretches: 1, 2 and 3; 4 and 5; 6 is the newest.
    let mut points =
        [1, 2, 3, 4, 5, 6].map(|n: u64| point(n, [10, 200, 590, 600, 700, 9_000][n as usize - 1]));
    let check = |points: &[Subject], expected: [Verdict; 5]| {
        assert_eq!(
            verdicts(points, &[], "1m,10m:1d", 9_000),
            [expected.as_slice(), &[Verdict::Dense]].concat()
        );
    };
    check(&points, [chosen, thinned(1), thinned(1), chosen, thinned(4)]);
    points[1].app = true;
    check(&points, [thinned(2), chosen, thinned(2), chosen, thinned(4)]);
    points[1].intact = false;
    points[3].usable = false;
    check(&points, [chosen, thinned(1), thinned(1), Verdict::Void, chosen]);
}

fn part(group: u8, seconds: i64, number: u64) -> Option<GroupPart> {
    let millis = u128::try_from(seconds * 1000).unwrap() << 80;
    let cut = uuid::Uuid::from_u128(millis | 7 << 76 | 2 << 62 | u128::from(number));
    Some(GroupPart { group: GroupId::from_bytes([group; 16]), cut: GroupCutId(cut) })
}

/// Two machines that make points of their own, have app-consistent ones at different times, and take part in the same group cuts; one
/// of them has a slow link.
#[test]
fn machines_of_a_group_keep_the_parts_of_the_same_group_cuts() {
    let rule = rule("1h,10m:1d,1h:30d");
    let machine = |late: i64, app: u64| -> Vec<Subject> {
        let mut all = Vec::new();
        for number in 0..3 * 8_640u64 {
            let at = number as i64 * 10;
            let group = (number % 3 == 0).then(|| part(1, at, number)).flatten();
            all.push(Subject { group, app: number % 50 == app, ..point(number, at + late) });
        }
        all
    };
    let now = Timestamp(3 * 86_400 * SECOND);
    let kept = |all: &[Subject]| -> Vec<GroupCutId> {
        let gone: HashSet<PointId> = plan(all, &HashSet::new(), &rule, now).removed().into_iter().collect();
        let old = all.iter().filter(|point| now.since(point.durable_at) > Duration::from_hours(2));
        let mut cuts: Vec<_> =
            old.filter(|point| !gone.contains(&point.id)).filter_map(|p| Some(p.group?.cut)).collect();
        cuts.sort_unstable();
        cuts
    };
    let (one, other) = (machine(1, 7), machine(95, 31));
    let others: HashSet<GroupCutId> = kept(&other).into_iter().collect();
    let both: Vec<GroupCutId> = kept(&one).into_iter().filter(|cut| others.contains(cut)).collect();
    // 22 hours with one in ten minutes, two days with one an hour; at the edge of a tier one may differ.
    assert!(both.len() >= 22 * 6 + 48 - 2, "{} group points are whole", both.len());
    // Each still has its app-consistent ones.
    let gone: HashSet<PointId> = plan(&one, &HashSet::new(), &rule, now).removed().into_iter().collect();
    let apps = one.iter().filter(|point| point.app && !gone.contains(&point.id)).count();
    assert!(apps >= 22 * 6 + 48 - 2, "{apps}");
}

fn rules() -> impl Strategy<Value = RetentionRule> {
    prop_oneof![
        Just("2h"),
        Just("1h,10m:1d"),
        Just("1h,10m:1d,1h:10d"),
        Just("1h,10m:1d,1h:10d,1d:60d"),
        Just("6h,1h:20d,6h:40d,1d:100d"),
        Just("1m,2h:50d"),
    ]
    .prop_map(rule)
}

/// A point's flags: void, pending, app, damaged; mostly none of them.
fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![8 => Just(0u8), 2 => any::<u8>()]
}

/// What must be true whatever came before: see the module's invariants.
fn invariants(
    points: &[Subject],
    leased: &HashSet<PointId>,
    rule: &RetentionRule,
    now: Timestamp,
) -> Result<(), String> {
    let planned = plan(points, leased, rule, now);
    let removed: HashSet<PointId> = planned.removed().into_iter().collect();
    let newest = points.iter().filter(|point| point.usable).max_by_key(|point| (point.durable_at, point.id));
    let mut stretches: BTreeMap<(u64, i64), (bool, bool)> = BTreeMap::new();
    for point in points {
        let (age, gone) = (now.since(point.durable_at), removed.contains(&point.id));
        let ok = !gone
            || (age > rule.dense()
                && !leased.contains(&point.id)
                && newest.is_none_or(|newest| newest.id != point.id));
        if !ok {
            return Err(format!("{point:?} goes"));
        }
        let mut from = rule.dense().as_secs();
        for tier in rule.tiers() {
            let stretch = point.durable_at.0.div_euclid(tier.every_seconds as i64 * SECOND);
            let begins = now.since(Timestamp(stretch * tier.every_seconds as i64 * SECOND));
            // A stretch that lies in the tier as a whole.
            if begins.as_secs() < tier.until_seconds
                && begins.as_secs() >= from + tier.every_seconds
                && point.usable
            {
                let (any_kept, any_lost) = stretches.entry((tier.every_seconds, stretch)).or_default();
                *any_kept |= !gone;
                *any_lost |= gone;
            }
            from = tier.until_seconds;
        }
    }
    match stretches.into_iter().find(|(_, (kept, _))| !kept) {
        Some((stretch, _)) => Err(format!("nothing is left of {stretch:?}")),
        None => Ok(()),
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]

    /// Months pass, points come, the rule changes now and then, and plans are applied at odd times.
    #[test]
    fn months_pass(
        gaps in prop::collection::vec((1i64..20_000, flags()), 50..600),
        changes in prop::collection::vec(rules(), 1..5),
        every in 1usize..40,
        leased in prop::collection::hash_set(0u64..600, 0..4),
    ) {
        let leased: HashSet<PointId> = leased.into_iter().map(id).collect();
        let (mut now, mut kept) = (0i64, Vec::<Subject>::new());
        for (number, (gap, flags)) in gaps.iter().enumerate() {
            now += gap;
            kept.push(Subject {
                usable: flags & 7 != 1,
                processed: flags & 8 == 0,
                app: flags & 16 != 0,
                intact: flags & 96 == 0,
                ..point(number as u64, now)
            });
            if number % every == 0 {
                let rule = &changes[number / every % changes.len()];
                let now = Timestamp(now * SECOND);
                prop_assert_eq!(invariants(&kept, &leased, rule, now), Ok(()));
                let gone: HashSet<PointId> = plan(&kept, &leased, rule, now).removed().into_iter().collect();
                kept.retain(|point| !gone.contains(&point.id));
                prop_assert!(plan(&kept, &leased, rule, now).removed().is_empty(), "applied twice, more goes");
            }
        }
        let distinct: HashMap<PointId, &Subject> = kept.iter().map(|point| (point.id, point)).collect();
        prop_assert_eq!(distinct.len(), kept.len());
    }

    /// Under one rule, many plans leave what the last one alone would leave.
    #[test]
    fn plans_of_many_moments_are_as_the_last_alone(
        gaps in prop::collection::vec((1i64..9_000, any::<bool>()), 50..400),
        rule in rules(),
        every in 1usize..30,
    ) {
        let (mut now, mut all, mut kept) = (0i64, Vec::new(), Vec::new());
        for (number, (gap, app)) in gaps.iter().enumerate() {
            now += gap;
            let group = (number % 4 == 1).then(|| part((number % 8) as u8, now, number as u64)).flatten();
            let point = Subject { app: *app, group, ..point(number as u64, now) };
            all.push(point);
            kept.push(point);
            if number % every == 0 {
                let gone = plan(&kept, &HashSet::new(), &rule, Timestamp(now * SECOND)).removed();
                kept.retain(|point| !gone.contains(&point.id));
            }
        }
        let left = |points: &[Subject]| {
            let found = plan(points, &HashSet::new(), &rule, Timestamp(now * SECOND));
            found.verdicts.into_iter().filter(|(_, verdict)| !verdict.removes()).map(|(id, _)| id).collect::<Vec<_>>()
        };
        prop_assert_eq!(left(&kept), left(&all));
    }
}

#[test]
fn twenty_thousand_points_thin_out_as_said() {
    // Every 10 s for 60 days, a point in 100 app-consistent; the plan is applied every day.
    let rule = rule("24h,1h:30d,1d:365d");
    let mut kept: Vec<Subject> = Vec::new();
    let mut most = 0;
    for number in 0..60 * 8_640i64 {
        let app = number % 100 == 37;
        kept.push(Subject { app, ..point(number as u64, number * 10) });
        if number % 8_640 == 0 {
            let gone: HashSet<PointId> = plan(&kept, &HashSet::new(), &rule, Timestamp(number * 10 * SECOND))
                .removed()
                .into_iter()
                .collect();
            kept.retain(|point| !gone.contains(&point.id));
            most = most.max(kept.len());
        }
    }
    let day = |days: i64| Duration::from_hours(24 * days as u64);
    let now = kept.last().unwrap().durable_at;
    let between = |from, to| {
        kept.iter().filter(|point| (from..to).contains(&now.since(point.durable_at))).collect::<Vec<_>>()
    };
    assert!(most < 20_000, "{most}");
    assert_eq!(between(day(0), day(1)).len(), 8_640);
    let hourly = between(day(2), day(29));
    assert!((27 * 24..=27 * 24 + 1).contains(&hourly.len()), "{}", hourly.len());
    assert!(hourly.iter().all(|point| point.app), "each hour has app-consistent ones");
    let daily = between(day(32), day(61));
    assert!((27..=29).contains(&daily.len()), "{}", daily.len());
}
