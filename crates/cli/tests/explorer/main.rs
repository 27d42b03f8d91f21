//! Every state that a killed command may leave, and what becomes of it: whatever a person does then, and
//! whichever command runs next, each reader finds the old checkpoint or the new one, whole.
//!
//! Where a command is killed and what comes after it are taken in turn, so that each state meets each later
//! command and each act of a person; `SAFESHARD_EXPLORE=all` tries all of their combinations.

mod aftermath;
mod killed;
mod operations;
mod readers;
mod rules;

#[path = "../../../core/tests/support/journals.rs"]
#[allow(dead_code, unreachable_pub)]
mod journals;
#[path = "../../../core/tests/support/strace.rs"]
#[allow(unreachable_pub)]
mod strace;
#[path = "../suite/support.rs"]
#[allow(dead_code)]
mod suite_support;

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::thread;

use aftermath::{Ended, Later, Person};
use killed::{explores_all, kill, let_through};
use operations::{Operation, Scene, Sources};
use readers::Found;
use rules::{Kill, Look, has_metadata};
use suite_support::safeshard;

#[test]
fn whatever_follows_a_kill_each_reader_finds_the_old_or_the_new() {
    if !strace::works("commands that are killed, and what follows") {
        return;
    }
    let sources = Sources::new();
    let explorer = Explorer {
        sources: &sources,
        found: Mutex::default(),
    };
    let operations = Mutex::new(Operation::all());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                loop {
                    let next = operations.lock().unwrap().pop();
                    let Some(operation) = next else {
                        break;
                    };
                    explorer.explore(&operation);
                }
            });
        }
    });
    let found = explorer.found.into_inner().unwrap();
    found.print();
    let breaches = &found.breaches;
    let some: Vec<_> = breaches.iter().take(40).map(String::as_str).collect();
    assert!(
        some.is_empty(),
        "{} breaches, as\n{}",
        breaches.len(),
        some.join("\n")
    );
    assert!(found.states.len() > 900, "{} states", found.states.len());
}

struct Explorer<'s> {
    sources: &'s Sources,
    found: Mutex<Exploration>,
}

/// What was explored.
#[derive(Default)]
struct Exploration {
    operations: usize,
    kills: usize,
    states: HashSet<(u64, operations::Old, operations::Weights, bool)>,
    combinations: usize,
    /// How often each reader came to each verdict, of killed folders and of those later on.
    verdicts: BTreeMap<(&'static str, &'static str, String), usize>,
    breaches: Vec<String>,
}

impl Explorer<'_> {
    fn explore(&self, operation: &Operation) {
        let before = Look::at(&Scene::new(operation.old));
        let (calls, scene) = let_through(operation, self.sources);
        let after = Look::at(&scene);
        self.found.lock().unwrap().operations += 1;
        let ends = calls.iter().map(Some).chain([None]);
        let mut was_committed = false;
        for (turn, call) in ends.enumerate() {
            let scene = match call {
                Some(call) => kill(operation, call, self.sources),
                None => let_through(operation, self.sources).1,
            };
            let left = Look::at(&scene);
            let kill = Kill {
                operation,
                before: &before,
                after: &after,
                left: &left,
            };
            let place = format!("{operation:?} at {call:?}");
            let mut breaches = kill.breaches();
            if was_committed && !kill.is_committed() {
                breaches.push("the old one again".to_owned());
            }
            was_committed = kill.is_committed();
            let state = (
                scene.state(),
                operation.old,
                operation.new_weights(),
                operation.carries_files(),
            );
            let is_new = self.note(&place, breaches, |found| {
                found.kills += usize::from(call.is_some());
                found.count("killed", &kill, &left);
                found.states.insert(state)
            });
            if is_new {
                self.note(&place, binary_agrees(&scene, &left), |_| {});
                self.go_on(&kill, &place, scene, turn);
            }
        }
    }

    /// From one state, the `turn`th of its operation. The folder in which the command was really killed is
    /// used for one combination, and copies whose journals know them for the others.
    fn go_on(&self, kill: &Kill<'_>, place: &str, killed: Scene, turn: usize) {
        for person in Person::ALL {
            for (number, later) in Later::ALL.into_iter().enumerate() {
                let has_its_turn = (number + person as usize + turn).is_multiple_of(4);
                if explores_all() || person == Person::Nothing || has_its_turn {
                    self.combine(kill, place, killed.again(), (person, later));
                }
            }
        }
        let later = Later::ALL[turn % Later::ALL.len()];
        self.combine(kill, place, killed, (Person::Nothing, later));
    }

    fn combine(
        &self,
        kill: &Kill<'_>,
        place: &str,
        scene: Scene,
        (person, later): (Person, Later),
    ) {
        let Some((scene, counted_on)) = person.act(scene, kill.operation.old) else {
            return;
        };
        let acted = Look::at(&scene);
        // What a person put into a folder without a checkpoint becomes the checkpoint.
        if acted.views.ours == Found::Whole(operations::OF_OTHER) && later.is_of_the_checkpoint() {
            return;
        }
        let ended = later.run(&scene, self.sources);
        let now = Look::at(&scene);
        let mut breaches =
            kill.breaches_after(person, &counted_on, &acted, (later, ended.as_ref()), &now);
        if later.is_of_metadata() && ended == Some(Ended::Well) && !has_metadata(&scene) {
            breaches.push("the metadata are not there".to_owned());
        }
        let place = format!("{place}; {person:?}; {later:?} ({ended:?})");
        self.note(&place, breaches, |found| {
            found.combinations += 1;
            found.count("later", kill, &now);
        });
    }

    fn note<T>(
        &self,
        place: &str,
        breaches: Vec<String>,
        count: impl FnOnce(&mut Exploration) -> T,
    ) -> T {
        let mut found = self.found.lock().unwrap();
        let breaches = breaches.into_iter();
        found
            .breaches
            .extend(breaches.map(|breach| format!("{breach}: {place}")));
        count(&mut found)
    }
}

impl Exploration {
    fn count(&mut self, when: &'static str, kill: &Kill<'_>, look: &Look) {
        for (reader, found) in look.views.each() {
            let verdict = match found {
                Found::Whole(weights) if Some(*weights) == kill.operation.old.weights() => "old",
                Found::Whole(weights) if *weights == kill.operation.new_weights() => "new",
                Found::Whole(_) => "another",
                Found::Nothing => "nothing",
                Found::Refused(code) => code,
                Found::Broken(_) => "broken",
            };
            let key = (when, reader, verdict.to_owned());
            *self.verdicts.entry(key).or_default() += 1;
        }
    }

    fn print(&self) {
        println!(
            "{} operations, {} kills, {} distinct states, {} combinations",
            self.operations,
            self.kills,
            self.states.len(),
            self.combinations
        );
        for ((when, reader, verdict), count) in &self.verdicts {
            println!("{when:8} {reader:16} {verdict:24} {count}");
        }
    }
}

/// The binary says of a folder what the library does.
fn binary_agrees(scene: &Scene, look: &Look) -> Vec<String> {
    let model = scene.model();
    let mut breaches = Vec::new();
    let is_whole = matches!(look.views.ours, Found::Whole(_));
    for command in ["inspect", "verify"] {
        let run = safeshard([command, "--json", model.to_str().unwrap()]);
        if (run.code == Some(0)) != is_whole {
            breaches.push(format!("{command} disagrees: {run:?}"));
        }
    }
    breaches
}
