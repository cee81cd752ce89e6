"""Decides: (group, this node's facts, the user's argv) -> a frozen Plan. No I/O, no clock, no environment."""
