"""Private training on this machine: fitting a style to works, and refining the shared body for a round.

Whatever leaves is decided elsewhere (``guard.py``); here only the body's movement is computed. Works become target
statistics and are never an input of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edge_node import budget, consent, guard, keys, library, originality, releases, round_state, styles, veil
from edge_node.config import Home
from edge_node.errors import BudgetSpentError, NoConsentError, NotJoinedError, UnknownStyleError
from edge_node.guard import Sealed
from edge_node.round_state import RoundState
from edge_node.styles import Style
from export import backbones, release, weights
from export.errors import IntegrityError, RefusedError
from export.files import Digest, canonical_json, digest_of, read_bounded, write_atomic, write_json
from export.ledger import Ledger
from export.policy import Policy, SignedPolicy
from export.processes import return_freed_memory
from export.signing import VerifiedRelease
from models import private_training, registry, state, training
from models.contract import Lessons, Modality, Score, Work
from models.samplers import Code
from models.update import (
    Answered,
    Asked,
    Assignment,
    Declined,
    DeclineReason,
    Flat,
    Layout,
    LayoutError,
    Ready,
    Update,
    VeiledStep,
)

Progress = Callable[[int, int], None]
"""Told steps done and steps in all."""

_SEED: Final = 1503
_START_EXAMS: Final = 2
_SUITING_BATCHES: Final = 6
_SETTLING_BATCHES: Final = 4
# Of the modality's rates: a code fitted alone, or nearly so, may take longer steps than one that learns with a body.
_LEARN_RATE: Final = 3.0
_ROUND_RATE: Final = 3.0
_BODY_RATE: Final = 0.004  # of that: at six times as much the public styles lose 8 % in a round, and the gate refuses
_RENEW_RATE: Final = 2.0
_WORK_CLIP: Final = 100.0
"""Of what one work says in a private step; half of a body's gradients are longer than 250 (``models/modalities/style.py``)."""
_CODE_MAX_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class _Pupil:
    """A network that holds public codes and, in its last row, the artist's own, with lessons for all of them.

    ``moments`` last from round to round; like the code, they never leave the machine. ``public`` says how many codes, the first
    ones, are of public works, where each private work has a code of its own.
    """

    modality: Modality[Any, Any]
    net: Any
    lessons: Lessons[Any]
    moments: training.Moments = field(default_factory=training.Moments)
    public: int = 0

    @classmethod
    def of(
        cls, source: VerifiedRelease, works: Sequence[Work], code: Code | None, *, rehearses: bool = False, seed: int = _SEED
    ) -> _Pupil:
        """Set up on a release's body; without a code, start from the public code that fits the works best.

        Args:
            source: the release.
            works: the artist's.
            code: the artist's code so far.
            rehearses: also give lessons in the public styles, from the public works of the release: whoever trains the
                body must not make it forget what it could, and the gate looks at exactly that.
            seed: of the draws. Nodes that train one body draw differently: noise that all have in common does not average out.
        """
        modality = registry.find(source.manifest.modality)
        public = release.codes_of(source)
        rehearsed = release.pictures_of(source, release.WORKS) if rehearses else {}
        targets = [[], *([work] for work in rehearsed.values()), works]
        frozen = backbones.load_all(modality.backbones)
        photos = release.calibration_photos(source)
        lessons = modality.lessons(targets, photos, frozen, seed, emphasis=len(targets) - 1)
        pupil = cls(modality, modality.build(_SEED, codes=len(targets)), lessons)
        state.load_inplace(pupil.net, release.body_of(source))
        rows = [public[release.IDENTITY], *(public[name] for name in rehearsed)]
        pupil.set_codes([*rows, code if code is not None else pupil.best_start(rows, styles.public_codes(source).values())])
        pupil.settle()
        return_freed_memory()
        return pupil

    @classmethod
    def private(cls, source: VerifiedRelease, works: Sequence[Work], seed: int) -> _Pupil:
        """Set up for training within a privacy budget: lessons for each work by itself, all beginning at one public code.

        Which code that is must not depend on the works.
        """
        modality = registry.find(source.manifest.modality)
        public = release.codes_of(source)
        rehearsed = release.pictures_of(source, release.WORKS)
        targets = [[], *([work] for work in rehearsed.values()), *([work] for work in works)]
        photos = release.calibration_photos(source)
        lessons = modality.lessons(targets, photos, backbones.load_all(modality.backbones), seed)
        pupil = cls(modality, modality.build(_SEED, codes=len(targets)), lessons, public=1 + len(rehearsed))
        state.load_inplace(pupil.net, release.body_of(source))
        begin = public[min(styles.public_codes(source))]
        pupil.set_codes([public[release.IDENTITY], *(public[name] for name in rehearsed), *(begin for _ in works)])
        return_freed_memory()
        return pupil

    def set_codes(self, codes: Sequence[Code]) -> None:
        self.modality.set_codes_inplace(self.net, np.stack(codes))

    def best_start(self, rows: Sequence[Code], public: Iterable[Code]) -> Code:
        """The public code that, suited to the works, has the smallest loss on them: most of the way is shorter from there."""
        found: list[tuple[float, Code]] = []
        for code in public:
            self.set_codes([*rows, code])
            self.modality.suit_inplace(self.net, len(rows), map(self.lessons.batch, range(_SUITING_BATCHES)))
            found.append((self.modality.score(self.net, islice(self.lessons.exam(), _START_EXAMS)).style, self.code()))
        return min(found, key=lambda start: start[0])[1]

    @torch.no_grad()
    def settle(self) -> None:
        """Let the running statistics of the codes see some pictures before anything relies on them."""
        for step in range(_SETTLING_BATCHES):
            self.modality.objectives[0].loss(self.net, self.lessons.batch(step))

    def score(self) -> Score:
        return self.modality.score(self.net, self.lessons.exam())

    def distance(self, pictures: Sequence[Work]) -> float:
        """How far finished pictures are from the artist's works."""
        return self.lessons.distance(len(self.modality.codes(self.net)) - 1, pictures)

    def code(self) -> Code:
        """The artist's code as it is now."""
        code: Code = self.modality.codes(self.net)[-1]
        return code


