"""A short storm over real processes; the long ones are run by hand (`scripts/faults --help`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def test_a_short_storm_leaves_the_body_of_calm_weather() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "faults.py"), "--rounds", "1", "--faults", "4", "--seed", "7"]

    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)

    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    said = json.loads(ran.stdout[ran.stdout.index("{") :])
    assert said["complaints"] == []
    assert sum(said["faults"].values()) >= 4
