//! The commands that a position allows, and their effects.

use crate::store::rules::ending::{Ending, Undo, on_end};
use crate::store::rules::position::{Activity, Cancellation, Claims, Course, End, Live, Position};
use crate::store::{Command, TaskState};

/// A [`Command`] without its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandKind {
    /// A [`Command::Cancel`].
    Cancel,
    /// A [`Command::Retry`].
    Retry,
    /// A [`Command::Delete`].
    Delete,
    /// A [`Command::Wake`].
    Wake,
    /// A [`Command::Pause`].
    Pause,
    /// A [`Command::Resume`].
    Resume,
}

impl CommandKind {
    /// The list of all commands.
    pub const ALL: [Self; 6] =
        [Self::Cancel, Self::Retry, Self::Delete, Self::Wake, Self::Pause, Self::Resume];
}

impl From<Command> for CommandKind {
    fn from(command: Command) -> Self {
        match command {
            Command::Cancel(_) => Self::Cancel,
            Command::Retry(_) => Self::Retry,
            Command::Delete(_) => Self::Delete,
            Command::Wake(_) => Self::Wake,
            Command::Pause(_) => Self::Pause,
            Command::Resume(_) => Self::Resume,
        }
    }
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The command is carried out, with this effect.
    Allowed(Effect),
    /// The task, in this state, does not allow the command, and stays as it is.
    NotAllowed(TaskState),
}

/// The effect of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The task's run is asked to end the task.
    AskToEnd,
    /// The task ends as cancelled, or is compensated first ([`on_end`]).
    EndAsCancelled,
    /// The task becomes pending, with all counts from the beginning.
    RunAgain,
    /// The task is removed, unless another task [needs it](crate::Store::purge).
    Remove,
    /// The task becomes pending, though nothing has arrived for it.
    Wake,
    /// No worker claims the task.
    Pause,
    /// Workers may claim the task: at once, if it is pending.
    Resume,
    /// The task is already as the command asks.
    Nothing,
}

impl Effect {
    /// Returns the position of a task after the effect; `None` when the task is removed.
    pub const fn apply(self, position: Position, undo: Undo) -> Option<Position> {
        let after = match (self, position) {
            (Self::Remove, _) => return None,
            (Self::RunAgain, _) => Position::Live(Live::NEW),
            (Self::AskToEnd, Position::Live(live)) => {
                Position::Live(Live { cancellation: Cancellation::Requested, ..live })
            }
            (Self::EndAsCancelled, Position::Live(live)) => {
                match on_end(End::Cancelled, live.course, undo) {
                    Ending::Ends(end) => Position::Ended(end),
                    Ending::CompensatesFirst => Position::Live(live.compensating()),
                }
            }
            (Self::Wake, Position::Live(live)) => {
                Position::Live(Live { activity: Activity::Pending, ..live })
            }
            (Self::Pause, Position::Live(live)) => {
                Position::Live(Live { claims: Claims::Paused, ..live })
            }
            (Self::Resume, Position::Live(live)) => {
                Position::Live(Live { claims: Claims::Open, ..live })
            }
            (_, position) => position,
        };
        Some(after)
    }
}

/// Returns the answer to a command for a task in a position.
pub const fn on_command(position: Position, command: CommandKind) -> Verdict {
    let effect = match (position, command) {
        (_, CommandKind::Cancel) => on_cancel(position),
        (Position::Ended(End::Failed | End::Cancelled), CommandKind::Retry) => {
            Some(Effect::RunAgain)
        }
        (Position::Ended(_), CommandKind::Delete) => Some(Effect::Remove),
        (Position::Live(live), CommandKind::Wake) => match live.activity {
            Activity::Suspended => Some(Effect::Wake),
            Activity::Pending | Activity::Running => None,
        },
        (Position::Live(live), CommandKind::Pause) => match live.claims {
            Claims::Open => Some(Effect::Pause),
            Claims::Paused => Some(Effect::Nothing),
        },
        (Position::Live(live), CommandKind::Resume) => match live.claims {
            Claims::Open => Some(Effect::Nothing),
            Claims::Paused => Some(Effect::Resume),
        },
        (Position::Live(_), CommandKind::Retry | CommandKind::Delete)
        | (Position::Ended(End::Completed), CommandKind::Retry)
        | (Position::Ended(_), CommandKind::Wake | CommandKind::Pause | CommandKind::Resume) => {
            None
        }
    };
    match effect {
        Some(effect) => Verdict::Allowed(effect),
        None => Verdict::NotAllowed(position.state()),
    }
}

