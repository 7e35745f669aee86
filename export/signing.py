"""Who may publish, and whether a folder is what they published. Nothing else knows the signature format.

A release is signed over the exact bytes of its manifest; the manifest holds the sha256 and size of every other file. What
`Ed25519Signatures.verify` does, in this order (a failure at any step refuses the release):

1. Read manifest and signatures, bounded; nothing is parsed before step 3 but the small signature file.
2. Count signatures by distinct trusted keys that verify over the manifest's bytes.
3. Require at least the trust's threshold.
4. Parse the manifest; refuse unknown formats, fields and paths that leave the folder.
5. Refuse another federation's release, and one older than the newest ever seen (rollback).
6. Check every file's size and sha256; refuse a file that is not listed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NewType, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from export.errors import IntegrityError
from export.files import Digest, canonical_json, digest_of, read_bounded, write_json
from export.manifest import MANIFEST_MAX_BYTES, Manifest, parse_manifest

MANIFEST, SIGNATURES = "manifest.json", "signatures.json"
_SIGNATURES_MAX_BYTES = 16 * 2**10
# Keeps a signature over a manifest from ever being one over something else that the same key signs.
_CONTEXT = b"sfumato release manifest v1\n"

KeyId = NewType("KeyId", str)
"""The first 16 hexadecimal digits of the sha256 of a raw public key."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a machine believes about one federation's releases.

    Attributes:
        federation: its name.
        keys: raw Ed25519 public keys (32 bytes) that may sign.
        threshold: how many of them must.
        highest_version: newest release ever accepted; nothing older is accepted again.
    """

    federation: str
    keys: tuple[bytes, ...]
    threshold: int = 1
    highest_version: int = 0

    def having_seen(self, version: int) -> Trust:
        """The same trust, never forgetting the newest version."""
        return replace(self, highest_version=max(self.highest_version, version))

    def save(self, path: Path) -> None:
        """Write the trust file."""
        write_json(path, self.to_plain())

    def to_plain(self) -> dict[str, object]:
        """The same as JSON data; see ``from_plain``."""
        keys = [base64.b64encode(key).decode() for key in self.keys]
        plain = {"federation": self.federation, "keys": keys, "threshold": self.threshold}
        return {**plain, "highest_version": self.highest_version}

    @classmethod
    def from_plain(cls, plain: object) -> Trust:
        """Read trust from JSON data.

        Raises:
            IntegrityError: not a trust file.
        """
        try:
            if not isinstance(plain, Mapping):
                raise TypeError("not an object")
            keys = tuple(base64.b64decode(key, validate=True) for key in plain["keys"])
            trust = cls(str(plain["federation"]), keys, int(plain["threshold"]), int(plain["highest_version"]))
        except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
            raise _refused(f"the trust file cannot be read ({error})", "Join the federation again.") from error
        if not trust.keys or not 1 <= trust.threshold <= len(trust.keys) or any(len(k) != 32 for k in trust.keys):
            raise _refused("the trust file names no usable keys", "Join the federation again.")
        return trust

    @classmethod
    def load(cls, path: Path) -> Trust:
        """Read the trust file.

        Raises:
            IntegrityError: not a trust file.
            OSError: it cannot be read.
        """
        try:
            plain = json.loads(read_bounded(path, _SIGNATURES_MAX_BYTES))
        except (ValueError, RecursionError) as error:
            raise _refused("the trust file is not JSON", "Join the federation again.") from error
        return cls.from_plain(plain)


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release folder whose signatures and digests were checked.

    Attributes:
        folder: where it lies.
        manifest: what was signed.
        digest: sha256 of the manifest, the release's name in the world.
    """

    folder: Path
    manifest: Manifest
    digest: Digest

    def read(self, path: str) -> bytes:
        """One of its files, checked again now: a disk or a person may have changed it since.

        Raises:
            IntegrityError: not part of the release, or changed.
        """
        entry = self.manifest.files.get(path)
        if entry is None:
            raise _refused(f"the release has no file {path!r}", "Install it again with: sfumato release install")
        return _checked(self.folder, path, entry.sha256, entry.bytes)

    def paths(self, folder: str) -> list[str]:
        """Its files under a folder, sorted."""
        return sorted(path for path in self.manifest.files if path.startswith(f"{folder}/"))


