"""The whole way in one process: works on three machines, a shared body, and a picture. Only Flower's transport is faked."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator import gate, publish, service
from coordinator.endpoint import create_endpoint
from coordinator.store import Store
from edge_node import consent, library, membership, paint, releases, styles, train, updater
from edge_node.client_app import create_client_app
from edge_node.config import Home
from export.files import digest_of
from export.invite import Invite
from export.ledger import Ledger
from export.signing import VerifiedRelease
from models.contract import Work
from tests import pictures, simulators
from tests.simulators import CoordinatorHome, SimulatedGrid

NAMES = ("Ada", "Berthe", "Clara")


class Journey:
    """Three artists and a coordinator, after two rounds."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, packaged: VerifiedRelease) -> None:
        simulators.install_world(patch, packaged)
        self.packaged = packaged
        self.hub: CoordinatorHome = simulators.make_coordinator(folder / "hub", minimum_nodes=3, clip=0.05)
        self.works: dict[str, list[Work]] = {}
        self.homes: dict[str, Home] = {}
        self.node_ids: dict[str, int] = {}
        self.installed: dict[str, VerifiedRelease | None] = {}
        with simulators.serve_coordinator(self.hub, create_endpoint(self.hub, simulators.Registry())):
            for number, name in enumerate(NAMES):
                self._join(folder, name, number)
            self.grid = SimulatedGrid(
                {
                    self.node_ids[name]: simulators.running(create_client_app(train.RoundTraining(home)))
                    for name, home in self.homes.items()
                }
            )
            simulators.hold_rounds(patch, self.hub, self.grid, count=2)
            for name, home in self.homes.items():
                self.installed[name] = updater.update(home).installed
        self.renewed = {name: train.renew(home, name.lower(), releases.current(home)) for name, home in self.homes.items()}

    def _join(self, folder: Path, name: str, number: int) -> None:
        home = self.homes[name] = simulators.make_node(folder / name, name)
        self.works[name] = simulators.write_works(folder / f"works-{name}", seed=number)
        library.add(home, folder / f"works-{name}")
        invite = service.invite(self.hub, name, "artist", 3600.0)
        self.node_ids[name] = int(membership.join(home, Invite.parse(invite)).node_id)
        consent.show(home)
        consent.accept(home)


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory, packaged: VerifiedRelease) -> Iterator[Journey]:
    with pytest.MonkeyPatch.context() as patch:
        yield Journey(tmp_path_factory.mktemp("journey"), patch, packaged)


def test_both_rounds_took_in_every_artists_update_and_ended_published(journey: Journey) -> None:
    store = Store(journey.hub.database)

    assert [(r.round, r.state, r.detail, r.version) for r in store.rounds()] == [
        (1, "published", "release 2", 2),
        (2, "published", "release 3", 3),
    ]
    for number in (1, 2):
        answers = store.answers(number)
        assert {a.node_id for a in answers} == set(journey.node_ids.values())
        assert all(a.accepted and a.norm is not None and 0 < a.norm <= 0.05001 for a in answers)


def test_the_release_says_where_it_comes_from_and_what_the_gate_measured(journey: Journey) -> None:
    newest = publish.current_release(journey.hub)
    parent = publish.open_release(journey.hub, 2)

    assert (newest.manifest.version, newest.manifest.round, newest.manifest.contributors) == (3, 2, 3)
    assert newest.manifest.parent == parent.manifest.body != newest.manifest.body
    assert newest.manifest.verdict is not None
    assert 0 < newest.manifest.verdict.style_after <= gate.STYLE_RATIO * newest.manifest.verdict.style_before


def test_every_node_verified_and_installed_the_newest_release(journey: Journey) -> None:
    newest = publish.current_release(journey.hub)

    for name, home in journey.homes.items():
        installed = journey.installed[name]
        assert installed is not None
        assert installed.digest == newest.digest
        assert releases.current(home).manifest.version == 3
        assert releases.trust(home).highest_version == 3


def test_every_artist_has_a_style_on_the_new_body_folded_and_quantised(journey: Journey) -> None:
    body = publish.current_release(journey.hub).manifest.body

    for name, home in journey.homes.items():
        style = styles.find(home, name.lower())
        assert style.body == body
        assert set(style.files) == {f"{name.lower()}.style", "fp32.onnx", "int8-onnxruntime.onnx", "int8-openvino.onnx"}
        assert style.parity is not None
        assert style.parity.psnr_db > 20


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_picture_has_the_photos_size_and_is_neither_the_photo_nor_one_colour(
    journey: Journey, precision: paint.PrecisionChoice
) -> None:
    photo = pictures.shapes((97, 130), seed=3)

    painted = paint.paint(journey.homes["Ada"], paint.Order(photo, {"ada": 1.0}, precision=precision))

    assert painted.picture.shape == photo.shape
    assert painted.picture.dtype == np.uint8
    assert painted.precision == precision
    assert np.abs(painted.picture.astype(int) - photo).mean() > 5
    assert painted.picture.std() > 3


def test_the_artists_styles_differ_although_the_body_is_shared(journey: Journey) -> None:
    photo = pictures.shapes((96, 96), seed=3)

    first, second = (paint.paint(journey.homes[name], paint.Order(photo, {name.lower(): 1.0})).picture for name in NAMES[:2])

    assert not np.array_equal(first, second)


def test_what_a_node_sent_holds_its_update_and_neither_its_works_nor_its_code(journey: Journey) -> None:
    for name, home in journey.homes.items():
        sent = journey.grid.sent[journey.node_ids[name]]
        entries = [entry for entry in Ledger(home.ledger_file).entries() if entry["what"] == "update"]
        payloads = _rows_of_bytes(sent)

        assert [digest_of(payload) for payload in payloads] == [entry["sha256"] for entry in entries]
        assert len(payloads) == 2
        assert simulators.shares_a_window(sent, payloads[1][200:])
        for work in journey.works[name]:
            assert not simulators.shares_a_window(sent, work.tobytes())
        for entry in library.entries(home):
            assert not simulators.shares_a_window(sent, entry.path.read_bytes())
        for code in (styles.find(home, name.lower()).code(), _round_code(home)):
            assert not simulators.shares_a_window(sent, code.tobytes())


def test_a_code_on_the_wire_would_have_been_found(journey: Journey) -> None:
    code = _round_code(journey.homes["Ada"]).tobytes()
    sent = journey.grid.sent[journey.node_ids["Ada"]]

    for start in (0, 1, 7, 333):
        assert simulators.shares_a_window(sent + code[start : start + 64] + sent[:100], code)


def _rows_of_bytes(sent: bytes) -> list[bytes]:
    """Every one-dimensional uint8 array in what was sent, as numpy writes one."""
    rows, header, at = [], b"'descr': '|u1', 'fortran_order': False, 'shape': (", -1
    while (at := sent.find(header, at + 1)) >= 0:
        length = int(sent[at + len(header) : at + len(header) + 12].partition(b",")[0])
        start = sent.index(b"\n", at) + 1
        rows.append(sent[start : start + length])
    return rows


def _round_code(home: Home) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    code = train._saved_code(home, releases.current(home))
    assert code is not None
    return code
