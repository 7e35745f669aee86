"""Private training on this machine: fitting a style to works, and refining the shared body for a round.

Whatever leaves is decided elsewhere (``guard.py``); here only the body's movement is computed. Works become target
statistics and are never an input of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from edge_node import guard, library, releases, styles
from edge_node.config import Home
from edge_node.errors import NotJoinedError
from edge_node.styles import Style
from export import backbones, release, weights
from export.errors import IntegrityError, RefusedError
from export.files import read_bounded, write_atomic, write_json
from export.signing import VerifiedRelease
from models import registry, state, training
from models.contract import Lessons, Modality, Score, Work
from models.samplers import Code
from models.update import Assignment, Update

Progress = Callable[[int, int], None]
"""Told steps done and steps in all."""

_SEED: Final = 1503
_START_BATCHES: Final = 2  # batches each public code is tried on before one is chosen to start from
_BODY_RATE: Final = 0.25  # of the base training's: a round refines a body that others refine at the same time
_RENEW_RATE: Final = 0.4
_CODE_MAX_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class _Pupil:
    """A network that holds the identity code and one artist's code, with lessons for both."""

    modality: Modality[Any, Any]
    net: Any
    lessons: Lessons[Any]

    @classmethod
    def of(cls, source: VerifiedRelease, works: Sequence[Work], code: Code | None) -> _Pupil:
        """Set up on a release's body; without a code, start from the public code that fits the works best."""
        modality = registry.find(source.manifest.modality)
        lessons = modality.lessons(
            [[], works], release.calibration_photos(source), backbones.load_all(modality.backbones), _SEED
        )
        pupil = cls(modality, modality.build(_SEED, codes=2), lessons)
        state.load_inplace(pupil.net, release.body_of(source))
        public = release.codes_of(source)
        pupil.set_codes(public[release.IDENTITY], code if code is not None else pupil.best_start(public))
        pupil.settle()
        return pupil

    def set_codes(self, identity: Code, code: Code) -> None:
        private = state.private_arrays(self.modality, self.net)
        state.load_inplace(self.net, {**private, "codes": np.stack([identity, code])})

    def best_start(self, public: dict[str, Code]) -> Code:
        """The public code with the smallest loss on the works: most of the way is shorter from there."""
        styled = {name: code for name, code in public.items() if name != release.IDENTITY}
        losses = {}
        for name, code in styled.items():
            self.set_codes(public[release.IDENTITY], code)
            losses[name] = self.loss(_START_BATCHES)
        return styled[min(losses, key=lambda name: losses[name])]

    @torch.no_grad()
    def loss(self, batches: int) -> float:
        """Mean loss over the first batches."""
        objective = self.modality.objectives[0]
        return float(np.mean([objective.loss(self.net, self.lessons.batch(i)).item() for i in range(batches)]))

    def settle(self) -> None:
        """Let the running statistics of both codes see some pictures before anything relies on them."""
        self.loss(4)

    def score(self) -> Score:
        return self.modality.score(self.net, self.lessons.exam())

    def code(self) -> Code:
        """The artist's code as it is now."""
        code: Code = state.private_arrays(self.modality, self.net)["codes"][1].astype(np.float32)
        return code


def learn(home: Home, name: str, folder: Path, progress: Progress) -> Style:
    """Fit a private code to a folder of works with the body frozen, and compile it. Needs no network.

    Args:
        home: this machine's folder.
        name: of the style.
        folder: of the works; remembered, so that the style can be renewed from them.
        progress: called after each step.

    Raises:
        NoWorksError: the folder holds no usable work.
        BadPictureError: it cannot be read.
    """
    works = library.load_folder(folder)
    config = home.config()
    torch.set_num_threads(config.threads)
    source = releases.current(home)
    pupil = _Pupil.of(source, works, code=None)
    plan = training.Plan(config.learn_steps, private_only=True)
    training.fit(pupil.net, pupil.modality, pupil.lessons, plan, lambda step, _loss: progress(step, config.learn_steps))
    lineage = styles.Lineage(config.artist, str(folder.resolve()), len(works), pupil.score())
    return styles.compile_style(home, name, pupil.code(), source, lineage)


