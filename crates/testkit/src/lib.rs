//! Namespaced lab networks for the tests.
