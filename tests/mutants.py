#!/usr/bin/env python3
"""Breaks rules of money on purpose and demands that a named test notices.

    tests/mutants.py            all mutants
    tests/mutants.py clip       those whose name has this text
    tests/mutants.py --fits     only whether all of them fit the code as it is

Each mutant is a small change of a copy of the tree; the test that is named with it must pass
without the change and fail with it. Rules that Redis follows in Lua are broken as their scripts
are read, without another build; each of the others builds the library once more, so this is not
a part of `./test`. It ends with 1 if a mutant survives or no longer fits the code.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "target" / "mutants"
LOTS = "store::embedded::tests::lots::"
REDIS_LOTS = "store::redis::tests::lots::"
CLIP = "b1_a_debit_takes_what_a_lot_has_and_the_rest_is_debt"
DEDUPE = "b16_b17_settling_twice_takes_from_no_lot_twice"
ORDER = "b6_the_soonest_expiry_beats_the_kind"
DEBT = "b9_debt_does_not_expire"
PLACE = "b35_a_hold_never_clips_what_is_debited"
LEASE = "b36_a_settlement_after_the_place_is_gone_still_debits_once"
LENT = "store::redis::tests::lent::"

# A name; the test that notices; the changes: file, text that stands there once, what it becomes.
MUTANTS = [
    (
        "clip at zero: a debit takes no more than there is",
        LOTS + CLIP,
        [
            (
                "src/billing/ledger.rs",
                "self.may_take(kind, amount)?;\n        let order = (0..",
                "let amount = amount.min(self.balance().max(Credits::ZERO));\n"
                "        self.may_take(kind, amount)?;\n        let order = (0..",
            )
        ],
    ),
    (
        "drop the dedupe: a settlement that comes twice is debited twice",
        LOTS + DEDUPE,
        [
            ("src/store/embedded/books.rs", '"INSERT INTO record VALUES', '"INSERT OR REPLACE INTO record VALUES'),
            ("src/store/embedded/books.rs", "ON CONFLICT (id, account) WHERE id IS NOT NULL DO NOTHING", ""),
        ],
    ),
    (
        "swap the burn order: kind before expiry",
        LOTS + ORDER,
        [("src/billing/ledger/lot.rs", "(self.expires_at, self.class, self.number)", "(0, self.class, self.number)")],
    ),
    (
        "expire debt: what was used beyond all lots is forgiven",
        LOTS + DEBT,
        [
            (
                "src/billing/ledger.rs",
                "    pub fn expire(&mut self, now: Millis) -> Vec<Booking> {\n",
                "    pub fn expire(&mut self, now: Millis) -> Vec<Booking> {\n        self.debt = Credits::ZERO;\n",
            )
        ],
    ),
    (
        "forget the place: a settlement does not give it back",
        LOTS + PLACE,
        [
            ("src/store/embedded/operations.rs", "        memory.live.end(account, id, usage.tokens(), now);\n", "        let _ = (usage.tokens(), now);\n"),
            ("src/store/embedded/live.rs", "        state.end(id, usage.tokens(), at);\n        Some(", "        let _ = usage.tokens();\n        Some("),
        ],
    ),
    (
        "believe for long: what is lent ahead is used by an old answer",
        LENT + "a_key_that_another_process_ends_is_refused_also_where_nothing_is_settled_since",
        [("src/store/redis/lent.rs", "let until = news.asked + BELIEVED;", "let until = news.asked + 50 * BELIEVED;")],
    ),
    (
        "do not wait: a key is changed while others act by what they were told before",
        LENT + "a_key_that_another_process_ends_is_refused_also_where_nothing_is_settled_since",
        [("src/store/redis/lent.rs", "tokio::time::sleep(BELIEVED).await;", "tokio::task::yield_now().await;")],
    ),
    (
        "do not listen: what is lent ahead is used though the balance is gone",
        LENT + "by_places_lent_ahead_to_three_processes_each_client_overdraws_with_one_request_at_most",
        [("src/store/redis/lent.rs", "Lending::NotAccount => self.end_term(),", "Lending::NotAccount => {}")],
    ),
]

# The same in Redis: text that stands once in the script.
LUA = [
    (
        "clip at zero",
        REDIS_LOTS + CLIP,
        ("settle.lua", "local taken = late and 0 or charge", "local taken = late and 0 or math.min(charge, math.max(books.balance, 0))"),
    ),
    (
        "drop the dedupe",
        REDIS_LOTS + DEDUPE,
        ("settle.lua", "local done = found[id] or marked > 0 and redis.call('GET', KEYS[FIXED + n])", "local done = nil"),
    ),
    (
        "swap the burn order",
        REDIS_LOTS + ORDER,
        # Names of lots begin with their kind.
        ("books.lua", "books.read = books.read + #more", "books.read = books.read + #more table.sort(more)"),
    ),
    (
        "expire debt",
        REDIS_LOTS + DEBT,
        ("books.lua", "balance = tonumber(stored[2]), seq = tonumber(stored[3])", "balance = math.max(tonumber(stored[2]), 0), seq = tonumber(stored[3])"),
    ),
    (
        "forget the place",
        REDIS_LOTS + PLACE,
        ("settle.lua", "if flight and not books.gone[id] then", "if false then"),
    ),
    (
        "forget the lease",
        REDIS_LOTS + LEASE,
        ("flights.lua", "for _, id in ipairs(ended) do\n    local flight", "for _, id in ipairs({}) do\n    local flight"),
    ),
    (
        "do not count what is lent ahead",
        LENT + "with_what_is_lent_ahead_to_three_processes_no_more_run_than_may",
        ("admit.lua", "local ahead = lent_ahead(books)", "local ahead = 0"),
    ),
    (
        "close an account over what is lent ahead",
        LENT + "a_request_on_a_place_lent_ahead_is_charged_though_its_account_was_closed_meanwhile",
        ("flights.lua", " or lent_ahead(books) > 0 then return end", " then return end"),
    ),
]

# How a script is broken as it is read: what stands in the variable, before and after.
READS = (
    "src/store/redis/script.rs",
    'let text = head + &files.join("\\n");\n',
    """let mut text = head + &files.join("\\n");
        if let Ok(mutant) = std::env::var("FAREBOX_MUTANT") {
            let (before, after) = mutant.split_once('\\u{1}').unwrap();
            text = text.replace(before, after);
        }
