"""The process that Flower's SuperNode runs in, as ``edge_node/flower.py`` starts it: HOME, then what Flower's command takes.

When its line breaks at the wrong moment, Flower's main thread ends and the thread of its server lives on: a process that does
nothing any more and does not end. This one ends then, and is started again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

from edge_node import clock
from edge_node.config import Home
from edge_node.flower import run_supernode

_LINGER_S: Final = 10.0


def end_with_main_thread(linger_s: float = _LINGER_S) -> None:
    """Have this process end when its main thread has, whatever other threads do, after a while for their last words."""

    def watch() -> None:
        threading.main_thread().join()
        time.sleep(linger_s)
        os._exit(1)

    threading.Thread(target=watch, name="end with main thread", daemon=True).start()


if __name__ == "__main__":
    end_with_main_thread()
    run_supernode(sys.argv[2:], clock.Follower(Home(Path(sys.argv[1]))).now_s)
