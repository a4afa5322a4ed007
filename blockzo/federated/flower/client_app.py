"""Flower's ClientApp as a thin shim: bytes in, bytes out; the worker process does the work. Imports no torch."""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from blockzo.federated.flower import envelope
from blockzo.federated.flower.shim import Shim


def client_app() -> ClientApp:
    """The ClientApp of an app; its settings come from node and run configuration (docs/flower.md)."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        record = message.content[envelope.KEY]
        # the group of a message is the federated run it belongs to
        shim = Shim(context.node_config, context.run_config, message.metadata.group_id)
        about, answers = shim.ask(envelope.unpack(bytes(record[envelope.KEY])))
        found: dict[str, bytes] = {envelope.KEY: envelope.pack(answers)}
        if about:
            found[envelope.ABOUT] = about
        return Message(RecordDict({envelope.KEY: ConfigRecord(found)}), reply_to=message)

    return app
