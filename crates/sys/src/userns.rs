//! User namespaces with a chosen range of ids.
