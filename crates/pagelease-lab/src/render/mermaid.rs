//! A Mermaid sequence diagram.

use super::{breaks, changes, facts, label, plain, wrap};
use crate::history::History;

/// Mermaid does not break the lines of a note by itself.
const NOTE_WIDTH: usize = 60;

pub(super) fn render(history: &History) -> String {
    let mut lines = vec!["sequenceDiagram".to_owned()];
    // A comment is the one place where a command can stand without being escaped out of shape.
    lines.extend(facts(history).iter().map(|(word, fact)| format!("    %% {word}: {fact}")));
    lines.push(format!("    title {}", escape(&plain(&format!("{}, {}", history.design, history.scenario)))));
    for (lane, actor) in history.actors.iter().enumerate() {
        lines.push(format!("    participant A{lane} as {}", escape(&plain(actor))));
    }
    for (index, step) in history.steps.iter().enumerate() {
        if history.loop_from == Some(index) {
            lines.push("    loop for ever".to_owned());
        }
        // Mermaid's own numbers would stand on top of the text: an actor's arrow to itself is short.
        lines.push(format!("    A{0}->>A{0}: {1}. {2}", step.actor, index + 1, escape(&label(step))));
        let mut notes = changes(history, index);
        notes.extend(breaks(step));
        if !notes.is_empty() {
            let notes: Vec<_> = notes.iter().map(|note| note_text(note)).collect();
            lines.push(format!("    Note over A{}: {}", step.actor, notes.join("<br/>")));
        }
    }
    if history.loop_from.is_some() {
        lines.push("    end".to_owned());
    }
    // A note needs an actor to stand over.
    if !history.sentence.is_empty() && !history.actors.is_empty() {
        let over = match history.actors.len() {
            1 => "A0".to_owned(),
            lanes => format!("A0,A{}", lanes - 1),
        };
        lines.push(format!("    Note over {over}: {}", note_text(&plain(&history.sentence))));
    }
    lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn note_text(text: &str) -> String {
    wrap(text, NOTE_WIDTH).iter().map(|line| escape(line)).collect::<Vec<_>>().join("<br/>")
}

/// Everything but what is known to mean nothing becomes an entity, `#59;` for a semicolon. Mermaid's lexer ends a text at `;`
/// and `#`, reads `%%` as a comment and `wrap:` as an order, and passes `<` on to HTML.
fn escape(text: &str) -> String {
    let harmless = |c: char| c.is_alphanumeric() || " _-.,()/+=*'".contains(c);
    text.chars().map(|c| if harmless(c) { c.to_string() } else { format!("#{};", u32::from(c)) }).collect()
}
