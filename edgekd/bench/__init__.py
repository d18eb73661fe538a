"""Latency, measured in a process of its own: the loop, its statistics, and where it runs.

Importing this package loads nothing: `agent`, `loop` and `machine` also run on a device that has Python 3.8, numpy and
the engine only; `settings`, `process`, `rows` and `measure` stay with the host.
"""
