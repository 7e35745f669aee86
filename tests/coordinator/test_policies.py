"""The policy at its coordinator: what was published stays, what was not binds nobody, and a kill at any step is mended."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from coordinator import pki, policies, service
from coordinator.config import Config, Home
from export import policy, settings
from export.errors import IntegrityError, NotConfiguredError, RefusedError, ResourceError
from export.files import held, write_atomic, write_json
from export.ledger import Ledger, Value
from export.policy import POLICY_MAX_BYTES, Policy, SignedPolicy
from export.signing import Trust, sign_as
from tests import releases

CONFIG: Final = Config("guild")


@pytest.fixture
def bare(tmp_path: Path) -> Home:
    """A coordinator with keys and settings, and no policy."""
    home = Home(tmp_path / "hub")
    settings.save(home.config_file, CONFIG)
    pki.create(home, "127.0.0.1")
    Trust("guild", (pki.release_key(home).public_key().public_bytes_raw(),)).save(home.trust_file)
    return home


@pytest.fixture
def home(bare: Home) -> Home:
    """A coordinator whose first policy holds."""
    policies.begin(bare, CONFIG)
    return bare


def rewrite(home: Home, **changes: Any) -> None:
    """Have somebody edit ``policy.toml``."""
    settings.save(home.policy_file, replace(policies.draft(home), **changes))


def published(home: Home) -> dict[str, bytes]:
    """What lies among the published policies."""
    return {path.name: path.read_bytes() for path in home.policies.iterdir()}


def lines(home: Home) -> list[dict[str, Value]]:
    """The account, without when and what stood before."""
    entries = Ledger(home.ledger_file).entries()
    return [{name: value for name, value in entry.items() if name not in ("when", "before")} for entry in entries]


def twin_of(home: Home) -> Home:
    """Another coordinator in the same state, with the same keys."""
    return Home(Path(shutil.copytree(home.root, home.root.with_name("twin"))))


# --- The first -------------------------------------------------------------------------------------------------------------


def test_a_new_federation_has_a_policy_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "adopt_base", lambda *_: None)  # the base body has no say in it, and takes its time
    home = Home(tmp_path / "hub")
    service.init(home, "guild", "127.0.0.1", 0)

    holds = policies.require_published(home)

    assert holds.policy == Policy("guild", 1, "style-studio")
    assert holds.policy == policies.draft(home)
    assert [line["version"] for line in lines(home) if line["what"] == "policy"] == [1]


@pytest.mark.parametrize("step", ["adopt_base", "policies.begin"])
def test_a_coordinator_whose_setup_was_cut_short_is_not_set_up_and_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_more: object) -> None:
        raise SystemExit

    home = Home(tmp_path / "hub")
    monkeypatch.setattr(service, "adopt_base", lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(f"coordinator.service.{step}", die)
        with pytest.raises(SystemExit):
            service.init(home, "guild", "127.0.0.1", 0)
    assert not home.config_file.exists()

    service.init(home, "guild", "127.0.0.1", 0)

    assert home.config().name == "guild"
    assert policies.require_published(home).policy.version == 1


def test_the_first_policy_needs_no_settings_to_be_written(bare: Home) -> None:
    home = bare
    home.config_file.unlink()

    policies.begin(home, CONFIG)

    assert policies.current(home).policy == Policy("guild", 1, CONFIG.modality)
    assert not home.config_file.exists()


def test_the_first_policy_is_what_is_usual_signed_with_the_release_key(home: Home) -> None:
    holds = policies.current(home)

    assert holds.policy == Policy("guild", 1, CONFIG.modality)
    assert policy.verify(holds.raw, holds.signatures, Trust.load(home.trust_file)) == holds
    assert home.policy_file.read_bytes() == holds.raw


def test_a_policy_that_was_published_is_a_line_in_the_account(home: Home) -> None:
    assert lines(home) == [{"what": "policy", "version": 1, "policy": policies.current(home).digest, "visibility": "open"}]


# --- The next --------------------------------------------------------------------------------------------------------------


def test_publishing_gives_the_next_version_and_leaves_those_before(home: Home) -> None:
    before = published(home)
    rewrite(home, clip=5.0)

    signed = policies.publish(home)

    assert signed.policy == Policy("guild", 2, CONFIG.modality, clip=5.0)
    assert policies.current(home) == signed
    assert set(published(home)) == {"1.json", "2.json"}
    assert published(home)["1.json"] == before["1.json"]
    assert [(line["version"], line["policy"]) for line in lines(home)][1:] == [(2, signed.digest)]


def test_a_policy_that_was_published_says_its_own_version_whatever_the_draft_said(home: Home) -> None:
    rewrite(home, clip=5.0, version=77)

    assert policies.publish(home).policy.version == 2
    assert policies.draft(home) == policies.current(home).policy


def test_the_file_is_left_as_it_was_signed(home: Home) -> None:
    home.policy_file.write_bytes(home.policy_file.read_bytes().replace(b"clip = 0.2", b"clip = 5 # as we said in spring"))

    signed = policies.publish(home)

    assert home.policy_file.read_bytes() == signed.raw
    assert signed.policy.clip == 5


@pytest.mark.parametrize(
    "touch", [lambda raw: raw, lambda raw: raw + b"# a remark\n", lambda raw: raw.replace(b"clip = 0.2", b"clip = 0.20")]
)
def test_publishing_what_holds_already_changes_nothing(home: Home, touch: Callable[[bytes], bytes]) -> None:
    before, account, holds = published(home), lines(home), policies.current(home)
    home.policy_file.write_bytes(touch(home.policy_file.read_bytes()))

    assert policies.publish(home) == holds
    assert policies.publish(home) == holds

    assert published(home) == before
    assert lines(home) == account
    assert home.policy_file.read_bytes() == holds.raw


def test_going_back_to_what_an_earlier_policy_said_is_a_new_version(home: Home) -> None:
    for clip in (5.0, 0.2):
        rewrite(home, clip=clip)
        policies.publish(home)

    assert policies.current(home).policy == Policy("guild", 3, CONFIG.modality)
    assert len(published(home)) == len(lines(home)) == 3


def test_the_tenth_version_is_newer_than_the_ninth(home: Home) -> None:
    for steps in range(1, 11):
        rewrite(home, steps=steps)
        policies.publish(home)

    assert policies.current(home).policy.version == 11


@pytest.mark.parametrize("name", ["99 (copy).json", ".99.json.0123456789ab.part", "99.txt", "x99.json", "99.json.bak"])
def test_what_else_lies_among_the_policies_is_no_version(home: Home, name: str) -> None:
    holds = policies.current(home)
    (home.policies / name).write_bytes(b"nonsense")

    assert policies.current(home) == holds
    rewrite(home, clip=5.0)
    assert policies.publish(home).policy.version == 2


def full(*_more: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_policy_that_cannot_be_written_is_not_published(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    holds, before = policies.current(home), published(home)
    rewrite(home, clip=5.0)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(ResourceError, match=r"2\.json could not be written"):
            policies.publish(home)

    assert policies.current(home) == holds
    assert published(home) == before
    assert len(lines(home)) == 1


def test_a_policy_whose_line_could_not_be_written_gets_it_when_it_is_published_again(home: Home) -> None:
    rewrite(home, clip=5.0)
    account = home.ledger_file.read_bytes()
    home.ledger_file.write_bytes(account + b"{}\n")  # a line that does not link

    with pytest.raises(IntegrityError, match="changed at line 2"):
        policies.publish(home)
    home.ledger_file.write_bytes(account)
    policies.publish(home)

    assert [line["version"] for line in lines(home)] == [1, 2]
    assert set(published(home)) == {"1.json", "2.json"}


def test_two_do_not_publish_at_once(home: Home) -> None:
    before = published(home)
    rewrite(home, clip=5.0)

    with held(home.publish_lock, "publishing"), pytest.raises(RefusedError, match="publishing is running already"):
        policies.publish(home)

    assert published(home) == before
    assert len(lines(home)) == 1
    assert policies.publish(home).policy.version == 2


def test_every_policy_that_was_published_gets_its_line(home: Home) -> None:
    # As after a kill between a file and its line, and a next version published since.
    digests = [policies.current(home).digest]
    for clip in (5.0, 6.0):
        rewrite(home, clip=clip)
        digests.append(policies.publish(home).digest)
    home.ledger_file.unlink()

    policies.publish(home)

    assert [(line["version"], line["policy"]) for line in lines(home)] == list(zip((1, 2, 3), digests, strict=True))


# --- Killed and begun again ------------------------------------------------------------------------------------------------


def kill_at(patch: pytest.MonkeyPatch, step: str, when: str) -> None:
    """Have this process die before or after it writes the policy, the account or the draft."""
    append_once = Ledger.append_once

    def stumbling(name: str, call: Callable[[], Any]) -> Any:
        if name == step and when == "before":
            raise SystemExit
        done = call()
        if name == step:
            raise SystemExit
        return done

    def keep(path: Path, value: object) -> None:
        stumbling("the policy", lambda: write_json(path, value))

    def write(path: Path, data: bytes) -> None:
        stumbling("the draft", lambda: write_atomic(path, data))

    def note(ledger: Ledger, entry: dict[str, Value], *names: str) -> bool:
        return bool(stumbling("the account", lambda: append_once(ledger, entry, *names)))

    patch.setattr(policies, "write_json", keep)
    patch.setattr(policies, "write_atomic", write)
    patch.setattr(Ledger, "append_once", note)


def assert_the_same(home: Home, twin: Home) -> None:
    assert published(home) == published(twin)
    assert lines(home) == lines(twin)
    assert home.policy_file.read_bytes() == twin.policy_file.read_bytes()
    assert policies.require_published(home) == policies.require_published(twin)


@pytest.mark.parametrize("step", ["the policy", "the account", "the draft"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_is_killed_while_publishing_and_publishes_again_has_published_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    rewrite(home, clip=5.0)
    twin = twin_of(home)
    policies.publish(twin)

    with monkeypatch.context() as patch:
        kill_at(patch, step, when)
        with pytest.raises(SystemExit):
            policies.publish(home)
    assert policies.current(home).policy.version in (1, 2)  # what holds meanwhile is whole
    policies.publish(home)

    assert_the_same(home, twin)
    assert [line["version"] for line in lines(home)] == [1, 2]


@pytest.mark.parametrize("step", ["the policy", "the account", "the draft"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_is_killed_at_the_first_policy_and_begins_again_has_published_once(
    bare: Home, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    twin = twin_of(bare)
    policies.begin(twin, CONFIG)

    with monkeypatch.context() as patch:
        kill_at(patch, step, when)
        with pytest.raises(SystemExit):
            policies.begin(bare, CONFIG)
    policies.begin(bare, CONFIG)

    assert_the_same(bare, twin)
    assert [line["version"] for line in lines(bare)] == [1]


# --- The draft ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [policies.draft, policies.publish, policies.require_published])
def test_a_draft_that_is_gone_is_told_with_where_the_published_ones_lie(home: Home, ask: Callable[[Home], object]) -> None:
    home.policy_file.unlink()

    with pytest.raises(NotConfiguredError, match=r"there is no policy\.toml") as caught:
        ask(home)

    assert str(home.policy_file) in caught.value.advice
    assert str(home.policies) in caught.value.advice


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _raw: b"\xff", "cannot be read"),
        (lambda raw: raw + b"steps = 3\n", "cannot be read"),
        (lambda raw: raw.replace(b"clip = 0.2", b"clip = 0.0"), r"has clip = 0\.0; allowed is 0\.001 to 10000"),
        (lambda raw: raw.replace(b"clip", b"klip"), "has an unknown key 'klip'"),
        (lambda raw: raw.replace(b'"open"', b'"veiled"'), "is veiled, which takes minimum_nodes = 5 or more"),
        (lambda _raw: b"", "lacks a value"),
    ],
)
@pytest.mark.parametrize("ask", [policies.draft, policies.publish, policies.require_published])
def test_a_draft_that_is_no_policy_is_told_and_what_holds_goes_on_holding(
    home: Home, ask: Callable[[Home], object], damage: Callable[[bytes], bytes], reason: str
) -> None:
    holds, before = policies.current(home), published(home)
    home.policy_file.write_bytes(damage(home.policy_file.read_bytes()))

    with pytest.raises(NotConfiguredError, match=rf"policy\.toml {reason}") as caught:
        ask(home)

    assert f"Edit {home.policy_file}" in caught.value.advice
    assert (policies.current(home), published(home)) == (holds, before)
    assert len(lines(home)) == 1


def test_a_draft_that_is_longer_than_any_policy_is_not_read(home: Home) -> None:
    raw = home.policy_file.read_bytes()
    home.policy_file.write_bytes(raw + b"#" * (POLICY_MAX_BYTES - len(raw)))
    assert policies.draft(home) == policies.current(home).policy

    home.policy_file.write_bytes(raw + b"#" * (POLICY_MAX_BYTES - len(raw) + 1))

    with pytest.raises(IntegrityError, match="larger than"):
        policies.draft(home)


@pytest.mark.parametrize("change", [{"federation": "others"}, {"modality": "style-kiosk"}])
@pytest.mark.parametrize("ask", [policies.draft, policies.publish, policies.require_published])
def test_a_draft_for_another_federation_or_kind_of_art_is_refused(
    home: Home, ask: Callable[[Home], object], change: dict[str, str]
) -> None:
    before = published(home)
    settings.save(home.policy_file, replace(policies.draft(home), **change))  # type: ignore[arg-type]

    with pytest.raises(NotConfiguredError, match=f"is for .*{next(iter(change.values()))}") as caught:
        ask(home)

    assert "federation = 'guild' and modality = 'style-studio'" in caught.value.advice
    assert published(home) == before


# --- What holds ------------------------------------------------------------------------------------------------------------


def test_before_the_first_policy_there_is_none(bare: Home) -> None:
    with pytest.raises(NotConfiguredError, match="no policy was published") as caught:
        policies.current(bare)

    assert "sfumato-coordinator policy publish" in caught.value.advice


def test_a_draft_that_is_not_published_binds_nobody(home: Home) -> None:
    holds = policies.current(home)

    rewrite(home, clip=5.0)

    assert policies.current(home) == holds


@pytest.mark.parametrize(
    "change",
    [
        {"minimum_nodes": 5},
        {"minimum_nodes": 3},
        {"rounds": 999},
        {"steps": 61},
        {"deadline_s": 3601.0},
        {"clip": 10.5},
        {"noise": 0.1},
        {"keep": 0.06},
        {"aggregation": "robust"},
    ],
)
def test_nobody_acts_while_the_draft_says_something_else(home: Home, change: dict[str, Any]) -> None:
    rewrite(home, **change)

    with pytest.raises(RefusedError, match=r"policy\.toml was changed and not published") as caught:
        policies.require_published(home)

    assert "sfumato-coordinator policy publish" in caught.value.advice
    assert policies.publish(home) == policies.require_published(home)


def test_veiled_rounds_are_published_as_a_policy_of_their_own(home: Home) -> None:
    rewrite(home, visibility="veiled", minimum_nodes=5)

    assert policies.publish(home).policy.visibility == "veiled"
    assert lines(home)[-1]["visibility"] == "veiled"


@pytest.mark.parametrize("touch", [lambda raw: raw + b"# a remark\n", lambda raw: raw.replace(b"version = 1", b"version = 9")])
def test_a_remark_or_a_version_in_the_draft_keeps_nobody_from_acting(home: Home, touch: Callable[[bytes], bytes]) -> None:
    holds = policies.current(home)
    home.policy_file.write_bytes(touch(home.policy_file.read_bytes()))

    assert policies.require_published(home) == holds


def plainly(change: Callable[[dict[str, str]], object]) -> Callable[[Home], bytes]:
    """A change of what the file of the first policy says."""
    return lambda home: json.dumps(change(json.loads((home.policies / "1.json").read_bytes()))).encode()


def by_another_key(_home: Home) -> bytes:
    signed = policy.sign(Policy("guild", 1, CONFIG.modality, clip=1e4), releases.KEY)
    return json.dumps(policy.to_plain(signed)).encode()


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (
            plainly(lambda plain: {**plain, "policy": plain["policy"].replace("clip = 0.2", "clip = 9.0")}),
            "not signed by 'guild'",
        ),
        (plainly(lambda plain: {**plain, "signatures": '{"signatures":{}}'}), "not signed by 'guild'"),
        (plainly(lambda plain: {**plain, "signatures": ""}), "signature file cannot be read"),
        (plainly(lambda plain: {"policy": plain["policy"]}), "policy 1 cannot be read"),
        (plainly(lambda plain: {**plain, "policy": "#" * (POLICY_MAX_BYTES + 1)}), "too long"),
        (plainly(lambda _plain: []), "policy 1 cannot be read"),
        (by_another_key, "not signed by 'guild'"),
        (lambda _home: b"", "policy 1 cannot be read"),
        (lambda _home: b"\xff", "policy 1 cannot be read"),
        (lambda _home: b"[" * 50_000, "policy 1 cannot be read"),
        (lambda _home: b" " * (16 * POLICY_MAX_BYTES + 1), "larger than"),
    ],
)
@pytest.mark.parametrize("ask", [policies.current, policies.publish, policies.require_published])
def test_a_published_policy_that_was_changed_is_noticed(
    home: Home, ask: Callable[[Home], SignedPolicy], tamper: Callable[[Home], bytes], reason: str
) -> None:
    (home.policies / "1.json").write_bytes(tamper(home))

    with pytest.raises(IntegrityError, match=reason):
        ask(home)

    assert set(published(home)) == {"1.json"}


@pytest.mark.parametrize("ask", [policies.current, policies.publish, policies.require_published])
def test_a_published_policy_under_another_number_is_noticed(home: Home, ask: Callable[[Home], SignedPolicy]) -> None:
    # Signed by the federation, and still not the one that was published as this.
    shutil.copy(home.policies / "1.json", home.policies / "2.json")

    with pytest.raises(IntegrityError, match="policy 2 says it is 1"):
        ask(home)

    assert len(lines(home)) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_an_earlier_policy_that_cannot_be_read_is_noticed_by_whoever_publishes(home: Home, *, is_there: bool) -> None:
    rewrite(home, clip=5.0)
    policies.publish(home)
    (home.policies / "1.json").unlink()
    if is_there:
        (home.policies / "1.json").mkdir()

    with pytest.raises(IntegrityError, match="policy 1 cannot be read") as caught:
        policies.publish(home)

    assert "from a backup" in caught.value.advice


def test_a_policy_of_bytes_that_take_six_times_their_room_is_read_back(home: Home) -> None:
    raw = policies.current(home).raw
    raw += b"#" * (POLICY_MAX_BYTES - len(raw))
    signatures = sign_as(policy._CONTEXT, raw, pki.release_key(home)).decode()
    escaped = "".join(f"\\u{sign:04x}" for sign in raw)
    (home.policies / "1.json").write_text(f'{{"policy":"{escaped}","signatures":{json.dumps(signatures)}}}')

    assert (home.policies / "1.json").stat().st_size > 6 * POLICY_MAX_BYTES
    assert policies.current(home).raw == raw


def test_a_coordinator_whose_trust_names_another_key_notices(home: Home) -> None:
    Trust("guild", (releases.public(releases.KEY),)).save(home.trust_file)

    with pytest.raises(IntegrityError, match="not signed by 'guild'"):
        policies.current(home)
