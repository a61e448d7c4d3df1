//! The bounded event pipeline: fold, persist, stream.
