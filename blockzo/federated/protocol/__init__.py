"""What travels and what it means: settings of a run, messages, records of rounds. No transport, no torch."""
