"""Attacks on the joining of a federation: by whoever sits on the line, holds somebody's invite, or shows somebody's keys.

All but the typing errors go through real TLS against the coordinator's own endpoint behind the filter of its public port. Each
attack is refused with a reason, nobody is enrolled by it, and an honest machine joins afterwards: there the endpoint sees the
secret, which is the positive control of every test that says that an attacker did not.
"""

import base64
import json
import random
import socket
import ssl
import string
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from coordinator import pki, service
from coordinator.endpoint import create_endpoint
from coordinator.flower import SuperlinkSettings, _outside_server
from coordinator.public_port import BodyLimits, public_filter
from coordinator.store import Store
from edge_node import keys, membership
from edge_node.config import Home
from edge_node.errors import JoinRefusedError, WrongCoordinatorError
from export import settings
from export.errors import IntegrityError
from export.identity import Proofs, PublicKeys, check_digits
from export.invite import Invite, InviteError
from export.requests import Request
from export.signing import VerifiedRelease
from tests import simulators
from tests.simulators import Asgi, CoordinatorHome, Credentials, FakeCoordinator, Registry, Reply, ask

JOIN: Final = "/sfumato/v1/join"
CA: Final = "/sfumato/v1/ca"
LIMITS: Final = BodyLimits(timeout_s=1.0)
ADA, MALLORY = simulators.credentials("Ada"), simulators.credentials("Mallory")

Change: TypeAlias = Callable[[Request, Mapping[str, str]], tuple[Request, Mapping[str, str]]]
"""What a man in the middle makes of a request and its headers."""


