"""One TOML file into one dataclass, or one sentence that names the key."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from export import settings
from export.errors import IntegrityError, NotConfiguredError
from export.settings import SettingsError

_TEXTS = st.text(st.characters(codec="utf-8"))
RANGES = {"steps": (1.0, 100.0), "clip": (0.5, 2.0)}


@dataclass(frozen=True)
class Sample:
    """A field of each kind. Types are words, as in the programs' own."""

    name: "str"
    steps: "int" = 10
    clip: "float" = 1.0
    fast: "bool" = False


def read(folder: Path, text: str) -> Sample:
    (folder / "sample.toml").write_text(text)
    return settings.load(folder / "sample.toml", Sample, RANGES)


def test_what_is_not_said_takes_its_default(tmp_path: Path) -> None:
    assert read(tmp_path, 'name = "Ada"') == Sample("Ada")


def test_everything_can_be_said(tmp_path: Path) -> None:
    text = 'name = "Ada"\nsteps = 7 # few\nclip = 0.5\nfast = true\n'

    assert read(tmp_path, text) == Sample("Ada", 7, 0.5, fast=True)


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    assert read(tmp_path, 'name = "Ada"\nclip = 2').clip == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name = "Ada"\ncolour = 3', "has an unknown key 'colour'; known are name, steps, clip, fast"),
        ("name = 3", "has name = 3, which is not of type str"),
        ('name = "Ada"\nsteps = 1.5', "has steps = 1.5, which is not of type int"),
        ('name = "Ada"\nsteps = true', "has steps = True, which is not of type int"),
        ('name = "Ada"\nclip = true', "has clip = True, which is not of type float"),
        ('name = "Ada"\nfast = 1', "has fast = 1, which is not of type bool"),
        ('name = "Ada"\nsteps = [1]', "has steps = [1], which is not of type int"),
        ('name = "Ada"\nsteps = 0', "has steps = 0; allowed is 1 to 100"),
        ('name = "Ada"\nsteps = 101', "has steps = 101; allowed is 1 to 100"),
        ('name = "Ada"\nclip = nan', "has clip = nan; allowed is 0.5 to 2"),
        ('name = "Ada"\nclip = inf', "has clip = inf; allowed is 0.5 to 2"),
        ("steps = 3", "lacks a value; keys not set: clip, fast, name"),
        ("name = ", "cannot be read"),
        ('name = "Ada"\nname = "Eve"', "cannot be read"),
    ],
)
def test_a_bad_file_is_told_by_its_key_and_what_it_may_be(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(NotConfiguredError) as caught:
        read(tmp_path, text)

    assert str(caught.value).startswith(f"sample.toml {sentence}")
    assert str(tmp_path / "sample.toml") in caught.value.advice


@pytest.mark.parametrize("value", [1, 100])
def test_the_ends_of_a_range_are_in_it(tmp_path: Path, value: int) -> None:
    assert read(tmp_path, f'name = "Ada"\nsteps = {value}').steps == value


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotConfiguredError, match="cannot be read"):
        settings.load(tmp_path / "gone.toml", Sample, RANGES)
    (tmp_path / "sample.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(NotConfiguredError, match="cannot be read"):
        settings.load(tmp_path / "sample.toml", Sample, RANGES)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "sample.toml").write_bytes(b"#" * (64 * 2**10 + 1))

    with pytest.raises(IntegrityError, match="larger than"):
        settings.load(tmp_path / "sample.toml", Sample, RANGES)


@profile(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.builds(Sample, _TEXTS, st.integers(1, 100), st.floats(0.5, 2.0), st.booleans()))
def test_what_is_saved_is_read(tmp_path: Path, sample: Sample) -> None:
    settings.save(tmp_path / "sample.toml", sample)

    assert settings.load(tmp_path / "sample.toml", Sample, RANGES) == sample


# --- Bytes, wherever they came from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'name = "Ada"\ncolour = 3', "has an unknown key 'colour'; known are name, steps, clip, fast"),
        (b"name = 3", "has name = 3, which is not of type str"),
        (b'name = "Ada"\nsteps = 101', "has steps = 101; allowed is 1 to 100"),
        (b"", "lacks a value; keys not set: clip, fast, name, steps"),
        (b"name =", "cannot be read (Invalid value"),
        (b"\xff\xfe", "cannot be read ("),
        (b"name = " + b"[" * 5000, "cannot be read ("),
        (b"steps = " + b"9" * 5000, "cannot be read ("),
    ],
)
def test_bytes_that_are_no_settings_are_told_by_the_end_of_a_sentence(raw: bytes, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.parse(raw, Sample, RANGES)

    assert str(caught.value).startswith(sentence)
    assert isinstance(caught.value, ValueError)


def test_bytes_are_read_as_a_file_is(tmp_path: Path) -> None:
    text = 'name = "Ada"\nsteps = 7\nclip = 2\n'

    assert settings.parse(text.encode(), Sample, RANGES) == read(tmp_path, text) == Sample("Ada", 7, 2.0)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_bytes_they_are_settings_or_a_refusal(raw: bytes) -> None:
    try:
        found = settings.parse(raw, Sample, RANGES)
    except SettingsError:
        return
    assert isinstance(found, Sample)


samples = st.builds(Sample, _TEXTS, st.integers(1, 100), st.floats(0.5, 2.0), st.booleans())


@given(samples)
def test_a_text_is_read_as_what_it_was_written_from(sample: Sample) -> None:
    assert settings.parse(settings.text(sample), Sample, RANGES) == sample


@given(samples, samples)
def test_two_texts_are_the_same_exactly_if_the_settings_are(one: Sample, other: Sample) -> None:
    assert (settings.text(one) == settings.text(other)) is (one == other)
    assert settings.text(one) == settings.text(Sample(one.name, one.steps, one.clip, fast=one.fast))


def test_a_text_has_a_line_a_key_in_the_order_of_the_class() -> None:
    assert (
        settings.text(Sample('A "d" a\n'))
        == b'name = "A \\U00000022d\\U00000022 a\\U0000000a"\nsteps = 10\nclip = 1.0\nfast = false\n'
    )


def test_what_is_saved_is_the_text(tmp_path: Path) -> None:
    settings.save(tmp_path / "sample.toml", Sample("Ada"))

    assert (tmp_path / "sample.toml").read_bytes() == settings.text(Sample("Ada"))
