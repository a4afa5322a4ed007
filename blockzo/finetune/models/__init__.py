"""Models: where they come from, whether their weights are whole, and what makes one the same as another."""
