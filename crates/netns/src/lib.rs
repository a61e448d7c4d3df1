//! Network namespaces, links, addresses, routes and rules.
