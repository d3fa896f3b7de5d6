#!/usr/bin/env python3
"""The floor under a durable debit on this machine: SQLite commits, fdatasync, Redis round trips.

  python3 limits.py [--dir /where/the/disk/is]     (Redis only if redis-server is on PATH)
"""
import argparse, csv, io, os, pathlib, shutil, sqlite3, subprocess, sys, tempfile, time

PORT = "6390"
KEYS = 6
# One debit: five counters with limits, one idempotency key; all or nothing.
DEBIT = """
if redis.call('EXISTS', KEYS[6]) == 1 then return -1 end
local v = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
for i = 1, 5 do
  if tonumber(v[i] or '0') + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return -2 end
end
for i = 1, 5 do redis.call('INCRBY', KEYS[i], ARGV[1]) end
redis.call('SET', KEYS[6], '1', 'EX', 600)
return 0
"""


def quantile(v, q):
    v = sorted(v)
    return v[min(len(v) - 1, int(q * len(v)))] * 1e6


def row(name, rate, p50, p99, unit="ops/s"):
    print(f"| {name} | {rate:,.0f} {unit} | {p50:,.0f} | {p99:,.0f} |", flush=True)


def redis(dirname):
    for label, extra in (("no persistence", ["--save", "", "--appendonly", "no"]),
                         ("AOF everysec", ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]),
                         ("AOF always", ["--save", "", "--appendonly", "yes", "--appendfsync", "always"])):
        d = tempfile.mkdtemp(dir=dirname)
        server = subprocess.Popen(["redis-server", "--port", PORT, "--bind", "127.0.0.1", "--dir", d, *extra],
                                  stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.7)
            cli = ["redis-cli", "-p", PORT]
            sha = subprocess.check_output([*cli, "SCRIPT", "LOAD", DEBIT], text=True).strip()
            subprocess.check_output([*cli, "SET", "k:1", "x" * 64])
            debit = ["EVALSHA", sha, str(KEYS)] + [f"{{u}}:{i}" for i in range(5)] + ["{u}:idem:__rand_int__", "1", "1000000000000"]
            plans = [("GET", ["GET", "k:1"], "1", "1", 40000), ("GET", ["GET", "k:1"], "64", "1", 200000),
                     ("GET", ["GET", "k:1"], "64", "16", 1000000), ("debit, 6 keys", debit, "1", "1", 20000),
                     ("debit, 6 keys", debit, "64", "1", 60000), ("debit, 6 keys", debit, "64", "16", 120000)]
            for name, cmd, conns, pipe, n in plans:
                if name == "GET" and label != "no persistence":
                    continue
                n = n // 20 if label == "AOF always" and conns == "1" else n
                txt = subprocess.check_output(["redis-benchmark", "-p", PORT, "-n", str(n), "-c", conns, "-P", pipe,
                                               "-r", "1000000000", "--precision", "3", "--csv", *cmd], text=True)
                r = list(csv.DictReader(io.StringIO(txt[txt.index('"test"'):])))[0]
                row(f"Redis {label}: {name}, {conns} conns, pipeline {pipe}", float(r["rps"]),
                    float(r["p50_latency_ms"]) * 1e3, float(r["p99_latency_ms"]) * 1e3)
        finally:
            server.terminate()
            server.wait()
            shutil.rmtree(d)


def sqlite(dirname):
    for sync in ("NORMAL", "FULL"):
        for group in (1, 10, 100):
            d = tempfile.mkdtemp(dir=dirname)
            db = sqlite3.connect(pathlib.Path(d) / "l.db", isolation_level=None)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={sync}")
            db.execute("CREATE TABLE ledger(id INTEGER PRIMARY KEY, request TEXT UNIQUE, key INTEGER, micros INTEGER, at INTEGER)")
            db.execute("CREATE TABLE balance(key INTEGER PRIMARY KEY, micros INTEGER)")
            db.executemany("INSERT INTO balance VALUES(?,0)", ((k,) for k in range(1000)))
            took, n, end = [], 0, time.perf_counter() + 4
            while time.perf_counter() < end:
                t = time.perf_counter()
                db.execute("BEGIN IMMEDIATE")
                for _ in range(group):
                    n += 1
                    db.execute("INSERT INTO ledger(request,key,micros,at) VALUES(?,?,?,?)", (os.urandom(12).hex(), n % 1000, 295, n))
                    db.execute("UPDATE balance SET micros=micros+295 WHERE key=?", (n % 1000,))
                db.execute("COMMIT")
                took.append(time.perf_counter() - t)
            row(f"SQLite WAL, synchronous={sync}, {group} debits a commit", n / sum(took), quantile(took, .5), quantile(took, .99), "debits/s")
            db.close()
            shutil.rmtree(d)


def disk(dirname):
    fd, path = tempfile.mkstemp(dir=dirname)
    for size in (512, 4096, 65536):
        data, took, end = os.urandom(size), [], time.perf_counter() + 3
        while time.perf_counter() < end:
            t = time.perf_counter()
            os.write(fd, data)
            os.fdatasync(fd)
            took.append(time.perf_counter() - t)
        row(f"append {size} B + fdatasync", len(took) / sum(took), quantile(took, .5), quantile(took, .99))
    os.close(fd)
    os.unlink(path)


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--dir", default=".")
    a = ap.parse_args()
    print("| what | rate | p50 µs | p99 µs |\n|---|---|---|---|")
    disk(a.dir)
    sqlite(a.dir)
    if shutil.which("redis-server"):
        redis(a.dir)
    else:
        print("Redis is not installed, left out", file=sys.stderr)
