"""A federated run of blockzo as a Flower app."""
