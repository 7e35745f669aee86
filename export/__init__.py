"""What leaves a machine, and what makes it leave in one piece.

ONNX Runtime, from 1.29 on, tells its makers of every process and session, on Linux too, unless the environment says otherwise
before it is loaded. Here it says so, for this process and those it starts, whatever it said before.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
