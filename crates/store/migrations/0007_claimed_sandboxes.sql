-- The sandbox that a request with an idempotency key makes, from before it exists: a request without a status that nobody
-- works on any more was answered if that sandbox lives.
ALTER TABLE idempotency ADD COLUMN sandbox TEXT;
