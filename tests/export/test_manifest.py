"""A manifest is read strictly: whatever else comes, it is one refusal."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.errors import IntegrityError
from export.files import canonical_json, digest_of
from export.manifest import FileEntry, Manifest, Verdict, parse_manifest
from tests import releases

GOOD: Final = releases.manifest(releases.contents())
PLAIN: Final[dict[str, Any]] = json.loads(GOOD.to_bytes())
SHA: Final = "0123456789abcdef" * 4


def changed(**changes: object) -> bytes:
    """The good manifest's JSON with some fields changed, however oddly."""
    return json.dumps({**PLAIN, **changes}).encode()


def with_files(*paths: str, entry: object = None) -> bytes:
    plain = {"sha256": SHA, "bytes": 1} if entry is None else entry
    return changed(files=dict.fromkeys(paths, plain))


def refusal(raw: bytes) -> str:
    with pytest.raises(IntegrityError, match="the release's manifest cannot be used") as caught:
        parse_manifest(raw)
    assert caught.value.advice
    return str(caught.value)


def test_a_manifest_comes_out_as_it_went_in() -> None:
    assert parse_manifest(GOOD.to_bytes()) == GOOD


def test_a_base_without_verdict_and_parent_comes_out_as_it_went_in() -> None:
    base = replace(GOOD, verdict=None, parent="", round=0, contributors=0)

    assert parse_manifest(base.to_bytes()) == base


names = st.from_regex(r"[a-z0-9_-]{1,60}\.[a-z0-9]{1,12}", fullmatch=True)
counts = st.integers(0, 2**53 - 1)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.isprintable)
figures = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Manifest,
        federation=words,
        version=counts,
        round=counts,
        modality=words,
        signature=st.just(releases.SIGNATURE),
        body=st.binary().map(digest_of),
        parent=st.just("") | st.binary().map(digest_of),
        contributors=counts,
        licence=words,
        created=words,
        verdict=st.none() | st.builds(Verdict, *[figures] * 7),
        files=st.dictionaries(
            names,
            st.builds(FileEntry, st.binary().map(digest_of), st.integers(0, 64 * 2**20)),
            min_size=1,
            max_size=4,
        ),
    )
)
def test_any_valid_manifest_comes_out_as_it_went_in(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_bytes()) == manifest


def test_what_is_signed_is_canonical() -> None:
    assert GOOD.to_bytes() == canonical_json(PLAIN)


@pytest.mark.parametrize("field", sorted(PLAIN))
def test_a_manifest_without_one_of_its_fields_is_refused(field: str) -> None:
    plain = {name: value for name, value in PLAIN.items() if name != field}

    assert "fields or format unknown" in refusal(json.dumps(plain).encode())


def test_a_manifest_with_a_field_too_many_is_refused() -> None:
    assert "fields or format unknown" in refusal(changed(post_install="rm -r ~"))


@pytest.mark.parametrize("value", [0, 2, "1", None, [1]])
def test_another_format_is_refused(value: object) -> None:
    assert "fields or format unknown" in refusal(changed(format=value))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"3", id="a number"),
        pytest.param(b'"format"', id="a text"),
        pytest.param(b"{", id="half an object"),
        pytest.param(b"\xff\xfe\x00", id="no unicode"),
        pytest.param(b"[" * 200_000, id="too deep"),
        pytest.param(b'{"a":' * 50_000, id="too deep, in objects"),
        pytest.param(b"9" * 5000, id="a number too long to read"),
    ],
)
def test_what_is_no_manifest_at_all_is_refused(raw: bytes) -> None:
    refusal(raw)


COUNTS: Final = ("version", "round", "contributors")
TEXTS: Final = {"federation": 100, "modality": 100, "licence": 200, "created": 40, "parent": 64}


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [-1, 2**53, 10**400, 1.0, True, "1", None, [], math.nan, math.inf])
def test_a_number_that_counts_nothing_is_refused(field: str, value: object) -> None:
    assert "not a count" in refusal(changed(**{field: value}))


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [0, 2**53 - 1])
def test_a_count_at_its_limits_is_accepted(field: str, value: int) -> None:
    assert getattr(parse_manifest(changed(**{field: value})), field) == value


