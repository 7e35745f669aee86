"""What a federation asks of its members and promises them: ``policy.toml``, signed, and agreed to by each artist.

A node takes what binds it (the clip, the noise, how many steps and rounds, who may see what) from the policy its artist has
agreed to, and from nothing a round says. A round names the policy's digest; under another one the node takes no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export import settings
from export.errors import IntegrityError
from export.files import Digest, digest_of
from export.signing import Trust, require_signed, sign_as

POLICY_MAX_BYTES: Final = 16 * 2**10
VEILED_MINIMUM_NODES: Final = 5
"""With fewer, the sum says too much of each: whoever knows his own part and one other's knows the third's of three."""
Visibility = Literal["open", "veiled"]
Aggregation = Literal["mean", "robust"]

_CONTEXT: Final = b"sfumato policy v1\n"


@dataclass(frozen=True, slots=True)
class Policy:
    """`policy.toml`.

    Attributes:
        federation: its name.
        version: 1, 2, ...; members are asked anew for each.
        modality: registry name of the kind of art.
        visibility: `open`: the coordinator sees each clipped update and checks it; `veiled`: it sees their sum alone.
        minimum_nodes: fewer updates than that are never averaged.
        rounds: how many rounds an artist's agreement is good for.
        steps: batches a node trains on in a round.
        deadline_s: how long a round waits for updates.
        clip: greatest L2 norm of an update; a round of 32 steps from a release moves a studio body by 0.06.
        noise: length of the noise a node adds to its update, as a share of `clip`; 0 adds none.
        keep: share of an update's numbers that are sent; the rest stays on the node and is added to its next update. In veiled
            rounds all are: masks leave none out.
        aggregation: `mean` of the updates, or `robust`: clipped to their median norm, then their geometric median.
    """

    federation: str
    version: int
    modality: str
    visibility: str = "open"
    minimum_nodes: int = 2
    rounds: int = 1000
    steps: int = 60
    deadline_s: float = 3600.0
    clip: float = 0.2
    noise: float = 0.0
    keep: float = 0.05
    aggregation: str = "mean"


RANGES: Final[dict[str, settings.Range]] = {
    "version": (1, 1_000_000),
    "minimum_nodes": (1, 10_000),
    "rounds": (1, 1_000_000),
    "steps": (1, 100_000),
    "deadline_s": (1, 7 * 24 * 3600),
    "clip": (1e-3, 1e4),
    "noise": (0, 100),
    "keep": (1e-3, 1),
}


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """A policy as it was signed.

    Attributes:
        policy: what it says.
        raw: the very bytes that were signed.
        signatures: the signature file over them.
    """

    policy: Policy
    raw: bytes
    signatures: bytes

    @property
    def digest(self) -> Digest:
        """Names the policy; a round and an agreement are under one digest."""
        return digest_of(self.raw)


def parse(raw: bytes) -> Policy:
    """Read a policy.

    Raises:
        settings.SettingsError: naming the key, the value and what is allowed.
    """
    policy = settings.parse(raw, Policy, RANGES)
    for key, value, allowed in (
        ("visibility", policy.visibility, get_args(Visibility)),
        ("aggregation", policy.aggregation, get_args(Aggregation)),
    ):
        if value not in allowed:
            raise settings.SettingsError(f"has {key} = {value!r}; allowed are {' and '.join(allowed)}")
    if policy.visibility == "veiled":
        if policy.minimum_nodes < VEILED_MINIMUM_NODES:
            raise settings.SettingsError(f"is veiled, which takes minimum_nodes = {VEILED_MINIMUM_NODES} or more")
        if policy.aggregation != "mean":
            raise settings.SettingsError('is veiled, and of veiled updates nothing but aggregation = "mean" can be had')
    return policy


def sign(policy: Policy, key: Ed25519PrivateKey) -> SignedPolicy:
    """Sign a policy as the federation."""
    raw = settings.text(policy)
    return SignedPolicy(policy, raw, sign_as(_CONTEXT, raw, key))


def verify(raw: bytes, signatures: bytes, trust: Trust) -> SignedPolicy:
    """Check a policy that came from somewhere: bounded, then signed, then read.

    Raises:
        IntegrityError: it is not one this federation signed.
    """
    if len(raw) > POLICY_MAX_BYTES:
        raise IntegrityError("the policy is too long", advice="Ask the coordinator.")
    require_signed(_CONTEXT, raw, signatures, trust, "the policy")
    try:
        policy = parse(raw)
    except settings.SettingsError as error:
        raise IntegrityError(f"the policy {error}", advice="Update Sfumato on this machine.") from error
    if policy.federation != trust.federation:
        raise IntegrityError("the policy is another federation's", advice="Ask the coordinator.")
    return SignedPolicy(policy, raw, signatures)


def to_plain(signed: SignedPolicy) -> dict[str, str]:
    """As JSON data: on the way to a node, and in its folder."""
    return {"policy": signed.raw.decode(), "signatures": signed.signatures.decode()}


def from_plain(plain: object) -> tuple[bytes, bytes]:
    """A policy's bytes and the signatures over them, for ``verify``.

    Raises:
        ValueError: other data.
    """
    if not isinstance(plain, Mapping) or set(plain) != {"policy", "signatures"}:
        raise ValueError("this is no signed policy")
    raw, signatures = plain["policy"], plain["signatures"]
    if not isinstance(raw, str) or not isinstance(signatures, str):
        raise ValueError("this is no signed policy")  # noqa: TRY004 - a value off the wire, not a programmer's type
    return raw.encode(), signatures.encode()


def in_words(policy: Policy) -> list[str]:
    """What a policy means, one sentence or two a line, for the person who is asked to agree."""
    moved = f"Each round trains on {policy.steps} batches and sends how far the body moved: at most {policy.clip:g} in length, "
    if policy.visibility == "veiled":
        trains = f"{moved}all of its numbers, under masks that cancel in the sum."
        beside = "Beside it go keys and shares made for this round alone, and your signature. No loss is told."
    else:
        trains = f"{moved}the {100 * policy.keep:g} % of its numbers that moved furthest, in 8 bits each."
        beside = "Beside the update go the mean loss before and after, the number of steps, and your signature."
    noise = (
        f"Noise of {100 * policy.noise:g} % of that length is added on your machine first."
        if policy.noise
        else "No noise is added: of few works, an update may tell something of them to whoever sees it."
    )
    counts = (
        f"Fewer than {policy.minimum_nodes} artists' updates are never averaged; late ones are not waited for beyond "
        f"{policy.deadline_s:g} s. {_how_averaged(policy)}"
    )
    lasts = (
        f"You agree to {policy.rounds} rounds under this policy, version {policy.version}. You can leave at any time: nothing "
        "is sent while sfumato up does not run."
    )
    return [
        f"You train a shared body for {policy.federation}. Your works and your style code stay on your machine.",
        trains,
        _who_sees(policy),
        noise,
        counts,
        beside,
        lasts,
    ]


def _who_sees(policy: Policy) -> str:
    if policy.visibility == "veiled":
        return (
            "The coordinator sees the sum of all updates and not yours alone. What the sum says of everybody, it sees; who "
            "took part, it sees; and one that lies, with more than a third of the members on its side, could see yours. It "
            "cannot check yours, then; your own machine keeps the bound."
        )
    return "The coordinator sees your update, checks it, and could try to learn from it. Other members see the new body alone."


def _how_averaged(policy: Policy) -> str:
    if policy.aggregation == "robust":
        return "Updates are clipped to their median length and their geometric median is taken: an outlier counts for less."
    return "Every artist counts the same, however many works stand behind an update."
