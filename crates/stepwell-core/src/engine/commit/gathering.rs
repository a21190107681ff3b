//! The gathering of items into batches, and the lanes in which the batches leave.
//!
//! Nothing here waits or runs: `commit.rs` drives the lanes, and tells this part what came back.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use hashbrown::HashSet;

use crate::base::journal::Outcome;
use crate::engine::commit::answers::Answers;
use crate::engine::commit::receipt::Answer;
use crate::store::*;

/// The index of a lane.
pub(super) type Lane = usize;
/// The lane for everything; the others take light transitions only.
const MAIN: Lane = 0;

/// The size of a full batch, in bytes of payloads, because a store may limit what it takes at once.
const FULL: usize = 32 << 20;
/// The largest light transition, in bytes of its payloads.
const LIGHT: usize = 64 << 10;
/// The smallest share of a lane, in light transitions.
const SHARE: usize = 16;

/// The items that gather, and the lanes in which they leave.
#[derive(Default)]
pub(super) struct Gathering {
    /// Batches that are full, in the order in which they leave.
    full: VecDeque<(Batch, Answers)>,
    pub(super) batch: Batch,
    pub(super) answers: Answers,
    /// The bytes of payloads in `batch`.
    bytes: usize,
    /// The number of additions.
    pub(super) added: usize,
    /// Transitions that concern only their own tasks, and may go in any lane; always empty with one
    /// lane.
    light: Vec<(Transition, Answer<Result<Applied, Refused>>)>,
    /// The number of transitions on their way in each lane.
    ///
    /// It is `usize::MAX` while a batch is about to leave, or when nothing may go beside the batch.
    lanes: Vec<Option<usize>>,
    /// The number of the last batch that left in each lane.
    numbers: Vec<u64>,
    /// The number of batches that have left.
    left: u64,
    /// Set when two transitions of one run may have gathered.
    ///
    /// No transition goes beside such a batch then, neither now nor while it is on its way.
    may_repeat: bool,
    /// Set when the last batch had one item, and nothing has gathered since.
    ///
    /// The next item is then probably from the same owner, and has nobody to wait for.
    lone: bool,
}

impl Gathering {
    pub(super) fn new(lanes: NonZeroUsize) -> Self {
        Self { lanes: vec![None; lanes.get()], numbers: vec![0; lanes.get()], ..Self::default() }
    }

    fn set(&mut self, lane: Lane, on_its_way: Option<usize>) {
        if let Some(slot) = self.lanes.get_mut(lane) {
            *slot = on_its_way;
        }
    }

    /// Adds a transition to what may go in any lane, or to the batch of the main lane.
    #[inline]
    pub(super) fn add(&mut self, transition: Transition, answer: Answer<Result<Applied, Refused>>) {
        if self.lanes.len() > 1 && is_light(&transition) {
            self.light.push((transition, answer));
        } else {
            self.add_heavy(transition, answer);
        }
    }

    /// Adds a transition of a run that may have another one on its way.
    pub(super) fn add_beside(
        &mut self,
        transition: Transition,
        answer: Answer<Result<Applied, Refused>>,
    ) {
        self.add_heavy(transition, answer);
        self.may_repeat = true;
    }

    fn add_heavy(&mut self, transition: Transition, answer: Answer<Result<Applied, Refused>>) {
        let bytes = weight(&transition);
        self.batch.transitions.push(transition);
        self.answers.transitions.push(answer);
        self.grow(bytes);
    }

