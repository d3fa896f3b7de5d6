-- From schema 6 to 7: sums know the upstream. They are made again from the requests.

DROP INDEX usage_hour_of_key;
ALTER TABLE usage_hour RENAME TO usage_hour_before;

CREATE TABLE usage_hour (
    account        TEXT NOT NULL,
    hour           INTEGER NOT NULL, -- since 1970
    model          TEXT NOT NULL,
    key            TEXT NOT NULL,
    tag            TEXT NOT NULL, -- empty: none
    upstream       TEXT NOT NULL, -- empty: none
    requests       INTEGER NOT NULL,
    input          INTEGER NOT NULL,
    cached         INTEGER NOT NULL,
    cache_creation INTEGER NOT NULL,
    output         INTEGER NOT NULL,
    charge         INTEGER NOT NULL,
    estimated      INTEGER NOT NULL,
    PRIMARY KEY (account, hour, model, key, tag, upstream)
) STRICT, WITHOUT ROWID;
-- What a key has spent. Only a new row touches it.
CREATE INDEX usage_hour_of_key ON usage_hour (account, key, hour);

INSERT INTO usage_hour
SELECT account.id, ts / 3600000, model, key, coalesce(tag, ''), upstream, count(*),
    sum(input), sum(cached), sum(cache_creation_5m + cache_creation_1h), sum(output),
    coalesce(-sum(amount), 0), sum(source = 'estimated')
FROM record JOIN account ON account.n = record.account
WHERE outcome IS NOT NULL
GROUP BY 1, 2, 3, 4, 5, 6;

-- Requests that were trimmed are in the old sums alone: who answered them is not known.
CREATE TEMP TABLE gone AS
SELECT was.account, was.hour, was.model, was.key, was.tag,
    was.requests - coalesce(sum(made.requests), 0) AS requests,
    was.input - coalesce(sum(made.input), 0) AS input,
    was.cached - coalesce(sum(made.cached), 0) AS cached,
    was.cache_creation - coalesce(sum(made.cache_creation), 0) AS cache_creation,
    was.output - coalesce(sum(made.output), 0) AS output,
    was.charge - coalesce(sum(made.charge), 0) AS charge,
    was.estimated - coalesce(sum(made.estimated), 0) AS estimated
FROM usage_hour_before AS was LEFT JOIN usage_hour AS made USING (account, hour, model, key, tag)
GROUP BY 1, 2, 3, 4, 5;

INSERT INTO usage_hour
SELECT account, hour, model, key, tag, '', requests, input, cached, cache_creation, output,
    charge, estimated
FROM gone WHERE requests > 0
ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests,
    input = input + excluded.input,
    cached = cached + excluded.cached,
    cache_creation = cache_creation + excluded.cache_creation,
    output = output + excluded.output,
    charge = charge + excluded.charge,
    estimated = estimated + excluded.estimated;

DROP TABLE gone;
DROP TABLE usage_hour_before;
