//! The tables of the guide's page "The states of a task", written from the rules.

use super::crash::crash_limit;
use super::*;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/states.md");

/// The environment variable with which the test writes the page instead of comparing it.
const WRITE: &str = "WRITE_PAGES";

/// A table of the page: the line before it, and its text.
type Table = (&'static str, String);

fn tables() -> [Table; 6] {
    [
        ("<!-- from the rules: commands -->", commands()),
        ("<!-- from the rules: ends -->", ends()),
        ("<!-- from the rules: runs -->", runs()),
        ("<!-- from the rules: deaths -->", deaths()),
        ("<!-- from the rules: suspensions -->", suspensions()),
        ("<!-- from the rules: spawns -->", spawns()),
    ]
}

fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: [&str; N]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head) + &line(["---"; N]);
    for row in rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

fn words(position: Position) -> String {
    let Position::Live(live) = position else { return format!("**{}**", position.state()) };
    let activity = match live.activity {
        Activity::Pending => "pending",
        Activity::Running => "running",
        Activity::Suspended => "suspended",
    };
    let asked = match live.cancellation {
        Cancellation::NotRequested => "",
        Cancellation::Requested => ", asked to cancel",
    };
    match live.course {
        Course::Ordinary => format!("**{activity}**{asked}"),
        Course::Compensating => format!("**compensating**, {activity}{asked}"),
    }
}

fn commands() -> String {
    let cell = |position: Position, command: CommandKind| {
        // A pause is told for a task that is not paused, and its end for one that is.
        let position = match (position, command) {
            (Position::Live(live), CommandKind::Resume) => {
                Position::Live(Live { claims: Claims::Paused, ..live })
            }
            _ => position,
        };
        match on_command(position, command) {
            Verdict::NotAllowed(_) => "–",
            Verdict::Allowed(Effect::AskToEnd) => "is asked",
            Verdict::Allowed(Effect::EndAsCancelled) => "cancelled",
            Verdict::Allowed(Effect::RunAgain | Effect::Wake) => "pending",
            Verdict::Allowed(Effect::Remove) => "removed",
            Verdict::Allowed(Effect::Pause) => "paused",
            Verdict::Allowed(Effect::Resume) => "not paused",
            Verdict::Allowed(Effect::Nothing) => "as it is",
        }
    };
    let open = |position: &Position| {
        position.is_reachable()
            && !matches!(position, Position::Live(Live { claims: Claims::Paused, .. }))
    };
    let rows = Position::all().into_iter().filter(open).map(|position| {
        let [cancel, retry, delete, wake, pause, resume] =
            CommandKind::ALL.map(|command| cell(position, command).to_owned());
        [words(position), cancel, retry, delete, wake, pause, resume]
    });
    table(["a task that is", "cancel", "retry", "delete", "wake", "pause", "resume"], rows)
}

fn ends() -> String {
    let rows = End::ALL.map(|end| {
        let cell = |course, undo| match on_end(end, course, undo) {
            Ending::Ends(end) => end.state().to_string(),
            Ending::CompensatesFirst => "compensating first".to_owned(),
        };
        let [nothing, left] = [Undo::Nothing, Undo::Left].map(|undo| cell(Course::Ordinary, undo));
        let while_compensating = cell(Course::Compensating, Undo::Left);
        [format!("**{}**", end.state()), nothing, left, while_compensating]
    });
    let head = ["end", "nothing to undo", "something to undo", "while it is compensated"];
    table(head, rows)
}

fn runs() -> String {
    let crash = Progress { now: 0, at_last_crash: 0 };
    let ways = [
        ("the attempt failed, and another one follows", Leaving::Failed),
        ("the run returns the task, or its worker stops", Leaving::Released),
        ("the task is suspended", Leaving::Suspended),
        ("the worker dies", Leaving::Died(crash)),
    ];
    let rows = ways.map(|(way, leaving)| {
        let before = Counts { attempt: 2, lost: 1, crashes: 1 };
        let after = before.left(leaving);
        let attempt = match (after.attempt < before.attempt, after.lost > before.lost) {
            (true, _) => "does not count",
            (false, true) => "counts, and is replaced",
            (false, false) => "counts",
        };
        let crashes = if after.crashes == 0 { "begin again at 0" } else { "one more" };
        [way.to_owned(), attempt.to_owned(), crashes.to_owned()]
    });
    table(["how a run leaves its task", "attempt", "crashes in a row"], rows)
}

