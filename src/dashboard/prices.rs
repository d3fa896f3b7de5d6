//! The price table in force, for the operator: what each model costs, since when, and by whom.

use askama::Template;
use axum::response::Response;
use jiff::civil::Date;

use super::Failure;
use super::page::{Operator, Shell};
use crate::billing::price::{Model, Rate};

/// A price that was read longer ago may be another one by now.
const STALE_DAYS: i32 = 180;

#[derive(Template)]
#[template(path = "operator_prices.html")]
struct Prices {
    shell: Shell,
    version: String,
    rows: Vec<Row>,
    troubled: usize,
}

struct Row {
    model: String,
    aliases: String,
    upstreams: String,
    /// Of input, cached input, input written to a cache, and output.
    rates: [String; 4],
    more: String,
    source: String,
    date: String,
    problem: String,
}

/// The page.
///
/// # Errors
///
/// When the template fails.
pub async fn show(page: Operator) -> Result<Response, Failure> {
    let table = (page.state.prices)();
    let upstreams: Vec<String> =
        (page.state.upstreams)().data.into_iter().map(|upstream| upstream.name).collect();
    let today = page.zone.date(page.now);
    let mut rows: Vec<_> =
        table.models.iter().map(|model| Row::of(model, &upstreams, today)).collect();
    for at in 0..4 {
        line_up(rows.iter_mut().map(|row| &mut row.rates[at]).collect());
    }
    let template = Prices {
        version: table.version.clone(),
        troubled: rows.iter().filter(|row| !row.problem.is_empty()).count(),
        rows,
        shell: page.shell("prices"),
    };
    page.show(&template)
}

/// Gives the rates of a column as many decimals as the finest of them has.
fn line_up(column: Vec<&mut String>) {
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, part)| part.len());
    let most = column.iter().map(|rate| decimals(rate)).max().unwrap_or(0);
    for rate in column.into_iter().filter(|rate| *rate != "–" && most > 0) {
        let has = decimals(rate);
        if has == 0 {
            rate.push('.');
        }
        rate.extend(std::iter::repeat_n('0', most - has));
    }
}

impl Row {
    fn of(model: &Model, set_up: &[String], today: Date) -> Self {
        let price = &model.price;
        let rates = &price.standard.rates;
        let optional =
            |rate: Option<Rate>| rate.map_or_else(|| "–".into(), |rate| rate.to_string());
        let mut more: Vec<String> = Vec::new();
        if price.free {
            more.push("free, on purpose".into());
        }
        for band in &price.standard.bands {
            let (input, output) = (band.rates.input, band.rates.output);
            more.push(format!("above {} tokens of input: {input} / {output}", band.above));
        }
        if let Some(rate) = rates.cache_creation_1h {
            more.push(format!("cache for an hour: {rate}"));
        }
        more.extend(price.tiers.keys().map(|tier| format!("tier {tier}")));
        more.extend(price.fees.iter().map(|(fee, amount)| format!("{fee}: {amount} a call")));
        let names: Vec<&str> = model.upstreams.iter().map(|(name, _)| name.as_str()).collect();
        let is_callable = names.iter().any(|name| set_up.iter().any(|known| known == name));
        Self {
            model: model.name.clone(),
            aliases: model.aliases.join(", "),
            upstreams: names.join(", "),
            rates: [
                rates.input.to_string(),
                optional(rates.cached_input),
                optional(rates.cache_creation),
                rates.output.to_string(),
            ],
            more: more.join(" · "),
            source: model.source.clone().unwrap_or_default(),
            date: model.date.clone().unwrap_or_default(),
            problem: problem(is_callable, model.date.as_deref(), today).to_owned(),
        }
    }
}

fn problem(is_callable: bool, date: Option<&str>, today: Date) -> &'static str {
    let read = date.and_then(|date| date.parse::<Date>().ok());
    let age = read.and_then(|read| today.since(read).ok()).map(|span| span.get_days());
    match (is_callable, read, age) {
        (false, ..) => "no upstream is set up",
        (true, None, _) => "no date",
        (true, _, Some(days)) if days > STALE_DAYS => "read long ago",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_points_of_a_column_of_rates_line_up() {
        let mut column = ["10", "0.0375", "–", "12.5"].map(String::from);
        line_up(column.iter_mut().collect());
        assert_eq!(column, ["10.0000", "0.0375", "–", "12.5000"]);
        let mut whole = ["10", "7"].map(String::from);
        line_up(whole.iter_mut().collect());
        assert_eq!(whole, ["10", "7"]);
    }

    #[test]
    fn a_price_that_is_old_or_leads_nowhere_is_a_problem() {
        let today = "2026-11-25".parse().unwrap();
        assert_eq!(problem(false, Some("2026-11-21"), today), "no upstream is set up");
        assert_eq!(problem(true, None, today), "no date");
        assert_eq!(problem(true, Some("2026-05-01"), today), "read long ago");
        assert_eq!(problem(true, Some("2026-11-21"), today), "");
    }
}