def learn(home: Home, name: str, folder: Path, progress: Progress) -> Style:
    """Fit a private code to a folder of works with the body frozen, compile it, and check it for copies. Needs no network.

    Of many works some are used, see ``library.load_folder``; the style says how many of how many. If it is the style that
    rounds train, what they made of its code is forgotten, and they go on from this one.

    Args:
        home: this machine's folder.
        name: of the style.
        folder: of the works; remembered, so that the style can be renewed from them.
        progress: called after each step.

    Raises:
        NoWorksError: the folder holds no usable work.
        BadPictureError: it cannot be read.
    """
    loaded = library.load_folder(folder)
    config = home.config()
    torch.set_num_threads(config.threads)
    source = releases.current(home)
    pupil = _Pupil.of(source, loaded.works, code=None)
    plan = training.Plan(config.learn_steps, private_only=True, rate_scale=_LEARN_RATE)
    training.fit(pupil.net, pupil.modality, pupil.lessons, plan, lambda step, _loss: progress(step, config.learn_steps))
    lineage = styles.Lineage(config.artist, str(folder.resolve()), len(loaded.works), pupil.score(), loaded.found)
    with styles.writing(home):
        learned = styles.compile_style(home, name, pupil.code(), source, lineage, pupil.distance)
        if name == config.style:
            _code_file(home).unlink(missing_ok=True)
            write_atomic(_learned_file(home), learned.made.encode(), mode=0o600)
        return originality.check(learned, source, loaded)


def renew(home: Home, name: str, source: VerifiedRelease) -> Style | None:
    """Fit a style to the body of a release, from the code it has, and switch to it if it is no worse.

    Returns:
        The renewed style, or None where the old body and code go on serving, or there is neither style nor code.

    Raises:
        NoWorksError, BadPictureError: the works it was learned from are gone; it goes on serving as it is.
    """
    config = home.config()
    torch.set_num_threads(config.threads)
    old = styles.find(home, name) if name in styles.names(home) else None
    if old is not None and old.body == source.manifest.body:
        return None
    start = _saved_code(home, source) if name == config.style else None
    if start is None:
        if old is None:
            return None
        start = old.code()
    loaded = originality.works_of(home, old) if old else library.load(home)
    pupil = _Pupil.of(source, loaded.works, start)
    plan = training.Plan(config.renew_steps, private_only=True, rate_scale=_RENEW_RATE)
    training.fit(pupil.net, pupil.modality, pupil.lessons, plan)
    score = pupil.score()
    if old is not None and not score.style <= _score_of(home, old, loaded.works).style:
        return None
    folder = old.folder_of_works if old else ""
    lineage = styles.Lineage(config.artist, folder, len(loaded.works), score, loaded.found)
    with styles.writing(home):
        now = styles.find(home, name) if name in styles.names(home) else None
        if (now.files if now else None) != (old.files if old else None):
            return None  # the artist learned it anew meanwhile
        renewed = styles.compile_style(home, name, pupil.code(), source, lineage, pupil.distance)
        return originality.check(renewed, source, loaded)


