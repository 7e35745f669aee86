"""A whole federation in one process: a small base body, a clock, a grid of nodes, a public port, artists' machines.

Everything stands behind the interface that production uses. What is small here is the network and the frozen network
it is taught with; what is faked is time and, for rounds, the network between coordinator and nodes.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import numpy as np
import pytest
import torch
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid
from starlette.requests import Request
from starlette.responses import Response

import coordinator.config
import edge_node.config
from coordinator import asking, pki, policies, rounds, service, veiled
from coordinator.flower import bound_replies
from coordinator.store import Node, Role, RoundState, Store
from edge_node import consent, guard, keys, veil
from edge_node.styles import Lineage
from export import backbones, base, parity, policy, release, requests, settings
from export.files import write_atomic
from export.identity import Proofs, PublicKeys
from export.manifest import Manifest
from export.policy import Policy, SignedPolicy
from export.release import Contents
from export.signing import Ed25519Signatures, Trust, VerifiedRelease
from export.to_onnx import exact_onnx
from models import compression, registry, state, training, wire
from models.contract import Score, Work
from models.modalities.style import StyleModality
from models.samplers import Code
from models.update import Answered, Arrays, Asked, Assignment, Flat, Layout, Ready, Update
from tests import pictures, releases, tiny

MODALITY: Final = StyleModality("style-studio", channels=8, crop=64, batch=1)
"""Goes by the studio tier's name, so that every default of both programs holds."""
FEDERATION: Final = "guild"
LINEAGE: Final = Lineage("Ada", "", 2, Score(style=0.5, content=0.5))
STEPS: Final = 2
"""Batches a round's policy asks for here."""
CLIP: Final = 10.0
_TRAINING_STEPS: Final = 90  # with fewer, its pictures change more when they are folded than the gate allows

NodeHome: TypeAlias = edge_node.config.Home
CoordinatorHome: TypeAlias = coordinator.config.Home
Answers: TypeAlias = "Callable[[Message], Message | Objects | None]"
"""What a node makes of a message; None is silence."""
Asgi: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]


# --- A small world -----------------------------------------------------------------------------------------------------


def make_base(folder: Path) -> VerifiedRelease:
    """A base release of a network that was trained for a moment on one work we made."""
    torch.set_num_threads(1)
    work = pictures.shapes((160, 160), seed=5)
    photos = [pictures.shapes((96, 128), seed=1), pictures.gradient((128, 96))]
    net = MODALITY.build(seed=3, codes=2)
    lessons = MODALITY.lessons([[], [work]], photos, tiny.glasses(MODALITY), seed=5)
    training.fit(net, MODALITY, lessons, training.Plan(_TRAINING_STEPS))
    contents = Contents.of(
        body=state.shared_arrays(MODALITY, net),
        exact=exact_onnx(MODALITY, net),
        codes={release.IDENTITY: tiny.code_of(net, 0), "paper": tiny.code_of(net, 1)},
        # Another work than the code was fitted on: from a perfect fit the least movement of the body would look like harm.
        works={"paper": pictures.encoded(pictures.stripes((160, 160), 12), "JPEG", quality=95)},
        calibration=pictures.with_names(*photos),
        probe=pictures.with_names(pictures.shapes((128, 160), seed=7), pictures.gradient((120, 152))),
        card="# A small base\n\n## The base body\n\nMade by tests/simulators.py.\n",
    )
    said = replace(
        releases.manifest(contents),
        federation=base.FEDERATION,
        version=1,
        round=0,
        modality=MODALITY.name,
        signature=MODALITY.signature,
        parent="",
        contributors=0,
        verdict=None,
    )
    release.write(folder, contents, said, releases.KEY)
    return open_base(folder)


def open_base(folder: Path) -> VerifiedRelease:
    """The base release that ``make_base`` made in a folder."""
    return Ed25519Signatures().verify(folder, Trust(base.FEDERATION, (releases.public(releases.KEY),)))


