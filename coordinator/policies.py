"""The federation's policy at its coordinator: ``policy.toml`` is written by people, signed when it is published, and then kept.

A published policy never changes; another one gets the next version, and every member is asked to agree to it anew.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

from coordinator import pki
from coordinator.config import Config, Home
from export import policy, settings
from export.errors import IntegrityError, NotConfiguredError, RefusedError
from export.files import held, read_bounded, write_atomic, write_json
from export.ledger import Ledger, Value
from export.policy import POLICY_MAX_BYTES, Policy, SignedPolicy
from export.signing import Trust

_SUFFIX: Final = ".json"
_FILE_MAX_BYTES: Final = 16 * POLICY_MAX_BYTES  # JSON writes some bytes as six


def begin(home: Home, config: Config) -> SignedPolicy:
    """Publish the first policy of a new federation, with what is usual; its settings need not be written yet."""
    return _publish(home, Policy(config.name, 1, config.modality), 0)


def draft(home: Home) -> Policy:
    """``policy.toml`` as it is now.

    Raises:
        NotConfiguredError: it cannot be read, or says what no policy may.
    """
    try:
        found = policy.parse(read_bounded(home.policy_file, POLICY_MAX_BYTES))
    except OSError as error:
        raise NotConfiguredError(
            f"there is no {home.policy_file.name}",
            advice=f"Put back {home.policy_file}; what was published lies in {home.policies}.",
        ) from error
    except settings.SettingsError as error:
        raise NotConfiguredError(f"{home.policy_file.name} {error}", advice=f"Edit {home.policy_file}.") from error
    config = home.config()
    if (found.federation, found.modality) != (config.name, config.modality):
        raise NotConfiguredError(
            f"{home.policy_file.name} is for {found.federation!r} and {found.modality}",
            advice=f"Set federation = {config.name!r} and modality = {config.modality!r} in it.",
        )
    return found


def publish(home: Home) -> SignedPolicy:
    """Sign ``policy.toml`` as the next version, unless it is what holds already.

    Raises:
        NotConfiguredError: it is no policy.
        ResourceError: it cannot be written.
    """
    with held(home.publish_lock, "publishing"):
        return _publish(home, draft(home), _newest(home))


def _publish(home: Home, wanted: Policy, number: int) -> SignedPolicy:
    if number and replace(wanted, version=number) == current(home).policy:
        signed = current(home)
    else:
        signed = policy.sign(replace(wanted, version=number + 1), pki.release_key(home))
        write_json(home.policies / f"{number + 1}{_SUFFIX}", policy.to_plain(signed))
    for version in range(1, signed.policy.version + 1):  # a kill may have come between a file and its line
        said = _published(home, version)
        entry: dict[str, Value] = {
            "what": "policy",
            "version": version,
            "policy": said.digest,
            "visibility": said.policy.visibility,
        }
        Ledger(home.ledger_file).append_once(entry, "what", "policy")
    write_atomic(home.policy_file, signed.raw)
    return signed


def current(home: Home) -> SignedPolicy:
    """The policy that holds: the newest that was published, checked as a node checks it.

    Raises:
        NotConfiguredError: none was.
        IntegrityError: it was changed.
    """
    number = _newest(home)
    if not number:
        raise NotConfiguredError("no policy was published", advice="Publish one with: sfumato-coordinator policy publish")
    return _published(home, number)


def _published(home: Home, number: int) -> SignedPolicy:
    try:
        plain = json.loads(read_bounded(home.policies / f"{number}{_SUFFIX}", _FILE_MAX_BYTES))
        raw, signatures = policy.from_plain(plain)
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"policy {number} cannot be read", advice="Put it back from a backup.") from error
    found = policy.verify(raw, signatures, Trust.load(home.trust_file))
    if found.policy.version != number:
        raise IntegrityError(f"policy {number} says it is {found.policy.version}", advice="Put it back from a backup.")
    return found


def require_published(home: Home) -> SignedPolicy:
    """The policy that holds, for whoever is about to act on it.

    Raises:
        RefusedError: ``policy.toml`` says otherwise, and nobody has agreed to that.
    """
    holds = current(home)
    if replace(draft(home), version=holds.policy.version) != holds.policy:
        raise RefusedError(
            f"{home.policy_file.name} was changed and not published",
            advice="Publish it with: sfumato-coordinator policy publish. Members are then asked to agree.",
        )
    return holds


def _newest(home: Home) -> int:
    return max((int(path.stem) for path in home.policies.glob(f"[0-9]*{_SUFFIX}") if path.stem.isdigit()), default=0)
