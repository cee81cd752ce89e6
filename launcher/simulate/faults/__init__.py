"""Faults of a simulation: how they are written, and how each is really brought about."""
