"""Tables of work units, each published completely and exactly once, in a folder or a bucket."""
