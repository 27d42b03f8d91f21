//! What a model will ask for next, as far as its names and what it has asked for show.

use std::collections::HashMap;

use candle_nn::var_builder::Shard;
use safeshard_core::{Dtype, natural_order};

/// Members of a group, at most: bounds the work for checkpoints with many tensors and few numbers.
const GROUP: usize = 128;

/// The tensors of a checkpoint in the order in which a model is expected to ask for them.
///
/// A group are those whose names agree up to the last number: a layer, or one expert of a layer.
/// Groups come in natural order. All of a group are asked for before the next one, in the order in
/// which their kinds were first asked for: of layer 1 as of layer 0.
pub(crate) struct Outlook {
    places: Vec<Place>,
    positions: HashMap<String, usize>,
    groups: Vec<Vec<usize>>,
    kinds: usize,
}

/// A tensor.
pub(crate) struct Place {
    pub(crate) stored: String,
    pub(crate) dtype: Dtype,
    /// Of all of it.
    pub(crate) byte_len: u64,
    pub(crate) group: usize,
    pub(crate) kind: Kind,
}

/// Tensors are of one kind if their names differ in numbers only: `layers.0.mlp.up` and
/// `layers.1.mlp.up`, but not `experts.0.w1` and `experts.0.w2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(usize);

impl Outlook {
    /// Of tensors with their names, dtypes and bytes.
    pub(crate) fn new(tensors: impl IntoIterator<Item = (String, Dtype, u64)>) -> Self {
        let (mut places, mut kinds) = (Vec::new(), HashMap::new());
        let mut groups: HashMap<String, Vec<usize>> = HashMap::new();
        for (stored, dtype, byte_len) in tensors {
            let next = Kind(kinds.len());
            let kind = *kinds.entry(without_numbers(&stored)).or_insert(next);
            let group = groups.entry(up_to_last_number(&stored).to_owned());
            group.or_default().push(places.len());
            places.push(Place {
                stored,
                dtype,
                byte_len,
                group: 0,
                kind,
            });
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_unstable_by(|(a, _), (b, _)| natural_order(a, b));
        let parts = groups.iter().flat_map(|(_, members)| members.chunks(GROUP));
        let groups: Vec<_> = parts.map(<[_]>::to_vec).collect();
        for (group, members) in groups.iter().enumerate() {
            for &member in members {
                if let Some(place) = places.get_mut(member) {
                    place.group = group;
                }
            }
        }
        let positions = places.iter().map(|place| place.stored.clone()).zip(0..);
        Self {
            positions: positions.collect(),
            places,
            groups,
            kinds: kinds.len(),
        }
    }

    /// What is known of a model before it has asked for anything: the same of each kind.
    pub(crate) fn habits(&self, expected: Expected) -> Habits {
        let habit = Habit {
            expected,
            turn: usize::MAX,
        };
        Habits {
            of_kinds: vec![habit; self.kinds],
            next_turn: 0,
        }
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The tensor of that stored name, and its position among the places.
    pub(crate) fn find(&self, stored: &str) -> Option<(usize, &Place)> {
        let &position = self.positions.get(stored)?;
        Some((position, self.places.get(position)?))
    }

    /// Positions in the order expected, from the beginning of a group on, and which part of each will
    /// be asked for. Leaves out those of which that is not known.
    pub(crate) fn from<'o>(
        &'o self,
        group: usize,
        habits: &'o Habits,
    ) -> impl Iterator<Item = (usize, &'o Place, Shard)> {
        let groups = self.groups.iter().skip(group);
        groups.flat_map(|members| {
            let places = members.iter().filter_map(|&member| {
                let place = self.places.get(member)?;
                let habit = habits.of_kinds.get(place.kind.0)?;
                match habit.expected {
                    Expected::Always(part) => Some((habit.turn, (member, place, part))),
                    Expected::Unknown | Expected::Nothing => None,
                }
            });
            let mut places: Vec<_> = places.collect();
            places.sort_by_key(|&(turn, _)| turn);
            places.into_iter().map(|(_, place)| place)
        })
    }
}

/// What a model does with each kind of tensor, as far as it has shown.
pub(crate) struct Habits {
    of_kinds: Vec<Habit>,
    next_turn: usize,
}

#[derive(Clone)]
struct Habit {
    expected: Expected,
    /// When one of the kind was first asked for: before those with a higher number.
    turn: usize,
}

/// What will be asked for, of tensors of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// This shows when one of them is asked for.
    Unknown,
    Always(Shard),
    /// Now this part, now that, or some of the tensors only.
    Nothing,
}

impl Habits {
    /// A part of a tensor of that kind is asked for.
    pub(crate) fn asked(&mut self, kind: Kind, part: Shard) {
        let Some(habit) = self.of_kinds.get_mut(kind.0) else {
            return;
        };
        habit.expected = match habit.expected {
            Expected::Unknown => Expected::Always(part),
            Expected::Always(known) if known == part => Expected::Always(part),
            Expected::Always(_) | Expected::Nothing => Expected::Nothing,
        };
        if habit.turn == usize::MAX {
            habit.turn = self.next_turn;
            self.next_turn += 1;
        }
    }