def _score_of(home: Home, style: Style, works: Sequence[Work]) -> Score:
    """An old style's score on the same exam, on the body it belongs to."""
    return _Pupil.of(releases.with_body(home, style.body), works, style.code()).score()


class RoundTraining:
    """A node's part in rounds. Keeps the lessons in memory between rounds, and all else on disk (``round_state.py``)."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._config = home.config()
        self._pupil: _Pupil | None = None
        self._made_of: Digest | None = None
        torch.set_num_threads(self._config.threads)

    def run(self, asked: Asked) -> Answered:
        """Train body and private code together on this machine's works; or take the next step of a veiled round.

        Returns:
            What may leave, as the guard let it through: the same as before if the same was asked before. In a veiled round,
            that it is ready. Or why this node takes no part.

        Raises:
            NotJoinedError: the assignment is not of the federation or kind of art this node joined.
            RefusedError: it goes back behind a round that was answered, or its body cannot be trained.
            NoWorksError: there is nothing to learn from.
            DivergedError: the training spoilt the network; nothing of it is kept.
        """
        if isinstance(asked, VeiledStep):
            return self._go_on(asked)
        assignment = asked
        self._refuse_foreign(assignment)
        kept, account = round_state.load(self._home.round_file), Ledger(self._home.ledger_file)
        is_asked_again = kept is not None and kept.asked == round_state.name_of(assignment)
        try:
            signed = consent.required(self._home)
        except NoConsentError:
            return Declined(assignment.round, "no-consent")
        sent = _Sent.of(account, kept, assignment.federation, signed.digest)
        reason = _declines(self._home, signed, assignment, sent.under_agreement - is_asked_again)
        if reason is not None:
            return Declined(assignment.round, reason)
        if kept is not None and is_asked_again and kept.material == self._material():
            return self._answer(kept)
        if assignment.round <= sent.last_round:
            raise RefusedError(
                f"round {assignment.round} was asked for after round {sent.last_round} was answered",
                advice="Ask the coordinator why it goes back.",
            )
        if not np.isfinite(assignment.body).all():
            raise RefusedError("the coordinator's body holds numbers that are not finite", advice="Tell the coordinator.")
        try:
            return self._train(assignment, signed.policy, kept)
        except BudgetSpentError:
            return Declined(assignment.round, "budget-spent")
        except BaseException:
            self._pupil = None  # its running statistics or code may be spoilt, and would spoil every round from now on
            raise

    def _answer(self, kept: RoundState) -> Answered:
        """What was made, after its line in the ledger; which in a veiled round is written when it goes out."""
        if isinstance(kept.update, Ready):
            return veil.ready(kept.update, keys.enrolled_key(self._home))
        guard.note(Ledger(self._home.ledger_file), kept.entry)  # a kill may have come between the two
        return kept.update

    def _go_on(self, step: VeiledStep) -> Answered:
        """Take a step of the veiled round that this machine has trained for.

        Raises:
            RefusedError: it has not, or not of what its library holds now.
        """
        kept = round_state.load(self._home.round_file)
        try:
            signed = consent.required(self._home)
        except NoConsentError:
            return Declined(step.round, "no-consent")
        if step.policy != signed.digest:
            return Declined(step.round, "no-consent")
        made = kept.update if kept is not None and kept.material == self._material() else None
        if kept is None or not isinstance(made, Ready) or _named(made) != _named(step):
            raise RefusedError(
                f"step {step.step!r} of veiled round {step.round} came without its training",
                advice="Nothing need be done; the next round begins anew.",
            )
        return veil.answer(self._home, signed.policy, made, kept.entry, step)

    def _refuse_foreign(self, assignment: Assignment) -> None:
        believed = releases.trust(self._home)
        if assignment.federation != believed.federation or assignment.modality != self._config.modality:
            raise NotJoinedError(
                "the coordinator asks for training this machine did not join", advice="Join that federation first."
            )

    def _train(self, assignment: Assignment, policy: Policy, kept: RoundState | None) -> Answered:
        pupil, material, residual = self._prepared(kept)
        layout = state.body_layout(pupil.modality)
        if assignment.layout_digest != layout.digest:
            raise RefusedError("the body has another layout than this kind of art", advice="Update Sfumato.")
        state.load_inplace(pupil.net, layout.unflatten(assignment.body))
        fitted = self._fit(pupil, assignment, policy)
        return_freed_memory()  # this process now waits for the next round
        tensors = {name: tensor.numpy() for name, tensor in pupil.net.state_dict().items()}
        if not all(np.isfinite(array).all() for array in tensors.values()):
            raise training.DivergedError("the training left numbers that are not finite")
        trained = guard.Trained(tensors, fitted.loss_before, fitted.loss_after, fitted.steps)
        residual = residual if residual is not None else np.zeros(layout.size, np.float32)
        sealed = self._sealed(assignment, policy, trained, layout, residual)
        now = RoundState(
            material=material,
            asked=round_state.name_of(assignment),
            private=state.private_arrays(pupil.modality, pupil.net),
            moments={name: {k: v.numpy() for k, v in seen.items()} for name, seen in pupil.moments.seen.items()},
            residual=sealed.residual,
            update=sealed.update,
            entry={**sealed.entry, **({} if fitted.spent is None else {"epsilon": fitted.spent})},
        )
        with styles.writing(self._home):  # which whoever learns the style anew holds, too
            if material != self._material():
                raise RefusedError(
                    "the works were changed during the round", advice="The next round learns from what is there."
                )
            round_state.save(self._home.round_file, now)
            if fitted.spent is None:  # else what was trained is the working code, and the artist's stays as it is
                self._save_code(pupil)
        return self._answer(now)

    def _fit(self, pupil: _Pupil, assignment: Assignment, policy: Policy) -> _Fitted:
        """Train, within the privacy budget if one is kept.

        Raises:
            BudgetSpentError: it is spent. It is charged before anything is made.
            RefusedError: there are too few works for one.
        """
        plan = training.Plan(
            policy.steps, first_step=assignment.round * policy.steps, rate_scale=_ROUND_RATE, shared_scale=_BODY_RATE
        )
        if budget.is_kept(self._config):
            spent = self._fit_privately(pupil, assignment, plan)
            return _Fitted(0.0, 0.0, plan.steps, spent)  # a loss would tell of the works, without a bound
        losses: list[float] = []
        after = training.fit(
            pupil.net, pupil.modality, pupil.lessons, plan, lambda _step, loss: losses.append(loss), pupil.moments
        )
        first = losses[: max(1, len(losses) // 10)]
        return _Fitted(sum(first) / len(first) if first else math.nan, after, len(losses), None)

    def _fit_privately(self, pupil: _Pupil, assignment: Assignment, plan: training.Plan) -> float:
        rows = len(pupil.modality.codes(pupil.net))
        works = rows - pupil.public
        budget.require_enough_works(self._config, works, plan.steps)
        charge = budget.charge_of(self._config, round_state.name_of(assignment), works, plan.steps)
        spent = budget.charge(self._home, charge)
        private_training.fit(
            pupil.net,
            pupil.modality,
            pupil.lessons,
            range(pupil.public, rows),
            range(pupil.public),
            plan,
            private_training.Privacy(charge.rate, charge.noise, _WORK_CLIP),
            pupil.moments,
        )
        return spent

    def _sealed(
        self, assignment: Assignment, policy: Policy, trained: guard.Trained, layout: Layout, residual: Flat
    ) -> Sealed[Update] | Sealed[Ready]:
        if policy.visibility == "veiled":
            return guard.prepare(assignment, policy, trained, layout, residual)
        rng = np.random.default_rng(keys.derived_seed(self._home, f"rounding of round {assignment.round}"))
        return guard.seal(assignment, policy, trained, layout, residual, keys.enrolled_key(self._home), rng)

    def _prepared(self, kept: RoundState | None) -> tuple[_Pupil, Digest, Flat | None]:
        """The pupil, what it learns from, and what earlier updates left out.

        The pupil is made in the first round and kept: measuring the works takes longer than a training step. It is made anew
        when the library changed, so that a withdrawn work stops counting, and when the artist learned the style anew, so that
        rounds go on from that. Then what earlier updates left out is forgotten, too: it may tell of what was withdrawn.
        """
        material = self._material()
        layout = state.body_layout(registry.find(self._config.modality))
        fits = kept is not None and kept.material == material and kept.residual.shape == (layout.size,)
        goes_on = kept if fits else None
        if self._pupil is None or material != self._made_of:
            self._pupil = None  # two at once would not fit on a small machine
            self._pupil = self._begun(goes_on)
            self._made_of = material
        return self._pupil, material, goes_on.residual if goes_on is not None else None

    def _begun(self, kept: RoundState | None) -> _Pupil:
        """A pupil at the beginning, or where the last round left it."""
        source = releases.current(self._home)
        seed = keys.derived_seed(self._home, "lessons")
        if budget.is_kept(self._config):
            pupil = _Pupil.private(source, library.load(self._home, all_of_them=True).works, seed)
        else:
            pupil = self._plain_pupil(source, seed)
        if kept is not None:
            try:
                state.load_inplace(pupil.net, kept.private)
            except LayoutError:  # of another version of this kind of art: it begins afresh
                return pupil
            for name, seen in kept.moments.items():
                pupil.moments.seen[name] = {key: torch.from_numpy(value.copy()) for key, value in seen.items()}
        return pupil

    def _plain_pupil(self, source: VerifiedRelease, seed: int) -> _Pupil:
        start = _saved_code(self._home, source)
        if start is None:
            start = _main_code(self._home, source)
        pupil = _Pupil.of(source, library.load(self._home).works, start, rehearses=True, seed=seed)
        # What the body can do for this artist before any round, kept so that the artist can see what rounds bring.
        if not self._home.start_score_file.exists():
            write_json(self._home.start_score_file, asdict(pupil.score()), mode=0o600)
        return pupil

    def _material(self) -> Digest:
        """Names the works, the style that was last learned by itself, and whether a privacy budget is kept.

        What was made without one has no place in updates with one.
        """
        made_of = [[str(path), digest, mtime] for path, digest, mtime in library.key(self._home)]
        mode = ["private"] if budget.is_kept(self._config) else []
        return digest_of(canonical_json([made_of, library.mtime_ns(_learned_file(self._home)), *mode]))

    def _save_code(self, pupil: _Pupil) -> None:
        metadata = {"modality": pupil.modality.name}
        write_atomic(_code_file(self._home), weights.pack({"code": pupil.code()}, metadata), mode=0o600)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What a round's training came to.

    Attributes:
        loss_before, loss_after: as in an update.
        steps: that were made.
        spent: of the privacy budget, if one is kept.
    """

    loss_before: float
    loss_after: float
    steps: int
    spent: float | None


