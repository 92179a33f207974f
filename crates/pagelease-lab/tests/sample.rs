//! Sampled histories: shards of a run are the run, their sums come out the same in any order, and what is found replays.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use pagelease_lab::Property;
use pagelease_lab::case::{Path, ReplayError, Token};
use pagelease_lab::catalogue::{self, Entry, Unknown};
use pagelease_lab::history::StepView;
use pagelease_lab::property::Kind;
use pagelease_lab::sample::{
    Broken, FORMAT, Line, LineError, MergeError, Numbers, Plan, PlanError, ReadError, Shard, Tally, merge, merge_named,
    read, run, text,
};
use proptest::prelude::*;

const PLAN: Plan =
    Plan { seed: 7, histories: 61, steps_max: 200, shard: Shard::WHOLE, designs: Vec::new(), scenario: None };

/// Designs that break something soon.
fn entries() -> Vec<Entry> {
    let wanted = ["late-unlocked-restore", "filter-none", "late-unlocked", "late-checked-restore"];
    catalogue::all().into_iter().filter(|entry| wanted.contains(&entry.name)).collect()
}

fn sampled(plan: &Plan, entries: &[Entry], threads: usize) -> Vec<Line> {
    let progress = AtomicU64::new(0);
    let lines = run(plan, entries, threads, &progress).expect("a plan that can be carried out");
    assert_eq!(progress.into_inner(), plan.share() * lines.len() as u64);
    lines
}

fn shard(index: u32, of: u32) -> Plan {
    Plan { shard: Shard::new(index, of).expect("a shard"), ..PLAN }
}

fn json(lines: &[Line]) -> String {
    lines.iter().map(|line| serde_json::to_string(line).expect("a line is JSON") + "\n").collect()
}

#[test]
fn four_shards_are_one_run_to_the_last_bit() {
    let entries = entries();
    let whole = sampled(&PLAN, &entries, 2);
    assert!(whole.iter().all(|line| line.is_whole() && line.tally.done == PLAN.histories));
    let files: String = (0..4).rev().map(|index| json(&sampled(&shard(index, 4), &entries, 1))).collect();
    let merged = merge_named(read("shards", files.as_bytes()).expect("lines")).expect("parts of one run");
    assert_eq!(json(&merged), json(&whole));
    assert_eq!(text(&merged), text(&whole));
    assert_eq!(merge(&merged), Ok(whole), "and merging again changes nothing");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    // More histories than a thread takes at a time.
    let plan = Plan { histories: 700, steps_max: 12, ..PLAN };
    let entries = entries();
    let one = sampled(&plan, &entries, 1);
    for threads in [0, 2, 5] {
        assert_eq!(sampled(&plan, &entries, threads), one);
    }
}

#[test]
fn a_history_has_its_numbers_from_seed_names_and_number() {
    let numbers = |seed, design, scenario, history| {
        let mut numbers = Numbers::of_history(seed, design, scenario, history);
        [numbers.draw(), numbers.draw(), numbers.draw()]
    };
    // Computed apart from this program, by a generator that agrees with the published outputs for the seed 1234567.
    assert_eq!(
        numbers(7, "linux-7.3", "full", 0),
        [0xd84a_2cae_49e3_5431, 0x040a_9c3d_c196_ddc6, 0xe59c_079b_78a5_4dcc]
    );
    assert_eq!(
        numbers(7, "linux-7.3", "full", 41),
        [0x6f26_c2fa_c534_3113, 0x1a7e_1971_4ebd_a301, 0x6e25_4f80_59df_2c95]
    );
    let others =
        [(8, "linux-7.3", "full", 0), (7, "linux-7.", "3full", 0), (7, "late", "full", 0), (7, "linux-7.3", "full", 1)];
    for (seed, design, scenario, history) in others {
        assert_ne!(numbers(seed, design, scenario, history), numbers(7, "linux-7.3", "full", 0));
    }
}

#[test]
fn another_seed_takes_other_histories() {
    let entries = entries();
    let steps =
        |seed| sampled(&Plan { seed, ..PLAN }, &entries, 2).iter().map(|line| line.tally.steps).collect::<Vec<_>>();
    assert_ne!(steps(1), steps(2));
}