    /// One of that kind was expected to be asked for, and was not.
    pub(crate) fn disappointed(&mut self, kind: Kind) {
        if let Some(habit) = self.of_kinds.get_mut(kind.0) {
            habit.expected = Expected::Nothing;
        }
    }
}

fn is_number(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_digit())
}

fn without_numbers(name: &str) -> String {
    let parts = name.split('.').map(|part| match is_number(part) {
        true => "",
        false => part,
    });
    parts.collect::<Vec<_>>().join(".")
}

/// All of a name that has no number.
fn up_to_last_number(name: &str) -> &str {
    let mut rest = name;
    while let Some((before, last)) = rest.rsplit_once('.') {
        if is_number(last) {
            return rest;
        }
        rest = before;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Shard = Shard {
        dim: 0,
        rank: 0,
        world_size: 1,
    };
    const HALF: Shard = Shard {
        world_size: 2,
        ..WHOLE
    };

    fn outlook(names: &[&str]) -> Outlook {
        let tensors = names.iter().map(|&name| (name.to_owned(), Dtype::F32, 4));
        Outlook::new(tensors)
    }

    fn expected<'o>(outlook: &'o Outlook, habits: &Habits, after: &str) -> Vec<&'o str> {
        let (_, asked) = outlook.find(after).unwrap();
        let all = outlook.from(asked.group, habits);
        all.map(|(position, ..)| outlook.places()[position].stored.as_str())
            .collect()
    }

    #[test]
    fn layers_come_one_after_the_other_and_each_as_the_first_was_asked_for() {
        let outlook = outlook(&[
            "h.0.k", "h.0.q", "h.0.v", "h.10.k", "h.2.k", "h.2.q", "embed",
        ]);
        let mut habits = outlook.habits(Expected::Always(WHOLE));
        for name in ["embed", "h.0.q", "h.0.v"] {
            habits.asked(outlook.find(name).unwrap().1.kind, WHOLE);
        }
        let order = ["h.0.q", "h.0.v", "h.0.k", "h.2.q", "h.2.k", "h.10.k"];
        assert_eq!(expected(&outlook, &habits, "h.0.q"), order);
        assert_eq!(expected(&outlook, &habits, "embed")[1..], order);
        assert_eq!(expected(&outlook, &habits, "h.2.k"), order[3..]);
    }

    #[test]
    fn an_expert_is_a_group_of_its_own() {
        let outlook = outlook(&["h.0.e.0.w1", "h.0.e.0.w2", "h.0.e.1.w1", "h.0.q", "h.1.q"]);
        let habits = outlook.habits(Expected::Always(WHOLE));
        let order = ["h.0.q", "h.0.e.0.w1", "h.0.e.0.w2", "h.0.e.1.w1", "h.1.q"];
        assert_eq!(expected(&outlook, &habits, "h.0.q"), order);
    }

    #[test]
    fn names_without_numbers_are_groups_of_their_own() {
        // Asking for the embeddings does not mean asking for the head.
        let outlook = outlook(&["lm_head", "model.embed", "model.norm"]);
        let habits = outlook.habits(Expected::Always(WHOLE));
        assert_eq!(
            expected(&outlook, &habits, "model.embed"),
            ["model.embed", "model.norm"]
        );
    }

    #[test]
    fn the_part_of_one_layer_is_expected_of_the_others_of_its_kind_only() {
        let outlook = outlook(&["h.0.w1", "h.0.w2", "h.1.w1", "h.1.w2"]);
        let mut habits = outlook.habits(Expected::Unknown);
        assert_eq!(outlook.from(0, &habits).count(), 0);
        habits.asked(outlook.find("h.0.w1").unwrap().1.kind, HALF);
        let all = outlook.from(0, &habits);
        let all: Vec<_> = all.map(|(_, place, part)| (&*place.stored, part)).collect();
        assert_eq!(all, [("h.0.w1", HALF), ("h.1.w1", HALF)]);
    }

    #[test]
    fn nothing_is_expected_where_parts_differ_or_one_was_left_out() {
        let outlook = outlook(&["h.0.w"]);
        let kind = outlook.find("h.0.w").unwrap().1.kind;
        let mut habits = outlook.habits(Expected::Always(WHOLE));
        habits.asked(kind, WHOLE);
        assert_eq!(outlook.from(0, &habits).count(), 1);
        for part in [HALF, WHOLE, WHOLE] {
            habits.asked(kind, part);
            assert_eq!(outlook.from(0, &habits).count(), 0);
        }
        let mut habits = outlook.habits(Expected::Always(WHOLE));
        habits.disappointed(kind);
        habits.asked(kind, WHOLE);
        assert_eq!(outlook.from(0, &habits).count(), 0);
    }

    #[test]
    fn a_group_has_no_more_than_so_many_members() {
        let names: Vec<_> = (0..3 * GROUP).map(|i| format!("h.0.t{i:04}")).collect();
        let outlook = outlook(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(outlook.groups.len(), 3);
        assert!(names[..2].iter().all(|name| outlook.find(name).is_some()));
    }
}
