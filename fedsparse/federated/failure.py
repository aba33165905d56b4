"""A client that cannot deliver this round."""

__all__ = ["ClientFailure"]


class ClientFailure(Exception):
    """Raised inside a client; the round goes on without it and records the reason."""