#[test]
fn what_is_found_replays_and_breaks_its_property() {
    let entries = entries();
    let mut lines = sampled(&Plan { histories: 300, ..PLAN }, &entries, 2);
    // In a small scenario something can be owed at the end, too.
    lines.extend(sampled(&Plan { histories: 900, scenario: Some("munmap".to_owned()), ..PLAN }, &entries, 2));
    let mut kinds = [0, 0];
    for line in &lines {
        for (&property, broken) in &line.tally.broken {
            let token: Token = broken.token.parse().expect("a token");
            assert_eq!((&token.design, &token.scenario), (&line.design, &line.scenario));
            let entry = entries.iter().find(|entry| entry.name == token.design).expect("its design");
            let case = entry.case(&token.scenario).expect("its scenario");
            let history = case.history(&token.path, Some(property)).expect("it can be replayed");
            assert!(!history.sentence.is_empty() && history.token == broken.token);
            let breaks = |step: &StepView| step.broken.iter().any(|name| name == property.name());
            let (last, before) = history.steps.split_last().expect("a step breaks it");
            if property.kind() == Kind::Safety {
                assert!(breaks(last) && !before.iter().any(breaks), "{}", broken.token);
                kinds[0] += 1;
            } else {
                let mut on = token.path.clone();
                on.choices.push(0);
                let step = token.path.choices.len();
                let ended = ReplayError::NoSuchStep { step, choice: 0, possible: 0 };
                assert_eq!(case.history(&on, None).err(), Some(ended), "{}", broken.token);
                kinds[1] += 1;
            }
        }
    }
    assert!(kinds[0] > 2 && kinds[1] > 0, "{kinds:?}\n{}", text(&lines));
}

#[test]
fn a_line_says_what_its_histories_did() {
    let entries = entries();
    let entry = entries.iter().find(|entry| entry.name == "late-unlocked-restore").expect("a design");
    let plan = Plan {
        designs: vec![entry.name.to_owned()],
        scenario: Some("munmap".to_owned()),
        histories: 400,
        ..shard(1, 3)
    };
    let line = sampled(&plan, &entries, 2).remove(0);
    let case = entry.case("munmap").expect("a scenario");
    let samples: Vec<_> = (1..400)
        .step_by(3)
        .map(|history| {
            let mut numbers = Numbers::of_history(7, entry.name, "munmap", history);
            case.sample(200, &mut || numbers.draw())
        })
        .collect();
    assert_eq!(line.tally.done, samples.len() as u64);
    assert_eq!(line.tally.steps, samples.iter().map(|sample| sample.steps as u64).sum::<u64>());
    assert_eq!(line.tally.ended, samples.iter().filter(|sample| sample.ended).count() as u64);
    assert_eq!(line.tally.spurious, samples.iter().map(|sample| sample.spurious).sum::<u64>());
    assert_eq!(Some(line.tally.spurious_worst), samples.iter().map(|sample| sample.spurious).max());
    for &property in Property::ALL {
        let findings =
            samples.iter().flat_map(|sample| &sample.findings).filter(|finding| finding.property == property);
        // Places in an order compare as the digits of a token do.
        let shortest = findings.clone().map(|finding| (finding.path.choices.len(), &finding.path)).min();
        let token = |path: &Path| {
            let (design, scenario) = (entry.name.to_owned(), "munmap".to_owned());
            Token { design, scenario, path: path.clone() }.to_string()
        };
        let broken = shortest.map(|(_, path)| Broken { histories: findings.count() as u64, token: token(path) });
        assert_eq!(line.tally.broken.get(&property), broken.as_ref(), "{property}");
    }
    assert!(!line.tally.broken.is_empty());
}

#[test]
fn what_a_plan_samples() {
    let entries = catalogue::all();
    let cases = |designs: &[&str], scenario: Option<&str>| {
        let plan = Plan {
            designs: designs.iter().map(|&design| design.to_owned()).collect(),
            scenario: scenario.map(str::to_owned),
            ..PLAN
        };
        plan.cases(&entries).map(|cases| cases.iter().map(|case| case.names()).collect::<Vec<_>>())
    };
    let large: usize = entries.iter().map(|entry| entry.large.len()).sum();
    assert_eq!(cases(&[], None).expect("all large cases").len(), large);
    assert_eq!(cases(&["linux-7.3", "late"], Some("repeat")), Ok(vec![("linux-7.3", "repeat"), ("late", "repeat")]));
    let some = cases(&[], Some("stuck-hold")).expect("the designs that have it");
    assert!(
        !some.is_empty() && some.len() < entries.len() && some.iter().all(|&(_, scenario)| scenario == "stuck-hold")
    );
    assert_eq!(cases(&["late", "linux-1.0"], None), Err(PlanError::Unknown(Unknown::Design("linux-1.0".to_owned()))));
    assert_eq!(cases(&["pagelease"], None), Err(PlanError::NothingLarge("pagelease".to_owned())));
    for designs in [&[] as &[&str], &["linux-7.3"]] {
        let refused = cases(designs, Some("nowhere")).expect_err("no such scenario").to_string();
        assert!(refused.contains("nowhere") && refused.contains("repeat"), "{refused}");
    }
    let endless = Plan { histories: u64::MAX, ..PLAN };
    assert_eq!(endless.cases(&entries).err(), Some(PlanError::TooMany(u64::MAX, 200)));
    assert!(
        sampled(&Plan { histories: 0, ..PLAN }, &entries, 2).iter().all(|line| line.is_whole() && line.tally.done == 0)
    );
}

