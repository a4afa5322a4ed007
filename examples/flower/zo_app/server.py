"""Flower finds the server here."""

from blockzo.federated.flower.server_app import server_app

app = server_app()
