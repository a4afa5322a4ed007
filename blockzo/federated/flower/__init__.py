"""Federated rounds over Flower (`blockzo[flower]`, docs/flower.md).

`server_app` runs blockzo's Server on Flower's Grid; `client_app` is a shim without torch that passes bytes to a `worker_process`,
which keeps model and data between messages and lives as long as its node. `loopback` starts a whole deployment on one machine.
"""
