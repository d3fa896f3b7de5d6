-- The embedded store, schema 5. Amounts are whole nano-credits (10⁻⁹ of a credit), times are
-- milliseconds since 1970 (UTC). The number of the schema is in `PRAGMA user_version`.
--
-- There are no foreign keys: accounts and keys are never deleted, and an operation has read
-- its account before it writes.

CREATE TABLE account (
    n           INTEGER PRIMARY KEY, -- what records name it by
    id          TEXT NOT NULL UNIQUE,
    name        TEXT NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('open', 'closing', 'closed')),
    balance     INTEGER NOT NULL, -- what its lots have left; or less than nothing, and they are empty
    seq         INTEGER NOT NULL, -- of the last entry; 0: none yet
    sub         INTEGER NOT NULL, -- records since without an entry
    last_ts     INTEGER NOT NULL, -- of the last record; time never steps back behind it
    created_at  INTEGER NOT NULL,
    next_expiry INTEGER, -- the soonest of its lots that are not empty
    mode          TEXT CHECK (mode IN ('lenient', 'one_request', 'strict')), -- NULL: the default
    max_in_flight INTEGER -- NULL: the default
) STRICT;
CREATE INDEX account_expiry ON account (next_expiry) WHERE next_expiry IS NOT NULL;
CREATE INDEX account_closing ON account (id) WHERE status = 'closing';

CREATE TABLE key (
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL UNIQUE, -- SHA-256 of the whole key; the secret itself is nowhere
    account    TEXT NOT NULL,
    name       TEXT NOT NULL,
    tag        TEXT,
    models     TEXT NOT NULL, -- a JSON array
    rejection  TEXT NOT NULL,
    last4      TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    limits     TEXT NOT NULL DEFAULT '{}' -- a JSON object
) STRICT, WITHOUT ROWID;
CREATE INDEX key_of_account ON key (account, created_at, id);

-- All that happened: an entry of the ledger, the end of a request, or nearly always both in one.
-- The views below show the two apart. `seq` is dense and `ts` never falls along it, so this is
-- also the order in which it happened.
CREATE TABLE record (
    account       INTEGER NOT NULL, -- `account.n`
    ts            INTEGER NOT NULL,
    seq           INTEGER NOT NULL, -- of this entry, or of the last one before
    sub           INTEGER NOT NULL, -- 0: an entry; else it counts what came after it without one
    id            TEXT,             -- of the request or operation; NULL: time did it
    fingerprint   BLOB,             -- of the content; NULL: abandoned, may still be settled
    kind          TEXT,             -- of the entry
    amount        INTEGER,
    balance_after INTEGER NOT NULL,
    lot           INTEGER, -- where all of the amount came from or went; 0: the debt
    parts         TEXT,    -- if there are more: a JSON array of [lot or null, amount]
    note          TEXT,
    undoes        INTEGER, -- the entry that this one gives back or takes back
    -- The request.
    key               TEXT,
    model             TEXT,
    served_model      TEXT,
    upstream          TEXT,
    run               TEXT,
    agent             TEXT,
    session           TEXT,
    origin            TEXT,
    tag               TEXT,
    input             INTEGER,
    cached            INTEGER,
    cache_creation_5m INTEGER,
    cache_creation_1h INTEGER,
    output            INTEGER,
    reasoning         INTEGER, -- this and the next five are parts of the classes above
    input_audio       INTEGER,
    input_image       INTEGER,
    cached_audio      INTEGER,
    output_audio      INTEGER,
    output_image      INTEGER,
    calls             TEXT, -- a JSON object of counts
    price_version     TEXT,
    ttft_ms           INTEGER,
    latency_ms        INTEGER,
    stream            INTEGER,
    outcome           TEXT, -- NULL: no request
    source            TEXT,
    http_status       INTEGER,
    flags             TEXT,
    CHECK ((sub = 0) = (kind IS NOT NULL)),
    PRIMARY KEY (account, ts, seq, sub)
) STRICT, WITHOUT ROWID;
-- Each is done once. Ids of requests rise with time, so new ones come at the end.
CREATE UNIQUE INDEX record_id ON record (id, account) WHERE id IS NOT NULL;
CREATE INDEX record_undoes ON record (account, undoes) WHERE undoes IS NOT NULL;
-- Only what few rows have; the rest is found without an index.
CREATE INDEX record_kind ON record (account, kind, ts, seq) WHERE kind <> 'debit_ai';
CREATE INDEX record_origin ON record (account, origin, ts, seq, sub) WHERE origin IS NOT NULL;
CREATE INDEX record_source ON record (account, source, ts, seq, sub) WHERE source <> 'reported';
CREATE INDEX record_outcome ON record (account, outcome, ts, seq, sub)
    WHERE outcome <> 'completed';

