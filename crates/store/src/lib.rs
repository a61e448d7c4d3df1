//! State and events in SQLite.
