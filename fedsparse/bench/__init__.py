"""Benchmarks against other engines: in one process, with the same threads, taking turns.

`kernels` times single layers, `step` whole training steps, `payload` messages, `round` federated rounds. Each has a
function `measure` that returns a `Report`: JSON with provenance, and tables of text. `fedsparse bench` is their command
line.
"""
