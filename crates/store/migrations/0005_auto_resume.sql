-- Whether a paused sandbox goes on when it is used.
ALTER TABLE sandboxes ADD COLUMN auto_resume INTEGER NOT NULL DEFAULT FALSE;
