"""The coordinator's side of the protocol: the installed round loop, found by name."""

from coordinator.server_app import app

__all__ = ["app"]