    /// Counts the bytes that were added to the batch, and sets a full batch aside.
    #[inline]
    pub(super) fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= FULL {
            let full = self.take_batch();
            self.full.push_back(full);
        }
    }

    fn take_batch(&mut self) -> (Batch, Answers) {
        self.bytes = 0;
        (std::mem::take(&mut self.batch), std::mem::take(&mut self.answers))
    }

    /// Returns the lane that is to be driven now, if a batch can leave in it, and whether it waits
    /// for more items.
    ///
    /// The lane is taken until the batch has [left](Self::next).
    #[inline]
    pub(super) fn set_off(&mut self) -> Option<(Lane, bool)> {
        let patient = !std::mem::take(&mut self.lone);
        let lane = self.can_leave()?;
        self.set(lane, Some(usize::MAX));
        Some((lane, patient))
    }

    /// Takes the next batch in whichever lane it can leave, from the driver of this lane.
    #[inline]
    pub(super) fn next(&mut self, lane: &mut Lane) -> Option<(Batch, Answers)> {
        self.set(*lane, None);
        *lane = self.can_leave()?;
        Some(self.take(*lane))
    }

    /// Frees the lane of a batch with so many items, unless a batch can leave in it now, and
    /// returns whether one can.
    #[inline]
    pub(super) fn came_back(&mut self, lane: Lane, items: usize) -> bool {
        self.set(lane, None);
        let goes_on = self.can_leave().is_some();
        if goes_on {
            self.set(lane, Some(usize::MAX));
        } else {
            self.lone = items == 1;
        }
        goes_on
    }

    /// Frees the lane of a driver that has panicked.
    pub(super) fn free(&mut self, lane: Lane) {
        self.set(lane, None);
    }

    /// Returns the numbers of the batches that are on their way.
    pub(super) fn on_their_way(&self) -> Vec<u64> {
        let numbered = self.lanes.iter().zip(&self.numbers);
        numbered.filter(|(lane, _)| lane.is_some()).map(|(_, number)| *number).collect()
    }

    /// Returns the lane in which a batch can leave now.
    fn can_leave(&self) -> Option<Lane> {
        let largest = self.lanes.iter().flatten().max();
        let main_is_free = self.lanes.first().is_some_and(Option::is_none);
        if self.may_repeat && largest.is_some() {
            // A batch that is on its way may hang. Heartbeats do not wait for it, and neither do
            // other items that are not transitions.
            return (main_is_free && self.batch.has_more_than_transitions()).then_some(MAIN);
        }
        let heavy = !(self.full.is_empty() && self.batch.is_empty());
        if heavy && main_is_free {
            return Some(MAIN);
        }
        let light = self.light.len();
        let enough = light > 0 && largest.is_none_or(|largest| light >= largest.div_ceil(2));
        // The last lane comes first, so that the main lane stays free for all other items.
        self.lanes.iter().rposition(Option::is_none).filter(|_| enough)
    }

    /// Returns the number of light transitions that leave next, an equal share for each lane.
    fn share(&self) -> usize {
        let on_their_way =
            self.lanes.iter().flatten().fold(0_usize, |sum, lane| sum.saturating_add(*lane));
        let all = self.light.len();
        let share = all.saturating_add(on_their_way).div_ceil(self.lanes.len());
        if self.may_repeat { all } else { share.max(SHARE).min(all) }
    }

    /// Takes the batch without its transitions.
    fn take_without_transitions(&mut self) -> (Batch, Answers) {
        let transitions = std::mem::take(&mut self.batch.transitions);
        let answers = std::mem::take(&mut self.answers.transitions);
        let taken = self.take_batch();
        transitions
            .into_iter()
            .zip(answers)
            .for_each(|(transition, answer)| self.add_heavy(transition, answer));
        taken
    }

    /// Takes the batch that leaves in the lane.
    fn take(&mut self, lane: Lane) -> (Batch, Answers) {
        self.left += 1;
        if let Some(number) = self.numbers.get_mut(lane) {
            *number = self.left;
        }
        if self.may_repeat && self.lanes.iter().any(Option::is_some) {
            self.set(lane, Some(0));
            return self.take_without_transitions();
        }
        let share = self.share();
        let (mut batch, mut answers) = match lane {
            MAIN => self.full.pop_front().unwrap_or_else(|| self.take_batch()),
            _ => Default::default(),
        };
        let heavy = std::mem::take(&mut batch.transitions).into_iter();
        let all =
            self.light.drain(..share).chain(heavy.zip(std::mem::take(&mut answers.transitions)));
        let repeats = self.may_repeat;
        if repeats {
            // A batch holds at most one transition of each run.
            let mut seen = HashSet::new();
            let (first, later) = all.partition::<Vec<_>, _>(|(transition, _)| {
                seen.insert((transition.task_id, transition.run_id))
            });
            (batch.transitions, answers.transitions) = first.into_iter().unzip();
            later.into_iter().for_each(|(transition, answer)| self.add_heavy(transition, answer));
            self.may_repeat = !(self.full.is_empty() && self.batch.is_empty());
        } else {
            (batch.transitions, answers.transitions) = all.unzip();
        }
        let ends =
            |transition: &&Transition| matches!(transition.next, Next::Fail(_) | Next::Cancel);
        answers.ending =
            batch.transitions.iter().filter(ends).map(|transition| transition.task_id).collect();
        self.set(lane, Some(if repeats { usize::MAX } else { batch.transitions.len() }));
        debug_assert!(is_one_of_each(&batch.transitions), "a batch has one transition of a run");
        (batch, answers)
    }
}

