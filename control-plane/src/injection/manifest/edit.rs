//! Changes the text of a YAML document where its value changes, and leaves every other line as it is:
//! comments, order, quotes and indentation.
//!
//! A document is seen as lines. Of YAML only the outline is understood, block mappings and block sequences
//! by their indentation; what is written otherwise where something changes (flow style, anchors, tags) is
//! written anew from the nearest key or element around it. Nothing here is relied on: whoever calls reads
//! the result again, and has a way without this where it is not what was meant.

use std::ops::Range;

use serde_json::{Map, Value};

/// `text`, a document that holds `before`, changed so that it should hold `after`; `None` if its outline
/// is not understood.
pub(super) fn edit(text: &str, before: &Value, after: &Value) -> Option<String> {
    // Tabs count differently, and lines that end otherwise would be mixed.
    if text.contains(['\t', '\r']) {
        return None;
    }
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let start = lines.iter().position(|line| is_content(line) && !line.starts_with(['%', '-']))?;
    let mut editor = Editor { lines, changes: Vec::new() };
    let root = Block { range: start..editor.lines.len(), indent: indent(editor.lines[start]) };
    editor.value(&root, before, after)?;
    Some(editor.finish())
}

/// Lines that hold a block mapping or sequence whose keys or dashes are in the column `indent`. On the
/// first line something else may stand before.
struct Block {
    range: Range<usize>,
    indent: usize,
}

/// A key of a mapping, or an element of a sequence.
struct Part<'a> {
    key: &'a str,
    /// From its own line to the next one's, comments above that included.
    range: Range<usize>,
    /// The end of its last line that is no comment on what follows.
    end: usize,
    /// What stands behind the colon or the dash, and in which column.
    rest: &'a str,
    column: usize,
}

struct Editor<'a> {
    lines: Vec<&'a str>,
    /// Which lines become what.
    changes: Vec<(Range<usize>, String)>,
}

impl<'a> Editor<'a> {
    fn finish(mut self) -> String {
        self.changes.sort_by_key(|(range, _)| (range.start, range.end));
        let (mut text, mut at) = (String::new(), 0);
        for (range, change) in self.changes {
            text.extend(self.lines[at..range.start.max(at)].iter().copied());
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text += &change;
            at = range.end.max(at);
        }
        text.extend(self.lines[at..].iter().copied());
        text
    }

    /// Changes what `block` holds.
    fn value(&mut self, block: &Block, before: &Value, after: &Value) -> Option<()> {
        let first = self.lines.get(block.range.start)?.get(block.indent..)?;
        match (before, after) {
            (Value::Object(before), Value::Object(after)) if !is_dash(first) => {
                self.mapping(block, before, after)
            }
            (Value::Array(before), Value::Array(after)) if is_dash(first) => {
                self.sequence(block, before, after)
            }
            _ => None,
        }
    }

