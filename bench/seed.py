#!/usr/bin/env python3
"""Fills a new store with accounts, keys and requests, as Farebox would have written them.

  python3 seed.py FILE [--accounts 1000000] [--keys 3000000] [--rows 10000000]

Half of the requests are of the account a0, the others of all in turn, over the last 90 days.
"""
import argparse, collections, hashlib, os, pathlib, sqlite3, time

HOUR = 3_600_000
MODELS = [f"m{n}" for n in range(8)]
CHARGE = 295_000
GRANT = 10**15


def insert(db, table, rows):
    rows = iter(rows)
    for first in rows:
        columns = ",".join("?" * len(first))
        db.execute(f"INSERT INTO {table} VALUES ({columns})", first)
        db.executemany(f"INSERT INTO {table} VALUES ({columns})", rows)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("file")
    ap.add_argument("--accounts", type=int, default=1_000_000)
    ap.add_argument("--keys", type=int, default=3_000_000)
    ap.add_argument("--rows", type=int, default=10_000_000)
    a = ap.parse_args()
    began = time.time()
    end = int(began * 1000)
    start = end - 90 * 24 * HOUR
    db = sqlite3.connect(a.file, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-400000")
    schema = (pathlib.Path(__file__).parent / "../src/store/schema.sql").read_text()
    db.executescript(schema)
    db.execute(f"PRAGMA application_id={0x4662_7831}")
    db.execute(f"PRAGMA user_version={schema.split('schema ')[1].split('.')[0]}")
    db.execute("BEGIN")
    requests = collections.Counter()
    requests[0] = a.rows - a.rows // 2
    for n in range(a.accounts):
        requests[n] += a.rows // 2 // a.accounts
    expires = end + 300 * 24 * HOUR
    columns = "n, id, name, status, balance, seq, sub, last_ts, created_at, next_expiry"
    db.executemany(
        f"INSERT INTO account ({columns}) VALUES (?,?,'','open',?,?,0,?,?,?)",
        ((n + 1, f"a{n}", GRANT - CHARGE * requests[n], 1 + requests[n], end, start, expires)
         for n in range(a.accounts)))
    insert(db, "lot", (
        (f"a{n}", 1, "usage", 1, "seed", start, expires, GRANT, GRANT - CHARGE * requests[n],
         CHARGE * requests[n], 0, 0, 0, 0, 1) for n in range(a.accounts)))
    db.executemany(
        "INSERT INTO key (id, hash, account, name, models, rejection, last4, created_at)"
        " VALUES (?,?,?,'','[]','limit','0000',?)",
        ((f"key_{n:026}", hashlib.sha256(b"seed%d" % n).digest(), f"a{n % a.accounts}", start)
         for n in range(a.keys)))
    none = (None,) * 29

    def records(n):
        balance = GRANT
        yield (n + 1, start, 1, 0, "seed", b"\0" * 8, "topup", GRANT, balance, 1, None, None,
               None, *none)
        for i in range(requests[n]):
            balance -= CHARGE
            ts = start + 1 + (end - start - 1) * i // max(1, requests[n])
            tag = "rare" if i % 1_000_003 == 77 else None
            outcome = "upstream_cut" if i % 10_007 == 5 else "completed"
            yield (n + 1, ts, i + 2, 0, f"req_{ts:013}{n:07}{i % 10**6:06}", b"\0" * 8,
                   "debit_ai", -CHARGE, balance, 1, None, None, None,
                   f"key_{n:026}", MODELS[i % 8], None, "openai", None, None, None, None, tag,
                   256, 1024, 0, 0, 300, 0, 0, 0, 0, 0, 0, None, "0123456789ab", 400, 2000, 1,
                   outcome, "reported", 200, "")

    # Built in one go at the end: rows of one account after another would come out of order.
    index = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'record_id'").fetchone()[0]
    db.execute("DROP INDEX record_id")
    for n in range(a.accounts):
        insert(db, "record", records(n))
    db.execute(index)
    db.execute(
        f"INSERT INTO usage_hour SELECT account.id, ts / {HOUR}, model, key, coalesce(tag, ''),"
        " upstream, count(*), sum(input), sum(cached), sum(cache_creation_5m + cache_creation_1h),"
        " sum(output), -sum(amount), 0 FROM record JOIN account ON account.n = record.account"
        " WHERE outcome IS NOT NULL GROUP BY 1, 2, 3, 4, 5, 6")
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    print(f"{a.file}: {os.path.getsize(a.file) / 2**20:,.0f} MiB in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
