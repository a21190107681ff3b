//! The search for the items of a batch that the store refuses for good, so that the others are
//! committed.
//!
//! ```text
//!   a b c X d e f   refused    a b c   committed   X d   refused     X   its caller gets the error
//!   └─────┘└─────┘             X d e f refused     e f   committed   d   committed
//! ```
//!
//! The parts are sent in their order, one at a time. They look like batches that came one after the
//! other.

use crate::base::guard::answer;
use crate::engine::commit::answers::Answers;
use crate::store::{Batch, StoreError, Transition, UserTransaction};

/// A part of a batch, and the callers that wait for its items.
pub(crate) type Part = (Batch, Answers);

/// Removes the items of a refused batch whose transactions had begun, and answers their callers.
///
/// A transaction cannot begin twice.
pub(crate) fn without_works((batch, answers): &mut Part, error: &StoreError) {
    let begun = |transition: &Transition| {
        transition.transaction.as_ref().is_some_and(UserTransaction::is_taken)
    };
    // The last item goes first, because a removal moves the items after it.
    for place in (0..batch.transitions.len()).rev() {
        if batch.transitions.get(place).is_some_and(begun) {
            batch.transitions.remove(place);
            answer(answers.transitions.remove(place), Err(error.clone()));
        }
    }
}

/// Cuts a part in two, of which the first may be empty.
pub(crate) fn halve((mut batch, mut answers): Part) -> [Part; 2] {
    let mut left = answers.items() / 2;
    let mut rest = Part::default();
    macro_rules! cut {
        ($($list:ident),*) => {$(
            let at = left.min(answers.$list.len());
            left -= at;
            rest.0.$list = batch.$list.split_off(at);
            rest.1.$list = answers.$list.split_off(at);
        )*};
    }
    cut!(transitions, commands, events, messages);
    // Tasks that were spawned together stay together.
    let at = left.min(answers.groups.len());
    left -= at;
    rest.1.groups = answers.groups.split_off(at);
    let at = answers.groups.iter().sum();
    rest.0.spawns = batch.spawns.split_off(at);
    rest.1.spawns = answers.spawns.split_off(at);
    rest.1.spawned = answers.spawned.split_off(at);
    let at = left.min(answers.schedules.len());
    rest.1.scheduled = answers.scheduled.split_off(at);
    cut!(schedules, queues, workers, claims);
    debug_assert_eq!(left, 0, "every list was cut");
    rest.1.ending.clone_from(&answers.ending);
    [(batch, answers), rest]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use tokio::sync::oneshot;
    use uuid::Uuid;

    use super::*;
    use crate::base::journal::{Key, Kind};
    use crate::base::name::Name;
    use crate::store::{Claim, Command, Next, WorkerSignal};

    fn part(transitions: u128, commands: u128, workers: u128) -> Part {
        let mut part = Part::default();
        for n in 0..transitions {
            let id = Uuid::from_u128(n);
            part.0.transitions.push(Transition::new(id.into(), id.into(), Next::Release));
            part.1.transitions.push(oneshot::channel().0);
        }
        for n in 0..commands {
            part.0.commands.push(Command::Cancel(Uuid::from_u128(n).into()));
            part.1.commands.push(oneshot::channel().0);
        }
        for n in 0..workers {
            let worker_id = Uuid::from_u128(n).into();
            part.0.workers.push(WorkerSignal::Drain { worker_id });
            part.1.workers.push(oneshot::channel().0);
            part.0.claims.push(Claim {
                worker_id,
                queues: Vec::new(),
                task_types: Vec::new(),
                code_version: None,
                limit: 1,
                suspect: 0,
            });
            part.1.claims.push(oneshot::channel().0);
        }
        part
    }

    fn lengths((batch, answers): &Part) -> [usize; 4] {
        let lists = [
            (batch.transitions.len(), answers.transitions.len()),
            (batch.commands.len(), answers.commands.len()),
            (batch.workers.len(), answers.workers.len()),
            (batch.claims.len(), answers.claims.len()),
        ];
        lists.map(|(items, answers)| {
            assert_eq!(items, answers);
            items
        })
    }

    #[test]
    fn a_part_is_cut_in_the_order_of_its_lists() {
        let [first, second] = halve(part(3, 2, 2));
        assert_eq!((lengths(&first), lengths(&second)), ([3, 1, 0, 0], [0, 1, 2, 2]));
        let [first, second] = halve(part(0, 0, 1));
        assert_eq!((lengths(&first), lengths(&second)), ([0, 0, 1, 0], [0, 0, 0, 1]));
        let [first, second] = halve(second);
        assert_eq!((lengths(&first), lengths(&second)), ([0; 4], [0, 0, 0, 1]));
    }

    #[test]
    fn those_whose_work_has_begun_are_answered_and_taken_out() {
        let mut part = part(4, 0, 0);
        let (answer, mut receipt) = oneshot::channel();
        part.1.transitions[2] = answer;
        for place in [0, 1, 2] {
            let key = Key { kind: Kind::Step, name: Name::new("work").unwrap(), ordinal: 1 };
            let work = UserTransaction::new(key, 1, Box::new(()));
            // The transaction of the transition in between is still to begin.
            if place != 1 {
                work.take().unwrap();
            }
            part.0.transitions[place].transaction = Some(work);
        }
        without_works(&mut part, &StoreError::Closed);
        assert!(matches!(receipt.try_recv(), Ok(Err(StoreError::Closed))));
        assert_eq!(lengths(&part)[0], 2);
        let left: Vec<_> =
            part.0.transitions.iter().map(|left| left.task_id.as_uuid().as_u128()).collect();
        assert_eq!(left, [1, 3]);
    }
}
