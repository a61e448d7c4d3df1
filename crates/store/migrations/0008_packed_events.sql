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

-- What the program never wrote does not keep it from starting: such an event cannot be read, as before, and the check of
-- its chain tells.
INSERT INTO packed
    SELECT id, time, sandbox_id, type, decision, host,
        CASE
            WHEN 'blob' IN (typeof(category), typeof(reason), typeof(rule), typeof(host_source), typeof(address),
                typeof(port), typeof(protocol), typeof(generation), typeof(count), typeof(last_time), typeof(bytes_up),
                typeof(bytes_down), typeof(duration_ms), typeof(detail), typeof(original)) THEN 'unreadable'
            WHEN original IS NULL THEN json_array(category, reason, rule, host_source, address, port, protocol,
                generation, count, last_time, bytes_up, bytes_down, duration_ms, detail)
            WHEN json_valid(original) THEN json_array(category, reason, rule, host_source, address, port, protocol,
                generation, original ->> 0, original ->> 1, original ->> 2, original ->> 3, original ->> 4, detail)
            ELSE 'unreadable'
        END,
        seq, link, amended,
        CASE
            WHEN original IS NULL THEN NULL
            WHEN 'blob' IN (typeof(count), typeof(last_time), typeof(bytes_up), typeof(bytes_down),
                typeof(duration_ms)) THEN 'unreadable'
            ELSE json_array(count, last_time, bytes_up, bytes_down, duration_ms)
        END
    FROM events;

DROP TABLE events;
ALTER TABLE packed RENAME TO events;
CREATE INDEX events_by_sandbox ON events (sandbox_id, id);