/// Returns whether no two of the transitions are of the same run.
fn is_one_of_each(transitions: &[Transition]) -> bool {
    let mut seen = HashSet::new();
    transitions.iter().all(|transition| seen.insert((transition.task_id, transition.run_id)))
}

/// Returns whether a transition concerns only its own task, and is small.
fn is_light(transition: &Transition) -> bool {
    transition.only_journals()
        && weight(transition) <= LIGHT
        && matches!(transition.next, Next::Continue { collect: false } | Next::Complete(_))
}

/// Returns the bytes of a transition's payloads.
fn weight(transition: &Transition) -> usize {
    let entries = transition.entries.iter().map(|entry| match &entry.outcome {
        Outcome::Done(payload) => payload.as_str().len(),
        Outcome::Failed(_) | Outcome::Retrying { .. } => 0,
    });
    let keyed = transition.keyed.iter().map(|keyed| &keyed.task);
    let spawns = transition.spawns.iter().chain(keyed).map(|task| task.params.as_str().len());
    let events = transition.events.iter().map(|event| event.payload.as_str().len());
    let messages = transition.messages.iter().map(|message| message.payload.as_str().len());
    let output =
        if let Next::Complete(output) = &transition.next { output.as_str().len() } else { 0 };
    output + entries.chain(spawns).chain(events).chain(messages).sum::<usize>()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::engine::commit::receipt::Receipt;

    const JOURNALS: Next = Next::Continue { collect: false };
    const SUSPENDS: Next = Next::Suspend { wake_at: None };

    fn add(gathering: &mut Gathering, run: u128, next: Next) {
        let (answer, _) = Receipt::new();
        let id = Uuid::from_u128(run);
        gathering.add(Transition::new(id.into(), id.into(), next), answer);
    }

    fn gathering() -> Gathering {
        Gathering::new(NonZeroUsize::MIN.saturating_add(1))
    }

    /// Returns the lane in which a batch leaves, and the number of its transitions.
    fn leaves(gathering: &mut Gathering) -> Option<(Lane, usize)> {
        let lane = gathering.can_leave()?;
        let (batch, answers) = gathering.take(lane);
        assert_eq!(batch.transitions.len(), answers.transitions.len());
        Some((lane, batch.transitions.len()))
    }

    #[test]
    fn an_idle_engine_sends_at_once_and_a_busy_one_half_as_much_again_beside() {
        let mut gathering = gathering();
        assert_eq!(leaves(&mut gathering), None);
        (0..4).for_each(|run| add(&mut gathering, run, JOURNALS));
        assert_eq!(
            leaves(&mut gathering),
            Some((1, 4)),
            "the main lane is left to those who need it"
        );
        add(&mut gathering, 4, JOURNALS);
        assert_eq!(leaves(&mut gathering), None, "one is less than half of four");
        add(&mut gathering, 5, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 2)));
        add(&mut gathering, 6, JOURNALS);
        add(&mut gathering, 7, JOURNALS);
        assert_eq!(leaves(&mut gathering), None, "both lanes are in use");
        gathering.set(1, None);
        assert_eq!(leaves(&mut gathering), Some((1, 2)));
    }

    #[test]
    fn a_crowd_is_shared_among_the_lanes() {
        let mut gathering = gathering();
        (0..100).for_each(|run| add(&mut gathering, run, JOURNALS));
        assert_eq!(leaves(&mut gathering), Some((1, 50)));
        assert_eq!(leaves(&mut gathering), Some((MAIN, 50)));
        (100..160).for_each(|run| add(&mut gathering, run, JOURNALS));
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 55)), "as many as make them alike");
        gathering.set(1, None);
        assert_eq!(
            leaves(&mut gathering),
            None,
            "the rest is less than half of what is on its way"
        );
    }

    #[test]
    fn where_there_is_one_lane_all_goes_in_it_in_its_order() {
        let mut gathering = Gathering::new(NonZeroUsize::MIN);
        (0..100).for_each(|run| add(&mut gathering, run, JOURNALS));
        assert_eq!(leaves(&mut gathering), Some((MAIN, 100)));
        add(&mut gathering, 100, JOURNALS);
        assert_eq!(leaves(&mut gathering), None);
    }

    #[test]
    fn what_concerns_others_stays_in_the_main_lane() {
        let mut gathering = gathering();
        gathering.set(MAIN, Some(0));
        add(&mut gathering, 1, SUSPENDS);
        assert_eq!(leaves(&mut gathering), None);
        add(&mut gathering, 2, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((1, 1)));
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 1)));
    }

    #[test]
    fn large_payloads_go_in_several_batches_in_their_order() {
        let mut gathering = gathering();
        let large = || Next::Complete(crate::Payload::from_json("1".repeat(FULL / 2)));
        assert!(!is_light(&Transition::new(
            Uuid::from_u128(1).into(),
            Uuid::from_u128(1).into(),
            large()
        )));
        for run in 0..5 {
            add(&mut gathering, run, large());
        }
        for expected in [Some((MAIN, 2)), Some((MAIN, 2)), Some((MAIN, 1)), None] {
            assert_eq!(leaves(&mut gathering), expected);
            gathering.set(MAIN, None);
        }
    }

    #[test]
    fn a_run_never_has_a_transition_in_each_lane() {
        let mut gathering = gathering();
        gathering.set(MAIN, Some(0));
        add(&mut gathering, 1, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((1, 1)));
        gathering.set(MAIN, None);
        // The run is stopped as stuck while its entry is on its way.
        add(&mut gathering, 1, Next::Release);
        gathering.may_repeat = true;
        assert_eq!(leaves(&mut gathering), None);
        gathering.set(1, None);
        add(&mut gathering, 1, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 1)), "one of each run in a batch");
        add(&mut gathering, 2, JOURNALS);
        assert_eq!(leaves(&mut gathering), None, "and none beside it");
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 2)));
    }

    #[test]
    fn signs_of_life_pass_a_batch_that_hangs() {
        let mut gathering = gathering();
        gathering.set(MAIN, Some(0));
        add(&mut gathering, 1, JOURNALS);
        assert_eq!(leaves(&mut gathering), Some((1, 1)));
        gathering.set(MAIN, None);
        add(&mut gathering, 1, Next::Release);
        gathering.may_repeat = true;
        let worker_id = Uuid::from_u128(1).into();
        gathering.batch.workers.push(WorkerSignal::Heartbeat { worker_id });
        gathering.answers.workers.push(Receipt::new().0);
        assert_eq!(gathering.can_leave(), Some(MAIN));
        let (batch, answers) = gathering.take(MAIN);
        assert_eq!(
            (batch.workers.len(), answers.workers.len(), batch.transitions.len()),
            (1, 1, 0)
        );
        add(&mut gathering, 1, JOURNALS);
        gathering.set(MAIN, None);
        assert_eq!(leaves(&mut gathering), None, "what is the run's waits");
        gathering.set(1, None);
        assert_eq!(leaves(&mut gathering), Some((MAIN, 1)));
    }
}
