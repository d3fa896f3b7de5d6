//! Rules that look at a whole entry, or at several.

use std::collections::HashMap;

use super::Rate;
use super::entry::{Entry, PARTS, Stated, StatedBand};
use super::problem::Problem;
use super::read::{File, Located};
use super::table::distance;

/// Every problem that the entries have among themselves or as a whole.
pub(super) fn check(file: &File) -> Vec<Problem> {
    let mut problems = vec![];
    for located in &file.entries {
        price(located, &mut problems);
        parts(located, &mut problems);
    }
    ids(file, &mut problems);
    serves(file, &mut problems);
    twins(file, &mut problems);
    problems
}

/// The known key or id that was probably meant.
pub(super) fn meant<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = known.into_iter().map(|id| (distance(text, id), id)).min()?;
    (nearest.0 <= text.chars().count().div_ceil(3)).then_some(nearest.1)
}

/// A price must be there, and `free` must say the same as the rates.
fn price(Located { entry, places }: &Located, problems: &mut Vec<Problem>) {
    let name = &entry.name;
    if entry.free {
        let rates = entry.rates.iter().chain(entry.bands.iter().flat_map(|band| &band.rates));
        let rates = rates.chain(entry.tiers.values().flat_map(|tier| &tier.rates));
        let costs = rates.into_iter().any(|(_, rate)| *rate > Rate(0))
            || entry.fees.values().any(|fee| fee.is_positive());
        if costs {
            let message = format!("model \"{name}\" is free, and has a price");
            problems.push(
                Problem::error(places.of("free"), message).label("leave out one or the other"),
            );
        }
        return;
    }
    for key in ["input", "output"] {
        if !places.is_stated(key) {
            let message = format!("model \"{name}\" has no {key} price, so it cannot be served");
            let label = format!("add `{key} = \"…\"`, or `free = true` if it costs nothing");
            problems.push(Problem::error(places.name.clone(), message).label(label));
        }
    }
    let dearest = entry.rates.values().max().copied().unwrap_or_default();
    let is_complete = entry.rates.contains_key("input") && entry.rates.contains_key("output");
    if is_complete && dearest == Rate(0) {
        let message = format!("model \"{name}\" costs nothing");
        let label = "state its price, or `free = true` if this is meant";
        problems.push(Problem::error(places.name.clone(), message).label(label));
    } else if is_complete && dearest < LIKELY_PER_THOUSAND {
        let message = format!("every rate of model \"{name}\" is below 0.01");
        problems.push(
            Problem::warning(places.of("input"), message)
                .label("is this a price per 1,000 tokens? Rates are per 1,000,000"),
        );
    }
}

/// Below this the dearest rate of a model is more likely a price per thousand tokens: no
/// model on the providers' lists is that cheap, and a model of 2 credits per million tokens
/// is 0.002 per thousand.
const LIKELY_PER_THOUSAND: Rate = Rate(10_000);

/// A band or tier that restates a class but not the part of it that has a rate of its own
/// bills that part at the old rate, which is hardly ever meant.
fn parts(Located { entry, places }: &Located, problems: &mut Vec<Problem>) {
    let mut look = |base: &Stated, own: &Stated, what: &str| {
        for (part, class) in PARTS {
            if own.contains_key(class) && base.contains_key(part) && !own.contains_key(part) {
                let message = format!(
                    "{what} of model \"{}\" states `{class}` but not `{part}`, which stays at {}",
                    entry.name, base[part]
                );
                problems
                    .push(Problem::warning(places.name.clone(), message).label("state both there"));
            }
        }
    };
    let mut bands = |base: &Stated, bands: &[StatedBand], of: &str| {
        for band in bands {
            look(base, &band.rates, &format!("the band above {}{of}", band.above));
        }
    };
    bands(&entry.rates, &entry.bands, "");
    for (name, tier) in &entry.tiers {
        let mut base = entry.rates.clone();
        base.extend(&tier.rates);
        bands(&base, tier.bands.as_deref().unwrap_or(&[]), &format!(" of tier {name}"));
    }
    for (name, tier) in &entry.tiers {
        look(&entry.rates, &tier.rates, &format!("tier {name}"));
    }
}

/// An id means one model.
fn ids(file: &File, problems: &mut Vec<Problem>) {
    let names = file.entries.iter().map(|located| (located.entry.name.as_str(), located));
    let names: HashMap<_, _> = names.collect();
    let mut owners: HashMap<&str, &str> = HashMap::new();
    for Located { entry, places } in &file.entries {
        for (alias, span) in entry.aliases.iter().zip(&places.aliases) {
            let message = if let Some(other) = names.get(alias.as_str()) {
                Some(if other.entry.name == entry.name {
                    format!("`{alias}` is the model's own name")
                } else {
                    format!("`{alias}` is the name of another model")
                })
            } else {
                let owner = owners.insert(alias, &entry.name);
                owner.map(|owner| format!("`{alias}` is already an alias of model \"{owner}\""))
            };
            if let Some(message) = message {
                problems.push(Problem::error(span.clone(), message).label("remove one"));
            }
        }
    }
}

/// What an upstream may answer with must have a price, since that price is then taken.
fn serves(file: &File, problems: &mut Vec<Problem>) {
    let known = |entry: &Entry, id: &str| {
        entry.name == id
            || entry.aliases.iter().any(|alias| alias == id)
            || entry.upstreams.iter().any(|(_, model)| model == id)
    };
    for Located { entry, places } in &file.entries {
        for (id, span) in entry.serves.iter().zip(&places.serves) {
            if !file.entries.iter().any(|other| known(&other.entry, id)) {
                let message = format!("`serves` names `{id}`, which has no price");
                let ids = file.entries.iter().map(|other| other.entry.name.as_str());
                let label = meant(id, ids).map(|id| format!("did you mean `{id}`?"));
                problems
                    .push(Problem::error(span.clone(), message).label(label.unwrap_or_default()));
            }
        }
    }
}

/// Two names for one model of an upstream at two prices let a client choose the cheaper.
fn twins(file: &File, problems: &mut Vec<Problem>) {
    let mut seen: HashMap<&(String, String), &Entry> = HashMap::new();
    for Located { entry, places } in &file.entries {
        for upstream in &entry.upstreams {
            let Some(other) = seen.get(upstream) else {
                seen.insert(upstream, entry);
                continue;
            };
            if entry.model(file.markup).price != other.model(file.markup).price {
                let (name, model) = upstream;
                let message = format!(
                    "models \"{}\" and \"{}\" are both {name}'s `{model}`, at different prices",
                    other.name, entry.name
                );
                problems.push(
                    Problem::warning(places.name.clone(), message)
                        .label("make it an alias, or give both one price"),
                );
            }
        }
    }
}
