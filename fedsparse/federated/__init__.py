"""Rounds: a server and clients that exchange encoded messages, counted and checkpointed."""