-- The ledger. Rows are only ever added.
CREATE VIEW entry AS
SELECT account.id AS account, record.seq, ts, kind, amount, balance_after,
    coalesce(record.id, 'lot_' || lot) AS ref, note, undoes, lot, parts
FROM record JOIN account ON account.n = record.account
WHERE record.sub = 0;

-- What the amount of an entry is made of, in order.
CREATE VIEW part AS
SELECT account.id AS account, record.seq, 0 AS n, nullif(lot, 0) AS lot, amount
FROM record JOIN account ON account.n = record.account
WHERE record.sub = 0 AND lot IS NOT NULL
UNION ALL
SELECT account.id, record.seq, part.key, part.value ->> 0, part.value ->> 1
FROM record JOIN account ON account.n = record.account, json_each(parts) AS part
WHERE record.sub = 0 AND parts IS NOT NULL;

-- One row a request.
CREATE VIEW usage AS
SELECT account.id AS account, ts, record.seq, record.sub, record.id, key, model, served_model, upstream,
    run, agent, session, origin, tag,
    input, cached, cache_creation_5m, cache_creation_1h, output, reasoning,
    input_audio, input_image, cached_audio, output_audio, output_image, calls,
    coalesce(-amount, 0) AS charge, price_version, ttft_ms, latency_ms, stream,
    outcome, source, http_status, flags
FROM record JOIN account ON account.n = record.account
WHERE outcome IS NOT NULL;

-- Credits that came together and end together.
CREATE TABLE lot (
    account      TEXT NOT NULL,
    lot          INTEGER NOT NULL CHECK (lot > 0),
    kind         TEXT NOT NULL CHECK (kind IN ('promo', 'usage')), -- as they sort, they burn
    seq          INTEGER NOT NULL, -- the entry that granted it
    source       TEXT NOT NULL,    -- that entry's ref
    effective_at INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL, -- exclusive
    granted      INTEGER NOT NULL,
    remaining    INTEGER NOT NULL CHECK (remaining >= 0),
    used         INTEGER NOT NULL CHECK (used >= 0),
    expired      INTEGER NOT NULL CHECK (expired >= 0),
    to_debt      INTEGER NOT NULL CHECK (to_debt >= 0),
    forfeited    INTEGER NOT NULL CHECK (forfeited >= 0),
    reversed     INTEGER NOT NULL CHECK (reversed >= 0),
    usable       INTEGER NOT NULL CHECK (usable = (remaining > 0)), -- so that a debit changes no index
    CHECK (granted = remaining + used + expired + to_debt + forfeited + reversed),
    PRIMARY KEY (account, lot)
) STRICT, WITHOUT ROWID;
-- In burn order.
CREATE INDEX lot_usable ON lot (account, expires_at, kind, lot) WHERE usable;

-- Sums of `usage`, written in the step that writes the row. By the hour, because days of nearly
-- every time zone are made of whole UTC hours.
CREATE TABLE usage_hour (
    account        TEXT NOT NULL,
    hour           INTEGER NOT NULL, -- since 1970
    model          TEXT NOT NULL,
    key            TEXT NOT NULL,
    tag            TEXT NOT NULL, -- empty: none
    requests       INTEGER NOT NULL,
    input          INTEGER NOT NULL,
    cached         INTEGER NOT NULL,
    cache_creation INTEGER NOT NULL,
    output         INTEGER NOT NULL,
    charge         INTEGER NOT NULL,
    estimated      INTEGER NOT NULL,
    PRIMARY KEY (account, hour, model, key, tag)
) STRICT, WITHOUT ROWID;
-- What a key has spent. Only a new row touches it.
CREATE INDEX usage_hour_of_key ON usage_hour (account, key, hour);

-- Requests that have run for a while and have not ended. What is found here at start was cut
-- off with the process.
CREATE TABLE flight (
    account     TEXT NOT NULL,
    id          TEXT NOT NULL,
    key         TEXT NOT NULL,
    model       TEXT NOT NULL,
    admitted_at INTEGER NOT NULL,
    PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;

-- Objects at upstreams, such as stored responses, and the account that made them.
CREATE TABLE owned (
    account TEXT NOT NULL,
    object  TEXT NOT NULL,
    until   INTEGER NOT NULL,
    PRIMARY KEY (account, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX owned_until ON owned (until);

-- Small texts that are neither money nor usage: sessions, settings.
CREATE TABLE document (
    scope      TEXT NOT NULL, -- an account; empty: the whole installation
    name       TEXT NOT NULL,
    body       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (scope, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX document_expiry ON document (expires_at) WHERE expires_at IS NOT NULL;
