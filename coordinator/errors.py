"""What can go wrong at a coordinator, on top of `export/errors.py`.

SfumatoError
├── NotConfiguredError
│   └── NoCoordinatorError      this folder holds no coordinator
├── RefusedError
│   ├── JoinRefusedError        the invite is used, expired or unknown
│   └── GateRefusedError        the candidate is not as good as the current body
└── UnreachableError
    └── NotRunningError         the coordinator's processes are not up
"""

from export.errors import NotConfiguredError, RefusedError, UnreachableError


class NoCoordinatorError(NotConfiguredError):
    """This folder holds no coordinator."""

    code = "no-coordinator"


class JoinRefusedError(RefusedError):
    """The invite is used, expired or unknown."""

    code = "invite-refused"


class GateRefusedError(RefusedError):
    """The candidate is not as good as the current body."""

    code = "gate-refused"


class NotRunningError(UnreachableError):
    """The coordinator's processes are not up."""

    code = "not-running"
