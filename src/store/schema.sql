-- The embedded store, schema 3. Amounts are whole nano-credits (10⁻⁹ of a credit), times are
-- milliseconds since 1970 (UTC). The number of the schema is in `PRAGMA user_version`.
--
-- There are no foreign keys: accounts and keys are never deleted, and an operation has read
-- its account before it writes.

CREATE TABLE account (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('open', 'closing', 'closed')),
    balance     INTEGER NOT NULL, -- what its lots have left; or less than nothing, and they are empty
    seq         INTEGER NOT NULL, -- of the last entry; 0: none yet
    last_ts     INTEGER NOT NULL, -- of the last entry or usage row; time never steps back behind it
    created_at  INTEGER NOT NULL,
    next_expiry INTEGER -- the soonest of its lots that are not empty
) STRICT, WITHOUT ROWID;
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
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX key_of_account ON key (account, created_at, id);

-- The ledger. Rows are only ever added. `seq` is dense and `ts` never falls along it, so a time
-- is found by bisection and needs no index.
CREATE TABLE entry (
    account       TEXT NOT NULL,
    seq           INTEGER NOT NULL CHECK (seq > 0),
    ts            INTEGER NOT NULL,
    kind          TEXT NOT NULL,
    amount        INTEGER NOT NULL,
    balance_after INTEGER NOT NULL,
    ref           TEXT NOT NULL,
    note          TEXT,
    undoes        INTEGER, -- the entry that this one gives back or takes back
    PRIMARY KEY (account, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_undoes ON entry (account, undoes) WHERE undoes IS NOT NULL;
-- Nearly every entry is a debit, and debits are found without an index.
CREATE INDEX entry_of_kind ON entry (account, kind, seq) WHERE kind <> 'debit_ai';

-- What the amount of an entry is made of, in order.
CREATE TABLE part (
    account TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    lot     INTEGER, -- NULL: the debt
    amount  INTEGER NOT NULL,
    PRIMARY KEY (account, seq, n)
) STRICT, WITHOUT ROWID;

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
    CHECK (granted = remaining + used + expired + to_debt + forfeited + reversed),
    PRIMARY KEY (account, lot)
) STRICT, WITHOUT ROWID;
-- In burn order.
CREATE INDEX lot_usable ON lot (account, expires_at, kind, lot) WHERE remaining > 0;

-- Operations that were done, so that each is done once.
CREATE TABLE op (
    account     TEXT NOT NULL,
    id          TEXT NOT NULL,
    fingerprint BLOB,             -- SHA-256 of the content; NULL: abandoned, may still be settled
    seq         INTEGER,          -- its entry, if it made one
    balance     INTEGER NOT NULL, -- after it
    PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;

-- One row a request.
CREATE TABLE usage (
    account           TEXT NOT NULL,
    ts                INTEGER NOT NULL,
    id                TEXT NOT NULL,
    key               TEXT NOT NULL,
    model             TEXT NOT NULL,
    served_model      TEXT,
    upstream          TEXT NOT NULL,
    run               TEXT,
    agent             TEXT,
    session           TEXT,
    origin            TEXT,
    tag               TEXT,
    input             INTEGER NOT NULL,
    cached            INTEGER NOT NULL,
    cache_creation_5m INTEGER NOT NULL,
    cache_creation_1h INTEGER NOT NULL,
    output            INTEGER NOT NULL,
    reasoning         INTEGER NOT NULL, -- this and the next five are parts of the classes above
    input_audio       INTEGER NOT NULL,
    input_image       INTEGER NOT NULL,
    cached_audio      INTEGER NOT NULL,
    output_audio      INTEGER NOT NULL,
    output_image      INTEGER NOT NULL,
    calls             TEXT, -- a JSON object of counts
    charge            INTEGER NOT NULL,
    price_version     TEXT NOT NULL,
    ttft_ms           INTEGER,
    latency_ms        INTEGER NOT NULL,
    stream            INTEGER NOT NULL,
    outcome           TEXT NOT NULL,
    source            TEXT NOT NULL,
    http_status       INTEGER NOT NULL,
    flags             TEXT NOT NULL,
    PRIMARY KEY (account, ts, id)
) STRICT, WITHOUT ROWID;
-- One index a filter. What nearly every row has is left out: it is found without an index.
CREATE INDEX usage_of_model ON usage (account, model, ts, id);
CREATE INDEX usage_of_key ON usage (account, key, ts, id);
CREATE INDEX usage_of_tag ON usage (account, tag, ts, id) WHERE tag IS NOT NULL;
CREATE INDEX usage_of_origin ON usage (account, origin, ts, id) WHERE origin IS NOT NULL;
CREATE INDEX usage_of_source ON usage (account, source, ts, id) WHERE source <> 'reported';
CREATE INDEX usage_of_outcome ON usage (account, outcome, ts, id) WHERE outcome <> 'completed';

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
