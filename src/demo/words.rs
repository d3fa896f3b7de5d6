//! What the simulated provider says, and what the demonstration asks it.

/// The first words of OpenClaw's heartbeat prompt.
pub const HEARTBEAT: &str = "Read HEARTBEAT.md if it exists (workspace context). Follow it \
    strictly. If nothing needs attention, reply HEARTBEAT_OK.";

/// The first words of the workflow that sorts mail.
pub const SORT: &str = "Sort this mail as invoice, question or spam; answer with one word.";

/// What a person asks an agent, with what the agent then says.
const TALK: [(&str, &str); 8] = [
    (
        "What is in my inbox that cannot wait?",
        "Two things cannot wait. The landlord asks for the meter reading by tomorrow noon, and \
         Priya needs your yes or no on the venue today, because the hold ends at six. Everything \
         else is newsletters and one invoice that is due in nine days. Shall I draft the answer \
         to Priya?",
    ),
    (
        "Draft it. Yes to the venue, but ask about parking.",
        "Hi Priya, yes, please take the venue. One question before you sign: is there parking \
         for about ten cars, or should people come by train? Thanks for holding it! I saved this \
         as a draft and did not send it.",
    ),
    (
        "Compare the three quotes in quotes.md and tell me which one you would take.",
        "I would take the second. The first is the cheapest by 140, but it leaves out disposal, \
         which the other two include at 90 to 160. The third has the shorter warranty and asks \
         for half in advance. The second costs 2,310 all in, with five years of warranty and \
         payment on completion. One point to settle with them: the start date says only May.",
    ),
    (
        "Why did the backup fail last night?",
        "The disk was full: the log shows `no space left on device` at 03:12, seven minutes \
         after the start. The old snapshots were not pruned, because the retention job has been \
         disabled since the update on Monday. If you enable it again, 61 GB come free and \
         tonight's backup fits. I have not changed anything yet.",
    ),
    (
        "Enable it and tell me how much space that gave back.",
        "Done. The retention job ran once by hand and removed 14 snapshots; 61.4 GB are free \
         now, which is enough for about nine more nights. It runs every day at 02:30 again.",
    ),
    (
        "Summarise the meeting notes in three lines.",
        "The launch moves to the 14th, because the translation is late. Marta owns the press \
         text, Jon the demo, both due on Friday. Open: who answers support mail in the first \
         week; it will be decided on Thursday.",
    ),
    (
        "Write a test for the rounding in invoice.py.",
        "Here is one that fails before the fix and passes after it: for amounts that end in half \
         a cent, `round_half_up(Decimal('2.345'))` must be 2.35 and not 2.34, which is what \
         banker's rounding gives. I put it next to the other tests and ran them: 38 passed.",
    ),
    (
        "Plan my day around the dentist at three.",
        "Until eleven: the report, while it is quiet. Eleven to one: the two calls, back to \
         back. Leave at half past two; the dentist is twenty minutes away. After that only small \
         things: the expense form, the plants, and the draft to Priya if she has answered.",
    ),
];

/// What a person asks in the turn of this number.
pub fn prompt(turn: usize) -> &'static str {
    TALK[turn % TALK.len()].0
}

/// The answer to a prompt.
pub fn reply(prompt: &str) -> String {
    if let Some((_, answer)) = TALK.iter().find(|(question, _)| *question == prompt) {
        return (*answer).to_owned();
    }
    if prompt.starts_with(HEARTBEAT) {
        return "HEARTBEAT_OK".to_owned();
    }
    if prompt.starts_with(SORT) {
        return ["invoice", "question", "spam"][prompt.len() % 3].to_owned();
    }
    let asked: String = prompt.chars().take(80).collect();
    let asked = if asked.is_empty() { "nothing that I could read".into() } else { asked };
    format!(
        "You said: {asked} — I am the simulated provider of the demonstration, so nobody thinks \
         here. But this reply is metered: its tokens were read from it, priced and debited, just \
         as a real one's would be. Run the usage and ledger commands to see it in the books."
    )
}

/// A system prompt of about `kilobytes`, as agents send it along with every turn.
pub fn instructions(agent: &str, session: &str, kilobytes: usize) -> String {
    const RULE: &str = "Keep what the user tells you in MEMORY.md, read a file before you change \
        it, ask before you send or delete anything, and say plainly what you did not do. ";
    let rules = RULE.repeat(kilobytes * 1024 / RULE.len());
    format!(
        "You are an assistant.\n{rules}\nRuntime: agent={agent} | session={session} | host=demo"
    )
}
