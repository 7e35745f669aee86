"""The picture of the federation bench: style distance over the seconds an artist's machine has worked."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from scripts import bootstrap
from scripts.references import LITE
from scripts.report import SHIPPED, WORK_S, Curve, Findings
from scripts.verdicts import MEASURES, REAL

_COLOURS: Final = {
    "ours": "#1f5f8b",
    "local": "#d1495b",
    "fedavg": "#8d96a3",
    "fine-tune": "#66a182",
    "centralised": "#3b3b3b",
}
_NAMES: Final = {
    "ours": "ours: body shared, code private",
    "local": "local only",
    "fedavg": "FedAvg of everything",
    "fine-tune": "FedAvg + fine-tune",
    "centralised": "centralised",
}
_LEVELS: Final = {"photo itself": ":", LITE: "--", REAL: "-.", SHIPPED: (0, (1, 1))}
_INK: Final = "#333333"


def plot(findings: Findings, path: Path) -> None:
    """One panel a valid judge (all of them if none is), with bands of 95 % and levels of what is not trained here."""
    plt = _pyplot()
    shown = findings.deciding or [one.judge for one in findings.validations]
    figure, panels = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 4.9), squeeze=False)
    for panel, judge in zip(panels[0], shown, strict=True):
        _panel(panel, findings, judge)
    panels[0][0].set_ylabel("style distance to held-out works (lower is better)", color=_INK)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle("Does federation help?", x=0.01, ha="left", fontsize=14, fontweight="bold", color=_INK)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _pyplot() -> Any:
    """Of matplotlib, which only who benches has."""
    importlib.import_module("matplotlib").use("agg")
    return importlib.import_module("matplotlib.pyplot")


def _panel(panel: Any, findings: Findings, judge: str) -> None:
    at = MEASURES.index(judge)
    for name, curve in findings.curves.items():
        _curve(panel, name, curve, at)
    for name, cells in findings.references.items():
        if name in _LEVELS:
            panel.axhline(cells[..., at].mean(), linestyle=_LEVELS[name], color="#a08060", linewidth=1.1, label=name)
    panel.axvline(WORK_S, color="#dddddd", linewidth=1, zorder=0)
    panel.annotate(f"{WORK_S:.0f} s", (WORK_S, 1), xycoords=("data", "axes fraction"), fontsize=8, color="#999999", va="top")
    panel.set_title(judge, loc="left", color=_INK)
    panel.set_xlabel("processor seconds of an artist", color=_INK)
    panel.grid(axis="y", color="#eeeeee")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _curve(panel: Any, name: str, curve: Curve, at: int) -> None:
    seconds = curve.cpu_s.mean(axis=(1, 2))
    found = [bootstrap.mean(verdict[..., at]) for verdict in curve.verdicts]
    values = np.array([interval.value for interval in found])
    strong = name == "ours"
    style = {"color": _COLOURS[name], "linewidth": 2.6 if strong else 1.6, "zorder": 4 if strong else 3}
    if len(seconds) == 1:
        bars = [[found[0].value - found[0].low], [found[0].high - found[0].value]]
        panel.errorbar(seconds, values, yerr=bars, fmt="D", markersize=5, capsize=3, label=_NAMES[name], **style)
        return
    panel.plot(seconds, values, marker="o", markersize=4, label=_NAMES[name], **style)
    if strong or name == "local":  # more bands than two hide each other
        panel.fill_between(
            seconds, [i.low for i in found], [i.high for i in found], color=style["color"], alpha=0.12, linewidth=0
        )
