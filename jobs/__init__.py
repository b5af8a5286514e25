"""The commands: the only place with a command line, environment variables, ray.init and exit codes."""