""",
)


def copy_tree():
    """A copy of the files under version control; what is built stays where it is."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout
    for name in files.decode().split("\0"):
        source, target = ROOT / name, COPY / name
        if not name or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # Only what differs, so that cargo builds again only what must be.
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            shutil.copy(source, target)


def change(name, file, before, after):
    text = (COPY / file).read_text()
    if text.count(before) != 1:
        sys.exit(f"the mutant {name!r} no longer fits {file}")
    (COPY / file).write_text(text.replace(before, after))


def prepare(changes=(), name="of scripts"):
    """The copy with these changes, and with scripts that can be broken as they are read."""
    copy_tree()
    for file, before, after in [READS, *changes]:
        change(name, file, before, after)


def run(tests, mutant=None):
    """The outcome of each test, by its name."""
    # A folder of its own: where both are built in one, cargo takes what was built of the copy for
    # what it would build of the tree.
    env = {**os.environ, "CARGO_TARGET_DIR": str(COPY / "target"), "RUST_BACKTRACE": "0"}
    if mutant:
        env["FAREBOX_MUTANT"] = "\x01".join(mutant)
    done = subprocess.run(
        ["cargo", "test", "--quiet", "--lib", "--", "--exact", "--format=pretty", *tests],
        cwd=COPY, env=env, capture_output=True, text=True,
    )
    outcomes = dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED)", done.stdout, re.M))
    if set(outcomes) != set(tests):
        sys.exit(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return outcomes


def must_fit():
    """Ends the program if the code has changed from under a mutant."""
    texts = [(name, file, before) for name, _, changes in MUTANTS for file, before, _ in changes]
    texts += [(name, f"src/store/redis/lua/{file}", before) for name, _, (file, before, _) in LUA]
    texts.append(("of scripts", *READS[:2]))
    for name, file, before in texts:
        if (ROOT / file).read_text().count(before) != 1:
            sys.exit(f"the mutant {name!r} no longer fits {file}: correct it in tests/mutants.py")


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    must_fit()
    if wanted == "--fits":
        return
    mutants = [mutant for mutant in MUTANTS if wanted in mutant[0]]
    lua = [mutant for mutant in LUA if wanted in mutant[0]]
    if not mutants and not lua:
        sys.exit(f"no mutant has {wanted!r} in its name")
    prepare()
    for test, outcome in run(sorted({test for _, test, _ in [*mutants, *lua]})).items():
        if outcome != "ok":
            sys.exit(f"{test} fails without any mutant")
    survivors = 0

    def tell(name, test, outcome):
        nonlocal survivors
        survivors += outcome != "FAILED"
        print(f"{'caught  ' if outcome == 'FAILED' else 'SURVIVED'}  {name}\n          {test}", flush=True)

    for name, test, (file, before, after) in lua:
        tell(f"Redis: {name}", test, run([test], (before, after))[test])
    for name, test, changes in mutants:
        prepare(changes, name)
        tell(name, test, run([test])[test])
    count = len(mutants) + len(lua)
    print(f"{count - survivors} of {count} mutants were caught")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