    fn mapping(
        &mut self,
        block: &Block,
        before: &Map<String, Value>,
        after: &Map<String, Value>,
    ) -> Option<()> {
        let parts = self.parts(block, &|line| key(line))?;
        let part = |key: &str| parts.iter().find(|part| part.key == key);
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            self.remove(block, part(key)?)?;
        }
        let mut previous = None;
        for (key, value) in after {
            let entry = || Value::Object(Map::from_iter([(key.clone(), value.clone())]));
            match before.get(key) {
                Some(same) if same == value => {}
                Some(old) => {
                    let part = part(key)?;
                    let known = self.changes.len();
                    let changed = self.below(block, part).and_then(|below| self.value(&below, old, value));
                    if changed.is_none() {
                        self.changes.truncate(known);
                        self.replace(block, part, &entry())?;
                    }
                }
                None => self.insert(block, previous, parts.first()?, &entry())?,
            }
            previous = part(key).or(previous);
        }
        Some(())
    }

    fn sequence(&mut self, block: &Block, before: &[Value], after: &[Value]) -> Option<()> {
        let parts = self.parts(block, &|line| Some(("", dash(line)?)))?;
        if parts.len() != before.len() {
            return None;
        }
        // Where as many are there as before, each is what it was; else they are told apart by their names.
        let pairs = before.len() == after.len();
        let same = |one: &Value, other: &Value| {
            pairs || one == other || (one["name"].is_string() && one["name"] == other["name"])
        };
        let mut at = 0;
        for value in after {
            // What stands before its like is gone.
            if let Some(gone) = before[at..].iter().position(|old| same(old, value)) {
                for part in &parts[at..at + gone] {
                    self.remove(block, part)?;
                }
                at += gone;
                let part = &parts[at];
                if before[at] != *value {
                    let known = self.changes.len();
                    let below = self.below(block, part);
                    let changed = below.and_then(|below| self.value(&below, &before[at], value));
                    if changed.is_none() {
                        self.changes.truncate(known);
                        self.replace(block, part, &Value::Array(vec![value.clone()]))?;
                    }
                }
                at += 1;
            } else {
                let previous = at.checked_sub(1).map(|at| &parts[at]);
                self.insert(block, previous, parts.first()?, &Value::Array(vec![value.clone()]))?;
            }
        }
        parts[at..].iter().try_for_each(|part| self.remove(block, part))
    }

    /// The keys or elements of a block, where `start` says for a line without its indentation whether one begins there:
    /// its key, and where what follows begins.
    fn parts(
        &self,
        block: &Block,
        start: &dyn Fn(&'a str) -> Option<(&'a str, usize)>,
    ) -> Option<Vec<Part<'a>>> {
        let mut parts: Vec<Part<'a>> = Vec::new();
        let in_sequence = is_dash(self.lines[block.range.start].get(block.indent..)?);
        for index in block.range.clone() {
            let line = self.lines[index];
            let column = if index == block.range.start { block.indent } else { indent(line) };
            let text = line.get(column..).unwrap_or_default().trim_end();
            // What closes a list or mapping in flow style is often written under its key.
            let begins = column == block.indent
                && is_content(text)
                && !text.starts_with([']', '}'])
                && (in_sequence || !is_dash(text));
            if begins {
                let (key, rest) = start(text)?;
                if let Some(last) = parts.last_mut() {
                    last.range.end = index;
                }
                let column = column + rest;
                let rest = text.get(rest..).unwrap_or_default();
                parts.push(Part { key, range: index..block.range.end, end: index + 1, rest, column });
            } else if !text.is_empty() {
                let last = parts.last_mut()?;
                if column < block.indent && is_content(text) {
                    return None;
                }
                // A comment no deeper than the keys is about what comes next.
                if is_content(text) || column > block.indent {
                    last.end = index + 1;
                }
            }
        }
        Some(parts)
    }

    /// The block that is the value of a part, if it is one.
    fn below(&self, block: &Block, part: &Part<'_>) -> Option<Block> {
        if is_content(part.rest) {
            // An element whose mapping begins on its own line.
            let inline = self.lines[part.range.start].get(block.indent..).is_some_and(is_dash);
            let mapping = inline && key(part.rest).is_some();
            return mapping.then(|| Block { range: part.range.clone(), indent: part.column });
        }
        let first = (part.range.start + 1..part.end).find(|index| is_content(self.lines[*index]))?;
        let column = indent(self.lines[first]);
        let deep = column > block.indent || (column == block.indent && is_dash(&self.lines[first][column..]));
        deep.then_some(Block { range: first..part.range.end, indent: column })
    }

    fn remove(&mut self, block: &Block, part: &Part<'_>) -> Option<()> {
        // Before the first of an element's keys stands its dash.
        if !self.lines[part.range.start].get(..block.indent)?.trim().is_empty() {
            return None;
        }
        self.changes.push((part.range.start..part.end, String::new()));
        Some(())
    }

    fn replace(&mut self, block: &Block, part: &Part<'_>, value: &Value) -> Option<()> {
        let before = self.lines[part.range.start].get(..block.indent)?;
        let text = written(value, block.indent)?;
        self.changes.push((part.range.start..part.end, format!("{before}{}", text.get(block.indent..)?)));
        Some(())
    }

    /// Puts `value` behind a part, or before the first one.
    fn insert(
        &mut self,
        block: &Block,
        previous: Option<&Part<'_>>,
        first: &Part<'_>,
        value: &Value,
    ) -> Option<()> {
        let at = match previous {
            Some(previous) => previous.end,
            None => {
                let line = first.range.start;
                if !self.lines[line].get(..block.indent)?.trim().is_empty() {
                    return None;
                }
                // Above the comments on the first.
                let above = self.lines[..line].iter().rev();
                let comments = above
                    .take_while(|above| above.trim_start().starts_with('#') && indent(above) == block.indent);
                line - comments.count()
            }
        };
        self.changes.push((at..at, written(value, block.indent)?));
        Some(())
    }
}

/// A mapping or sequence of one as YAML, with every line indented.
fn written(value: &Value, indent: usize) -> Option<String> {
    let text = super::to_yaml(value).ok()?;
    Some(text.lines().map(|line| format!("{:indent$}{line}\n", "")).collect())
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// Whether there is something on a line besides a comment.
fn is_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

/// Whether an element of a sequence begins here.
fn is_dash(text: &str) -> bool {
    dash(text).is_some()
}

/// Where the element begins that does here.
fn dash(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('-')?;
    let blank = rest.trim_end().is_empty() || rest.starts_with(' ');
    blank.then(|| 1 + indent(rest))
}

/// The key that begins here, and where its value does.
fn key(text: &str) -> Option<(&str, usize)> {
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let end = text[1..].find(quote)? + 1;
        let rest = text[end + 1..].strip_prefix(':')?;
        let plain = !text[1..end].contains('\\') && (rest.is_empty() || rest.starts_with(' '));
        return plain.then(|| (&text[1..end], end + 2));
    }
    if text.starts_with(['[', '{', '&', '*', '!', '|', '>', '?', '%', '@', '`', '#']) || is_dash(text) {
        return None;
    }
    let end = match text.find(": ") {
        Some(end) => end,
        None => text.strip_suffix(':')?.len(),
    };
    (!text[..end].contains(" #")).then(|| (&text[..end], end + 1))
}

#[cfg(test)]
mod tests;
