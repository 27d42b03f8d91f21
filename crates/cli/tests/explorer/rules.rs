//! What must hold of the folder after a command was killed, and after all that came then.

use std::collections::{BTreeMap, BTreeSet};

use safeshard_core::Checkpoint;

use crate::aftermath::{Ended, Later, Person};
use crate::killed::files;
use crate::operations::*;
use crate::readers::{Found, Views, values_kept};

/// The files of a folder.
type Files = BTreeMap<String, Vec<u8>>;

/// A folder as it was found.
pub(crate) struct Look {
    pub(crate) views: Views,
    files: Files,
    kept: BTreeSet<u8>,
}

impl Look {
    pub(crate) fn at(scene: &Scene) -> Self {
        let folder = scene.model();
        Self {
            views: Views::of(&folder),
            files: files(&folder),
            kept: values_kept(&folder),
        }
    }

    fn is(&self, name: &str, contents: Option<&[u8]>) -> bool {
        self.files.get(name).map(Vec::as_slice) == contents
    }

    fn has_side_file(&self) -> bool {
        self.files.contains_key(TOKENIZER.0)
    }
}

/// Breaches of the rules.
#[derive(Default)]
pub(crate) struct Breaches(pub(crate) Vec<String>);

impl Breaches {
    fn unless(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }
}

/// A command that was killed somewhere.
pub(crate) struct Kill<'k> {
    pub(crate) operation: &'k Operation,
    /// The folder before the command, and after it when it is let through.
    pub(crate) before: &'k Look,
    pub(crate) after: &'k Look,
    /// What the kill left.
    pub(crate) left: &'k Look,
}

