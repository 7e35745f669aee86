"""The only door out: what is on the list of shared tensors, clipped and written down first, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_node import guard
from edge_node.config import Home
from export.errors import ResourceError
from export.files import digest_of
from export.ledger import Ledger
from models import privacy, wire
from models.update import Arrays, Assignment, Flat, Layout, Update

LAYOUT = Layout((("blocks.0.weight", (2, 3)), ("stem.weight", (4,))))
SECRET = np.full(50, 1234.5, np.float32)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def assigned(clip: float = 100.0) -> Assignment:
    return Assignment("guild", "style-studio", 7, np.zeros(10, np.float32), LAYOUT.digest, 20, clip)


def trained(delta: Flat | None = None) -> dict[str, Flat]:
    """A network after training, private tensors included."""
    moved = LAYOUT.unflatten(np.arange(10, dtype=np.float32) if delta is None else delta)
    return {**moved, "codes": SECRET, "norm_mean": SECRET, "norm_var": SECRET}


def out(home: Home, assignment: Assignment, tensors: Arrays) -> Update:
    return guard.outgoing(home, assignment, tensors, LAYOUT, (2.0, 1.0), 20)


def test_only_the_tensors_on_the_list_leave(home: Home) -> None:
    update = out(home, assigned(), trained())

    assert update.tensors == LAYOUT.names
    assert update.delta.shape == (LAYOUT.size,)
    assert SECRET.tobytes()[:16] not in update.delta.tobytes()


def test_the_movement_and_not_the_body_leaves(home: Home) -> None:
    body = np.linspace(5, 6, 10, dtype=np.float32)
    assignment = Assignment("guild", "style-studio", 7, body, LAYOUT.digest, 20, 100.0)

    update = out(home, assignment, trained(body + np.float32(0.25)))

    np.testing.assert_allclose(update.delta, 0.25, atol=1e-6)


def test_a_private_tensor_leaves_only_if_the_list_names_it(home: Home) -> None:
    # The positive control of the first test: it would have noticed.
    leaky = Layout((*LAYOUT.tensors, ("zz.codes", (50,))))
    assignment = Assignment("guild", "style-studio", 7, np.zeros(60, np.float32), leaky.digest, 20, 1e9)

    update = guard.outgoing(home, assignment, {**trained(), "zz.codes": SECRET}, leaky, (2.0, 1.0), 20)

    assert SECRET.tobytes()[:16] in update.delta.tobytes()


@pytest.mark.parametrize(("clip", "expected"), [(1.0, 1.0), (16.0, 16.0), (17.0, 285**0.5), (1e3, 285**0.5)])
def test_what_leaves_is_no_longer_than_the_clip(home: Home, clip: float, expected: float) -> None:
    update = out(home, assigned(clip), trained())

    assert privacy.norm(update.delta) <= clip
    assert privacy.norm(update.delta) == pytest.approx(expected, rel=1e-5)


def test_the_ledger_says_what_left_and_how_long_it_was_before(home: Home) -> None:
    update = out(home, assigned(clip=1.0), trained())

    (entry,) = Ledger(home.ledger_file).entries()
    assert entry["what"] == "update"
    assert (entry["federation"], entry["round"], entry["bytes"]) == ("guild", 7, 40)
    assert entry["tensors"] == list(LAYOUT.names)
    assert entry["sha256"] == digest_of(update.delta.tobytes())
    assert entry["norm"] == pytest.approx(285**0.5)
    assert entry["norm-sent"] == pytest.approx(1.0, rel=1e-5)
    assert (entry["loss-before"], entry["loss-after"], entry["steps"]) == (2.0, 1.0, 20)


def test_the_ledgers_digest_is_that_of_the_bytes_on_the_wire(home: Home) -> None:
    update = out(home, assigned(), trained())
    (array,) = wire.pack_update(update).array_records["arrays"].values()

    (entry,) = Ledger(home.ledger_file).entries()
    assert digest_of(array.data[-40:]) == entry["sha256"]


def test_nothing_leaves_if_the_ledger_cannot_be_written(home: Home) -> None:
    home.ledger_file.mkdir()

    with pytest.raises(ResourceError, match="ledger could not be written"):
        out(home, assigned(), trained())


def test_the_ledger_is_written_before_the_update_exists(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    append = Ledger.append

    def note(what: str, call: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object, **named: object) -> object:
            order.append(what)
            return call(*arguments, **named)

        return noted

    monkeypatch.setattr(Ledger, "append", note("ledger", append))
    monkeypatch.setattr(guard, "Update", note("update", Update))
    out(home, assigned(), trained())

    assert order == ["ledger", "update"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_spoilt_body_is_neither_sent_nor_written_down(home: Home, value: float) -> None:
    delta = np.ones(10, np.float32)
    delta[3] = value

    with pytest.raises(ValueError, match="not finite"):
        out(home, assigned(), trained(delta))

    assert Ledger(home.ledger_file).entries() == []


def test_a_network_without_a_listed_tensor_sends_nothing(home: Home) -> None:
    tensors = trained()
    del tensors["stem.weight"]

    with pytest.raises(KeyError):
        out(home, assigned(), tensors)

    assert Ledger(home.ledger_file).entries() == []