@dataclass(slots=True)
class Middle:
    """Passes requests on to a coordinator, reads all of them, and changes what it likes."""

    to: Asgi
    change: Change = lambda request, headers: (request, headers)
    read: list[tuple[Request, Mapping[str, str]]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        http = HttpRequest(scope, receive)
        request = Request(http.method, http.url.path, await http.body())
        headers = {name: value for name, value in http.headers.items() if name.startswith("sfumato-")}
        self.read.append((request, headers))
        passed, signed = self.change(request, headers)
        reply = await run_in_threadpool(ask, self.to, passed.method, passed.path, [passed.body], signed)
        await Response(reply.body, reply.status)(scope, receive, send)

    def has_read(self, secret: bytes) -> bool:
        """Whether a secret was in anything it read, raw, in base64 or in hexadecimal."""
        forms = (secret, base64.b64encode(secret), secret.hex().encode())
        return any(form in request.body or form in repr(headers).encode() for request, headers in self.read for form in forms)

    @property
    def paths(self) -> list[str]:
        return [request.path for request, _ in self.read]


@dataclass(slots=True)
class World:
    """A coordinator that answers, what reached it, and a way to be another machine that joins it."""

    hub: CoordinatorHome
    app: Asgi
    seen: Middle
    flower: Registry
    port: int
    folder: Path

    def invite(self, alias: str = "Ada", lasts_s: float = 3600.0) -> Invite:
        return Invite.parse(service.invite(self.hub, alias, "artist", lasts_s))

    def machine(self, name: str) -> Home:
        return simulators.make_node(self.folder / name)

    def members(self) -> list[str]:
        return [node.alias for node in Store(self.hub.database).nodes()]

    def assert_an_honest_machine_joins(self, alias: str = "Honest") -> None:
        """And the endpoint is told its secret: so it would have been seen elsewhere, had it been sent there."""
        invite, before = self.invite(alias), self.members()
        joined = membership.join(self.machine(alias), invite)

        assert joined.alias == alias
        assert self.members() == sorted([*before, alias])
        assert self.seen.has_read(invite.secret)


@pytest.fixture
def guild(tmp_path: Path, world: VerifiedRelease) -> Iterator[World]:
    del world
    hub, flower = simulators.make_coordinator(tmp_path / "hub"), Registry()
    app = create_endpoint(hub, flower)
    seen = Middle(app)
    with simulators.serve_coordinator(hub, public_filter(FakeCoordinator(), seen, LIMITS)) as port:
        yield World(hub, app, seen, flower, port, tmp_path)


def signed(guild: World, method: str, path: str, body: bytes = b"", who: Credentials = MALLORY) -> Reply:
    return ask(guild.app, method, path, [body], who.sign(Request(method, path, body)))


def joining(secret: bytes, shown: PublicKeys = MALLORY.keys, proofs: Proofs = MALLORY.proofs) -> bytes:
    plain = {"secret": base64.b64encode(secret).decode(), "keys": shown.to_plain(), "proofs": proofs.to_plain()}
    return json.dumps(plain).encode()


# --- In the middle of the line ------------------------------------------------------------------------------------------


def assert_learns_nothing(guild: World, middle: Middle, certificate: Path, key: Path) -> None:
    """A machine that is led to the one in the middle sends nothing but a question for the authority's certificate and the
    time, and is no member; nor does the coordinator know it."""
    victim, invite = guild.machine("victim"), guild.invite()
    with simulators.serve(middle, certificate, key) as port, pytest.raises(WrongCoordinatorError) as caught:
        membership.join(victim, replace(invite, port=port))

    assert "Nothing was sent" in caught.value.advice
    assert middle.paths == [CA]
    assert not middle.has_read(invite.secret)
    assert not any(keys.public_keys(victim).flower.encode() in request.body for request, _ in middle.read)
    assert not victim.membership_file.exists()
    assert guild.members() == []
    guild.assert_an_honest_machine_joins()
    assert membership.join(victim, invite).alias == "Ada"  # the invite is none the worse for it


def test_one_with_an_authority_of_its_own_is_told_nothing(guild: World, tmp_path: Path) -> None:
    own = simulators.make_coordinator(tmp_path / "own")

    assert_learns_nothing(guild, Middle(create_endpoint(own, Registry())), own.server_certificate, own.server_key)


def test_one_who_passes_the_true_authority_on_but_ends_tls_itself_is_told_nothing(guild: World, tmp_path: Path) -> None:
    own = simulators.make_coordinator(tmp_path / "own")

    assert_learns_nothing(guild, Middle(guild.app), own.server_certificate, own.server_key)


def test_a_member_with_its_own_certificate_of_the_true_authority_is_told_nothing(guild: World) -> None:
    insider = guild.machine("insider")
    simulators.make_known(guild.hub, insider)
    Store(guild.hub.database).revoke(1, time.time())

    assert_learns_nothing(guild, Middle(guild.app), insider.provenance_certificate, insider.provenance_key)


def test_a_member_who_signs_a_servers_certificate_with_its_own_is_told_nothing(guild: World, tmp_path: Path) -> None:
    insider = guild.machine("insider")
    simulators.make_known(guild.hub, insider)
    Store(guild.hub.database).revoke(1, time.time())
    issuer, authority = x509.load_pem_x509_certificates(insider.provenance_certificate.read_bytes())
    signer = serialization.load_pem_private_key(insider.provenance_key.read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sfumato-coordinator")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            ),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "chain.pem").write_bytes(b"".join(one.public_bytes(pem) for one in (leaf, issuer, authority)))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "leaf.key").write_bytes(private)

    assert_learns_nothing(guild, Middle(guild.app), tmp_path / "chain.pem", tmp_path / "leaf.key")


def with_other_keys(request: Request, shown: PublicKeys) -> Request:
    """A request to join that shows other keys."""
    return replace(request, body=json.dumps({**json.loads(request.body), "keys": shown.to_plain()}).encode())


@pytest.mark.parametrize("swapped", ["all", "flower", "enrolled", "provenance"])
def test_keys_that_are_swapped_on_the_way_are_not_enrolled(guild: World, swapped: str) -> None:
    """By one who even has the coordinator's own TLS key, as a proxy in front of it would."""
    victim, invite = guild.machine("victim"), guild.invite()
    honest = keys.public_keys(victim)
    wrong = MALLORY.keys if swapped == "all" else replace(honest, **{swapped: getattr(MALLORY.keys, swapped)})

    def swap(request: Request, headers: Mapping[str, str]) -> tuple[Request, Mapping[str, str]]:
        return (with_other_keys(request, wrong) if request.path == JOIN else request), headers

    with (
        simulators.serve(Middle(guild.app, swap), guild.hub.server_certificate, guild.hub.server_key) as port,
        pytest.raises(IntegrityError),
    ):
        membership.join(victim, replace(invite, port=port))

    assert guild.members() == []
    assert guild.flower.keys == {}
    guild.assert_an_honest_machine_joins()
    assert membership.join(victim, invite).alias == "Ada"


def test_one_with_the_coordinators_own_tls_key_who_joins_in_anothers_place_is_found_out_by_the_other(guild: World) -> None:
    """Nothing could keep the invite from it. The one it was meant for gets no certificate for its own key, and other digits."""
    victim, invite = guild.machine("victim"), guild.invite()

    def take(request: Request, headers: Mapping[str, str]) -> tuple[Request, Mapping[str, str]]:
        if request.path != JOIN:
            return request, headers
        theirs = replace(request, body=joining(invite.secret))
        return theirs, MALLORY.sign(theirs)

    with (
        simulators.serve(Middle(guild.app, take), guild.hub.server_certificate, guild.hub.server_key) as port,
        pytest.raises(IntegrityError, match="gave no certificate for this machine's pictures"),
    ):
        membership.join(victim, replace(invite, port=port))

    (thief,) = Store(guild.hub.database).nodes()
    assert thief.keys == MALLORY.keys
    assert not victim.membership_file.exists()
    assert check_digits(pki.ca_der(guild.hub), keys.public_keys(victim)) != pki.digits(guild.hub, thief.keys)
    service.end_membership(guild.hub, "Ada")
    guild.assert_an_honest_machine_joins("Ada")


# --- Said again ---------------------------------------------------------------------------------------------------------


def test_a_joining_that_is_sent_again_makes_no_second_member(guild: World) -> None:
    membership.join(guild.machine("victim"), guild.invite())
    (request, headers) = next(one for one in guild.seen.read if one[0].path == JOIN)

    again = ask(guild.app, request.method, request.path, [request.body], headers)

    assert (again.status, again.json()["error"]) == (401, "the request was made before")
    assert guild.members() == ["Ada"]
    guild.assert_an_honest_machine_joins()


def test_a_joining_that_is_sent_again_after_the_membership_ended_brings_nobody_back(guild: World) -> None:
    membership.join(guild.machine("victim"), guild.invite())
    (request, headers) = next(one for one in guild.seen.read if one[0].path == JOIN)
    service.end_membership(guild.hub, "Ada")

    for app in (guild.app, create_endpoint(guild.hub, guild.flower)):  # the second has forgotten every nonce
        answer = ask(app, request.method, request.path, [request.body], headers)
        assert answer.status in (401, 403)
        assert answer.json()["advice"]

    assert guild.members() == []
    guild.assert_an_honest_machine_joins()


SIGNED: Final = [
    ("GET", "/sfumato/v1/release", b""),
    ("GET", "/sfumato/v1/policy", b""),
    ("POST", "/sfumato/v1/certificate", b""),
]


@pytest.mark.parametrize(("method", "path", "body"), SIGNED)
def test_a_members_request_that_is_sent_again_is_not_answered(guild: World, method: str, path: str, body: bytes) -> None:
    simulators.add_member(Store(guild.hub.database), 7, "Mallory", key="Mallory")
    headers = MALLORY.sign(Request(method, path, body))

    first, second = (ask(guild.app, method, path, [body], headers) for _ in range(2))

    assert first.status == 200
    assert (second.status, second.json()["error"]) == (401, "the request was made before")
    guild.assert_an_honest_machine_joins()


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ("body", "the request's signature is wrong"),
        ("path", "the request's signature is wrong"),
        ("method", "the request's signature is wrong"),
        ("sfumato-time", "the request's signature is wrong"),
        ("sfumato-nonce", "the request's signature is wrong"),
        ("sfumato-signature", "the request's signature is wrong"),
        ("sfumato-node", "this coordinator does not know this machine"),
        ("early", "the request is not from now"),
        ("late", "the request is not from now"),
    ],
)
def test_a_members_request_that_was_changed_is_not_answered(guild: World, changed: str, error: str) -> None:
    simulators.add_member(Store(guild.hub.database), 7, "Mallory", key="Mallory")
    meant = Request("GET", "/sfumato/v1/release")
    made_s = time.time() + {"early": 301.0, "late": -301.0}.get(changed, 0.0)
    headers = dict(MALLORY.sign(meant, made_s))
    sent = {
        "body": replace(meant, body=b"{}"),
        "path": replace(meant, path="/sfumato/v1/policy"),
        "method": Request("POST", "/sfumato/v1/certificate"),
    }.get(changed, meant)
    if changed in headers:
        last = headers[changed].rstrip("=")[-1]
        headers[changed] = headers[changed].replace(last, "1" if last != "1" else "2")

    answer = ask(guild.app, sent.method, sent.path, [sent.body], headers)

    assert answer.status in (401, 403)
    assert answer.json()["error"] == error
    untouched = ask(guild.app, meant.method, meant.path, [], MALLORY.sign(meant))
    assert untouched.status == 200  # the control: the request as it was meant is answered
    guild.assert_an_honest_machine_joins()


