"""The client of a run: a state machine that guards what leaves (`client`, `policy`), and the worker that holds model and data."""