/// Returns the effect of a cancellation: by a client, by the cancelled parent, by a deadline, or by
/// a spawn that replaces the task.
///
/// The result is `None` for a task that ends by itself or has ended.
pub const fn on_cancel(position: Position) -> Option<Effect> {
    match position {
        Position::Ended(_) | Position::Live(Live { course: Course::Compensating, .. }) => None,
        Position::Live(Live { activity: Activity::Running, .. }) => Some(Effect::AskToEnd),
        Position::Live(_) => Some(Effect::EndAsCancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNDO: [Undo; 2] = [Undo::Nothing, Undo::Left];

    /// Returns the verdicts of the states in the order of [`TaskState::ALL`], as letters.
    fn of_each_state(command: CommandKind) -> String {
        let letter = |state: TaskState| {
            let course = Course::of(state == TaskState::Compensating);
            let position = Position::of(state, course, Cancellation::NotRequested, Claims::Open);
            match on_command(position, command) {
                Verdict::NotAllowed(shown) => {
                    assert_eq!(shown, state);
                    '-'
                }
                Verdict::Allowed(Effect::AskToEnd) => 'a',
                Verdict::Allowed(Effect::EndAsCancelled) => 'c',
                Verdict::Allowed(Effect::RunAgain) => 'r',
                Verdict::Allowed(Effect::Remove) => 'd',
                Verdict::Allowed(Effect::Wake) => 'w',
                Verdict::Allowed(Effect::Pause) => 'p',
                Verdict::Allowed(Effect::Resume) => 'u',
                Verdict::Allowed(Effect::Nothing) => '=',
            }
        };
        TaskState::ALL.map(letter).into_iter().collect()
    }

    #[test]
    fn each_state_allows_its_commands() {
        // Pending, running, suspended, compensating, completed, failed, cancelled.
        for (command, verdicts) in [
            (CommandKind::Cancel, "cac----"),
            (CommandKind::Retry, "-----rr"),
            (CommandKind::Delete, "----ddd"),
            (CommandKind::Wake, "--w----"),
            (CommandKind::Pause, "pppp---"),
            (CommandKind::Resume, "====---"),
        ] {
            assert_eq!(of_each_state(command), verdicts, "{command:?}");
        }
    }

    #[test]
    fn the_flags_of_a_task_decide_as_they_say() {
        for position in Position::all() {
            let Position::Live(live) = position else { continue };
            let verdict = |command| on_command(position, command);
            let paused = live.claims == Claims::Paused;
            let [pause, resume] = match paused {
                true => [Effect::Nothing, Effect::Resume],
                false => [Effect::Pause, Effect::Nothing],
            };
            assert_eq!(verdict(CommandKind::Pause), Verdict::Allowed(pause));
            assert_eq!(verdict(CommandKind::Resume), Verdict::Allowed(resume));
            // A compensation can wait, and be woken.
            let wakes = verdict(CommandKind::Wake) == Verdict::Allowed(Effect::Wake);
            assert_eq!(wakes, live.activity == Activity::Suspended);
            assert_eq!(on_cancel(position).is_none(), live.course == Course::Compensating);
            for command in [CommandKind::Retry, CommandKind::Delete] {
                assert_eq!(verdict(command), Verdict::NotAllowed(position.state()));
            }
        }
    }

    #[test]
    fn an_effect_changes_what_it_names_and_leads_to_what_can_be() {
        for position in Position::all() {
            for command in CommandKind::ALL {
                let Verdict::Allowed(effect) = on_command(position, command) else { continue };
                for undo in UNDO {
                    let after = effect.apply(position, undo);
                    if position.is_reachable() {
                        assert!(after.is_none_or(Position::is_reachable), "{position:?}");
                    }
                    let (Position::Live(live), Some(after)) = (position, after) else { continue };
                    let cancelled = match (effect, undo) {
                        (Effect::EndAsCancelled, Undo::Nothing) => Position::Ended(End::Cancelled),
                        (Effect::EndAsCancelled, Undo::Left) => Position::Live(Live {
                            course: Course::Compensating,
                            claims: live.claims,
                            ..Live::NEW
                        }),
                        (Effect::AskToEnd, _) => {
                            let cancellation = Cancellation::Requested;
                            Position::Live(Live { cancellation, ..live })
                        }
                        (Effect::Wake, _) => {
                            Position::Live(Live { activity: Activity::Pending, ..live })
                        }
                        (Effect::Pause, _) => {
                            Position::Live(Live { claims: Claims::Paused, ..live })
                        }
                        (Effect::Resume, _) => {
                            Position::Live(Live { claims: Claims::Open, ..live })
                        }
                        (Effect::Nothing, _) => position,
                        (Effect::RunAgain | Effect::Remove, _) => panic!("{effect:?}"),
                    };
                    assert_eq!(after, cancelled, "{effect:?}");
                }
            }
        }
        for end in [End::Failed, End::Cancelled] {
            let again = Effect::RunAgain.apply(Position::Ended(end), Undo::Nothing);
            assert_eq!(again, Some(Position::Live(Live::NEW)));
        }
    }

    #[test]
    fn a_command_twice_is_a_command_once() {
        for position in Position::all().into_iter().filter(|position| position.is_reachable()) {
            for command in [CommandKind::Cancel, CommandKind::Pause, CommandKind::Resume] {
                let Verdict::Allowed(effect) = on_command(position, command) else { continue };
                for undo in UNDO {
                    let Some(once) = effect.apply(position, undo) else { panic!("{effect:?}") };
                    let twice = match on_command(once, command) {
                        Verdict::Allowed(effect) => effect.apply(once, undo),
                        Verdict::NotAllowed(_) => Some(once),
                    };
                    assert_eq!(twice, Some(once), "{command:?} of {position:?}");
                }
            }
        }
    }
}