def install_world(patch: pytest.MonkeyPatch, packaged: VerifiedRelease) -> None:
    """Put the small network, its frozen network and its base release in the place of the large ones."""
    patch.setattr(registry, "modalities", lambda: {MODALITY.name: MODALITY})
    patch.setattr(backbones, "load_all", lambda names: {name: tiny.Glass(name) for name in names})

    def load(modality: str) -> VerifiedRelease:
        assert modality == MODALITY.name
        return packaged

    patch.setattr(base, "load", load)
    # The small body's weights are random: nothing taught it to paint with frozen norms what it paints with live ones.
    patch.setattr(parity, "FOLD_COLOUR_DIFFERENCE", 100.0)
    patch.setattr(parity, "FOLD_SSIM", -1.0)
    bound_replies()
    for name in ("_run_id", "_node_id", "_task_id"):  # Flower lets nobody make a message outside a task
        patch.setattr(TaskIdentity, name, 1)


def body_layout() -> Layout:
    """Of the small body."""
    return state.body_layout(MODALITY)


# --- Time --------------------------------------------------------------------------------------------------------------


class FakeChild:
    """Stands in for a process; ends when the test says so or when it is stopped."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.is_stopped = False

    def exit_code(self) -> int | None:
        return self.code

    def release(self) -> None:
        self.is_stopped = True

    def stop(self) -> int:
        self.is_stopped = True
        self.code = 0
        return 0


@dataclass(slots=True)
class Clock:
    """Stands in for the module ``time``: it moves only when somebody sleeps."""

    now: float = 1_700_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def until(condition: Callable[[], bool], what: str, deadline_s: float = 60.0) -> None:
    """Poll until something is so; fail at a deadline far beyond what any machine needs."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        time.sleep(0.02)


# --- Rounds without Flower's processes ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Objects:
    """A reply as it travels: Flower's objects, deflated, by their digests."""

    message_id: str
    contents: dict[str, bytes]

    @classmethod
    def of(cls, message: Message) -> Self:
        """Of what Flower itself would send."""
        with no_object_id_recompute():
            return cls(message.object_id, {name: o.deflate() for name, o in get_all_nested_objects(message).items()})

    def changed(self, kind: type[InflatableObject], change: Callable[[bytes], bytes]) -> Self:
        """The same, but for its object of that kind. It keeps its name, which nobody compares any more at this end."""
        name = self.name_of(kind)
        return replace(self, contents={**self.contents, name: change(self.contents[name])})

    def name_of(self, kind: type[InflatableObject]) -> str:
        """The digest of its object of that kind."""
        return next(name for name, content in self.contents.items() if content.startswith(kind.__qualname__.encode() + b" "))


def put_together(name: str, contents: dict[str, bytes]) -> InflatableObject:
    """As Flower's grid does, which looks the function up under this name."""
    return http_grid.inflate_object_from_contents(name, contents)  # type: ignore[attr-defined]


@dataclass(slots=True)
class SimulatedGrid:
    """Flower's ``Grid`` in memory: replies are computed when they are fetched, and every byte of them is kept.

    They are taken apart and put together by Flower's own functions, since that is where a bad one does its harm.
    """

    nodes: Mapping[int, Answers]
    pushed: list[Message] = field(default_factory=list)
    sent: dict[int, bytes] = field(default_factory=dict)
    """What each node has sent so far, as it travels."""

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        first = len(self.pushed)
        assert sum(1 for _ in messages) == sum(1 for _ in messages) > 0  # Flower's goes through them twice, and wants some
        self.pushed.extend(messages)
        return [str(number) for number in range(first, len(self.pushed))]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            asked = self.pushed[int(message_id)]
            node = asked.metadata.dst_node_id
            asked.metadata.__dict__["_message_id"] = message_id
            reply = self.nodes[node](asked)
            if reply is not None:
                objects = reply if isinstance(reply, Objects) else Objects.of(reply)
                self.sent[node] = self.sent.get(node, b"") + b"".join(objects.contents.values())
                message = put_together(objects.message_id, dict(objects.contents))
                assert isinstance(message, Message)
                message.metadata.__dict__["_message_id"] = objects.message_id
                yield message


