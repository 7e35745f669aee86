"""The node's Flower app: unpacks what is asked, has it done, packs the answer. Says nothing else, not even why it failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from edge_node.config import find_home
from edge_node.trainer import Trainer
from models import wire

if TYPE_CHECKING:
    from models.update import Answered, Asked


class Trains(Protocol):
    """Whatever turns an assignment into an update, and goes on from there."""

    def run(self, asked: Asked) -> Answered: ...


def create_client_app(trainer: Trains) -> ClientApp:
    """An app that answers training messages; whatever it raises is turned into a code by ``edge_node/flower.py``."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        answer = trainer.run(wire.unpack_asked(message.content))
        return Message(wire.pack_answer(answer), reply_to=message)

    return app


# Flower's simulation engine finds the app by this name; a node's runner makes its own.
app = create_client_app(Trainer(find_home(None).root))
