//! Writes imported entries into the text of a `pricing.toml`, and leaves all else as it is.

use toml_edit::{DocumentMut, Item, Table, TomlError};

use super::Change;
use crate::billing::price::entry::{Entry, RATES};

/// Keys beside rates that an import sets; the others are the operator's.
const KEYS: [&str; 9] =
    ["bands", "tiers", "fees", "free", "markup", "context", "max_output", "source", "date"];

/// The text with the changes made. Comments and other entries stay; new entries come last.
///
/// # Errors
///
/// [`TomlError`] when the text is not TOML.
pub fn merge(text: &str, changes: &[Change]) -> Result<String, TomlError> {
    let mut document: DocumentMut = text.parse()?;
    let mut added = String::new();
    for change in changes {
        match change {
            Change::Added(entry) => {
                added.push('\n');
                added.push_str(&entry.toml());
            }
            Change::Changed(entry, _) => replace(&mut document, entry)?,
            Change::Unchanged(_) | Change::Skipped(..) => {}
        }
    }
    let text = document.to_string();
    Ok(if text.is_empty() { added.trim_start().to_owned() } else { text + &added })
}

/// Sets what an import knows of an entry that is there.
fn replace(document: &mut DocumentMut, entry: &Entry) -> Result<(), TomlError> {
    let mut fresh: DocumentMut = entry.toml().parse()?;
    let fresh = &mut fresh["models"][&entry.name];
    let old = document.get_mut("models").and_then(|models| models.get_mut(&entry.name));
    let (Some(fresh), Some(old)) = (fresh.as_table_mut(), old.and_then(Item::as_table_like_mut))
    else {
        return Ok(());
    };
    for key in RATES.into_iter().chain(KEYS) {
        match fresh.remove(key) {
            Some(mut item) => {
                follow(&mut item);
                match old.get_mut(key) {
                    Some(slot) => *slot = item,
                    None => drop(old.insert(key, item)),
                }
            }
            None => drop(old.remove(key)),
        }
    }
    Ok(())
}

/// Lets tables stand after the entry that they now belong to, not where they were parsed.
fn follow(item: &mut Item) {
    let unplace = |table: &mut Table| {
        table.set_position(None);
        table.iter_mut().for_each(|(_, item)| follow(item));
    };
    match item {
        Item::Table(table) => unplace(table),
        Item::ArrayOfTables(tables) => tables.iter_mut().for_each(unplace),
        Item::None | Item::Value(_) => {}
    }
}