#[test]
fn a_shard_is_written_with_a_stroke() {
    assert_eq!("3/4".parse::<Shard>().map(|shard| shard.to_string()), Ok("3/4".to_owned()));
    for word in ["", "1", "4/4", "0/0", "-1/4", "1/4/8", "1/99999999999"] {
        assert!(word.parse::<Shard>().expect_err(word).to_string().contains(word));
    }
}

/// A line as shard `index` of `of` could have printed it.
fn made(scenario: &str, index: u32, of: u32, tally: Tally) -> Line {
    let (design, scenario) = ("d".to_owned(), scenario.to_owned());
    let done = (0..PLAN.histories).filter(|history| history % u64::from(of) == u64::from(index)).count() as u64;
    let version = "0".to_owned();
    let tally = Tally { done, ..tally };
    let Plan { seed, histories, steps_max, .. } = PLAN;
    Line { format: FORMAT, version, seed, histories, steps_max, design, scenario, shards: vec![index], of, tally }
}

#[test]
fn a_missing_shard_is_told() {
    let merged = merge(&[0, 3].map(|index| made("s", index, 4, Tally::default()))).expect("parts of one run");
    assert_eq!((merged[0].shards.as_slice(), merged[0].of), ([0, 3].as_slice(), 4));
    assert!(!merged[0].is_whole());
    assert_eq!(merged[0].missing().collect::<Vec<_>>(), [1, 2]);
    assert!(text(&merged).contains("of 4 shards it lacks 1, 2\n"), "{}", text(&merged));
    let line = made("s", 1, 1000, Tally::default());
    assert!(text(&[line]).contains("of 1000 shards it lacks 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...\n"));
}

#[test]
fn lines_that_do_not_belong_together_are_refused() {
    let of_four = |index| made("s", index, 4, Tally::default());
    let whole = merge(&[0, 1, 2, 3].map(of_four)).expect("one run");
    let refused = |first: &Line, at: Line| {
        let lines = [("a.jsonl:1".to_owned(), first.clone()), ("b.jsonl:1".to_owned(), at)];
        merge_named(lines).expect_err("not parts of one run")
    };
    let plan = |what| MergeError::Plan { at: "b.jsonl:1".to_owned(), first: "a.jsonl:1".to_owned(), what };
    assert_eq!(refused(&of_four(0), Line { seed: 8, ..of_four(1) }), plan("seed"));
    assert_eq!(refused(&of_four(0), Line { steps_max: 8, ..of_four(1) }), plan("limit of steps"));
    assert_eq!(refused(&of_four(0), Line { version: "1".to_owned(), ..of_four(1) }), plan("version of the program"));
    let longer = Line { histories: 64, tally: Tally { done: 16, ..Tally::default() }, ..of_four(1) };
    assert_eq!(refused(&of_four(0), longer), plan("number of histories"));
    for (first, twice) in [(of_four(2), of_four(2)), (whole[0].clone(), whole[0].clone())] {
        let told = refused(&first, twice);
        assert!(matches!(told, MergeError::Twice { .. }), "{told}");
    }
    for first in [made("s", 0, 2, Tally::default()), whole[0].clone()] {
        let told = refused(&first, of_four(1));
        assert!(matches!(told, MergeError::Split { of: 4, .. }), "{told}");
        assert!(told.to_string().contains("a.jsonl:1") && told.to_string().contains("b.jsonl:1"), "{told}");
    }
    let told = merge(&[of_four(0), of_four(1), of_four(0)]).expect_err("twice").to_string();
    assert_eq!(told, "line 3 and line 1 both have shard 0/4: it would count twice");
}

#[test]
fn a_line_that_no_run_printed_is_refused() {
    let good = made("s", 1, 4, Tally { steps: 300, ended: 2, ..Tally::default() });
    assert_eq!(Line::parse(&json(std::slice::from_ref(&good))), Ok(good.clone()));
    let with = |tally: Tally| Line { tally: Tally { done: 15, ..tally }, ..good.clone() };
    let broken = |histories, token: &str| {
        let broken = BTreeMap::from([(Property::Count, Broken { histories, token: token.to_owned() })]);
        with(Tally { broken, ..Tally::default() })
    };
    assert!(merge(&[broken(15, "d:s:012")]).is_ok());
    let wrong = [
        (Line { shards: vec![], ..good.clone() }, "list of shards"),
        (Line { shards: vec![2, 1], ..good.clone() }, "list of shards"),
        (Line { shards: vec![4], ..good.clone() }, "number of histories"),
        (Line { tally: Tally::default(), ..good.clone() }, "number of histories"),
        (with(Tally { steps: 15 * 200 + 1, ..Tally::default() }), "number of steps"),
        (with(Tally { ended: 16, ..Tally::default() }), "number of ended histories"),
        (broken(16, "d:s:012"), "list of broken properties"),
        (broken(0, "d:s:012"), "list of broken properties"),
        (broken(1, "d:t:012"), "list of broken properties"),
        (broken(1, "d:s:012~1"), "list of broken properties"),
        (broken(1, "nothing"), "list of broken properties"),
    ];
    for (line, what) in wrong {
        let error = LineError::Figures(what);
        assert_eq!(
            merge(std::slice::from_ref(&line)),
            Err(MergeError::Line { at: "line 1".to_owned(), error: error.clone() })
        );
        assert_eq!(Line::parse(&json(&[line])), Err(error));
    }
}

