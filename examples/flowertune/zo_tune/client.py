"""Flower finds the client here."""

from blockzo.federated.flower.client_app import client_app

app = client_app()