def running(app: ClientApp) -> Answers:
    """A node that answers with a client app, as the runner does."""

    def answer(message: Message) -> Message:
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        return app(message, context)

    return answer


def honest(seed: int = 0, length: float = 1e-3) -> Answers:
    """A node that answers with a small movement of the body, without the work of training."""

    def answer(message: Message) -> Message:
        assignment = wire.unpack_assignment(message.content)
        signer = credentials(f"key-{message.metadata.dst_node_id}")
        return Message(wire.pack_answer(update_for(assignment, movement(seed, length), signer)), reply_to=message)

    return answer


@dataclass(slots=True)
class VeiledNode:
    """An artist's machine in veiled rounds, but for the work of training: it says that it moved the body in some direction.

    Attributes:
        home: with its keys, its ledger and its secrets.
        terms: the policy the artist agreed to.
        seed: of the direction.
        length: of the movement.
    """

    home: NodeHome
    terms: Policy
    seed: int = 0
    length: float = 1e-3
    made: Ready | None = None

    def __call__(self, message: Message) -> Message:
        return Message(wire.pack_answer(self.answer(wire.unpack_asked(message.content))), reply_to=message)

    def answer(self, asked: Asked) -> Answered:
        if isinstance(asked, Assignment):
            if self.made is None or self.made.round != asked.round:
                named = (asked.federation, asked.round, asked.policy, asked.layout_digest)
                self.made = Ready(*named, movement(self.seed, self.length))
            return veil.ready(self.made, keys.enrolled_key(self.home))
        assert self.made is not None
        entry: guard.Entry = {"what": "update", "federation": self.made.federation, "round": self.made.round}
        return veil.answer(self.home, self.terms, self.made, entry, asked)


def veiled_nodes(hub: CoordinatorHome, folder: Path, count: int) -> dict[int, VeiledNode]:
    """Machines 1, 2, ..., members of a coordinator under its policy."""
    terms = policies.current(hub).policy
    nodes = {number: VeiledNode(make_node(folder / f"node-{number}"), terms, seed=number) for number in range(1, count + 1)}
    for number, node in nodes.items():
        member = Node(number, f"artist-{number}", "artist", keys.public_keys(node.home), "1970-01-01T00:00:01+00:00")
        Store(hub.database).take_back(member)
    return nodes


def movement(seed: int = 0, length: float = 1e-3) -> Flat:
    """A random direction of a stated norm."""
    delta = np.random.default_rng(seed).standard_normal(body_layout().size).astype(np.float32)
    return np.asarray(delta * np.float32(length / np.linalg.norm(delta)), np.float32)


POLICY: Final = policy.sign(Policy(FEDERATION, 1, MODALITY.name, steps=STEPS, clip=0.05, keep=1.0), releases.KEY)
"""Signed by key number 1, as ``trusting`` trusts it; every number of an update is sent."""


def agreeing(home: NodeHome, signed: SignedPolicy = POLICY) -> NodeHome:
    """The same home, whose artist has agreed to a policy."""
    consent.keep_offered(home, signed.raw, signed.signatures)
    consent.show(home)
    consent.accept(home)
    return home


def policy_with(**changes: Any) -> SignedPolicy:
    """The same policy, but for some changes."""
    return policy.sign(replace(POLICY.policy, **changes), releases.KEY)


def delta_of(update: Answered) -> Flat:
    """What an update says."""
    assert isinstance(update, Update)
    return compression.decompress(update.payload, body_layout())


