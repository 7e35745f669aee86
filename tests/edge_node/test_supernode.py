"""The process around Flower's SuperNode ends when Flower's main thread has."""

import subprocess
import sys

import pytest

LINGERING = """
import threading
from edge_node import supernode
{watch}
threading.Thread(target=threading.Event().wait).start()
"""


def lingering(watch: str) -> subprocess.Popen[bytes]:
    """A process whose main thread ends while another waits for ever."""
    return subprocess.Popen([sys.executable, "-c", LINGERING.format(watch=watch)])


def test_it_ends_though_another_thread_goes_on() -> None:
    assert lingering("supernode.end_with_main_thread(0.1)").wait(60) == 1


def test_without_that_it_would_stay() -> None:
    process = lingering("")
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(8)
    finally:
        process.kill()
        process.wait()
