"""What can go wrong at a coordinator, on top of `export/errors.py`.

SfumatoError
├── NotConfiguredError
│   └── NoCoordinatorError      this folder holds no coordinator
├── RefusedError
│   ├── JoinRefusedError        the invite is used, expired, taken back or unknown
│   ├── NotAMemberError         whoever asks is no member
│   ├── MembershipEndedError    whoever asks is a member no more
│   ├── UnsignedError           a request is not signed, or not now
│   └── GateRefusedError        the candidate is not as good as the current body
└── UnreachableError
    └── NotRunningError         the coordinator's processes are not up
"""

from export.errors import NotConfiguredError, RefusedError, UnreachableError


class NoCoordinatorError(NotConfiguredError):
    """This folder holds no coordinator."""

    code = "no-coordinator"


class JoinRefusedError(RefusedError):
    """The invite is used, expired, taken back or unknown."""

    code = "invite-refused"


class NotAMemberError(RefusedError):
    """Whoever asks is no member."""

    code = "not-a-member"


class MembershipEndedError(RefusedError):
    """Whoever asks is a member no more."""

    code = "membership-ended"


class UnsignedError(RefusedError):
    """A request is not signed by who it says, or was not made now."""

    code = "request-unsigned"


class GateRefusedError(RefusedError):
    """The candidate is not as good as the current body."""

    code = "gate-refused"


class NotRunningError(UnreachableError):
    """The coordinator's processes are not up."""

    code = "not-running"
