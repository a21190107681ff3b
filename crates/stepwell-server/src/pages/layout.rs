//! The parts that all pages share.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::assets;
use crate::call::Call;
use crate::guard::Base;
use crate::problem::Problem;

const PLACES: [(&str, &str); 6] = [
    ("/", "Overview"),
    ("/tasks", "Tasks"),
    ("/approvals", "Approvals"),
    ("/queues", "Queues"),
    ("/schedules", "Schedules"),
    ("/workers", "Workers"),
];

/// Draws a page that the script keeps up to date. `place` is the path of the menu's entry that it
/// belongs to.
pub(crate) fn page(call: &Call, place: &str, title: &str, content: Markup) -> Markup {
    let logs_in = call.logs_in();
    document(
        &call.base,
        title,
        html! {
            a class="skip" href="#main" { "To the content" }
            header class="top" {
                a class="brand" href=(call.base.to("/")) { (logo()) span { "Stepwell" } }
                nav aria-label="Pages" {
                    @for (path, name) in PLACES {
                        @let current = (path == place).then_some("page");
                        a href=(call.base.to(path)) aria-current=[current] { (name) }
                    }
                }
                @if let Some(name) = &call.who.name { span class="who" { (name) } }
                @if logs_in {
                    form class="who" method="post" action=(call.base.to("/logout")) {
                        button class="quiet" { "Log out" }
                    }
                }
            }
            main id="main" data-live="" { (content) }
        },
    )
}

/// Draws a page that describes a problem.
pub(crate) fn problem(base: &Base, problem: &Problem) -> Markup {
    document(
        base,
        problem.title(),
        html! {
            main id="main" class="alone" {
                a class="brand" href=(base.to("/")) { (logo()) span { "Stepwell" } }
                h1 { (problem.title()) }
                p { (problem.detail()) }
                p { a href=(base.to("/")) { "To the overview" } }
            }
        },
    )
}

/// Draws a complete HTML document.
pub(crate) fn document(base: &Base, title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Stepwell" }
                link rel="icon" type="image/svg+xml" href=(base.to("/assets/icon.svg"));
                link rel="stylesheet"
                    href={ (base.to("/assets/style.css")) "?" (assets::version()) };
                script src={ (base.to("/assets/live.js")) "?" (assets::version()) } defer {}
            }
            body { (body) }
        }
    }
}

pub(crate) fn logo() -> Markup {
    PreEscaped(assets::ICON.to_owned())
}

/// Draws a button that asks for confirmation, without a script.
pub(crate) fn confirmed(action: &str, what: &str, question: &str, class: &str) -> Markup {
    html! {
        details class="confirm" id={ "confirm-" (what) } {
            summary class={ "button " (class) } { (what) "…" }
            form method="post" action=(action) {
                p { (question) }
                button class=(class) { (what) }
            }
        }
    }
}

/// Draws a button that acts at once.
pub(crate) fn button(action: &str, what: &str) -> Markup {
    html! { form method="post" action=(action) { button { (what) } } }
}

/// Draws the placeholder for an empty list.
pub(crate) fn nothing(title: &str, advice: Markup) -> Markup {
    html! { div class="nothing" { p class="title" { (title) } p { (advice) } } }
}
