-- The events of each sandbox, and those of the service itself, are links of a chain: `link` is a hash of the event and
-- of the link before it. What happens to an event or to a chain later is a link of the same chain, in `chain_records`.
-- A stream is a sandbox's id, or '' for the service.

-- Position in the chain, from 1, and the link. `amended` is the position of the event's last amendment, `original` the
-- JSON array of what amendments change (count, last_time, bytes_up, bytes_down, duration_ms), as it was at first.
ALTER TABLE events ADD COLUMN seq INTEGER;
ALTER TABLE events ADD COLUMN link BLOB;
ALTER TABLE events ADD COLUMN amended INTEGER;
ALTER TABLE events ADD COLUMN original TEXT;

-- The end of each chain, and where its beginning was cut off. `opened` is the position of the record in the service's
-- chain that says that this chain exists.
CREATE TABLE chains (
    stream      TEXT    NOT NULL PRIMARY KEY,
    opened      INTEGER,
    seq         INTEGER NOT NULL,
    link        BLOB    NOT NULL,
    pruned_seq  INTEGER NOT NULL,
    pruned_link BLOB    NOT NULL
) WITHOUT ROWID;

CREATE TABLE chain_records (
    stream      TEXT    NOT NULL,
    seq         INTEGER NOT NULL,
    time        INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    event_id    INTEGER,
    count       INTEGER,
    last_time   INTEGER,
    bytes_up    INTEGER,
    bytes_down  INTEGER,
    duration_ms INTEGER,
    detail      TEXT,
    link        BLOB    NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;

-- The events that were there before and wait for their links: those after `done` up to `last`.
CREATE TABLE unchained (done INTEGER NOT NULL, last INTEGER NOT NULL);
INSERT INTO unchained SELECT -1, max(id) FROM events HAVING max(id) IS NOT NULL;
