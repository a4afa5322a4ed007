"""The server of a run: a state machine without transport and without torch."""
