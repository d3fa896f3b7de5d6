#!/usr/bin/env python3
"""Breaks rules of money on purpose and demands that a named test notices.

    tests/mutants.py            all mutants
    tests/mutants.py clip       those whose name has this text

Each mutant is a small change of a copy of the tree; the test that is named with it must pass
without the change and fail with it. It builds the library once per mutant, so it is not a part
of `./test`. It ends with 1 if a mutant survives or no longer fits the code.
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

# A name; the test that notices; the changes: file, text that stands there once, what it becomes.
MUTANTS = [
    (
        "clip at zero: a debit takes no more than there is",
        LOTS + "b1_a_debit_takes_what_a_lot_has_and_the_rest_is_debt",
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
        LOTS + "b16_b17_settling_twice_takes_from_no_lot_twice",
        [
            ("src/store/embedded/operations.rs", "done.filter(|_| !was_abandoned)", "done.filter(|_| false)"),
            ("src/store/embedded/books.rs", '"INSERT INTO record VALUES', '"INSERT OR REPLACE INTO record VALUES'),
        ],
    ),
    (
        "swap the burn order: kind before expiry",
        LOTS + "b6_the_soonest_expiry_beats_the_kind",
        [("src/billing/ledger/lot.rs", "(self.expires_at, self.class, self.number)", "(0, self.class, self.number)")],
    ),
    (
        "expire debt: what was used beyond all lots is forgiven",
        LOTS + "b9_debt_does_not_expire",
        [
            (
                "src/billing/ledger.rs",
                '    pub fn expire(&mut self, now: Millis) -> Vec<Booking> {\n',
                '    pub fn expire(&mut self, now: Millis) -> Vec<Booking> {\n        self.debt = Credits::ZERO;\n',
            )
        ],
    ),
    (
        "forget the place: a settlement does not give it back",
        LOTS + "b34_a_hold_admits_only_what_fits",
        [("src/store/embedded/operations.rs", "        memory.live.end(account, id, usage.tokens(), now);\n", "        let _ = (usage.tokens(), now);\n")],
    ),
]


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
            shutil.copyfile(source, target)


def run(tests):
    """The outcome of each test, by its name."""
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    done = subprocess.run(
        ["cargo", "test", "--quiet", "--lib", "--", "--exact", "--format=pretty", *tests],
        cwd=COPY, env={**os.environ, "CARGO_TARGET_DIR": target},
        capture_output=True, text=True,
    )
    outcomes = dict(re.findall(r"^test (\S+) \.\.\. (ok|FAILED)", done.stdout, re.M))
    if set(outcomes) != set(tests):
        sys.exit(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return outcomes


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    mutants = [mutant for mutant in MUTANTS if wanted in mutant[0]]
    if not mutants:
        sys.exit(f"no mutant has {wanted!r} in its name")
    copy_tree()
    for test, outcome in run(sorted({test for _, test, _ in mutants})).items():
        if outcome != "ok":
            sys.exit(f"{test} fails without any mutant")
    survivors = 0
    for name, test, changes in mutants:
        copy_tree()
        for file, before, after in changes:
            text = (COPY / file).read_text()
            if text.count(before) != 1:
                sys.exit(f"the mutant {name!r} no longer fits {file}")
            (COPY / file).write_text(text.replace(before, after))
        is_caught = run([test])[test] == "FAILED"
        survivors += not is_caught
        print(f"{'caught  ' if is_caught else 'SURVIVED'}  {name}\n          {test}", flush=True)
    copy_tree()
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants were caught")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
