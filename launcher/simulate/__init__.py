"""`lwsrun simulate`: an LWS group on one machine, every pod with namespaces of its own and a launcher as PID 1."""