def update_for(assignment: Assignment, delta: Flat, signer: "Credentials", **changes: Any) -> Update:
    """An update as an honest node makes it, but that it sends every number; changes are made before it is signed."""
    layout = body_layout()
    payload = compression.compress(delta, layout, 1.0, CLIP, np.random.default_rng(0))
    plain = {
        "federation": assignment.federation,
        "round": assignment.round,
        "policy": assignment.policy,
        "tensors": layout.names,
        "layout_digest": layout.digest,
        "payload": payload,
        "loss_before": 2.0,
        "loss_after": 1.0,
        "steps": STEPS,
    }
    made = Update(**{**plain, **changes})
    return replace(made, signature=signer.enrolled.sign(made.statement))


def record_of(arrays: Mapping[str, Array], header: Mapping[str, Any], **more: Any) -> RecordDict:
    """A message's content made by hand."""
    return RecordDict({"arrays": ArrayRecord(dict(arrays)), "header": ConfigRecord(dict(header)), **more})


# --- A coordinator -----------------------------------------------------------------------------------------------------


def make_coordinator(folder: Path, **changes: Any) -> CoordinatorHome:
    """A coordinator of the guild, set up as `init` does, with the small base as release 1.

    Its policy keeps every number of an update, so that what is sent is, but for rounding, what was meant.
    """
    home = coordinator.config.Home(folder)
    service.init(home, FEDERATION, str(changes.pop("host", "127.0.0.1")), 0)
    of_policy = {field_.name for field_ in fields(Policy)} - {"modality"}
    asked = {name: value for name, value in changes.items() if name in of_policy}
    settings.save(
        home.config_file, replace(home.config(), **{"fit_steps": 1, **{k: v for k, v in changes.items() if k not in asked}})
    )
    change_policy(home, **{"steps": STEPS, "keep": 1.0, **asked})
    return home


def change_policy(home: CoordinatorHome, **changes: Any) -> SignedPolicy:
    """Publish another policy."""
    settings.save(home.policy_file, replace(policies.draft(home), **changes))
    return policies.publish(home)


def open_round(store: Store, state_: RoundState = "gathering", detail: str = "", now: float = 0.0) -> int:
    """Begin a round, of rounds that are asked for if none are, and bring it to a state; gives its number."""
    job = store.open_job() or store.add_job(1000)
    number = store.open_round(job.job, "0" * 64, "1" * 64, now).round
    store.set_round(number, state_, detail, now)
    return number


def enrol(home: CoordinatorHome, *node_ids: int) -> None:
    """Make artists members without their machines' doing."""
    for node_id in node_ids:
        add_member(Store(home.database), node_id, f"artist-{node_id}")


def add_member(store: Store, node_id: int, alias: str, role: Role = "artist", key: str = "") -> Node:
    """Make somebody a member by an invite of his own."""
    secret = f"{node_id} {alias} {key}".encode()
    store.add_invite(secret, alias, role, expires=100.0)
    return store.join(secret, credentials(key or f"key-{node_id}").keys, node_id, now=1.0)


def make_known(hub: CoordinatorHome, home: NodeHome, role: Role = "artist") -> None:
    """Have a coordinator know a node by its keys, and the node hold a certificate of its."""
    shown = keys.public_keys(home)
    Store(hub.database).take_back(Node(1, "Ada", role, shown, "1970-01-01T00:00:01+00:00"))
    write_atomic(home.provenance_certificate, pki.provenance_certificate(hub, shown.provenance, "Ada", FEDERATION, time.time()))


@dataclass(frozen=True, slots=True)
class Credentials:
    """Somebody's enrolled key, the public halves of all three, and that they are in the same hands."""

    enrolled: Ed25519PrivateKey
    keys: PublicKeys
    proofs: Proofs

    def sign(self, request: requests.Request, now_s: float | None = None) -> Mapping[str, str]:
        """The headers of a request in this one's name."""
        return requests.sign(request, self.enrolled, time.time() if now_s is None else now_s)


