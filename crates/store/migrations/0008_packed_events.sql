-- What of an event is neither looked for nor changed is one column, `body`: the JSON array of its category, reason, rule,
-- host_source, address, port, protocol, generation, count, last_time, bytes_up, bytes_down, duration_ms and detail, as
-- they were when it was inserted. `outcome` is what amendments have made of count, last_time, bytes_up, bytes_down and
-- duration_ms, a JSON array, too; `amended` is the position of the last of them.
CREATE TABLE packed (
    id         INTEGER NOT NULL PRIMARY KEY,
    time       INTEGER NOT NULL,
    sandbox_id TEXT,
    type       TEXT    NOT NULL,
    decision   TEXT,
    host       TEXT,
    body       TEXT    NOT NULL,
    seq        INTEGER,
    link       BLOB,
    amended    INTEGER,
    outcome    TEXT
);

INSERT INTO packed
    SELECT id, time, sandbox_id, type, decision, host,
        json_array(category, reason, rule, host_source, address, port, protocol, generation,
            iif(original IS NULL, count, original ->> 0), iif(original IS NULL, last_time, original ->> 1),
            iif(original IS NULL, bytes_up, original ->> 2), iif(original IS NULL, bytes_down, original ->> 3),
            iif(original IS NULL, duration_ms, original ->> 4), detail),
        seq, link, amended,
        iif(original IS NULL, NULL, json_array(count, last_time, bytes_up, bytes_down, duration_ms))
    FROM events;

DROP TABLE events;
ALTER TABLE packed RENAME TO events;
CREATE INDEX events_by_sandbox ON events (sandbox_id, id);