@pytest.mark.parametrize(("field", "longest"), TEXTS.items())
def test_a_text_is_accepted_at_its_limit_and_refused_above(field: str, longest: int) -> None:
    assert getattr(parse_manifest(changed(**{field: "x" * longest})), field) == "x" * longest
    assert f"a text of at most {longest}" in refusal(changed(**{field: "x" * (longest + 1)}))


@pytest.mark.parametrize("field", TEXTS)
@pytest.mark.parametrize(
    "value", [None, 7, True, [], {}, "two\nlines", "\x1b[31mred", "\0", "\u202etxt.exe", "\ud800", "\u2028"]
)
def test_a_text_that_is_none_or_plays_tricks_on_a_terminal_is_refused(field: str, value: object) -> None:
    assert "not a text" in refusal(changed(**{field: value}))


@pytest.mark.parametrize("field", [field for field in TEXTS if field != "parent"])
def test_an_empty_text_is_refused_where_something_must_be_said(field: str) -> None:
    assert "not a text" in refusal(changed(**{field: ""}))


@pytest.mark.parametrize("value", ["", SHA[:-1], SHA + "0", SHA.upper(), "g" * 64, SHA + "\n", None, 0, [SHA]])
def test_a_body_that_is_no_digest_is_refused(value: object) -> None:
    assert "not a sha256" in refusal(changed(body=value))


@pytest.mark.parametrize(
    "value",
    [None, "image", [], {}, {**PLAIN["signature"], "medium": "smell"}, {**PLAIN["signature"], "extra": 1}],
)
def test_a_signature_that_is_none_is_refused(value: object) -> None:
    refusal(changed(signature=value))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "not a verdict"),
        ({}, "not a verdict"),
        ("good", "not a verdict"),
        ({**PLAIN["verdict"], "extra": 1.0}, "not a verdict"),
        ({**PLAIN["verdict"], "grid": None}, "a verdict holds numbers"),
        ({**PLAIN["verdict"], "grid": "0"}, "a verdict holds numbers"),
        ({**PLAIN["verdict"], "grid": True}, "a verdict holds numbers"),
        ({**PLAIN["verdict"], "grid": math.nan}, "finite"),
        ({**PLAIN["verdict"], "style_after": math.inf}, "finite"),
        ({**PLAIN["verdict"], "style_after": -math.inf}, "finite"),
        ({**PLAIN["verdict"], "grid": 10**400}, "too large"),
    ],
)
def test_a_verdict_that_is_none_is_refused(value: object, reason: str) -> None:
    assert reason in refusal(changed(verdict=value))


def test_a_verdict_too_large_for_a_number_is_refused() -> None:
    assert "finite" in refusal(changed(verdict=PLAIN["verdict"]).replace(b"36.5", b"1e999"))


def test_a_whole_number_is_a_figure_of_a_verdict_too() -> None:
    verdict = parse_manifest(changed(verdict={**PLAIN["verdict"], "grid": 1})).verdict

    assert verdict is not None
    assert verdict.grid == 1.0


# Files.


@pytest.mark.parametrize(
    "path",
    [
        "a.b",
        "body.safetensors",
        "works/durer-lion.jpg",
        "a/b/c.tar.gz",
        "x" * 60 + ".jpg",
        "x" * 40 + "/" + "y" * 40 + "/z.jpg",
        "a." + "e" * 12,
    ],
)
def test_a_path_of_a_release_is_accepted(path: str) -> None:
    assert list(parse_manifest(with_files(path)).files) == [path]


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../evil.jpg",
        "works/../../evil.jpg",
        "works/..",
        "/etc/passwd.txt",
        "//host/share.jpg",
        "c:/windows.ini",
        "c:evil.jpg",
        "works\\evil.jpg",
        "..\\evil.jpg",
        "works//evil.jpg",
        "./evil.jpg",
        "works/./evil.jpg",
        ".hidden.jpg",
        ".ssh/config.txt",
        "~/evil.jpg",
        "noending",
        "works/",
        "works/.jpg",
        "a/b/c/d.jpg",
        "Works/A.jpg",
        "a.JPG",
        "a b.jpg",
        "a.b.c.d",
        "a.jpg\n",
        "\na.jpg",
        "a\0.jpg",
        "dürer.jpg",
        "．．/evil.jpg",  # noqa: RUF001 - full-width dots are the point
        "%2e%2e/evil.jpg",
        "x" * 61 + ".jpg",
        "x" * 41 + "/y.jpg",
        "a." + "e" * 13,
    ],
)
def test_a_path_that_leaves_the_folder_or_means_two_places_is_refused(path: str) -> None:
    assert "not a path of a release" in refusal(with_files("good.txt", path))


