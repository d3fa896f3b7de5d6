-- From schema 2 to 3: documents.

CREATE TABLE document (
    scope      TEXT NOT NULL,
    name       TEXT NOT NULL,
    body       TEXT NOT NULL,
    version    INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (scope, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX document_expiry ON document (expires_at) WHERE expires_at IS NOT NULL;
