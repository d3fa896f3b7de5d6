//! What may differ between the bytes of the upstream and those of the client: nothing but
//! the two documented edits of chat and text completion streams.

use farebox::billing::Credits;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// An event stream cut behind each blank line; the last block may be unfinished.
pub fn blocks(stream: &[u8]) -> Vec<&[u8]> {
    let mut blocks = Vec::new();
    let mut start = 0;
    let mut line = 0;
    let mut at = 0;
    while at < stream.len() {
        let end = match stream[at] {
            b'\r' if stream.get(at + 1) == Some(&b'\n') => at + 2,
            b'\r' | b'\n' => at + 1,
            _ => {
                at += 1;
                continue;
            }
        };
        if at == line {
            blocks.push(&stream[start..end]);
            start = end;
        }
        line = end;
        at = end;
    }
    if start < stream.len() {
        blocks.push(&stream[start..]);
    }
    blocks
}

/// The data of an event: its `data` lines, joined.
pub fn data_of(block: &[u8]) -> String {
    let text = String::from_utf8_lossy(block);
    let text = text.trim_start_matches('\u{feff}');
    let lines: Vec<&str> = text
        .split(['\n', '\r'])
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| data.strip_prefix(' ').unwrap_or(data))
        .collect();
    lines.join("\n")
}

/// Whether a client got the whole events of a stream that broke off inside one, and then an
/// error event.
pub fn broke_off_cleanly(upstream: &[u8], client: &[u8], in_edited: bool) -> bool {
    let mut whole = blocks(upstream);
    let unfinished = whole.last().is_some_and(|block| !block.ends_with(b"\n\n"));
    if in_edited && unfinished {
        whole.pop();
    }
    let whole = whole.concat();
    let Some(rest) = client.strip_prefix(whole.as_slice()) else { return false };
    rest.is_empty() || data_of(rest).contains("\"error\"")
}

/// The stream without the usage chunk that only the proxy asked for: no choices, but usage.
pub fn without_usage_chunk(stream: &[u8]) -> Vec<u8> {
    let is_usage_chunk = |block: &&[u8]| {
        let json: Value = serde_json::from_str(&data_of(block)).unwrap_or_default();
        json["choices"].as_array().is_some_and(Vec::is_empty)
            && json["usage"].is_object()
            && json.get("error").is_none()
    };
    blocks(stream).into_iter().filter(|block| !is_usage_chunk(block)).flatten().copied().collect()
}

/// Why the client's stream is not the upstream's with the cost written into its last usage.
///
/// # Errors
///
/// The first difference.
pub fn differs_by_cost_only(upstream: &[u8], client: &[u8], charge: Credits) -> Result<(), String> {
    let (theirs, ours) = (blocks(upstream), blocks(client));
    if theirs.len() != ours.len() {
        return Err(format!("{} events became {}", theirs.len(), ours.len()));
    }
    let usage = |block: &&&[u8]| {
        let json: Value = serde_json::from_str(&data_of(block)).unwrap_or_default();
        json["usage"].is_object()
    };
    // Data on several lines stays as it is; usage is never sent so.
    let one_line = |block: &[u8]| !data_of(block).contains('\n');
    let last = theirs.iter().rposition(|block| usage(&block) && one_line(block));
    for (i, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
        if Some(i) == last {
            same_but_for_cost(theirs, ours, charge)?;
        } else if theirs != ours && !(is_finish(theirs) && same_json_but_cost(theirs, ours)) {
            return Err(format!("event {i} was changed: {}", String::from_utf8_lossy(ours)));
        }
    }
    Ok(())
}

/// A chunk that ends the output may carry usage too, before a last chunk repeats it.
fn is_finish(block: &[u8]) -> bool {
    let json: Value = serde_json::from_str(&data_of(block)).unwrap_or_default();
    json["choices"][0]["finish_reason"].is_string()
}

fn same_but_for_cost(theirs: &[u8], ours: &[u8], charge: Credits) -> Result<(), String> {
    let cost = cost_of(ours).ok_or("the last usage has no cost")?;
    if cost != charge {
        return Err(format!("the cost is {cost} and the charge {charge}"));
    }
    if same_json_but_cost(theirs, ours) {
        Ok(())
    } else {
        Err(format!("more than the cost was changed: {}", String::from_utf8_lossy(ours)))
    }
}

fn same_json_but_cost(theirs: &[u8], ours: &[u8]) -> bool {
    let json = |block| -> Value {
        let mut json: Value = serde_json::from_str(&data_of(block)).unwrap_or_default();
        if let Some(usage) = json["usage"].as_object_mut() {
            usage.remove("cost");
            usage.remove("cost_details");
        }
        json
    };
    json(theirs) == json(ours)
}

/// `usage.cost` of an event, read from its digits and never through a float.
fn cost_of(block: &[u8]) -> Option<Credits> {
    #[derive(Deserialize)]
    struct Chunk<'a> {
        #[serde(borrow)]
        usage: Usage<'a>,
    }
    #[derive(Deserialize)]
    struct Usage<'a> {
        #[serde(borrow)]
        cost: &'a RawValue,
    }
    let data = data_of(block);
    serde_json::from_str::<Chunk>(&data).ok()?.usage.cost.get().parse().ok()
}
