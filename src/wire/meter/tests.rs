//! What a meter promises of the bytes that pass through it.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const HELLO: &str = r#"data: {"model":"m","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}],"usage":null}

"#;
const FINISH: &str = r#"data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}

"#;
const USAGE: &str = r#"data: {"model":"m","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}}

"#;
const DONE: &str = "data: [DONE]\n\n";

fn chat(edit: Edit) -> Meter {
    Meter::stream(Endpoint::Chat, edit)
}

/// What a client has before the end, and what it gets with it.
fn passed(meter: &mut Meter, pieces: &[&str]) -> (String, String) {
    let mut now = Vec::new();
    for piece in pieces {
        now.extend_from_slice(&meter.push(Bytes::copy_from_slice(piece.as_bytes())));
    }
    let end = meter.finish().to_vec();
    (String::from_utf8(now).unwrap(), String::from_utf8(end).unwrap())
}

/// All that a client gets of a stream that comes in pieces of one size.
fn received(mut meter: Meter, stream: &str, size: usize) -> String {
    let mut out = Vec::new();
    for piece in stream.as_bytes().chunks(size) {
        out.extend_from_slice(&meter.push(Bytes::copy_from_slice(piece)));
    }
    out.extend_from_slice(&meter.finish());
    String::from_utf8(out).unwrap()
}

fn cost(nano: i64) -> Edit {
    Edit::AddCost(Box::new(move |reading| reading.usage.as_ref().map(|_| Credits::from_nano(nano))))
}

#[test]
fn a_chunk_passes_without_a_copy() {
    let chunk = Bytes::from(format!("{HELLO}data: {{\"unfinished"));
    let address = chunk.as_ptr();
    let out = chat(Edit::None).push(chunk.clone());
    assert_eq!((out.as_ptr(), out.len()), (address, chunk.len()));
    let out = chat(Edit::HideUsage).push(chunk);
    assert_eq!((out.as_ptr(), out.len()), (address, HELLO.len()));
}

