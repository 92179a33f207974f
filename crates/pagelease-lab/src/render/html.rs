//! One page, without anything from elsewhere: it opens from a mail or a disk, and in ten years.

use super::{facts, json, plain, text};
use crate::history::History;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// For readers without scripts. No wider than a printed page.
const TEXT_WIDTH: usize = 100;

pub(super) fn render(history: &History) -> String {
    let facts: String = facts(history)
        .iter()
        .map(|(word, fact)| {
            let fact = escape(fact);
            let fact = if *word == "replay" { format!("<code>{fact}</code>") } else { fact };
            format!("<div><dt>{word}</dt><dd>{fact}</dd></div>\n")
        })
        .collect();
    fill(|name| match name {
        "title" => escape(&plain(&format!("{}, {}: {}", history.design, history.scenario, kind(history)))),
        "style" => STYLE.to_owned(),
        "facts" => facts.clone(),
        "sentence" => escape(&plain(&history.sentence)),
        "text" => escape(&text::render(history, TEXT_WIDTH)),
        // Inside a script element only `<` can end it, or begin a comment. In JSON it can only stand in a string.
        "history" => json::render(history).replace('<', "\\u003c"),
        "script" => SCRIPT.to_owned(),
        _ => unreachable!("the page has no other places: {name}"),
    })
}

fn kind(history: &History) -> &str {
    history.property.as_deref().unwrap_or("history")
}

/// The page with each `{{place}}` filled. In one pass: what was filled in is never looked at again.
fn fill(text: impl Fn(&str) -> String) -> String {
    let mut page = String::new();
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("{{") {
        let (place, after) = after.split_once("}}").expect("a place is closed");
        page += before;
        page += &text(place);
        rest = after;
    }
    page + rest
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
