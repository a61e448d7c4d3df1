-- Who owns sandboxes, by the name that API keys speak for. An account begins with its first key; those that are there
-- already began with the first of what they have.
CREATE TABLE accounts (
    id         TEXT    NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO accounts SELECT account, min(created_at)
    FROM (SELECT account, created_at FROM keys UNION ALL SELECT account, created_at FROM sandboxes) GROUP BY account;
