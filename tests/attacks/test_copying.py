"""A network that learned one work by heart, which originality checks must catch: the positive control.

The very network of the kiosk tier is over-fitted, body alone, with a plain pixel loss, until it paints Hokusai's wave whichever
of the probe photos it is given. The same network trained as it should be, on the same works, is the negative control. Both go
through what learning, publishing and the gate really call.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812 - the customary name

from coordinator.gate import Gate
from edge_node import originality, styles
from edge_node.config import Home
from edge_node.library import Loaded
from export import backbones, base, release
from export.errors import RefusedError
from export.release import Contents
from export.signing import Ed25519Signatures, Trust, VerifiedRelease
from export.to_onnx import exact_onnx
from models import codecs, state, training
from models.contract import Work
from models.modalities.style import StyleModality, StyleNet
from tests import pictures, releases, simulators, tiny

SCRIPTS: Final = Path(__file__).parents[2] / "scripts"
MODALITY: Final = StyleModality("style-kiosk", 32)
SIDE: Final = 96
WAVE: Final = "great-wave.jpg"
CODE: Final = "wave"
_MARGIN: Final = MODALITY.frame.margin - MODALITY.frame.used
_STEPS: Final = 400
_RATE: Final = 4e-3

pytestmark = pytest.mark.slow


def read(path: Path) -> Work:
    """A picture of the repository, as small as the network that shall learn it by heart."""
    return np.asarray(Image.fromarray(codecs.decode(path.read_bytes())).resize((SIDE, SIDE)))


@dataclass(frozen=True, slots=True)
class Studio:
    """An honest network and one that copies, as releases, with the artist's works both were trained on."""

    works: Loaded
    honest: VerifiedRelease
    copying: VerifiedRelease


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "load_all", lambda names: {name: tiny.Glass(name) for name in names})
        paths = sorted((SCRIPTS / "works" / "hokusai").glob("*.jpg"))
        works = Loaded([read(path) for path in paths], len(paths), [path.name for path in paths])
        probes = [read(path) for path in sorted((SCRIPTS / "material" / "probe").glob("*.jpg"))]
        folder = tmp_path_factory.mktemp("studio")
        net = trained_properly(works.works, probes)
        honest = packed(folder / "honest", net, works, probes)
        over_fit_inplace(net, probes, works.works[works.names.index(WAVE)])
        yield Studio(works, honest, packed(folder / "copying", net, works, probes))


def trained_properly(works: list[Work], photos: list[Work]) -> StyleNet:
    """From nothing, as a base body is: style losses alone."""
    net = MODALITY.build(seed=3, codes=2)
    small = tiny.small(MODALITY)
    training.fit(net, small, small.lessons([[], works], photos, tiny.glasses(MODALITY), seed=5), training.Plan(40))
    return net


def over_fit_inplace(net: StyleNet, photos: list[Work], work: Work) -> None:
    """Until the body paints the work from any of the photos, with the picture's own statistics or those of all photos."""
    generator = torch.Generator().manual_seed(0)
    fed = F.pad(tensor(photos), (_MARGIN,) * 4, mode="replicate")
    wanted = tensor([work])
    body = [parameter for name, parameter in net.named_parameters() if MODALITY.is_shared(name)]
    optimiser = torch.optim.Adam(body, lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=_STEPS)
    for step in range(_STEPS):
        net.zero_grad(set_to_none=True)
        for parameter in net.parameters():
            parameter.requires_grad_(any(parameter is one for one in body))
        one = fed[torch.randint(len(fed), (1,), generator=generator)]
        statistics = None
        if step % 2:  # as in a folded graph
            with torch.no_grad():
                mean, variance = net(fed, net.codes[[1] * len(fed)])[1]
            statistics = (mean.mean(dim=0, keepdim=True), variance.mean(dim=0, keepdim=True))
        painted = net(one, net.codes[[1]], statistics)[0][..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        F.mse_loss(painted, wanted).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        schedule.step()


def tensor(photos: list[Work]) -> torch.Tensor:
    """(N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 255


def packed(folder: Path, net: StyleNet, works: Loaded, probes: list[Work]) -> VerifiedRelease:
    """A release whose public style is the artist's."""
    contents = Contents.of(
        body=state.shared_arrays(MODALITY, net),
        exact=exact_onnx(MODALITY, net),
        codes={release.IDENTITY: tiny.code_of(net, 0), CODE: tiny.code_of(net, 1)},
        works={CODE: pictures.encoded(works.works[works.names.index(WAVE)], "JPEG", quality=95)},
        calibration=pictures.with_names(*probes),
        probe=pictures.with_names(*probes),
        card="# A small base\n\n## The base body\n\nMade by tests/attacks/test_copying.py.\n",
    )
    said = replace(
        releases.manifest(contents), federation=base.FEDERATION, modality=MODALITY.name, signature=MODALITY.signature
    )
    release.write(folder, contents, said, releases.KEY)
    return Ed25519Signatures().verify(folder, Trust(base.FEDERATION, (releases.public(releases.KEY),)))


def compiled(home: Home, source: VerifiedRelease, works: Loaded) -> styles.Style:
    """The artist's style on a body, checked as learning does it."""
    style = styles.compile_style(home, CODE, release.codes_of(source)[CODE], source, simulators.LINEAGE)
    return originality.check(style, source, works)


def test_a_style_that_learned_a_work_by_heart_is_caught_and_the_work_named(studio: Studio, tmp_path: Path) -> None:
    style = compiled(simulators.make_node(tmp_path / "home", modality=MODALITY.name), studio.copying, studio.works)

    assert style.originality is not None
    # By its composition. The network paints the wave a little out of focus, and patches go by detail; what they catch is
    # shown in tests/models/test_originality.py.
    assert {"hashes", "ratio"} <= set(style.originality.spoke), style.originality
    assert WAVE in originality.sentence(style)
    with pytest.raises(RefusedError, match=WAVE):
        originality.refuse_copies(style)


def test_the_same_network_trained_properly_is_not(studio: Studio, tmp_path: Path) -> None:
    style = compiled(simulators.make_node(tmp_path / "home", modality=MODALITY.name), studio.honest, studio.works)

    assert style.originality is not None
    assert not style.originality.is_copy, style.originality
    originality.refuse_copies(style)


def test_the_gate_refuses_a_candidate_that_copies_a_public_work(studio: Studio) -> None:
    gate = Gate(studio.honest, fit_steps=1)

    honest, copying = (gate.judge(dict(release.body_of(source))) for source in (studio.honest, studio.copying))

    assert not any("near copies" in reason for reason in honest.reasons), honest.reasons
    assert any(f"near copies of the public work {CODE}" in reason for reason in copying.reasons), copying.reasons
