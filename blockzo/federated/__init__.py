"""Federated rounds (FedSPZO, arXiv 2502.10239): many owners of data train one model; what travels are seeds and scalars.

`server` and `client` are state machines without transport and without torch; `worker` holds model and data. `local` carries
messages in one process (`blockzo simulate`). docs/federated.md describes the protocol.
"""
