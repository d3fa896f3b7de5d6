-- From schema 5 to 6: what is old may leave the store.

-- What stands for records that were trimmed, one row an account.
CREATE TABLE checkpoint (
    account TEXT PRIMARY KEY,
    seq     INTEGER NOT NULL, -- the last entry that was trimmed
    before  INTEGER NOT NULL, -- everything before this instant was
    state   TEXT NOT NULL     -- where the books stood then, as JSON
) STRICT, WITHOUT ROWID;

-- Operations that were trimmed, so that none is ever done again; those of requests are not here.
CREATE TABLE trimmed (
    account     TEXT NOT NULL,
    id          TEXT NOT NULL,
    fingerprint BLOB,
    seq         INTEGER NOT NULL,
    PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;