@given(st.text(st.sampled_from("./\\~ab-_0A%:\n\0 \u202e"), max_size=12))
def test_no_path_that_is_accepted_ever_leaves_its_folder(path: str) -> None:
    try:
        parse_manifest(with_files(path))
    except IntegrityError:
        return
    parts = path.split("/")
    assert all(part and part == part.lower() and not part.startswith(".") for part in parts)
    assert ".." not in path
    assert set(path) <= set("./ab-_0")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ([], "no digest and size"),
        ("x", "no digest and size"),
        ({"sha256": SHA}, "no digest and size"),
        ({"bytes": 1}, "no digest and size"),
        ({"sha256": SHA, "bytes": 1, "mode": 0o777}, "no digest and size"),
        ({"sha256": SHA, "bytes": -1}, "not a count"),
        ({"sha256": SHA, "bytes": 1.5}, "not a count"),
        ({"sha256": SHA, "bytes": True}, "not a count"),
        ({"sha256": SHA, "bytes": 64 * 2**20 + 1}, "larger than any file of a release"),
        ({"sha256": SHA[1:], "bytes": 1}, "not a sha256"),
        ({"sha256": None, "bytes": 1}, "not a sha256"),
    ],
)
def test_a_file_without_a_sound_digest_and_size_is_refused(entry: object, reason: str) -> None:
    assert reason in refusal(with_files("a.txt", entry=entry))


@pytest.mark.parametrize("size", [0, 64 * 2**20])
def test_a_file_size_at_its_limits_is_accepted(size: int) -> None:
    files = parse_manifest(with_files("a.txt", entry={"sha256": SHA, "bytes": size})).files

    assert files["a.txt"].bytes == size


@pytest.mark.parametrize("value", [None, [], {}, "a.txt", [["a.txt", {}]]])
def test_a_manifest_without_files_is_refused(value: object) -> None:
    assert "no files, or too many" in refusal(changed(files=value))


def test_the_number_of_files_at_and_above_its_limit() -> None:
    assert len(parse_manifest(with_files(*(f"f{i}.txt" for i in range(200)))).files) == 200
    assert "too many" in refusal(with_files(*(f"f{i}.txt" for i in range(201))))


# And everything at once.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def parsed_or_refused(raw: bytes) -> Manifest | None:
    try:
        return parse_manifest(raw)
    except IntegrityError:
        return None


@given(st.binary(max_size=200))
def test_whatever_bytes_come_it_is_a_refusal(raw: bytes) -> None:
    assert parsed_or_refused(raw) is None


@given(st.dictionaries(st.sampled_from(sorted(PLAIN)), json_values, max_size=4))
def test_whatever_the_fields_hold_it_is_a_manifest_or_a_refusal(changes: dict[str, Any]) -> None:
    manifest = parsed_or_refused(changed(**changes))

    assert manifest is None or parse_manifest(manifest.to_bytes()) == manifest


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_whatever_byte_is_flipped_it_is_a_manifest_or_a_refusal(place: int, byte: int) -> None:
    raw = bytearray(GOOD.to_bytes())
    raw[place % len(raw)] ^= byte

    parsed_or_refused(bytes(raw))


@given(st.sampled_from(["signature", "verdict", "files"]), st.data())
def test_whatever_stands_deeper_it_is_a_manifest_or_a_refusal(field: str, data: st.DataObject) -> None:
    inner = PLAIN[field]
    key = data.draw(st.sampled_from(sorted(inner)))
    change: Callable[[Any], dict[str, Any]] = lambda value: {**inner, key: value}  # noqa: E731 - said once, used once

    parsed_or_refused(changed(**{field: change(data.draw(json_values))}))
