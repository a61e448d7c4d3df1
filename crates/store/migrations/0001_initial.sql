-- All times are microseconds since 1970-01-01T00:00:00Z. JSON is kept as text.

CREATE TABLE sandboxes (
    id            TEXT    NOT NULL PRIMARY KEY,
    account       TEXT    NOT NULL,
    template_id   TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    metadata      TEXT    NOT NULL,
    envs          TEXT    NOT NULL,
    spec          TEXT    NOT NULL,
    audit_enabled INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    started_at    INTEGER,
    end_at        INTEGER,
    timeout_s     INTEGER NOT NULL,
    on_timeout    TEXT    NOT NULL,
    host          TEXT    NOT NULL,
    generation    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
);

CREATE INDEX sandboxes_by_account ON sandboxes (account, created_at);
CREATE INDEX sandboxes_by_state ON sandboxes (state, updated_at);

CREATE TABLE keys (
    id         TEXT    NOT NULL PRIMARY KEY,
    account    TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    hash       BLOB    NOT NULL UNIQUE,
    masked     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked    INTEGER NOT NULL
);

CREATE INDEX keys_by_account ON keys (account, created_at);

-- A row without a status is a request that is still being worked on.
CREATE TABLE idempotency (
    account    TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    body_hash  BLOB    NOT NULL,
    status     INTEGER,
    body       BLOB,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (account, key)
) WITHOUT ROWID;

CREATE INDEX idempotency_by_age ON idempotency (created_at);

CREATE TABLE events (
    id          INTEGER NOT NULL PRIMARY KEY,
    time        INTEGER NOT NULL,
    sandbox_id  TEXT,
    category    TEXT    NOT NULL,
    type        TEXT    NOT NULL,
    decision    TEXT,
    reason      TEXT,
    rule        TEXT,
    host        TEXT,
    host_source TEXT,
    address     TEXT,
    port        INTEGER,
    protocol    TEXT,
    generation  INTEGER,
    count       INTEGER NOT NULL,
    last_time   INTEGER,
    bytes_up    INTEGER,
    bytes_down  INTEGER,
    duration_ms INTEGER,
    detail      TEXT
);

CREATE INDEX events_by_sandbox ON events (sandbox_id, id);
CREATE INDEX events_by_time ON events (time);