# --- With an invite -----------------------------------------------------------------------------------------------------


def used(guild: World) -> Invite:
    invite = guild.invite()
    membership.join(guild.machine("first"), invite)
    return invite


def revoked(guild: World) -> Invite:
    invite = guild.invite()
    service.take_invites_back(guild.hub, "Ada")
    return invite


def expired(guild: World) -> Invite:
    return guild.invite(lasts_s=-1.0)


def unknown(guild: World) -> Invite:
    return replace(guild.invite(), secret=b"0123456789")


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (used, "has been used already"),
        (revoked, "was taken back"),
        (expired, "has expired"),
        (unknown, "does not know that invite"),
    ],
)
def test_an_invite_that_is_good_for_nothing_joins_nobody(guild: World, spoilt: Callable[[World], Invite], reason: str) -> None:
    invite = spoilt(guild)
    before, late = guild.members(), guild.machine("late")

    with pytest.raises(JoinRefusedError, match=reason) as caught:
        membership.join(late, invite)

    assert caught.value.advice
    assert guild.members() == before
    assert not late.membership_file.exists()
    guild.assert_an_honest_machine_joins()


def test_who_guesses_hears_the_same_each_time_and_of_no_other_invite(guild: World) -> None:
    """Of 80 bits. What became of an invite is told to its holder alone, so that no guess learns that it came near one."""
    near = [used(guild), guild.invite("Berthe", -1.0), guild.invite("Camille")]
    guesses = [bytes([*one.secret[:-1], one.secret[-1] ^ bit]) for one in near for bit in (1, 128)]
    guesses += [random.Random(number).randbytes(10) for number in range(60)]  # noqa: S311 - no secret
    guesses += [b"", b"\0" * 10, near[2].secret[:9], near[2].secret + b"\0", near[2].secret * 100]

    answers = [signed(guild, "POST", JOIN, joining(guess)) for guess in guesses]

    assert {(answer.status, answer.body) for answer in answers} == {(403, answers[0].body)}
    assert "does not know that invite" in answers[0].json()["error"]
    assert guild.members() == ["Ada"]
    assert membership.join(guild.machine("invited"), near[2]).alias == "Camille"
    guild.assert_an_honest_machine_joins()


