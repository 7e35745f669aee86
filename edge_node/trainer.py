"""Training in a process of its own, kept warm: a training that crashes or is killed takes nobody along.

The child is spawned, not forked, so it starts with no lock held and no CUDA context; it imports torch once and then waits
for assignments on a pipe.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

from export.errors import ResourceError
from models.update import Answered, Asked, Declined, Update, VeiledPart

_CONTEXT: Final = multiprocessing.get_context("spawn")
_STOP_S: Final = 5.0


class TrainingFailedError(ResourceError):
    """The training process said that it failed, or died. The reason is in this machine's log."""

    code = "training-failed"


@dataclass(slots=True)
class Trainer:
    """One warm training process for one home; started when first needed, and again after it died."""

    root: Path
    _process: SpawnProcess | None = field(default=None, init=False)
    _pipe: Connection | None = field(default=None, init=False)

    def warm(self) -> None:
        """Start the process, so that the first round does not wait for imports."""
        if self._process is None or not self._process.is_alive():
            self.close()
            self._pipe, theirs = _CONTEXT.Pipe()
            self._process = _CONTEXT.Process(target=_serve, args=(self.root, theirs), daemon=True, name="trainer")
            self._process.start()
            theirs.close()

    def run(self, asked: Asked) -> Answered:
        """Do what is asked, or say why not; a process that dies over it is followed by another, once.

        Raises:
            TrainingFailedError: the training failed or its process died.
        """
        try:
            answer = self._ask(asked)
        except (EOFError, OSError):  # killed, or out of memory: another one goes on where it was
            self.close()
            try:
                answer = self._ask(asked)
            except (EOFError, OSError) as error:
                self.close()
                raise TrainingFailedError(
                    "the training process died twice", advice="It starts again with the next round; look at free memory."
                ) from error
        if isinstance(answer, Update | Declined | VeiledPart):
            return answer
        raise TrainingFailedError(f"the training failed ({answer})", advice="See the log of sfumato up.")

    def _ask(self, asked: Asked) -> object:
        self.warm()
        if self._pipe is None:
            raise AssertionError("warm() always leaves a pipe")
        self._pipe.send(asked)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.terminate()
            self._process.join(_STOP_S)
            if self._process.is_alive():
                self._process.kill()
            self._process = None


def _serve(root: Path, pipe: Connection) -> None:
    """The child: answers whatever is asked, or with the name of what went wrong."""
    import logging  # noqa: PLC0415 - of the child

    from edge_node.config import Home  # noqa: PLC0415 - torch comes with train, and only the child shall have it
    from edge_node.train import RoundTraining  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    log = logging.getLogger("edge_node.trainer")
    training = RoundTraining(Home(root))
    while True:
        try:
            asked = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(training.run(asked))
        except Exception as error:
            log.error("round %d: %s", asked.round, type(error).__name__)  # noqa: TRY400 - the text may name a work
            log.debug("round %d", asked.round, exc_info=error)
            pipe.send(type(error).__name__)
