//! Installing system call filters.
