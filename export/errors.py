"""The root of every error this project raises on purpose, and the one error for each exit code.

SfumatoError                 1 failed
├── UsageError               2 usage: the command or its input is wrong
├── NotConfiguredError       3 something has not been set up or installed yet
├── UnreachableError         4 a coordinator or a process does not answer
├── RefusedError             5 policy or consent says no
├── ResourceError            6 disk, memory or time ran out
└── IntegrityError           7 a digest, signature or format is not what it must be

The programs' own ``errors.py`` refine these.
"""

from typing import ClassVar


class SfumatoError(Exception):
    """Something went wrong in a way we foresaw, with a sentence on what to do about it."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, advice: str) -> None:
        """Keep `message` (what happened) and `advice` (what the person at the keyboard can do)."""
        super().__init__(message)
        self.advice = advice


class UsageError(SfumatoError):
    """The command, an argument or an input file is wrong."""

    code = "usage"
    exit_code = 2


class NotConfiguredError(SfumatoError):
    """Something has to be set up, made or installed first."""

    code = "not-configured"
    exit_code = 3


class UnreachableError(SfumatoError):
    """Somebody who should answer does not."""

    code = "unreachable"
    exit_code = 4


class RefusedError(SfumatoError):
    """A policy, a gate or a missing consent says no."""

    code = "refused"
    exit_code = 5


class ResourceError(SfumatoError):
    """Disk, memory or time ran out."""

    code = "resources"
    exit_code = 6


class IntegrityError(SfumatoError):
    """A digest, a signature or a format is not what it must be."""

    code = "integrity"
    exit_code = 7
