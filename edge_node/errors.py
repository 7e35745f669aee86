"""What can go wrong on an artist's or a gallery's machine, on top of `export/errors.py`.

SfumatoError
├── UsageError
│   ├── UnknownStyleError     no style of that name here
│   └── BadPictureError       a picture cannot be opened
├── NotConfiguredError
│   ├── NoHomeError           nothing was set up here
│   ├── NoWorksError          there is nothing to learn from
│   └── NotJoinedError        this needs a federation
├── UnreachableError
│   └── NoCoordinatorError    the coordinator does not answer
├── RefusedError
│   ├── JoinRefusedError      the coordinator does not take the invite
│   ├── NoConsentError        the artist has not agreed to the policy
│   ├── BudgetSpentError      the works' privacy budget is spent
│   ├── NotAMemberError       the coordinator does not know this machine
│   └── MembershipEndedError  the coordinator has ended this machine's membership
└── IntegrityError
    └── WrongCoordinatorError whoever answers is not the coordinator who invited
"""

from export.errors import IntegrityError, NotConfiguredError, RefusedError, UnreachableError, UsageError


class UnknownStyleError(UsageError):
    """No style of that name here."""

    code = "unknown-style"


class BadPictureError(UsageError):
    """A picture cannot be opened."""

    code = "bad-picture"


class NoHomeError(NotConfiguredError):
    """Nothing was set up here."""

    code = "no-home"


class NoWorksError(NotConfiguredError):
    """There is nothing to learn from."""

    code = "no-works"


class NotJoinedError(NotConfiguredError):
    """This needs a federation, and none was joined."""

    code = "not-joined"


class NoCoordinatorError(UnreachableError):
    """The coordinator does not answer."""

    code = "no-coordinator"


class JoinRefusedError(RefusedError):
    """The coordinator does not take the invite."""

    code = "invite-refused"


class NoConsentError(RefusedError):
    """The artist has not agreed to the policy."""

    code = "no-consent"


class BudgetSpentError(RefusedError):
    """The works' privacy budget is spent."""

    code = "budget-spent"


class NotAMemberError(RefusedError):
    """The coordinator does not know this machine (any more)."""

    code = "not-a-member"


class MembershipEndedError(RefusedError):
    """The coordinator has ended this machine's membership."""

    code = "membership-ended"


class WrongCoordinatorError(IntegrityError):
    """Whoever answers is not the coordinator who made the invite."""

    code = "wrong-coordinator"