@functools.cache
def credentials(name: str) -> Credentials:
    """Somebody's keys; the same name has the same ones."""
    seed = hashlib.sha256(name.encode()).digest()
    enrolled = Ed25519PrivateKey.from_private_bytes(seed)
    flower = ec.derive_private_key(int.from_bytes(seed), ec.SECP384R1())
    line = flower.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfumato node")])
    provenance = ec.derive_private_key(int.from_bytes(seed) >> 1, ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(provenance, hashes.SHA256())
    der = request.public_bytes(serialization.Encoding.DER)
    shown = PublicKeys(line, enrolled.public_key().public_bytes_raw(), der)
    return Credentials(enrolled, shown, Proofs.make(shown, flower, provenance))


def set_clock(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Have rounds be held in simulated time."""
    for module in (rounds, asking, veiled):
        patch.setattr(module, "time", clock)


class Killed(BaseException):
    """What a process feels of kill -9: nothing it could catch."""


def stumbling(step: Callable[..., object], turn: int, when: str) -> Callable[..., object]:
    """A step before or after whose so many-eth turn the process is killed."""
    calls = 0

    def stumble(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == turn and when == "before":
            raise Killed
        done = step(*arguments, **named)
        if calls == turn and when == "after":
            raise Killed
        return done

    return stumble


def hold_rounds(patch: pytest.MonkeyPatch, home: CoordinatorHome, grid: SimulatedGrid, count: int = 1) -> None:
    """Hold rounds in simulated time."""
    set_clock(patch, Clock())
    Store(home.database).add_job(count)
    rounds.run_rounds(grid, home, home.config())


def body_of(of: VerifiedRelease) -> Arrays:
    """The body of a release."""
    return release.body_of(of)


@contextmanager
def serve(app: Asgi, certificate: Path, key: Path) -> Iterator[int]:
    """Serve an app over TLS on loopback, from a thread; gives its port."""
    config = uvicorn.Config(
        app, "127.0.0.1", 0, ssl_certfile=certificate, ssl_keyfile=key, lifespan="off", ws="none", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="a public port", daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the public port")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def serve_coordinator(home: CoordinatorHome, app: Asgi) -> Iterator[int]:
    """Serve an app with a coordinator's own certificate, and have its invites name the port."""
    with serve(app, home.server_certificate, home.server_key) as port:
        settings.save(home.config_file, replace(home.config(), port=port))
        yield port


@dataclass(frozen=True, slots=True)
class Reply:
    """What an app answered."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(app: Asgi, method: str, path: str, body: Iterable[bytes] = (), headers: Mapping[str, str] | None = None) -> Reply:
    """One request to an app, its path as it is: no client in between that would tidy it up."""
    chunks = iter([*body] if isinstance(body, list | tuple) else body)
    status, answered = 0, b""

    async def receive() -> dict[str, Any]:
        chunk = next(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def send(message: Any) -> None:
        nonlocal status, answered
        status = message.get("status", status)
        answered += message.get("body", b"")

    raw = path.encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": urllib.parse.unquote(path),
        "raw_path": raw,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *((k.encode(), v.encode()) for k, v in (headers or {}).items())],
        "server": ("localhost", 443),
        "client": ("127.0.0.1", 1),
    }
    with contextlib.suppress(Exception):  # starlette raises again what its handler has answered
        asyncio.run(_awaited(app(scope, receive, send)))
    return Reply(status, answered)


async def _awaited(answer: Awaitable[None]) -> None:
    await answer


@dataclass(slots=True)
class FakeCoordinator:
    """Answers as it is told to, and remembers whatever reaches it."""

    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    """Path → status and body."""
    received: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Method, path and body of every request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of every request."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.received.append((request.method, request.url.path, await request.body()))
        self.headers.append(dict(request.headers))
        status, body = self.answers.get(request.url.path, (404, b'{"error": "no such path"}'))
        await Response(body, status)(scope, receive, send)

    def everything(self) -> bytes:
        """All that anybody ever sent here."""
        return b"".join(method.encode() + path.encode() + body for method, path, body in self.received)


@dataclass(slots=True)
class Registry:
    """What Flower does when an artist joins: gives each new key a node id."""

    keys: dict[bytes, int] = field(default_factory=dict)

    def __call__(self, public_key: bytes) -> int:
        return self.keys.setdefault(public_key, 1000 + len(self.keys))


# --- An artist's machine -----------------------------------------------------------------------------------------------


def make_node(folder: Path, artist: str = "Ada", **changes: Any) -> NodeHome:
    """A home as `sfumato init` makes it, with short trainings."""
    home = edge_node.config.Home(folder)
    config = edge_node.config.Config(
        **{"artist": artist, "style": artist.lower(), "threads": 1, "learn_steps": 3, "renew_steps": 2, **changes}
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.save(home.config_file, config)
    return home


def trusting(home: NodeHome, key: int = 1, federation: str = FEDERATION, highest_version: int = 0) -> NodeHome:
    """The same home, member of a federation whose releases key number ``key`` signs."""
    trust = Trust(federation, (releases.public(releases.key_number(key)),), highest_version=highest_version)
    trust.save(home.trust_file)
    return home


def write_works(folder: Path, seed: int = 0, count: int = 2) -> list[Work]:
    """A folder of works we made: shapes with some noise on them, so that no two stretches of bytes are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        picture = pictures.shapes((136 + 8 * number, 160), seed=100 * seed + number)
        grain = pictures.noise(picture.shape[:2], seed=100 * seed + number) // 4
        made.append(np.asarray(picture // 2 + grain, np.uint8))
        (folder / f"work-{number}.png").write_bytes(pictures.encoded(made[-1], "PNG"))
    return made


def release_again(packaged: VerifiedRelease, folder: Path, **changes: Any) -> Manifest:
    """The files of the base, published by the guild with key number 1; gives the manifest that was signed."""
    body = changes.pop("body_bytes", packaged.read(release.BODY))
    contents = Contents({**{path: packaged.read(path) for path in packaged.manifest.files}, release.BODY: body})
    plain = replace(packaged.manifest, federation=FEDERATION, verdict=releases.VERDICT, files=contents.entries())
    said = replace(plain, **changes)
    release.write(folder, contents, said, releases.KEY)
    return said


def style_code(packaged: VerifiedRelease, seed: int = 0) -> Code:
    """A private code near the public ones."""
    public = release.codes_of(packaged)["paper"]
    return np.asarray(public + 0.1 * np.random.default_rng(seed).standard_normal(public.size), np.float32)


# --- Looking for secrets -----------------------------------------------------------------------------------------------

_BLOCK: Final = 32
_STRIDE: Final = 33  # any 64 bytes hold one whole block that starts at a multiple of 33


def shares_a_window(haystack: bytes, secret: bytes) -> bool:
    """Whether 64 bytes in a row of a secret, at any offset, occur anywhere in the haystack.

    Stricter than that: 32 of them, at offsets such that every 64 in a row include such a block.
    """
    assert len(secret) >= 2 * _BLOCK
    if len(haystack) < _BLOCK:
        return False
    blocks = {secret[start : start + _BLOCK] for start in range(0, len(secret) - _BLOCK + 1, _STRIDE)}
    starts = np.lib.stride_tricks.sliding_window_view(np.frombuffer(haystack, np.uint8), 8)
    heads = np.ascontiguousarray(starts[: len(haystack) - _BLOCK + 1]).view(np.uint64).ravel()
    wanted = np.array([int.from_bytes(block[:8], "little") for block in blocks], np.uint64)
    return any(haystack[at : at + _BLOCK] in blocks for at in np.flatnonzero(np.isin(heads, wanted)))


def member_file(home: NodeHome) -> dict[str, Any]:
    """What a node remembers of its membership."""
    found: dict[str, Any] = json.loads(home.membership_file.read_bytes())
    return found


def point_style_at(home: NodeHome, name: str, body: str) -> None:
    """Make a style's folder for another body the one in use."""
    write_atomic(home.styles / name / "current", body.encode())
