//! The configuration for people: `spanhouse config print`, and the generated files under `deploy/config/`.
//!
//! Owns the text. Does not own the settings: everything comes from the table in `fields`.

use std::fmt::Write;

use super::fields::{FIELDS, Field, OPTIONS_DOC};
use super::units::is_secret;
use super::{Config, MemoryShares};

const COMMENT_WIDTH: usize = 110;
/// Settings that may be URLs, and hold a password.
const URLS: [&str; 2] = ["storage.url", "sampling.strategies_file"];

impl Config {
    /// YAML that `load` reads back, with a comment per field. `shares`, if given, says what `auto` means on this machine.
    pub fn to_yaml(&self, shares: Option<&MemoryShares>) -> String {
        let mut out = String::new();
        let mut section = "";
        for field in FIELDS {
            let (this, name) = field.path.split_once('.').unwrap_or(("", field.path));
            if this != section {
                section = this;
                let _ = write!(out, "\n{section}:\n");
            }
            let indent = if section.is_empty() { "" } else { "  " };
            comment(&mut out, indent, &field_comment(field, self, shares));
            let shown = (field.get)(self);
            let shown = if URLS.contains(&field.path) { mask_url(&shown) } else { shown };
            let _ = writeln!(out, "{indent}{name}: {}", scalar(&shown));
            if field.path == "storage.url" {
                self.write_options(&mut out);
            }
        }
        out
    }

    fn write_options(&self, out: &mut String) {
        comment(out, "  ", OPTIONS_DOC);
        if self.storage.options.is_empty() {
            out.push_str("  options: {}\n");
            return;
        }
        out.push_str("  options:\n");
        for (name, value) in &self.storage.options {
            let shown = if is_secret(name) { "<secret>" } else { value };
            let _ = writeln!(out, "    {}: {}", scalar(name), scalar(shown));
        }
    }
}

fn field_comment(field: &Field, config: &Config, shares: Option<&MemoryShares>) -> String {
    let mut text = field.doc.to_owned();
    if let Some(tempo) = field.tempo {
        let _ = write!(text, " Tempo: {tempo}.");
    }
    let here = shares.filter(|_| (field.get)(config) == "auto").and_then(|shares| match field.path {
        "memory.total" => Some(shares.total),
        "memory.ingest" => Some(shares.ingest),
        "memory.query" => Some(shares.query),
        "memory.per_query" => Some(shares.per_query),
        "memory.compaction" => Some(shares.compaction),
        _ => None,
    });
    if let Some(size) = here {
        let _ = write!(text, " Here: {size}.");
    }
    text
}

fn comment(out: &mut String, indent: &str, text: &str) {
    let mut width = usize::MAX;
    for word in text.split_whitespace() {
        if width.saturating_add(word.len()) >= COMMENT_WIDTH {
            if width != usize::MAX {
                out.push('\n');
            }
            let _ = write!(out, "{indent}#");
            width = indent.len() + 1;
        }
        let _ = write!(out, " {word}");
        width += word.len() + 1;
    }
    out.push('\n');
}

/// A value as YAML reads it back: bare where that is safe, else quoted.
fn scalar(text: &str) -> String {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || "./_".contains(c));
    let plain =
        first && text.chars().all(|c| c.is_ascii_alphanumeric() || "./_-=,".contains(c) || c == ':') && !text.ends_with(':');
    if plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// A URL without the password that somebody may have put in it.
pub(super) fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_end = rest.find('/').unwrap_or(rest.len());
    match rest[..authority_end].rfind('@') {
        Some(at) => format!("{scheme}://<secret>{}", &rest[at..]),
        None => url.to_owned(),
    }
}

/// `deploy/config/reference.md`.
#[cfg(test)]
pub(super) fn reference() -> String {
    let defaults = Config::default();
    let mut out = String::from(
        "# Configuration reference\n\n\
         Generated from `src/config/fields.rs`; a test fails if it drifts (`UPDATE_GENERATED=1 cargo test -p spanhouse config` rewrites it).\n\n\
         A setting comes from its default, the YAML file of `--config`, an environment variable, or a flag (`--data-dir`, `--listen`,\n\
         `--target`); the later wins. Unknown settings and unknown `SPANHOUSE_` variables are errors. Sizes are written `64MiB`, `100MB` or\n\
         `4096`; durations `500ms`, `30s`, `10m`, `336h`. `spanhouse config print` shows what is in effect.\n",
    );
    let mut section = None;
    for field in FIELDS {
        let this = field.path.split_once('.').map_or("", |(section, _)| section);
        if section != Some(this) {
            section = Some(this);
            let title = if this.is_empty() { "Top level".to_owned() } else { format!("`{this}`") };
            let _ = write!(
                out,
                "\n## {title}\n\n| Setting | Default | Tempo | Variable | What it does |\n| --- | --- | --- | --- | --- |\n"
            );
        }
        let tempo = field.tempo.unwrap_or("-");
        let default = (field.get)(&defaults);
        let _ = writeln!(out, "| `{}` | `{default}` | {tempo} | `{}` | {} |", field.path, field.variable(), field.doc);
        if field.path == "storage.url" {
            let _ = writeln!(
                out,
                "| `{}.*` | none | - | `SPANHOUSE_STORAGE_OPTIONS_*` | {OPTIONS_DOC} |",
                super::fields::OPTIONS
            );
        }
    }
    out
}