#[test]
fn what_is_no_line_is_refused_by_its_place() {
    let good = json(&[made("s", 1, 4, Tally::default())]);
    let refused = |text: &str| match read("shard-1.jsonl", text.as_bytes()).expect_err("no line") {
        ReadError::Line { at, error } => (at, error),
        ReadError::Io(..) => unreachable!("a slice can be read"),
    };
    assert_eq!(read("it", format!("\n{good}\n{good}").as_bytes()).expect("lines").len(), 2);
    // The form of another version is not known, and so not complained about.
    let newer = good.replace("\"format\":1", "\"format\":2,\"more\":0");
    assert_eq!(refused(&format!("{good}{newer}")), ("shard-1.jsonl:2".to_owned(), LineError::Format(2)));
    let cut = &good[..good.len() / 2];
    let more = good.replace("\"seed\"", "\"more\":0,\"seed\"");
    let unknown = good.replace("\"broken\":{", "\"broken\":{\"luck\":{\"histories\":1,\"token\":\"d:s:0\"}");
    for (text, told) in [(cut, "EOF"), (&more, "more"), (&unknown, "luck"), ("7", "invalid type")] {
        let (at, error) = refused(text);
        assert_eq!(at, "shard-1.jsonl:1");
        assert!(matches!(&error, LineError::Form(said) if said.contains(told)), "{error}");
    }
}

fn tally() -> impl Strategy<Value = Tally> {
    let broken = prop::collection::btree_map(
        prop::sample::select(Property::ALL.to_vec()),
        // Few tokens, so that there are ties.
        (1..5u64, "d:s:[01]{1,3}").prop_map(|(histories, token)| Broken { histories, token }),
        0..4,
    );
    (0..900u64, 0..5u64, 0..50u64, 0..9u64, broken).prop_map(|(steps, ended, spurious, spurious_worst, broken)| Tally {
        done: 0,
        steps,
        ended,
        spurious,
        spurious_worst,
        broken,
    })
}

/// The lines of up to nine shards, some left out; and in which order to put any two groups of them together.
fn shards() -> impl Strategy<Value = (Vec<Line>, Vec<(prop::sample::Index, prop::sample::Index)>)> {
    prop::collection::vec((tally(), prop::bool::weighted(0.9)), 1..10).prop_flat_map(|shards| {
        let of = u32::try_from(shards.len()).expect("few shards");
        let lines: Vec<Line> = (0..of)
            .zip(shards)
            .filter(|(_, (_, kept))| *kept)
            .map(|(index, (tally, _))| made("s", index, of, tally))
            .collect();
        let others: Vec<Line> = lines
            .iter()
            .map(|line| Line {
                scenario: "t".to_owned(),
                tally: Tally { broken: BTreeMap::new(), ..line.tally.clone() },
                ..line.clone()
            })
            .collect();
        let all = [lines, others].concat();
        let pairs = prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), all.len());
        (Just(all).prop_shuffle(), pairs)
    })
}

proptest! {
    #[test]
    fn order_and_grouping_change_nothing((lines, pairs) in shards()) {
        let mut sorted = lines.clone();
        sorted.sort_by_key(|line| (line.scenario.clone(), line.shards.clone()));
        let at_once = merge(&sorted).expect("parts of one run");
        prop_assert_eq!(&merge(&lines).expect("in another order"), &at_once);
        let mut groups: Vec<Vec<Line>> = lines.into_iter().map(|line| vec![line]).collect();
        for (one, other) in pairs {
            if groups.len() > 1 {
                let mut group = groups.swap_remove(one.index(groups.len()));
                group.extend(groups.swap_remove(other.index(groups.len())));
                groups.push(merge(&group).expect("parts of one run"));
            }
        }
        let merged = groups.pop().map_or(Ok(Vec::new()), |group| merge(&group)).expect("parts of one run");
        prop_assert_eq!(merged, at_once);
    }

    #[test]
    fn a_line_survives_json(tally in tally()) {
        let line = made("s", 2, 3, tally);
        prop_assert_eq!(Line::parse(&json(std::slice::from_ref(&line))), Ok(line));
    }
}
