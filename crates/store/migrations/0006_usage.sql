-- How long the sandboxes of each account ran on each day (UTC, counted from 1970-01-01), and how many that have ended
-- were created on it.
CREATE TABLE usage_days (
    account    TEXT    NOT NULL,
    day        INTEGER NOT NULL,
    running_ms INTEGER NOT NULL,
    sandboxes  INTEGER NOT NULL,
    PRIMARY KEY (account, day)
) WITHOUT ROWID;

-- One row: up to when that is counted for the sandboxes that run, in milliseconds since the named start of the machine.
CREATE TABLE metered (
    only_one  INTEGER NOT NULL PRIMARY KEY CHECK (only_one = 1),
    boot      TEXT    NOT NULL,
    uptime_ms INTEGER NOT NULL
);