def _named(of: Ready | VeiledStep) -> tuple[str, int, str]:
    return of.federation, of.round, of.policy


@dataclass(frozen=True, slots=True)
class _Sent:
    """What this machine's account says of the rounds so far; the last update may have been made and not written down yet.

    Attributes:
        last_round: the highest number that was answered, 0 for none.
        under_agreement: how many since the artist last agreed to the policy.
    """

    last_round: int
    under_agreement: int

    @classmethod
    def of(cls, account: Ledger, kept: RoundState | None, federation: str, policy: Digest) -> _Sent:
        """Read the account."""
        rounds: dict[int, bool] = {}  # whether each was held under the agreement
        for line in account.entries():
            if line.get("what") == "agreed" and line.get("policy") == policy:
                rounds = dict.fromkeys(rounds, False)
            elif line.get("what") == "update" and line.get("federation") == federation:
                rounds[int(str(line["round"]))] = line.get("policy") == policy
        if kept is not None and kept.update.federation == federation:
            rounds.setdefault(kept.update.round, kept.update.policy == policy)
        return cls(max(rounds, default=0), sum(rounds.values()))


def _declines(home: Home, signed: SignedPolicy, assignment: Assignment, rounds: int) -> DeclineReason | None:
    """Why this node takes no part in a round, if it does not."""
    if assignment.policy != signed.digest:
        return "no-consent"
    if rounds >= signed.policy.rounds:
        return "rounds-spent"
    try:
        consent.require_within_bounds(home, signed)
    except RefusedError:
        return "too-much-asked"
    return None


def _code_file(home: Home) -> Path:
    return home.training / "code.safetensors"


def _learned_file(home: Home) -> Path:
    return home.training / "learned"


def _saved_code(home: Home, source: VerifiedRelease) -> Code | None:
    """The code as the last round left it, if there was one of this kind of art."""
    try:
        data = read_bounded(_code_file(home), _CODE_MAX_BYTES)
        code = weights.unpack(data)["code"]
    except (OSError, IntegrityError, KeyError):
        return None
    return code if code.shape == source.manifest.signature.code.shape[1:] else None


def _main_code(home: Home, source: VerifiedRelease) -> Code | None:
    """The code of the style that rounds train, if it belongs to the body they start from."""
    try:
        style = styles.find(home, home.config().style)
        return style.code() if style.body == source.manifest.body else None
    except (UnknownStyleError, IntegrityError):
        return None
