"""Networks of their own for processes, where the system lets its users make them."""

import subprocess
from typing import Final

import pytest

UNSHARE: Final = ("unshare", "--net", "--map-root-user")


def _can_enclose() -> bool:
    probe = "ip link add name one type veth peer name two"
    try:
        return subprocess.run([*UNSHARE, "sh", "-c", probe], capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        return False


needs_networks: Final = pytest.mark.skipif(not _can_enclose(), reason="this system makes no networks for its users")