def renew(home: Home, name: str) -> Style | None:
    """Fit a style to the current body, from the code it has, and switch to it if it is no worse.

    Returns:
        The renewed style, or None where the old body and code go on serving.

    Raises:
        NoWorksError, BadPictureError: the works it was learned from are gone; it goes on serving as it is.
    """
    config = home.config()
    torch.set_num_threads(config.threads)
    source = releases.current(home)
    old = styles.find(home, name) if name in styles.names(home) else None
    if old is not None and old.body == source.manifest.body:
        return None
    works = library.load_folder(Path(old.folder_of_works)) if old and old.folder_of_works else library.load(home)
    start = _saved_code(home, source) if name == config.style else None
    if start is None and old is not None:
        start = old.code()
    pupil = _Pupil.of(source, works, start)
    plan = training.Plan(config.renew_steps, private_only=True, rate_scale=_RENEW_RATE)
    training.fit(pupil.net, pupil.modality, pupil.lessons, plan)
    score = pupil.score()
    if old is not None and not score.style <= _score_of(home, old, works).style:
        return None
    lineage = styles.Lineage(config.artist, old.folder_of_works if old else "", len(works), score)
    return styles.compile_style(home, name, pupil.code(), source, lineage)


def _score_of(home: Home, style: Style, works: Sequence[Work]) -> Score:
    """An old style's score on the same exam, on the body it belongs to."""
    return _Pupil.of(releases.with_body(home, style.body), works, style.code()).score()


class RoundTraining:
    """A node's part in rounds. Keeps the lessons in memory between rounds and the code on disk."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._config = home.config()
        self._pupil: _Pupil | None = None
        torch.set_num_threads(self._config.threads)

    def run(self, assignment: Assignment) -> Update:
        """Train body and private code together on this machine's works.

        Returns:
            What may leave, as the guard let it through.

        Raises:
            RefusedError: the assignment is not of the federation or kind of art this node joined.
            NoWorksError: there is nothing to learn from.
        """
        self._refuse_foreign(assignment)
        pupil = self._prepared()
        layout = state.body_layout(pupil.modality)
        if assignment.layout_digest != layout.digest:
            raise RefusedError("the body has another layout than this kind of art", advice="Update Sfumato.")
        state.load_inplace(pupil.net, layout.unflatten(assignment.body))
        losses: list[float] = []
        plan = training.Plan(assignment.steps, first_step=assignment.round * assignment.steps, shared_scale=_BODY_RATE)
        after = training.fit(pupil.net, pupil.modality, pupil.lessons, plan, lambda _step, loss: losses.append(loss))
        self._save_code(pupil)
        first = losses[: max(1, len(losses) // 10)]
        return guard.outgoing(
            self._home,
            assignment,
            trained={name: tensor.numpy() for name, tensor in pupil.net.state_dict().items()},
            layout=layout,
            losses=(sum(first) / len(first), after),
            steps=len(losses),
        )

    def _refuse_foreign(self, assignment: Assignment) -> None:
        believed = releases.trust(self._home)
        if assignment.federation != believed.federation or assignment.modality != self._config.modality:
            raise NotJoinedError(
                "the coordinator asks for training this machine did not join", advice="Join that federation first."
            )

    def _prepared(self) -> _Pupil:
        """The pupil, made in the first round and kept: measuring the works takes longer than a training step."""
        if self._pupil is None:
            source = releases.current(self._home)
            works = library.load(self._home)
            self._pupil = _Pupil.of(source, works, _saved_code(self._home, source))
            # What the body can do for this artist before any round, kept so that the artist can see what rounds bring.
            if not self._home.start_score_file.exists():
                write_json(self._home.start_score_file, asdict(self._pupil.score()), mode=0o600)
        return self._pupil

    def _save_code(self, pupil: _Pupil) -> None:
        metadata = {"modality": pupil.modality.name}
        write_atomic(_code_file(self._home), weights.pack({"code": pupil.code()}, metadata), mode=0o600)


def _code_file(home: Home) -> Path:
    return home.training / "code.safetensors"


def _saved_code(home: Home, source: VerifiedRelease) -> Code | None:
    """The code as the last round left it, if there was one of this kind of art."""
    try:
        data = read_bounded(_code_file(home), _CODE_MAX_BYTES)
        code = weights.unpack(data)["code"]
    except (OSError, IntegrityError, KeyError):
        return None
    return code if code.shape == source.manifest.signature.code.shape[1:] else None