fn deaths() -> String {
    let cell = |crashes, course, cancellation| match on_death(crashes, 1, course, cancellation) {
        Death::GivenBack(GivenBack::Pending) => "pending",
        Death::GivenBack(GivenBack::EndsAsCancelled) => "cancelled",
        Death::Quarantined => "failed",
        Death::EndsAsItWouldHave => "failed or cancelled, as decided",
    };
    let courses = [(Course::Ordinary, "a task"), (Course::Compensating, "a compensation")];
    let rows = courses.map(|(course, word)| {
        let limit = crash_limit(1, course == Course::Compensating);
        let cell = |crashes, cancellation| cell(crashes, course, cancellation).to_owned();
        [
            word.to_owned(),
            limit.to_string(),
            cell(limit - 1, Cancellation::NotRequested),
            cell(limit, Cancellation::NotRequested),
            match course {
                Course::Ordinary => cell(limit, Cancellation::Requested),
                Course::Compensating => "–".to_owned(),
            },
        ]
    });
    table(
        ["the worker ran", "least limit", "below the limit", "at the limit", "asked to cancel"],
        rows,
    )
}

fn suspensions() -> String {
    let cell = |cancellation, found, wake_at| match on_suspension(cancellation, found, wake_at) {
        Suspension::StaysRunning => "stays running",
        Suspension::Suspends => "is suspended",
        Suspension::SuspendsUnlessInCircle => "is suspended, unless the wait would never end",
    };
    let times = [
        ("its time has come", WakeAt::Passed),
        ("its time is still to come", WakeAt::Ahead),
        ("it waits for no time", WakeAt::Never),
    ];
    let rows = times.map(|(words, at)| {
        [
            words.to_owned(),
            cell(Cancellation::NotRequested, Found::Nothing, at).to_owned(),
            cell(Cancellation::NotRequested, Found::Something, at).to_owned(),
            cell(Cancellation::Requested, Found::Nothing, at).to_owned(),
        ]
    });
    table(["the task", "nothing arrived", "something arrived", "asked to cancel"], rows)
}

fn spawns() -> String {
    let (free, here) = ((Start::Now, Turn::Free), (Registration::Registered, Queueing::Free));
    let cases = [
        ("nothing is in the way", free, here),
        ("its time is still to come", (Start::Later, Turn::Free), here),
        ("it has a concurrency key", (Start::Now, Turn::Taken), here),
        ("no worker of the process runs", free, (Registration::Unknown, Queueing::Free)),
        ("its queue is paused or limited", free, (Registration::Registered, Queueing::Restricted)),
    ];
    let rows = cases.map(|(words, (start, turn), (worker, queue))| {
        let starts: Result<_, std::convert::Infallible> =
            starts_with_spawn(start, turn, || Ok(worker), || Ok(queue));
        let state = if starts == Ok(true) { "running" } else { "pending" };
        [words.to_owned(), state.to_owned()]
    });
    table(["the spawn", "the task is"], rows)
}

/// Returns the page with the tables of the rules in the place of those that it has.
fn page_of(page: &str) -> String {
    let mut page = page.to_owned();
    for (mark, table) in tables() {
        let (before, rest) = page.split_once(mark).unwrap_or_else(|| panic!("no line {mark:?}"));
        let old = |line: &&str| line.is_empty() || line.starts_with('|');
        let rest: Vec<_> = rest.lines().skip_while(old).collect();
        let gap = if rest.is_empty() { "" } else { "\n" };
        page = format!("{before}{mark}\n\n{table}{gap}{}{gap}", rest.join("\n"));
    }
    page
}

#[test]
fn the_page_about_states_says_what_the_rules_say() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let expected = page_of(&page);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(PAGE, expected).unwrap();
    } else {
        assert!(
            page == expected,
            "docs/guide/states.md differs from the rules of store/rules: run this test with \
             {WRITE}=1, which writes the tables again, and read what has changed\n{expected}"
        );
    }
    assert_eq!(page_of(&page_of(&page)), page_of(&page));
}
