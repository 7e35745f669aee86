"""Learning, renewing and rounds on one machine, with a small network and a cheap glass."""

import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

from edge_node import guard, keys, library, releases, round_state, styles, train
from edge_node.config import Home
from edge_node.errors import NoWorksError
from edge_node.train import RoundTraining
from export import release, settings, weights
from export.errors import RefusedError, SfumatoError
from export.files import digest_of
from export.ledger import Ledger, Value
from export.signing import VerifiedRelease
from export.to_onnx import with_body
from models import privacy
from models.contract import Score
from models.update import Assignment, Declined, Ready, Step, Update, VeiledPart, VeiledStep
from tests import simulators


@pytest.fixture
def home(tmp_path: Path, world: VerifiedRelease) -> Home:
    """A member with two works in its library, whose artist has agreed to the policy."""
    del world
    made = simulators.agreeing(simulators.trusting(simulators.make_node(tmp_path / "home")))
    simulators.write_works(tmp_path / "works")
    library.add(made, tmp_path / "works")
    return made


@pytest.fixture
def works(home: Home, tmp_path: Path) -> Path:
    del home
    return tmp_path / "works"


def begun(home: Home) -> train._Pupil:
    """What a process that has just started makes of what lies there."""
    return RoundTraining(home)._prepared(round_state.load(home.round_file))[0]


def updates_in(home: Home) -> list[dict[str, Value]]:
    """The updates in a node's account."""
    return [entry for entry in Ledger(home.ledger_file).entries() if entry["what"] == "update"]


def nothing(_done: int, _total: int) -> None:
    """No progress bar."""


def assigned(packaged: VerifiedRelease, number: int = 1, **changes: object) -> Assignment:
    layout = simulators.body_layout()
    parts: dict[str, object] = {
        "federation": "guild",
        "modality": "style-studio",
        "round": number,
        "policy": simulators.POLICY.digest,
        "body": layout.flatten(release.body_of(packaged)),
        "layout_digest": layout.digest,
    }
    return Assignment(**{**parts, **changes})  # type: ignore[arg-type]


def install_moved_body(home: Home, packaged: VerifiedRelease, folder: Path, by: float = 0.01) -> VerifiedRelease:
    """A release of the base's body, moved a little."""
    body = {name: array + np.float32(by) for name, array in release.body_of(packaged).items()}
    packed = weights.pack(body)
    exact = with_body(packaged.read(release.EXACT), body)
    assert exact != packaged.read(release.EXACT)
    simulators.release_again(packaged, folder, body_bytes=packed, body=digest_of(packed), version=2)
    return releases.install(home, folder)


# --- Learning ----------------------------------------------------------------------------------------------------------


def test_learning_makes_a_style_on_the_current_body(home: Home, works: Path, world: VerifiedRelease) -> None:
    learned = train.learn(home, "sea", works, nothing)

    assert styles.find(home, "sea") == learned
    assert learned.body == world.manifest.body
    assert (learned.artist, learned.works, learned.folder_of_works) == ("Ada", 2, str(works))
    assert learned.code().shape == world.manifest.signature.code.shape[1:]
    assert all(not np.array_equal(learned.code(), public) for public in release.codes_of(world).values())


def test_learning_tells_its_progress(home: Home, works: Path) -> None:
    told: list[tuple[int, int]] = []

    train.learn(home, "sea", works, lambda done, total: told.append((done, total)))

    assert told == [(1, 3), (2, 3), (3, 3)]


def test_learning_sends_nothing(home: Home, works: Path) -> None:
    train.learn(home, "sea", works, nothing)

    assert updates_in(home) == []


