//! splice(2) between sockets through a pipe.
