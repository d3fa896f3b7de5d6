-- From schema 1 to 2: lots, and the parts of entries. They are filled by replaying the ledger.

ALTER TABLE account ADD COLUMN next_expiry INTEGER;
CREATE INDEX account_expiry ON account (next_expiry) WHERE next_expiry IS NOT NULL;
CREATE INDEX account_closing ON account (id) WHERE status = 'closing';

ALTER TABLE entry ADD COLUMN undoes INTEGER;
CREATE INDEX entry_undoes ON entry (account, undoes) WHERE undoes IS NOT NULL;

CREATE TABLE lot (
    account      TEXT NOT NULL,
    lot          INTEGER NOT NULL CHECK (lot > 0),
    kind         TEXT NOT NULL CHECK (kind IN ('promo', 'usage')),
    seq          INTEGER NOT NULL,
    source       TEXT NOT NULL,
    effective_at INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
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
CREATE INDEX lot_usable ON lot (account, expires_at, kind, lot) WHERE remaining > 0;

CREATE TABLE part (
    account TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    lot     INTEGER,
    amount  INTEGER NOT NULL,
    PRIMARY KEY (account, seq, n)
) STRICT, WITHOUT ROWID;