class ReleaseVerifier(Protocol):
    """Anything that can tell a published folder from any other."""

    def verify(self, folder: Path, trust: Trust) -> VerifiedRelease:
        """Check a folder.

        Raises:
            IntegrityError: it is not a release that ``trust`` accepts, and why.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ed25519Signatures:
    """Detached Ed25519 signatures over the manifest's bytes."""

    def verify(self, folder: Path, trust: Trust) -> VerifiedRelease:
        """See ``ReleaseVerifier.verify`` and the numbered list above."""
        # 1.
        raw = _read(folder, MANIFEST, MANIFEST_MAX_BYTES)
        signatures = _parse_signatures(_read(folder, SIGNATURES, _SIGNATURES_MAX_BYTES))
        # 2.
        valid = {key for key in trust.keys if _is_signed(_CONTEXT, raw, key, signatures)}
        # 3.
        if len(valid) < trust.threshold:
            raise _refused(
                f"the release is not signed by {trust.federation!r}",
                "Do not use it. Ask the coordinator for a release signed with the key you joined with.",
            )
        # 4.
        manifest = parse_manifest(raw)
        # 5.
        if manifest.federation != trust.federation:
            raise _refused(
                f"this is a release of {manifest.federation!r}, not of {trust.federation!r}",
                "Install a release of the federation you joined.",
            )
        if manifest.version < trust.highest_version:
            raise _refused(
                f"release {manifest.version} is older than release {trust.highest_version}, which was seen already",
                "Ask the coordinator for its newest release; to go back on purpose use: sfumato release rollback",
            )
        # 6.
        for path, entry in manifest.files.items():
            _checked(folder, path, entry.sha256, entry.bytes)
        _refuse_strangers(folder, manifest)
        return VerifiedRelease(folder, manifest, digest_of(raw))


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature file for a manifest's bytes."""
    return sign_as(_CONTEXT, manifest, key)


def sign_as(context: bytes, signed: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature file for some bytes.

    Args:
        context: says what kind of thing is signed, so that it can be taken for no other.
        signed: the bytes.
        key: whoever signs.
    """
    public = key.public_key().public_bytes_raw()
    signature = base64.b64encode(key.sign(context + signed)).decode()
    return canonical_json({"signatures": {key_id(public): signature}})


def require_signed(context: bytes, signed: bytes, signatures: bytes, trust: Trust, what: str) -> None:
    """Have enough of the keys a machine trusts have signed some bytes as that kind of thing.

    Raises:
        IntegrityError: they have not.
    """
    if len(signatures) > _SIGNATURES_MAX_BYTES:
        raise _refused(f"the signature file of {what} is too long", f"Get {what} again.")
    found = _parse_signatures(signatures)
    if len({key for key in trust.keys if _is_signed(context, signed, key, found)}) < trust.threshold:
        raise _refused(f"{what} is not signed by {trust.federation!r}", "Do not use it. Ask the coordinator.")


def key_id(public: bytes) -> KeyId:
    """The short name of a raw public key."""
    return KeyId(digest_of(public)[:16])


def _is_signed(context: bytes, signed: bytes, key: bytes, signatures: Mapping[str, bytes]) -> bool:
    signature = signatures.get(key_id(key))
    if signature is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, context + signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse_signatures(raw: bytes) -> dict[str, bytes]:
    try:
        plain = json.loads(raw)
        return {str(k): base64.b64decode(v, validate=True) for k, v in plain["signatures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused("the release's signature file cannot be read", "Get the release again.") from error


def _read(folder: Path, name: str, limit: int) -> bytes:
    try:
        if not (folder / name).is_file():  # a pipe would block, a folder confuse
            raise OSError("not a file")
        return read_bounded(folder / name, limit)
    except OSError as error:
        missing = "signature" if name == SIGNATURES else "manifest"
        raise _refused(f"the release has no {missing}", "Do not use it. Get the release again from the coordinator.") from error


def _checked(folder: Path, path: str, sha256: Digest, size: int) -> bytes:
    file = folder / path
    try:
        if file.is_symlink() or not file.is_file():  # to open a pipe would wait for ever
            raise OSError("a link, a folder or a device")
        data = read_bounded(file, size)
    except OSError as error:
        raise _refused(f"the release's {path} is missing", "Get the release again from the coordinator.") from error
    if len(data) != size or digest_of(data) != sha256:
        raise _refused(
            f"the release's {path} is not what was signed",
            "Do not use it. Get the release again from the coordinator.",
        )
    return data


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    expected = {*manifest.files, MANIFEST, SIGNATURES}
    for file in folder.rglob("*"):
        path = file.relative_to(folder).as_posix()
        # A link to a folder would hide what lies behind it from this walk.
        if file.is_symlink() or (not file.is_dir() and path not in expected):
            raise _refused(f"the release folder holds {path}, which was not signed", "Get the release again.")


def _refused(message: str, advice: str) -> IntegrityError:
    return IntegrityError(message, advice=advice)
