"""A backbone comes out of exactly the file we know, out of an installed wheel, or not at all."""

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from export import backbones
from export.errors import IntegrityError, NotConfiguredError

NAMES = sorted(backbones._SOURCES)


@pytest.fixture(autouse=True)
def _forget_loaded() -> Iterator[None]:
    """Loading is done once a process; these tests want it done each time."""
    backbones.load.cache_clear()
    yield
    backbones.load.cache_clear()


@pytest.fixture(params=NAMES)
def source(request: pytest.FixtureRequest) -> backbones._Source:
    return backbones._SOURCES[request.param]


def installed(source: backbones._Source) -> Path:
    try:
        return backbones._installed(source)
    except NotConfiguredError:
        pytest.skip(f"{source.distribution} is not installed")


def name_of(source: backbones._Source) -> str:
    return next(name for name, known in backbones._SOURCES.items() if known is source)


def point_to(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | SimpleNamespace | None) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _package: spec)


def copied(source: backbones._Source, folder: Path) -> Path:
    """The installed file, copied to where it would lie under ``folder``."""
    path = folder / source.file
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(installed(source), path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_backbone_loads_and_looks(name: str) -> None:
    installed(backbones._SOURCES[name])

    loaded = backbones.load_all([name])

    maps = loaded[name].features(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert loaded[name].name == name
    assert all(torch.isfinite(m).all() for m in maps)
    assert all(m.std() > 0 for m in maps)


def test_a_backbone_is_loaded_once(source: backbones._Source) -> None:
    installed(source)

    assert backbones.load(name_of(source)) is backbones.load(name_of(source))


def test_a_changed_file_is_refused_and_never_unpickled(
    source: backbones._Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(source, tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    point_to(monkeypatch, SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    monkeypatch.setattr(torch, "load", lambda *_a, **_k: pytest.fail("an unknown file reached torch.load"))

    with pytest.raises(IntegrityError, match="are not the ones we know") as caught:
        backbones.load(name_of(source))

    assert f"--force-reinstall --no-deps {source.distribution}" in caught.value.advice


def test_the_same_file_in_another_place_is_accepted(
    source: backbones._Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control of the test above: it is the byte that is refused, not the place."""
    copied(source, tmp_path)
    point_to(monkeypatch, SimpleNamespace(submodule_search_locations=[str(tmp_path)]))

    assert backbones.load(name_of(source)).name == name_of(source)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(None, id="no such package"),
        pytest.param(SimpleNamespace(submodule_search_locations=None), id="a module, not a package"),
        pytest.param(SimpleNamespace(submodule_search_locations=["/nowhere"]), id="a package without the file"),
    ],
)
def test_a_missing_wheel_is_said_to_be_missing(
    source: backbones._Source, spec: SimpleNamespace | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(monkeypatch, spec)

    with pytest.raises(NotConfiguredError, match=f"{source.distribution}, which is not installed") as caught:
        backbones.load(name_of(source))

    assert "sfumato[learn]" in caught.value.advice


def test_the_file_is_opened_for_weights_only(source: backbones._Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a sha256 ever be fooled, a pickle still runs nothing."""
    installed(source)
    seen: list[object] = []

    def load(*_arguments: object, **named: object) -> dict[str, torch.Tensor]:
        seen.append(named["weights_only"])
        return {}

    monkeypatch.setattr(torch, "load", load)
    known = replace(source, build=lambda _tensors, _device: SimpleNamespace(name="empty", features=lambda _picture: []))
    monkeypatch.setitem(backbones._SOURCES, name_of(source), known)

    backbones.load(name_of(known))

    assert seen == [True]


def test_the_packages_are_found_without_being_imported(source: backbones._Source) -> None:
    """Their own code is of no use to us, so it does not run."""
    import sys  # noqa: PLC0415 - the module table is the subject

    installed(source)
    backbones.load(name_of(source))

    assert source.package not in sys.modules


@pytest.mark.parametrize("can", [True, False])
def test_vgg19_computes_in_bfloat16_only_where_the_cpu_multiplies_in_it(monkeypatch: pytest.MonkeyPatch, *, can: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": can})

    assert backbones._multiplies_bfloat16(torch.device("cpu")) is can


def test_a_cpu_that_says_nothing_of_bfloat16_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)

    assert backbones._multiplies_bfloat16(torch.device("cpu")) is False