def test_learning_needs_works(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(NoWorksError, match="holds no work"):
        train.learn(home, "sea", tmp_path / "empty", nothing)

    assert styles.names(home) == []


# --- Renewing ----------------------------------------------------------------------------------------------------------


def test_a_style_on_the_current_body_is_left_alone(home: Home, works: Path) -> None:
    train.learn(home, "sea", works, nothing)

    assert train.renew(home, "sea", releases.current(home)) is None


def test_a_style_is_fitted_to_a_new_body_if_it_is_no_worse(
    home: Home, works: Path, world: VerifiedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = train.learn(home, "sea", works, nothing)
    moved = install_moved_body(home, world, tmp_path / "two")
    monkeypatch.setattr(train, "_score_of", lambda *_: Score(style=1e9, content=0.0))

    renewed = train.renew(home, "sea", releases.current(home))

    assert renewed is not None
    assert renewed.body == moved.manifest.body != old.body
    assert styles.find(home, "sea") == renewed
    assert renewed.folder_of_works == old.folder_of_works
    assert old.folder.is_dir()


def test_the_old_style_is_judged_on_the_same_exam_by_the_body_it_belongs_to(
    home: Home, works: Path, world: VerifiedRelease, tmp_path: Path
) -> None:
    # Nothing is replaced here: the old code on its own body meets the new one on a body shaken until it paints nothing.
    old = train.learn(home, "sea", works, nothing)
    install_moved_body(home, world, tmp_path / "two", by=5.0)

    judged = train._score_of(home, old, library.load_folder(works).works)

    assert judged.style == pytest.approx(old.score.style, rel=1e-3)
    assert train.renew(home, "sea", releases.current(home)) is None
    assert styles.find(home, "sea") == old


@pytest.mark.parametrize("before", [0.0, float("nan")])
def test_a_style_that_got_worse_stays_on_its_body_and_goes_on_painting(
    home: Home, works: Path, world: VerifiedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: float
) -> None:
    old = train.learn(home, "sea", works, nothing)
    install_moved_body(home, world, tmp_path / "two")
    monkeypatch.setattr(train, "_score_of", lambda *_: Score(style=before, content=1.0))

    assert train.renew(home, "sea", releases.current(home)) is None
    assert styles.find(home, "sea") == old
    assert releases.with_body(home, old.body).digest == world.digest


def test_a_style_whose_works_are_gone_is_told_and_stays(
    home: Home, works: Path, world: VerifiedRelease, tmp_path: Path
) -> None:
    old = train.learn(home, "sea", works, nothing)
    install_moved_body(home, world, tmp_path / "two")
    for work in works.iterdir():
        work.unlink()

    with pytest.raises(NoWorksError):
        train.renew(home, "sea", releases.current(home))

    assert styles.find(home, "sea") == old


def test_the_rounds_style_is_made_from_the_code_the_rounds_left(home: Home, world: VerifiedRelease) -> None:
    RoundTraining(home).run(assigned(world))

    renewed = train.renew(home, "ada", releases.current(home))

    assert renewed is not None
    assert (renewed.name, renewed.works, renewed.folder_of_works) == ("ada", 2, "")


def test_no_style_is_made_where_there_is_neither_one_nor_a_round(home: Home) -> None:
    assert train.renew(home, "ada", releases.current(home)) is None
    assert styles.names(home) == []


def test_renewing_does_not_bring_back_what_rounds_made_before_the_style_was_learned_anew(
    home: Home, works: Path, world: VerifiedRelease
) -> None:
    RoundTraining(home).run(assigned(world))

    train.learn(home, "sea", works, nothing)
    assert train._saved_code(home, releases.current(home)) is not None
    train.learn(home, "ada", works, nothing)
    assert train._saved_code(home, releases.current(home)) is None


# --- Rounds ------------------------------------------------------------------------------------------------------------


def test_a_round_answers_with_the_bodys_movement_no_longer_than_the_clip(home: Home, world: VerifiedRelease) -> None:
    update = RoundTraining(home).run(assigned(world, number=7))

    assert isinstance(update, Update)
    assert (update.federation, update.round, update.policy, update.steps) == ("guild", 7, simulators.POLICY.digest, 2)
    assert update.tensors == simulators.body_layout().names
    assert 0 < privacy.norm(simulators.delta_of(update)) <= 0.05
    assert np.isfinite([update.loss_before, update.loss_after]).all()


def test_a_round_leaves_a_line_in_the_ledger_and_the_code_on_this_machine_only(home: Home, world: VerifiedRelease) -> None:
    update = RoundTraining(home).run(assigned(world))

    assert isinstance(update, Update)
    (entry,) = updates_in(home)
    code_file = train._code_file(home)
    code = weights.unpack(code_file.read_bytes())["code"]
    assert entry["sha256"] == digest_of(update.payload)
    assert code_file.stat().st_mode & 0o077 == 0
    assert not simulators.shares_a_window(update.payload, code.tobytes())


def test_the_next_round_goes_on_from_the_code_of_the_last(home: Home, world: VerifiedRelease) -> None:
    RoundTraining(home).run(assigned(world))
    left = train._saved_code(home, releases.current(home))

    again = begun(home)  # a new process, as after a restart

    assert left is not None
    np.testing.assert_array_equal(again.code(), left)


def test_what_the_optimiser_has_seen_lasts_from_round_to_round_and_no_longer_than_the_works(
    home: Home, works: Path, world: VerifiedRelease
) -> None:
    training = RoundTraining(home)
    for number in (1, 2):
        training.run(assigned(world, number=number))
    assert training._pupil is not None
    steps = {state["step"].item() for state in training._pupil.moments.seen.values()}
    assert steps == {4.0}  # two rounds of two

    (works / "work-0.png").unlink()
    training.run(assigned(world, number=3))

    assert {state["step"].item() for state in training._pupil.moments.seen.values()} == {2.0}


def test_the_first_round_goes_on_from_the_main_style_if_it_is_of_this_body(
    home: Home, works: Path, world: VerifiedRelease, tmp_path: Path
) -> None:
    learned = train.learn(home, "ada", works, nothing)

    np.testing.assert_array_equal(begun(home).code(), learned.code())
    install_moved_body(home, world, tmp_path / "two")
    assert not np.array_equal(begun(home).code(), learned.code())


def test_a_style_learned_anew_is_what_the_next_round_goes_on_from(home: Home, works: Path, world: VerifiedRelease) -> None:
    training = RoundTraining(home)
    training.run(assigned(world))
    kept = training._pupil
    state = round_state.load(home.round_file)

    assert training._prepared(state)[0] is kept
    learned = train.learn(home, "ada", works, nothing)
    pupil, _, residual = training._prepared(state)
    np.testing.assert_array_equal(pupil.code(), learned.code())
    assert residual is None


@pytest.mark.parametrize("rounds_before", [0, 1])
def test_a_style_learned_anew_during_a_round_is_not_overwritten_by_it(
    home: Home, works: Path, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch, rounds_before: int
) -> None:
    training = RoundTraining(home)
    for number in range(rounds_before):
        training.run(assigned(world, number=number + 1))
    seal, learned = guard.seal, []

    def slow_seal(*arguments: Any) -> guard.Sealed[Update]:
        learned.append(train.learn(home, "ada", works, nothing))
        return seal(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(guard, "seal", slow_seal)
        with pytest.raises(RefusedError, match="works were changed during the round"):
            training.run(assigned(world, number=9))

    assert len(updates_in(home)) == rounds_before
    np.testing.assert_array_equal(begun(home).code(), learned[0].code())


def test_two_artists_draw_different_lessons_and_one_artist_the_same(home: Home, world: VerifiedRelease, tmp_path: Path) -> None:
    """What all nodes of a round have in common in their draws does not average out."""
    del world
    other = simulators.agreeing(simulators.trusting(simulators.make_node(tmp_path / "other", artist="Grace")))
    library.add(other, tmp_path / "works")
    photos = [begun(place).lessons.batch(0).photo for place in (home, home, other)]

    assert torch.equal(photos[0], photos[1])
    assert not torch.equal(photos[0], photos[2])


def test_a_style_learned_anew_while_it_is_being_renewed_is_not_overwritten(
    home: Home, works: Path, world: VerifiedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.learn(home, "sea", works, nothing)
    source = install_moved_body(home, world, tmp_path / "moved")
    learned = []
    score_of = train._score_of

    def slow_score(*arguments: Any) -> Score:
        learned.append(train.learn(home, "sea", works, nothing))
        return replace(score_of(*arguments), style=9.0)

    monkeypatch.setattr(train, "_score_of", slow_score)

    assert train.renew(home, "sea", source) is None
    assert styles.find(home, "sea") == learned[0]
    assert learned[0].body == source.manifest.body


def test_a_withdrawn_work_stops_counting_and_a_new_one_starts(home: Home, works: Path, world: VerifiedRelease) -> None:
    training = RoundTraining(home)
    training.run(assigned(world))
    first = training._pupil

    (works / "work-0.png").unlink()
    training.run(assigned(world, number=2))
    second = training._pupil
    simulators.write_works(works.with_name("more"), seed=3, count=1)
    library.add(home, works.with_name("more"))
    training.run(assigned(world, number=3))

    assert first is not second is not training._pupil is not first


def test_a_library_that_is_as_it_was_is_measured_once(home: Home, world: VerifiedRelease) -> None:
    training = RoundTraining(home)
    training.run(assigned(world))
    first = training._pupil

    training.run(assigned(world, number=2))

    assert training._pupil is first is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_body_that_is_not_finite_is_refused_and_the_next_round_is_as_if_it_had_not_been(
    home: Home, world: VerifiedRelease, value: float
) -> None:
    spoilt = simulators.body_layout().flatten(release.body_of(world))
    spoilt[7] = value
    training = RoundTraining(home)
    training.run(assigned(world))

    with pytest.raises(RefusedError, match="not finite"):
        training.run(assigned(world, number=2, body=spoilt))

    assert np.isfinite(simulators.delta_of(training.run(assigned(world, number=3)))).all()


def test_a_body_that_spoils_the_training_spoils_no_more_than_its_round(home: Home, world: VerifiedRelease) -> None:
    huge = np.full(simulators.body_layout().size, 3e38, np.float32)
    training = RoundTraining(home)
    training.run(assigned(world))
    code = train._saved_code(home, releases.current(home))

    with pytest.raises(ArithmeticError, match="finite"):
        training.run(assigned(world, number=2, body=huge))

    assert training._pupil is None
    np.testing.assert_array_equal(train._saved_code(home, releases.current(home)), code)
    assert np.isfinite(simulators.delta_of(training.run(assigned(world, number=3)))).all()
    assert [entry["round"] for entry in updates_in(home)] == [1, 3]


def test_a_code_that_was_spoilt_unnoticed_is_not_kept(
    home: Home, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(net: torch.nn.Module, *_more: object) -> float:
        net.state_dict()["codes"].fill_(float("nan"))
        return 1.0

    training = RoundTraining(home)
    monkeypatch.setattr("models.training.fit", spoil)
    with pytest.raises(ArithmeticError, match="left numbers that are not finite"):
        training.run(assigned(world))

    assert training._pupil is None
    assert not train._code_file(home).exists()
    assert updates_in(home) == []


# --- Agreement ----------------------------------------------------------------------------------------------------------


def test_without_the_artists_agreement_no_part_is_taken(home: Home, world: VerifiedRelease) -> None:
    home.consent_file.unlink()

    assert RoundTraining(home).run(assigned(world)) == Declined(1, "no-consent")
    assert updates_in(home) == []
    assert not home.round_file.exists()


def test_under_another_policy_than_was_agreed_to_no_part_is_taken(home: Home, world: VerifiedRelease) -> None:
    other = simulators.policy_with(version=2, noise=0.1)

    assert RoundTraining(home).run(assigned(world, policy=other.digest)) == Declined(1, "no-consent")
    simulators.agreeing(home, other)
    assert isinstance(RoundTraining(home).run(assigned(world, policy=other.digest)), Update)
    assert RoundTraining(home).run(assigned(world, number=2)) == Declined(2, "no-consent")


def test_an_agreement_is_good_for_the_rounds_it_says_and_can_be_given_again(
    home: Home, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = simulators.policy_with(version=2, rounds=2)
    simulators.agreeing(home, two)
    training = RoundTraining(home)

    answers = [training.run(assigned(world, number=number, policy=two.digest)) for number in (1, 2, 3)]

    assert [type(answer) for answer in answers] == [Update, Update, Declined]
    assert answers[2] == Declined(3, "rounds-spent")
    monkeypatch.setattr("edge_node.clock.now_s", lambda _home: 1.9e9)  # another moment, so another agreement
    simulators.agreeing(home, two)
    assert isinstance(training.run(assigned(world, number=4, policy=two.digest)), Update)


@pytest.mark.parametrize(("bound", "value"), [("clip_max", 0.049), ("steps_max", 1)])
def test_more_than_this_machine_allows_is_declined_though_it_was_agreed_to(
    home: Home, world: VerifiedRelease, bound: str, value: float
) -> None:
    settings.save(home.config_file, replace(home.config(), **{bound: value}))  # type: ignore[arg-type]

    assert RoundTraining(home).run(assigned(world)) == Declined(1, "too-much-asked")
    assert updates_in(home) == []


def test_what_binds_a_node_is_the_policy_it_agreed_to(home: Home, world: VerifiedRelease) -> None:
    tight = simulators.policy_with(version=2, clip=0.001, steps=1, keep=0.05)
    simulators.agreeing(home, tight)

    update = RoundTraining(home).run(assigned(world, policy=tight.digest))

    assert isinstance(update, Update)
    assert update.steps == 1
    delta = simulators.delta_of(update)
    assert 0 < privacy.norm(delta) <= 0.001
    assert 0 < np.count_nonzero(delta) <= round(0.05 * delta.size)


# --- Veiled rounds ------------------------------------------------------------------------------------------------------

VEILED: Final = simulators.policy_with(version=2, visibility="veiled", minimum_nodes=5)


def step_of(number: int, step: Step = "roster", payload: bytes = b"") -> VeiledStep:
    return VeiledStep("guild", number, VEILED.digest, step, payload)


def test_a_node_that_has_trained_for_a_veiled_round_says_so_and_sends_no_number(home: Home, world: VerifiedRelease) -> None:
    simulators.agreeing(home, VEILED)

    answer = RoundTraining(home).run(assigned(world, policy=VEILED.digest))

    assert isinstance(answer, VeiledPart)
    assert (answer.part, answer.payload) == ("ready", b"")
    assert updates_in(home) == []
    kept = round_state.load(home.round_file)
    assert kept is not None
    assert isinstance(kept.update, Ready)
    assert 0 < privacy.norm(kept.update.delta) <= VEILED.policy.clip


def test_the_same_is_asked_again_and_answered_again_without_training(home: Home, world: VerifiedRelease) -> None:
    simulators.agreeing(home, VEILED)
    first = RoundTraining(home).run(assigned(world, policy=VEILED.digest))
    kept = home.round_file.read_bytes()

    assert RoundTraining(home).run(assigned(world, policy=VEILED.digest)) == first
    assert home.round_file.read_bytes() == kept


def test_a_step_goes_on_from_what_was_trained_even_after_a_restart(home: Home, world: VerifiedRelease) -> None:
    simulators.agreeing(home, VEILED)
    RoundTraining(home).run(assigned(world, policy=VEILED.digest))

    answer = RoundTraining(home).run(step_of(1, payload=b"no roster"))

    assert isinstance(answer, VeiledPart)
    assert (answer.part, answer.payload) == ("refused", b"malformed")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _home, _works: step_of(2),
        lambda home, _works: home.round_file.unlink() or step_of(1),
        lambda _home, works: (works / "work-0.png").unlink() or step_of(1),
    ],
    ids=["of another round", "whose state is lost", "of works that changed"],
)
def test_a_step_without_its_training_is_refused(
    home: Home, works: Path, world: VerifiedRelease, spoil: Callable[[Home, Path], VeiledStep]
) -> None:
    simulators.agreeing(home, VEILED)
    RoundTraining(home).run(assigned(world, policy=VEILED.digest))

    with pytest.raises(RefusedError, match="came without its training"):
        RoundTraining(home).run(spoil(home, works))


def test_a_step_of_an_open_round_there_is_none(home: Home, world: VerifiedRelease) -> None:
    """What was made to be seen alone is not sent in another way, whatever the coordinator asks."""
    RoundTraining(home).run(assigned(world))

    with pytest.raises(RefusedError, match="came without its training"):
        RoundTraining(home).run(replace(step_of(1), policy=simulators.POLICY.digest))


def test_a_step_under_a_policy_that_is_not_agreed_to_is_declined(home: Home, world: VerifiedRelease) -> None:
    simulators.agreeing(home, VEILED)
    RoundTraining(home).run(assigned(world, policy=VEILED.digest))

    assert RoundTraining(home).run(replace(step_of(1), policy="0" * 64)) == Declined(1, "no-consent")
    home.consent_file.unlink()
    assert RoundTraining(home).run(step_of(1)) == Declined(1, "no-consent")


# --- Killed and begun again ----------------------------------------------------------------------------------------------


def test_a_node_that_was_started_anew_goes_on_bit_for_bit(home: Home, world: VerifiedRelease, tmp_path: Path) -> None:
    twin = simulators.agreeing(simulators.trusting(simulators.make_node(tmp_path / "twin")))
    library.add(twin, tmp_path / "works")
    keys.public_keys(home)
    shutil.copytree(home.root / "keys", twin.root / "keys", dirs_exist_ok=True)
    lasting = RoundTraining(home)

    for number in (1, 2, 3):
        one = lasting.run(assigned(world, number=number))
        other = RoundTraining(twin).run(assigned(world, number=number))  # a new process each time
        assert one == other
    assert weights.unpack(train._code_file(home).read_bytes())["code"].tobytes() == (
        weights.unpack(train._code_file(twin).read_bytes())["code"].tobytes()
    )


def test_a_round_that_is_asked_for_again_is_answered_with_the_same_update_and_no_second_line(
    home: Home, world: VerifiedRelease
) -> None:
    first = RoundTraining(home).run(assigned(world))
    code = train._code_file(home).read_bytes()

    again = RoundTraining(home).run(assigned(world))

    assert again == first
    assert train._code_file(home).read_bytes() == code
    assert len(updates_in(home)) == 1


@pytest.mark.parametrize("place", ["edge_node.round_state.save", "edge_node.guard.note", "edge_node.train.write_atomic"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_node_killed_at_any_step_sends_what_it_would_have_sent(
    home: Home, world: VerifiedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, when: str
) -> None:
    twin = simulators.agreeing(simulators.trusting(simulators.make_node(tmp_path / "twin")))
    library.add(twin, tmp_path / "works")
    keys.public_keys(home)
    shutil.copytree(home.root / "keys", twin.root / "keys", dirs_exist_ok=True)
    undisturbed = [RoundTraining(twin).run(assigned(world, number=number)) for number in (1, 2)]
    RoundTraining(home).run(assigned(world, number=1))
    owner_name, _, name = place.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    step = getattr(owner, name)

    def stumble(*arguments: object, **named: object) -> None:
        if when == "after":
            step(*arguments, **named)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stumble)
        with pytest.raises(SystemExit):
            RoundTraining(home).run(assigned(world, number=2))

    assert RoundTraining(home).run(assigned(world, number=2)) == undisturbed[1]
    assert [entry["round"] for entry in updates_in(home)] == [1, 2]
    assert [entry["sha256"] for entry in updates_in(home)] == [entry["sha256"] for entry in updates_in(twin)]


@pytest.mark.parametrize("number", [1, 2])
def test_a_coordinator_that_goes_back_is_not_followed(home: Home, world: VerifiedRelease, number: int) -> None:
    # With another body under the same number it would get two views of the same works.
    training = RoundTraining(home)
    for earlier in (1, 2):
        training.run(assigned(world, number=earlier))
    other = simulators.body_layout().flatten(release.body_of(world)) + np.float32(0.01)

    with pytest.raises(RefusedError, match=f"round {number} was asked for after round 2"):
        training.run(assigned(world, number=number, body=other))

    assert len(updates_in(home)) == 2


def test_an_update_that_was_made_is_not_sent_after_the_agreement_was_taken_back(home: Home, world: VerifiedRelease) -> None:
    RoundTraining(home).run(assigned(world))
    home.consent_file.unlink()

    assert RoundTraining(home).run(assigned(world)) == Declined(1, "no-consent")


def test_an_update_that_was_made_is_not_sent_after_a_work_of_it_was_withdrawn(
    home: Home, works: Path, world: VerifiedRelease
) -> None:
    RoundTraining(home).run(assigned(world))
    (works / "work-0.png").unlink()

    with pytest.raises(RefusedError, match="round 1 was asked for after round 1 was answered"):
        RoundTraining(home).run(assigned(world))


def test_an_update_that_was_made_is_not_sent_under_another_agreement_or_beyond_lowered_bounds(
    home: Home, world: VerifiedRelease
) -> None:
    RoundTraining(home).run(assigned(world))
    settings.save(home.config_file, replace(home.config(), steps_max=1))
    assert RoundTraining(home).run(assigned(world)) == Declined(1, "too-much-asked")

    settings.save(home.config_file, replace(home.config(), steps_max=5000))
    simulators.agreeing(home, simulators.policy_with(version=2, rounds=3))
    assert RoundTraining(home).run(assigned(world)) == Declined(1, "no-consent")
    assert len(updates_in(home)) == 1


def test_the_last_round_of_an_agreement_is_answered_again(home: Home, world: VerifiedRelease) -> None:
    one = simulators.policy_with(version=2, rounds=1)
    simulators.agreeing(home, one)
    first = RoundTraining(home).run(assigned(world, policy=one.digest))

    assert isinstance(first, Update)
    assert RoundTraining(home).run(assigned(world, policy=one.digest)) == first
    assert RoundTraining(home).run(assigned(world, number=2, policy=one.digest)) == Declined(2, "rounds-spent")


@pytest.mark.parametrize("rounds", [1, 2])
def test_an_update_that_was_made_and_not_written_down_counts(
    home: Home, world: VerifiedRelease, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    agreed = simulators.policy_with(version=2, rounds=rounds)
    simulators.agreeing(home, agreed)

    def die(*_more: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(guard, "note", die)
        with pytest.raises(SystemExit):
            RoundTraining(home).run(assigned(world, policy=agreed.digest))

    assert updates_in(home) == []
    other = simulators.body_layout().flatten(release.body_of(world)) + np.float32(0.01)
    if rounds == 1:
        assert RoundTraining(home).run(assigned(world, number=2, policy=agreed.digest)) == Declined(2, "rounds-spent")
    else:
        with pytest.raises(RefusedError, match="round 1 was asked for after round 1 was answered"):
            RoundTraining(home).run(assigned(world, policy=agreed.digest, body=other))
    assert isinstance(RoundTraining(home).run(assigned(world, policy=agreed.digest)), Update)
    assert [entry["round"] for entry in updates_in(home)] == [1]


def test_a_lost_state_neither_gives_rounds_back_nor_lets_the_coordinator_go_back(home: Home, world: VerifiedRelease) -> None:
    two = simulators.policy_with(version=2, rounds=2)
    simulators.agreeing(home, two)
    for number in (1, 2):
        RoundTraining(home).run(assigned(world, number=number, policy=two.digest))
        home.round_file.unlink()

    assert RoundTraining(home).run(assigned(world, number=3, policy=two.digest)) == Declined(3, "rounds-spent")
    simulators.agreeing(home, two)
    with pytest.raises(RefusedError, match="round 2 was asked for after round 2"):
        RoundTraining(home).run(assigned(world, number=2, policy=two.digest))


def test_what_updates_left_out_is_forgotten_with_the_works(home: Home, works: Path, world: VerifiedRelease) -> None:
    little = simulators.policy_with(version=2, keep=0.01)
    simulators.agreeing(home, little)
    training = RoundTraining(home)
    training.run(assigned(world, policy=little.digest))
    state = round_state.load(home.round_file)
    assert state is not None
    assert privacy.norm(state.residual) > 0
    assert training._prepared(state)[2] is not None

    (works / "work-0.png").unlink()

    assert training._prepared(state)[2] is None


def test_a_damaged_state_is_a_fresh_start(home: Home, world: VerifiedRelease) -> None:
    RoundTraining(home).run(assigned(world))
    home.round_file.write_bytes(home.round_file.read_bytes()[:-50])

    assert isinstance(RoundTraining(home).run(assigned(world, number=2)), Update)


def test_what_is_kept_between_rounds_is_for_this_user_alone(home: Home, world: VerifiedRelease) -> None:
    RoundTraining(home).run(assigned(world))

    assert home.round_file.stat().st_mode & 0o077 == 0


def test_the_same_assignment_moves_the_body_nearly_the_same_way_on_another_machine(
    home: Home, world: VerifiedRelease, tmp_path: Path
) -> None:
    twin = simulators.agreeing(simulators.trusting(simulators.make_node(tmp_path / "twin")))
    library.add(twin, tmp_path / "works")
    keys.public_keys(home)
    shutil.copytree(home.root / "keys", twin.root / "keys", dirs_exist_ok=True)

    first, second = (simulators.delta_of(RoundTraining(place).run(assigned(world))) for place in (home, twin))

    np.testing.assert_allclose(first, second, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"federation": "others"}, "did not join"),
        ({"modality": "style-kiosk"}, "did not join"),
        ({"layout_digest": "0" * 64}, "another layout"),
    ],
)
def test_an_assignment_that_is_not_this_federations_is_refused_and_nothing_leaves(
    home: Home, world: VerifiedRelease, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(SfumatoError, match=reason):
        RoundTraining(home).run(assigned(world, **changes))  # type: ignore[arg-type]

    assert updates_in(home) == []


def test_a_round_without_works_is_told(tmp_path: Path, world: VerifiedRelease) -> None:
    bare = simulators.agreeing(simulators.trusting(simulators.make_node(tmp_path / "bare")))

    with pytest.raises(NoWorksError):
        RoundTraining(bare).run(assigned(world))


def test_what_the_body_could_do_before_any_round_is_remembered(home: Home, world: VerifiedRelease) -> None:
    RoundTraining(home).run(assigned(world))
    first = json.loads(home.start_score_file.read_bytes())
    RoundTraining(home).run(assigned(world, number=2))

    assert set(first) == {"style", "content"}
    assert json.loads(home.start_score_file.read_bytes()) == first
