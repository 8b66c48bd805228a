"""ZeroMQ: links, sockets, access by keys, and the parameter stream."""