def test_of_many_who_use_one_invite_at_once_one_joins(guild: World) -> None:
    invite = guild.invite()
    machines = [guild.machine(f"thief-{number}") for number in range(6)]
    for machine in machines:
        keys.public_keys(machine)
    start, came = threading.Barrier(len(machines)), []

    def try_it(machine: Home) -> None:
        start.wait(30)
        try:
            came.append(membership.join(machine, invite).node_id)
        except JoinRefusedError as error:
            came.append(str(error))

    threads = [threading.Thread(target=try_it, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    (member,) = Store(guild.hub.database).nodes()
    assert sorted(came) == sorted([str(member.node_id), *["that invite has been used already"] * 5])
    assert len(guild.flower.keys) == 1
    guild.assert_an_honest_machine_joins()


def test_a_stolen_invite_is_noticed_by_the_one_it_was_stolen_from(guild: World) -> None:
    invite, victim = guild.invite(), guild.machine("victim")
    taken = membership.join(guild.machine("thief"), invite)

    with pytest.raises(JoinRefusedError, match="has been used already") as caught:
        membership.join(victim, invite)

    assert "Ask the coordinator" in caught.value.advice
    assert taken.digits != check_digits(pki.ca_der(guild.hub), keys.public_keys(victim))
    service.end_membership(guild.hub, "Ada")
    assert membership.join(victim, guild.invite("Ada")).alias == "Ada"
    guild.assert_an_honest_machine_joins()


# --- With somebody else's keys -------------------------------------------------------------------------------------------


def vars_of(shown: PublicKeys) -> dict[str, Any]:
    return {name: getattr(shown, name) for name in ("flower", "enrolled", "provenance")}


def tampered_request(der: bytes) -> bytes:
    """A request for a certificate with another's key in the place of the one that signed it."""
    other = simulators.credentials("another").keys.provenance
    old, new = (point(one) for one in (der, other))
    assert der.count(old) == 1
    return der.replace(old, new)


def point(der: bytes) -> bytes:
    key = x509.load_der_x509_csr(der).public_key()
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


@pytest.mark.parametrize(
    ("changes", "proofs", "status", "error"),
    [
        pytest.param(vars_of(ADA.keys), ADA.proofs, 401, "the request's signature is wrong", id="all"),
        pytest.param({"enrolled": ADA.keys.enrolled}, MALLORY.proofs, 401, "the request's signature is wrong", id="enrolled"),
        *(
            pytest.param(
                {name: getattr(ADA.keys, name)},
                proofs,
                401,
                "the keys are not all held by who shows them",
                id=f"{name}, {whose}",
            )
            for name in ("flower", "provenance")
            for whose, proofs in (
                ("own proofs", MALLORY.proofs),
                ("its owner's proofs", ADA.proofs),
                ("its owner's proof", replace(MALLORY.proofs, **{name: getattr(ADA.proofs, name)})),
                ("no proof", replace(MALLORY.proofs, **{name: b""})),
            )
        ),
        pytest.param(
            {"provenance": tampered_request(MALLORY.keys.provenance)},
            MALLORY.proofs,
            400,
            "this is not a request to join",
            id="another's in the own request",
        ),
    ],
)
def test_keys_that_one_does_not_hold_are_not_enrolled(
    guild: World, changes: dict[str, Any], proofs: Proofs, status: int, error: str
) -> None:
    """What Ada showed elsewhere, and proved there, is of no use to Mallory here."""
    invite = guild.invite()

    answer = signed(guild, "POST", JOIN, joining(invite.secret, replace(MALLORY.keys, **changes), proofs))

    assert (answer.status, answer.json()["error"]) == (status, error)
    assert guild.members() == []
    assert guild.flower.keys == {}
    assert signed(guild, "POST", JOIN, joining(invite.secret)).status == 200  # the control
    guild.assert_an_honest_machine_joins()


# --- Too much, or never done ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Raw:
    """A TLS connection to the coordinator on which anything can be said."""

    tls: ssl.SSLSocket

    def answer(self) -> bytes:
        """All that comes until the coordinator hangs up, or falls silent after its answer."""
        heard = b""
        while b"\r\n\r\n" not in heard:
            part = self.tls.recv(4096)
            if not part:
                break
            heard += part
        return heard


@pytest.fixture
def raw(guild: World) -> Iterator[Raw]:
    context = ssl.create_default_context(cafile=str(guild.hub.ca_certificate))
    with (
        socket.create_connection(("127.0.0.1", guild.port), 30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        yield Raw(tls)


def head(*lines: str) -> bytes:
    return "\r\n".join((f"POST {JOIN} HTTP/1.1", "Host: 127.0.0.1", *lines, "", "")).encode()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Content-Length: 16777217",), b"413"),
        (("Content-Length: 999999999999999999",), b"413"),
        (("Transfer-Encoding: chunked",), b"411"),
    ],
)
def test_a_body_that_is_too_long_or_says_no_length_is_refused_unread(
    guild: World, raw: Raw, lines: tuple[str, ...], status: bytes
) -> None:
    raw.tls.sendall(head(*lines))

    assert raw.answer().startswith(b"HTTP/1.1 " + status)
    assert guild.seen.read == []
    guild.assert_an_honest_machine_joins()


@pytest.mark.parametrize(("length", "error"), [(8192, "this is not a request to join"), (8193, "the request is too large")])
def test_a_joining_is_read_up_to_8_kilobytes(guild: World, length: int, error: str) -> None:
    answer = signed(guild, "POST", JOIN, b" " * length)

    assert (answer.status, answer.json()["error"]) == (400, error)
    guild.assert_an_honest_machine_joins()


def test_a_body_that_drips_is_given_up_and_holds_nobody_else_up(guild: World, raw: Raw) -> None:
    raw.tls.sendall(head("Content-Length: 8000"))
    began = time.monotonic()
    raw.tls.sendall(b"{")

    guild.assert_an_honest_machine_joins()  # while it still drips

    with ExitStack() as stack:
        stack.callback(raw.tls.settimeout, 30)
        heard = raw.answer()
    assert heard == b"" or heard.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
    assert time.monotonic() - began < 30
    assert guild.members() == ["Honest"]
    guild.assert_an_honest_machine_joins("Another")


@contextmanager
def public_port(guild: World, connections_max: int) -> Iterator[int]:
    """The coordinator's own public listener in the place of a plain one, with little room and little patience."""
    place = SuperlinkSettings(
        guild.folder, guild.hub.server_certificate, guild.hub.server_key, connections_max=connections_max, silence_max_s=1
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _outside_server(place, public_filter(FakeCoordinator(), guild.seen, LIMITS))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        simulators.until(lambda: server.started, "the public port")
        port: int = listener.getsockname()[1]
        settings.save(guild.hub.config_file, replace(guild.hub.config(), port=port))
        guild.port = port
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def connected(guild: World) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(guild.hub.ca_certificate))
    with (
        socket.create_connection(("127.0.0.1", guild.port), 30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        yield tls


def is_there_room(guild: World) -> bool:
    try:
        with connected(guild) as tls:
            tls.sendall(f"GET {CA} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            return tls.recv(4096).startswith(b"HTTP/1.1 200")
    except OSError:  # it was cut: there is none
        return False


@pytest.mark.parametrize("said", [b"", b"POST /sfumato/v1/join HTTP/1.1\r\nHost:"])
def test_connections_that_say_nothing_or_never_finish_a_head_are_cut(guild: World, said: bytes) -> None:
    """As many as there is room for lock everybody out: for no longer than they may be silent."""
    with public_port(guild, connections_max=4), ExitStack() as held:
        for _ in range(4):
            held.enter_context(connected(guild)).sendall(said)
        assert not is_there_room(guild)  # the control: the attack works while it lasts

        simulators.until(lambda: is_there_room(guild), "the silent ones to be cut")
        guild.assert_an_honest_machine_joins()


def test_a_head_that_drips_is_cut(guild: World) -> None:
    with public_port(guild, connections_max=4), connected(guild) as tls:
        tls.sendall(head()[:-2])

        def is_cut() -> bool:
            try:
                tls.sendall(b"x-more: y\r\n")
            except OSError:
                return True
            return False

        simulators.until(is_cut, "the dripping one to be cut")
        guild.assert_an_honest_machine_joins()


def test_a_head_without_an_end_is_refused_and_not_kept(guild: World) -> None:
    """Of twenty megabytes no more is held at once than the few buffers that they pass through."""
    line = b"x-more: " + b"y" * 60_000 + b"\r\n"
    with public_port(guild, connections_max=4), connected(guild) as tls:
        tracemalloc.start()
        tls.sendall(head()[:-2])
        with suppress(OSError):  # it is cut at some time, or is listened to in vain
            for _ in range(350):
                tls.sendall(line)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

        assert peak < 5 * 2**20
        assert guild.seen.read == []
        guild.assert_an_honest_machine_joins()


def test_one_who_asks_again_and_again_is_not_cut(guild: World) -> None:
    """The control of the three above: it is silence that is cut, and not a connection that is used."""
    with public_port(guild, connections_max=4), connected(guild) as tls:
        ends, certificate = time.monotonic() + 3.5, guild.hub.ca_certificate.read_bytes()
        while time.monotonic() < ends:
            tls.sendall(f"GET {CA} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            heard = b""
            while not heard.endswith(certificate):
                part = tls.recv(65536)
                assert part, "it was cut"
                heard += part
            assert heard.startswith(b"HTTP/1.1 200")


# --- Typing errors ------------------------------------------------------------------------------------------------------

LETTERS: Final = string.ascii_uppercase + "234567"
LOOKALIKES: Final = {"O": "0", "I": "1", "B": "8"}
MISREAD: Final = {"I": "lLJT", "L": "1I", "O": "QDU", "Q": "O0", "B": "EP3", "S": "5", "Z": "2", "5": "S", "2": "Z", "G": "6C"}


def substituted(rng: random.Random, code: str) -> str:
    at = rng.choice([at for at, letter in enumerate(code) if letter != "-"])
    return code[:at] + rng.choice(LETTERS.replace(code[at], "")) + code[at + 1 :]


def transposed(rng: random.Random, code: str) -> str:
    at = rng.randrange(len(code) - 1)
    return code[:at] + code[at + 1] + code[at] + code[at + 2 :]


def dropped(rng: random.Random, code: str) -> str:
    at = rng.randrange(len(code))
    return code[:at] + code[at + 1 :]


def doubled(rng: random.Random, code: str) -> str:
    at = rng.randrange(len(code))
    return code[: at + 1] + code[at:]


def inserted(rng: random.Random, code: str) -> str:
    at = rng.randrange(len(code) + 1)
    return code[:at] + rng.choice(string.ascii_letters + string.digits + "-_ .@") + code[at:]


def looking_alike(rng: random.Random, code: str) -> str:
    typed = [rng.choice(LOOKALIKES[letter]) if letter in LOOKALIKES and rng.random() < 0.5 else letter for letter in code]
    return "".join(rng.choice((letter, letter.lower())) for letter in typed)


def misread(rng: random.Random, code: str) -> str:
    """A letter read as another that looks like it, and l for I: that is an L."""
    places = [at for at, letter in enumerate(code) if letter in MISREAD]
    if not places:
        return substituted(rng, code)
    at = rng.choice(places)
    return code[:at] + rng.choice(MISREAD[code[at]]) + code[at + 1 :]


def without_a_group(rng: random.Random, code: str) -> str:
    groups = code.split("-")
    del groups[rng.randrange(len(groups))]
    return "-".join(groups)


TYPOS: Final = (substituted, transposed, dropped, doubled, inserted, looking_alike, misread, without_a_group)


def test_of_20000_typing_errors_none_makes_another_invite() -> None:
    """What is accepted is the same invite: its letters in another case, a lookalike for one, or a dash more or less."""
    rng = random.Random(1503)  # noqa: S311 - no secret
    outcomes: dict[str, list[int]] = {typo.__name__: [0, 0] for typo in TYPOS}
    for number in range(20_000):
        if number % 500 == 0:
            meant = Invite(rng.randbytes(16), rng.randbytes(10), "studio.example", 4433)
        code, _, address = str(meant).partition("@")
        typo = TYPOS[number % len(TYPOS)]
        typed = f"{typo(rng, code)}@{address}"
        try:
            found = Invite.parse(typed)
        except InviteError as error:
            assert error.advice  # noqa: PT017 - of thousands
            outcomes[typo.__name__][0] += 1
        else:
            assert found == meant, typed
            outcomes[typo.__name__][1] += 1

    assert sum(map(sum, outcomes.values())) == 20_000
    assert outcomes["substituted"][1] == outcomes["misread"][1] == outcomes["without_a_group"][1] == 0
    assert outcomes["looking_alike"][0] == 0  # the control: what should be read is read
    assert all(refused + same == 2500 for refused, same in outcomes.values())