impl Kill<'_> {
    /// The checkpoint that our reader finds.
    fn base(&self) -> Option<Weights> {
        match self.left.views.ours {
            Found::Whole(weights) => Some(weights),
            _ => None,
        }
    }

    /// Whether our reader finds the new checkpoint, where that can be told.
    pub(crate) fn is_committed(&self) -> bool {
        let (old, new) = (self.operation.old.weights(), self.operation.new_weights());
        old != Some(new) && self.base() == Some(new)
    }

    /// What must hold at once.
    pub(crate) fn breaches(&self) -> Vec<String> {
        let mut breaches = Breaches::default();
        let (old, new) = (self.operation.old.weights(), self.operation.new_weights());
        let left = self.left;
        for (reader, found) in left.views.each() {
            let holds = match found {
                Found::Whole(weights) => Some(*weights) == old || *weights == new,
                Found::Broken(_) => false,
                // Two whole checkpoints of one name are for a person to choose from.
                Found::Refused(code)
                    if reader == "safeshard" && self.operation.old == Old::Both =>
                {
                    code == "ambiguous-checkpoint"
                }
                Found::Nothing | Found::Refused(_) => old.is_none() && !self.is_committed(),
            };
            breaches.unless(holds, || format!("{reader} finds {found:?}"));
            let too_early = !self.is_committed() && old != Some(new) && *found == Found::Whole(new);
            breaches.unless(!too_early, || {
                format!("{reader} finds the new one before us")
            });
        }
        if let Some(name) = self.operation.edits() {
            let at = |look: &Look| look.files.get(name).cloned();
            let (found, old, new) = (at(left), at(self.before), at(self.after));
            breaches.unless(found == old || found == new, || format!("a third {name}"));
        }
        self.side_files(&mut breaches, left, self.base());
        self.foreign_files(&mut breaches, left, Later::Nothing);
        breaches.0
    }

    /// What must hold after a person did this, and then this command ran.
    pub(crate) fn breaches_after(
        &self,
        person: Person,
        counted_on: &[&str],
        acted: &Look,
        (later, ended): (Later, Option<&Ended>),
        now: &Look,
    ) -> Vec<String> {
        let mut breaches = Breaches::default();
        let (old, new) = (self.operation.old.weights(), self.operation.new_weights());
        let base = self.base();
        let converts = later == Later::Convert;
        let is_known = |found: Weights| {
            let is_one = |one: Weights| found == one || converts && found == one.half();
            let foreign = match (base, old) {
                (None, None) => [OF_ADAPTER, OF_OTHER].map(is_one).contains(&true),
                _ => false,
            };
            old.is_some_and(is_one) || is_one(new) || foreign
        };
        // By the rule of the hub, of several files without an index none is the checkpoint: what others
        // put here stays, and so do shards of which no journal says any more whose they are.
        let strays = later.writes_a_single_file() && !person.leaves_the_files();
        let several = later == Later::SaveAdapter || person == Person::AddsFiles || strays;
        for (reader, found) in now.views.each() {
            let holds = match found {
                Found::Whole(weights) => is_known(*weights),
                Found::Broken(_) => false,
                Found::Nothing if reader == "huggingface_hub" && several => true,
                Found::Nothing | Found::Refused(_) => {
                    let is_honest = reader == "safeshard" && !person.leaves_the_files();
                    let of_both = reader == "safeshard" && self.operation.old == Old::Both;
                    let never_was = base.is_none() && old.is_none();
                    is_honest || of_both || never_was || person == Person::RemovesNewShards
                }
            };
            breaches.unless(holds, || format!("{reader} finds {found:?}"));
        }
        if person.leaves_the_files() {
            self.nobody_interfered(&mut breaches, (later, ended), now);
        }
        if let Some(Ended::Otherwise(how)) = ended {
            breaches.0.push(format!("ended with {how}"));
        }
        // What was not committed may be taken back.
        let mut kept = acted.kept.clone();
        kept.retain(|value| self.is_committed() || *value != new.value || old == Some(new));
        let is_lost = !kept.is_empty() && kept.is_disjoint(&now.kept);
        breaches.unless(!is_lost, || format!("{kept:?} became {:?}", now.kept));
        for name in counted_on {
            let may_change = later.may_change(name) && ended == Some(&Ended::Well);
            let is_same = acted.files.get(*name) == now.files.get(*name);
            breaches.unless(is_same || may_change, || {
                format!("{name} is not the person's")
            });
        }
        self.foreign_files(&mut breaches, now, later);
        breaches.0
    }

    /// After a command in a folder that nobody changed, everybody finds what we found before it.
    fn nobody_interfered(
        &self,
        breaches: &mut Breaches,
        (later, ended): (Later, Option<&Ended>),
        now: &Look,
    ) {
        let Some(base) = self.base() else {
            return;
        };
        // `index` is only for shards.
        let must_end_well = later != Later::Index;
        let ended_well = matches!(ended, None | Some(Ended::Well));
        breaches.unless(ended_well || !must_end_well, || format!("{ended:?}"));
        let expected = match later {
            Later::Convert => base.half(),
            _ => base,
        };
        let expected = Found::Whole(expected);
        for (reader, found) in now.views.each() {
            let is_ours = reader == "safeshard";
            let holds = *found == expected || *found == Found::Nothing && !is_ours;
            breaches.unless(holds || ended.is_none() && !is_ours, || {
                format!("{reader} finds {found:?} and not {expected:?}")
            });
        }
        if ended.is_some() {
            self.side_files(breaches, now, Some(base));
            let left = now.files.keys();
            let is_left = |name: &&String| name.ends_with(".commit") || name.ends_with(".lock");
            let left: Vec<_> = left.filter(is_left).collect();
            breaches.unless(left.is_empty(), || format!("{left:?} are left"));
        }
    }

    /// The new side files are there with the new weights and not with the old ones.
    fn side_files(&self, breaches: &mut Breaches, look: &Look, base: Option<Weights>) {
        let has = look.has_side_file();
        let is_whole = look.is(TOKENIZER.0, Some(TOKENIZER.1.as_bytes()));
        breaches.unless(!has || is_whole, || "half a side file".to_owned());
        let new = self.operation.new_weights();
        if !self.operation.carries_files() || base.is_some_and(|base| base != new) {
            breaches.unless(!has, || "a new side file beside old weights".to_owned());
        } else if base.is_some() {
            // Where there were weights before, the rest of the commit brings it.
            let finished = !std::ptr::eq(look, self.left) || self.operation.old == Old::Empty;
            breaches.unless(has || !finished, || "no side file".to_owned());
        }
    }

    /// What is nobody's business stays.
    fn foreign_files(&self, breaches: &mut Breaches, look: &Look, later: Later) {
        for name in [CONFIG.0, MANIFEST] {
            let writes = self.operation.edits() == Some(name);
            if name == MANIFEST && (writes || later == Later::Digest) {
                continue;
            }
            let Some(before) = self.before.files.get(name) else {
                continue;
            };
            breaches.unless(look.is(name, Some(before)), || format!("{name} is another"));
        }
    }
}

/// After metadata were set, our reader finds them.
pub(crate) fn has_metadata(scene: &Scene) -> bool {
    let checkpoint = Checkpoint::open(scene.model()).unwrap();
    match checkpoint.index() {
        Some(index) => index.metadata().iter().any(|(key, _)| key == "later"),
        None => checkpoint.metadata_value("later").is_some(),
    }
}
