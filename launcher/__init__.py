"""Does: the CLI, the group channel, the supervisor, and the story of a pod's life (lifecycle.py)."""
