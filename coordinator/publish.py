"""Releases at the coordinator: the base to start from, publishing what the gate let through, and which one is served."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from coordinator import pki
from coordinator.config import Home
from coordinator.errors import GateRefusedError
from export import base, release
from export.errors import IntegrityError, NotConfiguredError, UsageError
from export.files import digest_of, held, read_bounded, write_atomic
from export.ledger import Ledger
from export.manifest import Manifest
from export.release import Contents
from export.signing import Ed25519Signatures, Trust, VerifiedRelease
from models.originality import HASH_BITS
from models.update import Arrays

if TYPE_CHECKING:  # the gate brings torch, and whoever only serves releases shall not need it
    from coordinator.gate import Candidate

LICENCE: Final = "Apache-2.0"
_VERIFIER: Final = Ed25519Signatures()
_BASE_HEADING: Final = "## The base body"  # of the card that scripts/train_base writes; every refined body keeps it


def adopt_base(home: Home, federation: str, modality: str) -> VerifiedRelease:
    """Publish the packaged base body as the federation's release 1, under the federation's own key."""
    packaged = base.load(modality)
    contents = Contents({path: packaged.read(path) for path in packaged.manifest.files})
    manifest = Manifest(
        federation=federation,
        version=1,
        round=0,
        modality=modality,
        signature=packaged.manifest.signature,
        body=packaged.manifest.body,
        parent="",
        contributors=0,
        licence=packaged.manifest.licence,
        created=_now(),
        verdict=packaged.manifest.verdict,
        files=contents.entries(),
    )
    return _put_out(home, contents, manifest)


def publish(home: Home, current: VerifiedRelease, candidate: Candidate, round_: int, contributors: int) -> VerifiedRelease:
    """Write, sign and serve a release of a candidate that passed.

    Raises:
        GateRefusedError: it did not pass, or was judged against another release than the one served now; nothing without
            a verdict is ever published.
        RefusedError: somebody else is publishing at this moment.
        ResourceError: the disk is full; the current release stays.
    """
    if not candidate.passes:
        raise GateRefusedError(
            f"the gate refused the candidate: {'; '.join(candidate.reasons)}",
            advice="The current release stays. Train another round.",
        )
    kept = {
        path: current.read(path)
        for folder in (release.WORKS, release.CALIBRATION, release.PROBE)
        for path in current.paths(folder)
    }
    rest = Contents.of(
        body=candidate.body,
        exact=candidate.exact,
        codes=candidate.codes,
        works={},
        calibration={},
        probe={},
        card=_card(current, candidate, round_, contributors),
    )
    contents = Contents({**rest.files, **kept})
    with held(home.publish_lock, "publishing"):
        if current_release(home).digest != current.digest:
            raise GateRefusedError(
                "another release was published while the candidate was judged", advice="Hold another round on the new one."
            )
        manifest = Manifest(
            federation=current.manifest.federation,
            version=newest_version(home) + 1,
            round=round_,
            modality=current.manifest.modality,
            signature=current.manifest.signature,
            body=digest_of(contents.files[release.BODY]),
            parent=current.manifest.body,
            contributors=contributors,
            licence=LICENCE,
            created=_now(),
            verdict=candidate.verdict,
            files=contents.entries(),
        )
        return _put_out(home, contents, manifest)


def rollback(home: Home) -> VerifiedRelease:
    """Serve the body before the served one again, under a new version.

    Raises:
        UsageError: there is none before it.
        RefusedError: somebody else is publishing at this moment.
    """
    served = current_release(home)
    for version in reversed(versions(home)):
        with suppress(IntegrityError):
            earlier = open_release(home, version)
            is_before = version < served.manifest.version and earlier.manifest.body == served.manifest.parent
            if is_before:
                return _again(home, earlier)
    raise UsageError("there is no release to go back to", advice="See: sfumato-coordinator release list")


def publish_again(home: Home, version: int) -> VerifiedRelease:
    """Serve the body of an earlier release again, under a new version: nodes accept nothing older than they have seen.

    Raises:
        IntegrityError: there is no such release.
        GateRefusedError: it carries no verdict.
        RefusedError: somebody else is publishing at this moment.
    """
    earlier = open_release(home, version)
    if earlier.manifest.verdict is None:
        raise GateRefusedError(f"release {version} carries no verdict", advice="Publish one that passed the gate.")
    return _again(home, earlier)


def _again(home: Home, earlier: VerifiedRelease) -> VerifiedRelease:
    contents = Contents({path: earlier.read(path) for path in earlier.manifest.files})
    with held(home.publish_lock, "publishing"):
        return _put_out(home, contents, replace(earlier.manifest, version=newest_version(home) + 1, created=_now()))


def current_release(home: Home) -> VerifiedRelease:
    """The release that is served, verified.

    Raises:
        NotConfiguredError: none was published yet.
        IntegrityError: its folder was changed.
    """
    try:
        version = int(read_bounded(home.current_file, 32))
    except OSError as error:
        raise NotConfiguredError(
            "no release has been published yet", advice="Set the coordinator up again: sfumato-coordinator init NAME"
        ) from error
    return open_release(home, version)


def open_release(home: Home, version: int) -> VerifiedRelease:
    """One of the published releases, verified against this coordinator's own key.

    Raises:
        IntegrityError: there is none of that number, or its folder was changed.
    """
    folder = home.releases / str(version)
    if not folder.is_dir():
        raise IntegrityError(f"there is no release {version}", advice="See: sfumato-coordinator release list")
    # Older ones may be looked at too, so the highest version plays no part here; it binds nodes.
    trust = Trust.load(home.trust_file)
    return _VERIFIER.verify(folder, Trust(trust.federation, trust.keys, trust.threshold))


def parent_body(home: Home, current: VerifiedRelease) -> Arrays | None:
    """The body a release was refined from; None if it was refined from none, or that one is gone or damaged."""
    for version in reversed(versions(home)):
        if current.manifest.parent and version < current.manifest.version:
            try:
                earlier = open_release(home, version)
            except IntegrityError:
                continue
            if earlier.manifest.body == current.manifest.parent:
                return release.body_of(earlier)
    return None


def versions(home: Home) -> list[int]:
    """Numbers of all published releases, oldest first."""
    return sorted(int(path.name) for path in home.releases.glob("[0-9]*") if path.name.isdigit())


def newest_version(home: Home) -> int:
    """The highest number ever used, whether or not its folder is still there."""
    trust = Trust.load(home.trust_file)
    return max([trust.highest_version, *versions(home)])


def _put_out(home: Home, contents: Contents, manifest: Manifest) -> VerifiedRelease:
    """Write the folder, check it as a node would, put it in the ledger, serve it, and only then remember its number.

    A kill between two steps leaves a version that is not served, or one that is served and not yet remembered; the next gets
    a number above both. Nobody is ever told of a newer version than the one served.
    """
    folder = home.releases / str(manifest.version)
    release.write(folder, contents, manifest, pki.release_key(home))
    published = open_release(home, manifest.version)
    Ledger(home.ledger_file).append(
        {
            "what": "published",
            "version": manifest.version,
            "round": manifest.round,
            "manifest": published.digest,
            "body": manifest.body,
            "contributors": manifest.contributors,
        }
    )
    write_atomic(home.current_file, str(manifest.version).encode())
    Trust.load(home.trust_file).having_seen(manifest.version).save(home.trust_file)
    return published


def _card(current: VerifiedRelease, candidate: Candidate, round_: int, contributors: int) -> str:
    verdict, found = candidate.verdict, candidate.originality
    nearest = (
        f"Nearest public work: {found.nearest}; hashes {found.hashes.figure:.0f} of {HASH_BITS} bits apart, patches "
        f"{found.patches.figure:.2f}, ratio of distances {found.ratio.figure:.2f}.\n"
        if found
        else ""
    )
    return f"""# {current.manifest.federation}: {current.manifest.modality}, round {round_}

A shared body, refined by {contributors} artists' machines from body `{current.manifest.body[:12]}`. It holds no artist's
style: styles are private codes that stay on the artists' machines. No work left any of them.

| judged on public photos and public-domain works | before | after |
| --- | --- | --- |
| style distance (0 is perfect) | {verdict.style_before:.4f} | {verdict.style_after:.4f} |
| style distance in int8 | {verdict.int8_style_before:.4f} | {verdict.int8_style_after:.4f} |
| SSIM to the photo | {verdict.content_before:.3f} | {verdict.content_after:.3f} |

int8 against fp32: {verdict.int8_psnr_db:.1f} dB PSNR, SSIM {verdict.int8_ssim:.3f}. Pixel grid: {verdict.grid:.1f} dB.
{nearest}Licence of the weights: {LICENCE}.

{_BASE_HEADING}{current.read(release.CARD).decode().partition(_BASE_HEADING)[2]}"""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
