"""One error for each exit code, and advice with every one."""

import pytest

from export import errors
from export.errors import SfumatoError


def kinds() -> list[type[SfumatoError]]:
    return [SfumatoError, *SfumatoError.__subclasses__()]


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (errors.SfumatoError, 1),
        (errors.UsageError, 2),
        (errors.NotConfiguredError, 3),
        (errors.UnreachableError, 4),
        (errors.RefusedError, 5),
        (errors.ResourceError, 6),
        (errors.IntegrityError, 7),
    ],
)
def test_each_kind_of_error_has_the_exit_code_the_commands_promise(kind: type[SfumatoError], exit_code: int) -> None:
    error = kind("what happened", advice="what to do")

    assert error.exit_code == exit_code
    assert str(error) == "what happened"
    assert error.advice == "what to do"


def test_no_two_kinds_of_error_in_this_file_share_a_code_or_an_exit_code() -> None:
    ours = [kind for kind in kinds() if kind.__module__ == errors.__name__]

    assert len({kind.code for kind in ours}) == len({kind.exit_code for kind in ours}) == len(ours) == 7


def test_an_error_without_advice_cannot_be_raised() -> None:
    with pytest.raises(TypeError):
        SfumatoError("what happened")  # type: ignore[call-arg]
