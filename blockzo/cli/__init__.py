"""The command `blockzo`: options, one file a command, and `blockzo env` with its self-test."""
