"""What a simulation came to: its exit code, and the result.json that is kept beside the pods' output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import exits
from launcher.simulate.life import Life
from launcher.simulate.spec import RECREATE, Spec


def exit_code(spec: Spec, lives: Sequence[Life], then_code: int | None) -> int:
    """That of the pod that failed first of its own in the last generation; 75 only when no pod owns the failure."""
    newest = max((life.generation for life in lives), default=0)
    last = {life.index: life for life in lives if spec.restart_policy != RECREATE or life.generation == newest}
    ended = sorted((life.epochs[-1].ended or 0.0, life.code) for life in last.values() if life.code is not None)
    codes = [code for _, code in ended]
    own = [code for code in codes if code not in (exits.OK, exits.PEER_FAILED)]
    group = own[0] if own else max(codes, default=exits.OK)
    return group or then_code or exits.OK


def keep(
    spec: Spec,
    lives: Sequence[Life],
    code: int,
    then_code: int | None,
    group: dict[str, Any],
    faults: list[dict[str, Any]],
) -> None:
    """Write result.json, where logs are kept. group: the leader's last /group. faults: what was injected, and when."""
    if not spec.keep_logs:
        return
    ended = sorted((life for life in lives if not life.alive), key=lambda life: (life.generation, life.index))
    told = {
        "exit_code": code,
        "isolated": spec.isolated,
        "then": then_code,
        "group": group,
        "faults": faults,
        "pods": [life.result() for life in ended],
    }
    (Path(spec.keep_logs) / "result.json").write_text(json.dumps(told, indent=2))
