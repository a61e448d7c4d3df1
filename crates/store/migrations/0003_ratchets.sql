-- Tokens that narrow the policy of one sandbox. A sandbox has at most one, which goes with it.
CREATE TABLE ratchets (
    sandbox_id TEXT    NOT NULL PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
    id         TEXT    NOT NULL UNIQUE,
    hash       BLOB    NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
);
