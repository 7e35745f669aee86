"""The process that Flower's SuperNode runs in, as ``edge_node/flower.py`` starts it: HOME, then what Flower's command takes."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_node import clock
from edge_node.config import Home
from edge_node.flower import run_supernode

if __name__ == "__main__":
    run_supernode(sys.argv[2:], clock.Follower(Home(Path(sys.argv[1]))).now_s)