#[test]
fn a_client_sees_the_end_only_with_finish() {
    let mut meter = chat(Edit::None);
    let (now, end) = passed(&mut meter, &[HELLO, FINISH, USAGE, DONE, ": trailing\n\n"]);
    assert_eq!(now, [HELLO, FINISH, USAGE].concat());
    assert_eq!(end, format!("{DONE}: trailing\n\n"));
    assert!(meter.is_terminal());

    for (endpoint, last) in [
        (Endpoint::Messages, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
        (Endpoint::Messages, "data: {\"type\":\"message_stop\"}\n\n"),
        (Endpoint::Messages, "event: error\ndata: {\"type\":\"error\",\"error\":{}}\n\n"),
        (Endpoint::Responses, "data: {\"type\":\"response.completed\",\"response\":{}}\n\n"),
        (Endpoint::Responses, "data: {\"type\":\"response.incomplete\",\"response\":{}}\n\n"),
        (Endpoint::Responses, "data: {\"type\":\"response.failed\",\"response\":{}}\n\n"),
        (Endpoint::Responses, "data: {\"type\":\"error\",\"message\":\"x\"}\n\n"),
    ] {
        let mut meter = Meter::stream(endpoint, Edit::None);
        let (now, end) = passed(&mut meter, &["event: ping\n\n", last]);
        assert_eq!((now.as_str(), end.as_str()), ("event: ping\n\n", last));
    }
}

#[test]
fn a_client_that_reads_by_the_line_does_not_see_the_end_early_either() {
    for edit in [Edit::None, Edit::HideUsage] {
        let (now, end) = passed(&mut chat(edit), &[HELLO, "data: [DONE]", "\n", "\n"]);
        assert!(!now.contains("[DONE]\n"), "{now:?}");
        assert_eq!(now + &end, format!("{HELLO}{DONE}"));
    }
}

#[test]
fn a_model_that_changes_and_changes_back_is_followed() {
    let mut meter = chat(Edit::None);
    let silent = r#"data: {"model":"other","choices":[]}

"#;
    for (event, model) in [(HELLO, "m"), (HELLO, "m"), (silent, "other"), (HELLO, "m")] {
        meter.push(event.into());
        assert_eq!(meter.reading().model.as_deref(), Some(model));
    }
    assert_eq!(meter.output_text().0, "Hello".repeat(3));
}

#[test]
fn a_finish_reason_is_not_the_end() {
    let mut meter = chat(Edit::None);
    meter.push(FINISH.into());
    assert!(!meter.is_terminal());
}

#[test]
fn usage_after_the_end_is_still_read() {
    let mut meter = chat(Edit::None);
    passed(&mut meter, &[HELLO, DONE, USAGE]);
    assert_eq!(meter.reading().usage.as_ref().unwrap().output, 2);
}

#[test]
fn a_gemini_chunk_that_may_be_the_last_waits_for_another() {
    let finished = "data: {\"candidates\":[{\"finishReason\":\"STOP\"}]}\n\n";
    let more = "data: {\"candidates\":[]}\n\n";
    let mut meter = Meter::stream(Endpoint::StreamGenerate, Edit::None);
    assert_eq!(meter.push(finished.into()), "");
    assert_eq!(meter.push(": comment\n\n".into()), "");
    assert_eq!(meter.push(more.into()), format!("{finished}: comment\n\n{more}"));
    assert_eq!(meter.push(format!("{more}{finished}").into()), more);
    assert!(!meter.is_terminal());
    assert_eq!(meter.finish(), finished);
}

#[test]
fn bytes_after_the_end_are_held_up_to_a_limit() {
    let mut meter = chat(Edit::None);
    meter.push(DONE.into());
    for _ in 0..6 {
        assert_eq!(meter.push(vec![b'\n'; 1 << 20].into()), "");
    }
    assert_eq!(meter.finish().len(), MAX_HELD_BYTES);
}

#[test]
fn only_the_usage_chunk_is_hidden_and_only_where_asked() {
    let stream = [": hi\r\r", HELLO, FINISH, USAGE, DONE].concat();
    let without = [": hi\r\r", HELLO, FINISH, DONE].concat();
    let in_finish = stream.replace(r#""choices":[],"#, r#""choices":[{"finish_reason":"x"}],"#);
    for size in 1..stream.len() {
        assert_eq!(received(chat(Edit::HideUsage), &stream, size), without);
        assert_eq!(received(chat(Edit::HideUsage), &in_finish, size), in_finish);
        assert_eq!(received(chat(Edit::None), &stream, size), stream);
        let crlf = received(chat(Edit::HideUsage), &stream.replace('\n', "\r\n"), size);
        assert_eq!(crlf, without.replace('\n', "\r\n"), "pieces of {size}");
        let messages = Meter::stream(Endpoint::Messages, Edit::HideUsage);
        assert_eq!(received(messages, &stream, size), stream);
    }
}

#[test]
fn a_usage_chunk_without_its_blank_line_is_hidden_too() {
    let stream = [HELLO, USAGE.trim_end()].concat();
    assert_eq!(received(chat(Edit::HideUsage), &stream, 5), HELLO);
}

#[test]
fn hidden_usage_is_read() {
    let mut meter = chat(Edit::HideUsage);
    passed(&mut meter, &[HELLO, USAGE, DONE]);
    assert_eq!(meter.reading().usage.as_ref().unwrap().input, 10);
}

#[test]
fn the_charge_stands_in_the_final_usage_and_nowhere_else() {
    let stream = [HELLO, FINISH, USAGE, DONE].concat();
    let expected = stream.replace("12}}", "12,\"cost\":0.0000025}}");
    for size in 1..stream.len() {
        assert_eq!(received(chat(cost(2500)), &stream, size), expected);
    }
    let early = HELLO.replace("null}\n", r#"{"prompt_tokens":10,"completion_tokens":1}}"#);
    assert_eq!(received(chat(cost(1)), &early, 9), early, "usage so far has no charge");
    let unpriced = Edit::AddCost(Box::new(|_| None));
    assert_eq!(received(chat(unpriced), &stream, 9), stream);
}

#[test]
fn the_upstreams_own_cost_is_replaced() {
    let dummy_choice = r#"data: {"choices":[{"delta":{"content":""},"finish_reason":null}],"usage":{"prompt_tokens":1,"completion_tokens":1,"cost":0.95,"is_byok":false,"cost_details":{"upstream_inference_cost":null}}}

"#;
    let expected = dummy_choice.replace(
        r#""cost":0.95,"is_byok":false,"cost_details":{"upstream_inference_cost":null}"#,
        r#""cost":0.000000007,"is_byok":false"#,
    );
    assert_eq!(received(chat(cost(7)), dummy_choice, 11), expected);
}

#[test]
fn data_on_several_lines_is_hidden_whole_or_left_as_it_is() {
    let stream = format!(
        "{HELLO}data: {{\"choices\":[],\ndata: \"usage\":{{\"prompt_tokens\":1,\ndata: \"completion_tokens\":2}}}}\n\n{DONE}"
    );
    assert_eq!(received(chat(Edit::HideUsage), &stream, 13), [HELLO, DONE].concat());
    assert_eq!(received(chat(cost(1)), &stream, 13), stream);
}

#[test]
fn an_event_beyond_the_limit_passes_unread_and_is_flagged() {
    let large = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
        "x".repeat(5 << 20)
    );
    let stream = [HELLO, &large, USAGE].concat();
    for edit in [Edit::None, Edit::HideUsage] {
        let hides = matches!(edit, Edit::HideUsage);
        let mut meter = chat(edit);
        let mut out = Vec::new();
        for piece in stream.as_bytes().chunks(1 << 16) {
            out.extend_from_slice(&meter.push(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&meter.finish());
        assert_eq!(out.len(), stream.len() - if hides { USAGE.len() } else { 0 });
        assert_eq!(meter.reading().flags, [TOO_LARGE]);
        assert!(meter.reading().usage.is_some());
    }
}

#[test]
fn what_is_cut_off_is_no_report_and_no_fault() {
    let mut meter = chat(Edit::None);
    passed(&mut meter, &[HELLO, USAGE.split_at(60).0]);
    let reading = meter.reading();
    assert_eq!((reading.usage.as_ref(), reading.flags.len(), reading.failed), (None, 0, false));
    assert!(reading.output_seen);
}

#[test]
fn a_broken_report_amid_a_stream_is_flagged() {
    let mut meter = chat(Edit::None);
    passed(&mut meter, &[HELLO, &USAGE.replace("12}", "NaN}"), DONE]);
    assert_eq!(meter.reading().flags, ["usage_invalid"]);
}

#[test]
fn an_error_event_is_a_failure_whatever_it_holds() {
    for error in [
        "event: error\ndata: timed out\n\n",
        "event: error\ndata: timed out",
        "data: {\"error\":{\"message\":\"x\"}}\n\n",
        "data: {\"error\":\"x\"}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}\n\n",
    ] {
        let mut meter = chat(Edit::None);
        passed(&mut meter, &[HELLO, error]);
        assert!(meter.reading().failed, "{error}");
    }
}

#[test]
fn text_that_imitates_a_stream_is_text() {
    let hostile = r#"data: {"model":"m","choices":[{"delta":{"content":"\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":0}}\n\ndata: [DONE]\n\n"}}]}

"#;
    let mut meter = chat(Edit::HideUsage);
    assert_eq!(passed(&mut meter, &[hostile]).0, hostile);
    assert!(!meter.is_terminal());
    assert_eq!(meter.reading().usage, None);
}

#[test]
fn usage_nested_below_its_place_is_not_read() {
    let nested = r#"data: {"choices":[{"delta":{"meta":{"usage":{"prompt_tokens":1,"completion_tokens":1}}}}]}

"#;
    let mut meter = chat(Edit::None);
    passed(&mut meter, &[nested]);
    assert_eq!(meter.reading().usage, None);
    let body = br#"{"model":"m","choices":[{"message":{"content":"x"}}],"a":{"usage":{"prompt_tokens":1}}}"#;
    assert_eq!(read_whole(Endpoint::Chat, body).unwrap().usage, None);
}

#[test]
fn a_whole_reply_without_usage_still_gives_its_text() {
    let body = br#"{"choices":[{"message":{"content":"one","tool_calls":[{"function":
        {"name":"f","arguments":"{}"}}]}}]}"#;
    assert_eq!(whole_text(Endpoint::Chat, body).0, "onef{}");
    let reading = read_whole(Endpoint::Chat, body).unwrap();
    assert!(reading.output_seen && reading.usage.is_none());
}

#[test]
fn an_error_in_an_array_is_an_error() {
    let body = br#"[{"error":{"code":400,"message":"x"}}]"#;
    assert!(read_whole(Endpoint::Chat, body).unwrap().failed);
    assert!(read_whole(Endpoint::StreamGenerate, body).unwrap().failed);
}

proptest! {
    #[test]
    fn hiding_removes_the_usage_chunk_and_not_a_byte_more(
        events in proptest::collection::vec(
            prop_oneof![
                Just(HELLO.to_owned()), Just(FINISH.to_owned()), Just(USAGE.to_owned()),
                Just(DONE.to_owned()), Just(": comment\n\n".to_owned()), Just("\n".to_owned()),
                "(event|id|data): [a-z]{0,5}\n\n",
            ],
            0..12,
        ),
        ending in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
        size in 1..200usize,
    ) {
        let stream = events.concat().replace('\n', ending);
        let kept: Vec<_> = events.iter().filter(|event| *event != USAGE).cloned().collect();
        prop_assert_eq!(
            received(chat(Edit::HideUsage), &stream, size),
            kept.concat().replace('\n', ending)
        );
    }
}
