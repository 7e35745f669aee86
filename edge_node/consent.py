"""The federation's policy on this machine: what was offered, and what the artist has agreed to.

A policy that came over the wire is verified before it is kept, and again whenever it is read. Agreeing is the artist's doing
alone: nothing here agrees by itself, and a new version must be agreed to anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edge_node import clock, releases
from edge_node.config import Home
from edge_node.errors import NoConsentError
from export import policy
from export.errors import IntegrityError, RefusedError
from export.files import Digest, read_bounded, write_atomic, write_json
from export.ledger import Ledger
from export.policy import POLICY_MAX_BYTES, SignedPolicy

_CONSENT_MAX_BYTES: Final = 4096
_FILE_MAX_BYTES: Final = 16 * POLICY_MAX_BYTES  # JSON writes some bytes as six


@dataclass(frozen=True, slots=True)
class Consent:
    """What the artist has agreed to.

    Attributes:
        digest: of the policy.
        version: of the policy.
        when: ISO 8601, by the federation's time.
    """

    digest: Digest
    version: int
    when: str


def keep_offered(home: Home, raw: bytes, signatures: bytes) -> SignedPolicy:
    """Verify what the coordinator offers, and keep it to be read and agreed to.

    Raises:
        IntegrityError: the federation did not sign it, or it is older than one that was agreed to.
        ResourceError: it cannot be written.
    """
    offered = policy.verify(raw, signatures, releases.trust(home))
    known = accepted(home)
    if known is not None and offered.policy.version < known.policy.version:
        raise IntegrityError(
            f"policy {offered.policy.version} is older than policy {known.policy.version}, which you agreed to",
            advice="Ask the coordinator which one holds.",
        )
    write_json(home.offered_policy, policy.to_plain(offered))
    return offered


def offered(home: Home) -> SignedPolicy | None:
    """The newest policy the coordinator has offered.

    Raises:
        IntegrityError: it was changed on this machine.
    """
    return _read(home, home.offered_policy)


def accepted(home: Home) -> SignedPolicy | None:
    """The policy the artist has agreed to.

    Raises:
        IntegrityError: it was changed on this machine.
    """
    consent = _consent(home)
    found = _read(home, home.accepted_policy) if consent is not None else None
    if found is not None and consent is not None and found.digest != consent.digest:
        raise IntegrityError(
            "the policy on this machine is not the one you agreed to",
            advice="Read it with: sfumato policy show, and agree again with: sfumato policy accept",
        )
    return found


def show(home: Home) -> SignedPolicy:
    """The newest policy that was offered, for the artist to read; it is remembered which one that was.

    Raises:
        NoConsentError: none was.
        IntegrityError: it was changed on this machine.
        ResourceError: it cannot be remembered.
    """
    found = offered(home)
    if found is None:
        raise NoConsentError("no policy was offered yet", advice="Join with: sfumato join INVITE, or wait for sfumato up")
    write_atomic(home.shown_policy_file, found.digest.encode())
    return found


def accept(home: Home) -> SignedPolicy:
    """Agree to the policy that was shown, if it is still the newest that was offered.

    Raises:
        NoConsentError: none was shown, or another one was offered since.
        RefusedError: it asks for more than this machine's own bounds allow.
        ResourceError: it cannot be written.
    """
    found = offered(home)
    if found is None or _shown(home) != found.digest:
        raise NoConsentError(
            "you have not read the policy that is offered now",
            advice="Read it with: sfumato policy show, then agree with: sfumato policy accept",
        )
    require_within_bounds(home, found)
    when = datetime.fromtimestamp(clock.now_s(home), UTC).isoformat(timespec="microseconds")
    # The account first: an agreement that is not in it does not hold.
    Ledger(home.ledger_file).append(
        {
            "what": "agreed",
            "federation": found.policy.federation,
            "policy": found.digest,
            "version": found.policy.version,
            "visibility": found.policy.visibility,
        }
    )
    write_json(home.accepted_policy, policy.to_plain(found))
    write_json(home.consent_file, {"digest": found.digest, "version": found.policy.version, "when": when})
    return found


def required(home: Home) -> SignedPolicy:
    """The policy the artist has agreed to, for whoever may not go on without.

    Raises:
        NoConsentError: to none.
    """
    found = accepted(home)
    if found is None:
        raise NoConsentError(
            "you have not agreed to this federation's policy",
            advice="Read it with: sfumato policy show, and agree with: sfumato policy accept",
        )
    return found


def require_within_bounds(home: Home, signed: SignedPolicy) -> None:
    """Have a policy be within what this machine allows, whatever the coordinator says.

    Raises:
        RefusedError: it is not.
    """
    config, asked = home.config(), signed.policy
    if asked.modality != config.modality:
        raise RefusedError(
            f"the policy is for {asked.modality}, this machine works on {config.modality}", advice="Ask the coordinator why."
        )
    if asked.clip > config.clip_max:
        raise RefusedError(
            f"the policy asks for updates of norm {asked.clip:g}; this machine allows {config.clip_max:g}",
            advice=f"Ask the coordinator why; to allow it set clip_max in {home.config_file}.",
        )
    if asked.steps > config.steps_max:
        raise RefusedError(
            f"the policy asks for {asked.steps} steps; this machine allows {config.steps_max}",
            advice=f"Ask the coordinator why; to allow it set steps_max in {home.config_file}.",
        )


def _shown(home: Home) -> str:
    try:
        return read_bounded(home.shown_policy_file, _CONSENT_MAX_BYTES).decode()
    except (OSError, ValueError, IntegrityError):
        return ""


def _consent(home: Home) -> Consent | None:
    try:
        plain = json.loads(read_bounded(home.consent_file, _CONSENT_MAX_BYTES))
        return Consent(Digest(str(plain["digest"])), int(plain["version"]), str(plain["when"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise IntegrityError(
            "the note of what you agreed to cannot be read",
            advice="Read it with: sfumato policy show, and agree again with: sfumato policy accept",
        ) from error


def _read(home: Home, path: Path) -> SignedPolicy | None:
    try:
        raw, signatures = policy.from_plain(json.loads(read_bounded(path, _FILE_MAX_BYTES)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError("the policy on this machine cannot be read", advice="It comes again with sfumato up.") from error
    return policy.verify(raw, signatures, releases.trust(home))
