"""Sfumato's Flower app: two stubs whose bytes are the protocol."""
