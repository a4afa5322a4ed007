"""Federated rounds (FedSPZO, arXiv 2502.10239): many owners of data train one model; what travels are seeds and scalars.

`protocol` says what travels, `server` and `client` are its two ends, `privacy` and `secagg` what the server must not learn,
`flower` a transport between hosts; `blockzo.simulate` carries messages in one process. docs/federated.md describes the protocol.
"""
