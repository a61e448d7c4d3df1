//! The REST API: routes, authentication, wiring.
