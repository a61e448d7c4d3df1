//! The resolver of a sandbox: judges names, looks up, filters, binds.
