"""The coordinator's folder and settings, read once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.errors import NoCoordinatorError
from export import settings

HOME_VARIABLE: Final = "SFUMATO_COORDINATOR_HOME"


@dataclass(frozen=True, slots=True)
class Config:
    """`coordinator.toml`: what members need not agree to; what they do is in `policy.toml`.

    Attributes:
        name: the federation's.
        host: name or address under which artists' machines reach this one; it is written into invites.
        bind: address to listen on.
        port: public TLS port; 0 takes a free one at the first start and keeps it.
        announce: say on the local network where this coordinator answers, so that the code of an invite is enough there.
        modality: registry name of the kind of art.
        momentum: share of the body's last movement that is added to the next one; 0 moves it by the mean update alone.
        gather_timeout_s: how long a round waits for every member's node to be online; then it starts with those that are, if
            they are as many as the policy asks for.
        fit_steps: batches the gate fits the public codes on for a candidate body.
    """

    name: str
    host: str = "127.0.0.1"
    bind: str = "0.0.0.0"  # noqa: S104 - only our own filtered, TLS-only port listens there
    port: int = 0
    announce: bool = True
    modality: str = "style-studio"
    momentum: float = 0.7
    gather_timeout_s: float = 300.0
    fit_steps: int = 12


RANGES: Final[dict[str, settings.Range]] = {
    "port": (0, 65535),
    "momentum": (0, 0.95),
    "gather_timeout_s": (1, 7 * 24 * 3600),
    "fit_steps": (1, 10_000),
}


@dataclass(frozen=True, slots=True)
class Home:
    """Where a coordinator keeps everything. Private: CA key, release key, database."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "coordinator.toml"

    @property
    def ca_certificate(self) -> Path:
        return self.root / "pki" / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.root / "pki" / "ca.key"

    @property
    def server_certificate(self) -> Path:
        return self.root / "pki" / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.root / "pki" / "server.key"

    @property
    def release_key(self) -> Path:
        return self.root / "pki" / "release.key"

    @property
    def trust_file(self) -> Path:
        """What nodes are told to trust; also this coordinator's own memory of the newest version."""
        return self.root / "trust.json"

    @property
    def database(self) -> Path:
        return self.root / "coordinator.sqlite"

    @property
    def ledger_file(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def current_file(self) -> Path:
        """Names the release that is served: a version number."""
        return self.root / "current"

    @property
    def strips(self) -> Path:
        """Pictures before and after each round that was judged, for a person to look at."""
        return self.root / "strips"

    @property
    def policy_file(self) -> Path:
        """The policy as it is being written; what holds is the newest that was published."""
        return self.root / "policy.toml"

    @property
    def policies(self) -> Path:
        """Every policy that was published, by version."""
        return self.root / "policies"

    @property
    def rounds(self) -> Path:
        """Accepted updates of rounds that are not over."""
        return self.root / "rounds"

    @property
    def up_lock(self) -> Path:
        """Held by `up` while it runs."""
        return self.root / "up.lock"

    @property
    def rounds_lock(self) -> Path:
        """Held by the server part of a run while it holds rounds."""
        return self.root / "rounds.lock"

    @property
    def publish_lock(self) -> Path:
        """Held by whoever gives out the next version number, until that version is served."""
        return self.root / "publish.lock"

    @property
    def flower(self) -> Path:
        return self.root / "flower"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def config(self) -> Config:
        """The settings.

        Raises:
            NoCoordinatorError: nothing was set up here.
            NotConfiguredError: a key or value is wrong.
        """
        if not self.config_file.exists():
            raise NoCoordinatorError(
                f"there is no coordinator in {self.root}",
                advice="Make one with: sfumato-coordinator init NAME",
            )
        return settings.load(self.config_file, Config, RANGES)


def find_home(given: Path | None) -> Home:
    """The folder from the command line, else from SFUMATO_COORDINATOR_HOME, else the platform's data folder."""
    return Home(settings.home_folder(given, HOME_VARIABLE, "sfumato-coordinator"))
