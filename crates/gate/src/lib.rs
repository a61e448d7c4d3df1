//! Attaches a sandbox's network namespace to its policy.
