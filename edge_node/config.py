"""The node's folder and settings, read once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_node.errors import NoHomeError
from export import settings
from export.errors import UsageError

HOME_VARIABLE: Final = "SFUMATO_HOME"
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,38}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Config:
    """`node.toml`.

    Attributes:
        artist: name the artist's styles are credited to.
        style: name of the style that rounds train; made by the first round or by `sfumato learn`.
        modality: registry name of the kind of art.
        threads: CPU threads for training and painting.
        learn_steps: batches `sfumato learn` fits a new style's code on.
        renew_steps: batches a style's code is fitted again on when a new body is installed.
        poll_s: how often the coordinator is asked for a new release.
        discovery: look for the coordinator on this network where an invite names no address.
        clip_max: greatest norm of an update this machine takes part in a round for.
        steps_max: most batches this machine trains on in a round.
        private_epsilon: what all rounds together may tell of one work, by DP-SGD (`edge_node/budget.py`); 0 keeps no budget.
        private_delta: probability with which that bound may fail.
        private_noise: noise of a step, as a multiple of the most that one work says in it.
        private_batch: works a step draws on average.
    """

    artist: str
    style: str
    modality: str = "style-studio"
    threads: int = 2
    learn_steps: int = 150
    renew_steps: int = 40
    poll_s: float = 10.0
    discovery: bool = True
    clip_max: float = 1.0
    steps_max: int = 5000
    private_epsilon: float = 0.0
    private_delta: float = 1e-5
    private_noise: float = 1.0
    private_batch: int = 8


RANGES: Final[dict[str, settings.Range]] = {
    "threads": (1, 256),
    "learn_steps": (1, 100_000),
    "renew_steps": (1, 100_000),
    "poll_s": (0.5, 24 * 3600),
    "clip_max": (1e-3, 1e4),
    "steps_max": (1, 100_000),
    "private_epsilon": (0, 1000),
    "private_delta": (1e-12, 1e-2),
    "private_noise": (0.1, 1000),
    "private_batch": (1, 10_000),
}


@dataclass(frozen=True, slots=True)
class Home:
    """Where a node keeps everything. Works are referenced where they lie and never copied here."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "node.toml"

    @property
    def works_file(self) -> Path:
        """The library's index."""
        return self.root / "works.json"

    @property
    def styles(self) -> Path:
        return self.root / "styles"

    @property
    def styles_lock(self) -> Path:
        """Held by whoever writes a style."""
        return self.root / "styles.lock"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def ledger_file(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def membership_file(self) -> Path:
        return self.root / "federation" / "membership.json"

    @property
    def trust_file(self) -> Path:
        return self.root / "federation" / "trust.json"

    @property
    def ca_certificate(self) -> Path:
        return self.root / "federation" / "ca.crt"

    @property
    def flower_key(self) -> Path:
        """EC P-384 private key, OpenSSH format, of this node's Flower sign-in."""
        return self.root / "keys" / "flower"

    @property
    def enrolled_key(self) -> Path:
        """Ed25519 private key, PEM, that signs requests and updates."""
        return self.root / "keys" / "enrolled"

    @property
    def provenance_key(self) -> Path:
        """EC P-256 private key, PEM, that signs provenance on pictures."""
        return self.root / "keys" / "provenance"

    @property
    def provenance_certificate(self) -> Path:
        """Its certificate under the federation's authority, and that authority's: PEM."""
        return self.root / "federation" / "provenance.crt"

    @property
    def enrolment_file(self) -> Path:
        """The coordinator's signed word that this node is a member, for the day it has forgotten."""
        return self.root / "federation" / "enrolment.json"

    @property
    def offered_policy(self) -> Path:
        """The newest policy the coordinator has offered, with its signatures."""
        return self.root / "federation" / "policy-offered.json"

    @property
    def accepted_policy(self) -> Path:
        """The policy the artist has agreed to, with its signatures."""
        return self.root / "federation" / "policy.json"

    @property
    def shown_policy_file(self) -> Path:
        """Digest of the policy that the artist was last shown."""
        return self.root / "federation" / "policy-shown"

    @property
    def consent_file(self) -> Path:
        """To which policy the artist has agreed, and when."""
        return self.root / "federation" / "consent.json"

    @property
    def round_file(self) -> Path:
        """What a round needs of the rounds before it, and what the last one sent. Private."""
        return self.training / "round.safetensors"

    @property
    def veil_file(self) -> Path:
        """This machine's secrets of the veiled round under way. Never to be put back from a backup."""
        return self.training / "veil"

    @property
    def budget_file(self) -> Path:
        """What each round cost of the works' privacy budget."""
        return self.root / "budget.json"

    @property
    def peers_file(self) -> Path:
        """The keys of other members that veiled rounds have shown."""
        return self.training / "peers.json"

    @property
    def clock_file(self) -> Path:
        """The coordinator's time at the last contact, and the latest time ever known."""
        return self.root / "clock.json"

    @property
    def training(self) -> Path:
        """Private state between rounds: the code as the last round left it."""
        return self.root / "training"

    @property
    def start_score_file(self) -> Path:
        """Score of the best public code on the artist's works before the first round."""
        return self.training / "start.json"

    @property
    def flower(self) -> Path:
        return self.root / "flower"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def up_lock(self) -> Path:
        """Held by whoever runs `sfumato up` here."""
        return self.root / "up.lock"

    def config(self) -> Config:
        """The settings.

        Raises:
            NoHomeError: nothing was set up here.
            NotConfiguredError: a key or value is wrong.
        """
        if not self.config_file.exists():
            raise NoHomeError(f"there is no Sfumato in {self.root}", advice="Set it up with: sfumato init")
        return settings.load(self.config_file, Config, RANGES)


def find_home(given: Path | None) -> Home:
    """The folder from the command line, else from SFUMATO_HOME, else the platform's data folder."""
    return Home(settings.home_folder(given, HOME_VARIABLE, "sfumato"))


def checked_name(name: str, what: str) -> str:
    """A name that is safe as a file name on every system.

    Raises:
        UsageError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of {what}",
            advice="Use 1 to 40 letters, digits, dots, dashes and underscores, beginning and ending with a letter or digit.",
        )
    return name
