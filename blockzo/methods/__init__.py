"""What a step evaluates and what it makes of the losses: evaluation trees, estimators on them, the planner that chooses."""
