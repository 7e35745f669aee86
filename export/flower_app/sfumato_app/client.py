"""The artist's side of the protocol, never executed on a node.

A node compares this bundle's digest with its own and calls the program it has installed; it never unpacks the bundle.
Flower asks every app to name a client part, and its simulation engine uses this one.
"""

from edge_node.client_app import app

__all__ = ["app"]
