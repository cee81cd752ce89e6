"""When LWS and the kubelet do what: pure, because time passes elsewhere.

https://lws.sigs.k8s.io/docs/concepts/ and https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy
"""

from __future__ import annotations

GRACE = 30.0  # seconds: Kubernetes's default terminationGracePeriodSeconds
FIRST_BACKOFF, LONGEST_BACKOFF = 10.0, 300.0  # seconds: the kubelet's
FORGIVEN = 600.0  # seconds of life after which the kubelet forgets earlier restarts


def backoff(restarts: int) -> float:
    """Seconds from a container's end to its start, when it was restarted so often before: 0, 10, 20, 40 … 300."""
    return 0.0 if restarts == 0 else min(FIRST_BACKOFF * 2.0 ** min(restarts - 1, 10), LONGEST_BACKOFF)


def restarts_that_count(before: int, lived: float) -> int:
    """Of a container's restarts in a row, those that still count after a life of so many seconds."""
    return 0 if lived >= FORGIVEN else before
