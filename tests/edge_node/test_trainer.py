"""The training process: whatever becomes of it, its parent lives on and starts another."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_node.trainer import Trainer, TrainingFailedError
from models.update import Assignment
from tests import simulators

ASSIGNMENT = Assignment("guild", "style-studio", 1, "p" * 64, np.zeros(4, np.float32), "0" * 64)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    """A trainer of a machine that joined nobody: its training always fails, and does so in its own process."""
    trainer = Trainer(simulators.make_node(tmp_path).root)
    try:
        yield trainer
    finally:
        trainer.close()


def pid_of(trainer: Trainer) -> int:
    process = trainer._process
    assert process is not None
    assert process.pid is not None
    return process.pid


def test_a_training_that_fails_says_the_kind_of_failure_and_no_more(trainer: Trainer) -> None:
    with pytest.raises(TrainingFailedError, match=r"^the training failed \(NotJoinedError\)$") as caught:
        trainer.run(ASSIGNMENT)

    assert caught.value.advice
    assert pid_of(trainer) != os.getpid()

    # The process survives its failure and takes the next assignment.
    first = pid_of(trainer)
    with pytest.raises(TrainingFailedError, match="NotJoinedError"):
        trainer.run(ASSIGNMENT)
    assert pid_of(trainer) == first


def test_a_process_killed_between_rounds_is_started_again(trainer: Trainer) -> None:
    trainer.warm()
    first = trainer._process
    assert first is not None
    os.kill(pid_of(trainer), signal.SIGKILL)
    first.join(30)

    with pytest.raises(TrainingFailedError, match="NotJoinedError"):
        trainer.run(ASSIGNMENT)

    assert trainer._process is not first


def test_a_process_killed_in_the_middle_is_followed_by_one_that_answers(trainer: Trainer) -> None:
    trainer.warm()
    killed = pid_of(trainer)
    os.kill(killed, signal.SIGSTOP)  # so that the assignment cannot be answered before the kill
    failures: list[Exception] = []

    def run() -> None:
        try:
            trainer.run(ASSIGNMENT)
        except TrainingFailedError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    os.kill(killed, signal.SIGKILL)
    thread.join(60)

    assert [str(failure) for failure in failures] == ["the training failed (NotJoinedError)"]  # an answer, of the second
    assert pid_of(trainer) != killed


def test_a_process_that_dies_again_and_again_does_not_take_its_parent_along(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Assignment] = []

    def die(_self: Trainer, assignment: Assignment) -> object:
        asked.append(assignment)
        raise EOFError

    monkeypatch.setattr(Trainer, "_ask", die)
    with pytest.raises(TrainingFailedError, match="the training process died twice"):
        trainer.run(ASSIGNMENT)

    assert len(asked) == 2
    assert trainer._process is None


def test_a_closed_trainer_leaves_no_process(trainer: Trainer) -> None:
    trainer.warm()
    pid = pid_of(trainer)

    trainer.close()

    assert pid not in {child.pid for child in multiprocessing.active_children()}


def test_the_process_ends_with_its_parents_pipe(trainer: Trainer) -> None:
    trainer.warm()
    process, pipe = trainer._process, trainer._pipe
    assert process is not None
    assert pipe is not None

    pipe.close()
    process.join(60)

    assert process.exitcode == 0
