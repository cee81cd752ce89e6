"""What an event means for a pod: the one place that turns what happened into an Ending."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from backends.errors import ConfigError
from backends.group import member_name
from backends.plan import Kind
from launcher import exits, suspicion
from launcher.channel.events import (
    DaemonEnded,
    DaemonGone,
    EngineHung,
    Event,
    GatherTimeout,
    HangJudged,
    HelperLost,
    LaunchAsked,
    LeaderDrains,
    LeaderInspects,
    LeaderLost,
    LeaderSaid,
    MemberDone,
    MemberFailed,
    MemberHung,
    MemberLeaving,
    MemberLost,
    MemberSuspected,
    Mismatched,
    MpirunEnded,
    MpirunFinished,
    ProcessEnded,
    RankLost,
    RankMissed,
    SignalCaught,
    StoryEnded,
)
from launcher.channel.messages import Cause
from launcher.drain import MAIN, STOP_SIGNALS
from launcher.failures import cause_of
from launcher.gates import GateFailed
from launcher.log import log
from launcher.report import Ending, config_ending

if TYPE_CHECKING:
    from launcher.lifecycle import Pod


def judge(pod: Pod, event: Event) -> Ending | None:
    """The Ending that an event brings, or None when life goes on. A failure is counted."""
    ending = _name_first(pod, event, _judge(pod, event))
    if ending is not None and ending.cause is not None:
        mine = ending.cause.index == (pod.group.index if pod.group else 0)
        pod.tally.failures[cause_of(event, mine)] += 1
    return ending


def _name_first(pod: Pod, event: Event, ending: Ending | None) -> Ending | None:
    if ending is None or ending.cause is None or isinstance(event, LeaderSaid):
        return ending
    cause = suspicion.first(pod, ending.cause)
    if cause is ending.cause:
        return ending
    code = ending.exit_code
    if cause.index != ending.cause.index:
        code = exits.ENDED_UNASKED if pod.group and cause.index == pod.group.index else exits.PEER_FAILED
    return replace(ending, reason=cause.what, exit_code=code, cause=cause)


def own_words(pod: Pod, name: str) -> str:
    """Why the main process failed, where it says so in a line that the plan knows."""
    main, child = pod.plan.main if pod.plan else None, pod.children.get(name)
    return child.keepsake.line(main.fails_with) if name == MAIN and main and child else ""


def _judge(pod: Pod, event: Event) -> Ending | None:
    me = pod.group.index if pod.group else 0
    match event:
        case SignalCaught(caught) if caught.sender == os.getpid():
            pass  # SIGPIPE from our own write to a closed stdout: not for the engine
        case SignalCaught(caught) if caught.number in STOP_SIGNALS:
            pod.signals += 1
            name = signal.Signals(caught.number).name
            sender = "from outside the pod" if caught.sender == 0 else f"from pid {caught.sender}"
            pod.asked = Ending(f"{name} {sender}", exits.OK, asked=True)
            if not pod.finished and not pod.leader_drains and any(not child.alive for child in pod.children.values()):
                return None  # it ended before we were asked to stop: its own event is on its way
            log.info("%s %s: stopping", name, sender)
            return pod.asked
        case SignalCaught(caught):
            pod.pass_on(caught.number)
        case ProcessEnded(name, 0, _) if name == MAIN and pod.the_plan.kind is Kind.JOB:
            return pod.job_done() or pod.asked
        case MpirunEnded() | LaunchAsked() | DaemonEnded() | DaemonGone() | MpirunFinished() if pod.mpi is not None:
            return pod.mpi.judge(event)
        case ProcessEnded(name, code) if pod.leader_drains:
            log.info("%s %s while the leader drains", "the engine" if name == MAIN else name, exits.describe(code))
        case HelperLost() | RankLost() | RankMissed() if pod.leader_drains:
            pass
        case ProcessEnded(name, code, words):
            program = "the engine" if name == MAIN else name
            what = f"{program} {exits.describe(code)}" + ("" if code else ", although nobody asked it to stop")
            if why := own_words(pod, name):
                what = why
            return Ending(what, code or exits.ENDED_UNASKED, Cause(me, what, code, words))
        case HelperLost(service, process, words):
            what = f"{process} of {service} ended"
            return Ending(what, exits.ENDED_UNASKED, Cause(me, what, head=words))
        case RankLost():
            suspicion.rank_lost(pod, event)
        case RankMissed(what, words):
            return Ending(what, exits.ENDED_UNASKED, Cause(me, what, head=words))
        case MemberSuspected(index, what, died, words):
            suspicion.note(pod, index, what, died, words)
        case EngineHung() | MemberHung() | LeaderInspects():
            from launcher import hang

            hang.heard(pod, event)
        case HangJudged(cause):
            code = exits.ENDED_UNASKED if cause.index == me else exits.PEER_FAILED
            return Ending(cause.sentence(), code, cause)
        case MemberDone():
            return pod.all_done()
        case MemberFailed(cause):
            return Ending(cause.sentence(), exits.PEER_FAILED, cause, final=cause.configuration)
        case MemberLost(index, what, silent) if pod.leader and pod.leader.formed:
            # Not restarted in place after silence: it may never come back, and while no container ends, nobody
            # recreates it.
            return Ending(what, exits.PEER_FAILED, Cause(index, what), final=silent)
        case MemberLeaving(index, reason) if pod.leader and pod.leader.formed:
            return Ending(f"{member_name(index)} was asked to stop ({reason})", exits.OK, asked=True)
        case LeaderDrains(reason):
            log.info("the leader drains (%s)", reason)
            pod.leader_drains = True
            if pod.mpi is not None:
                pod.mpi.leader_drains()
            if pod.plan is not None and pod.plan.all_answer:
                return Ending(f"the leader drains ({reason})", exits.OK, asked=True)
        case LeaderSaid(stop):
            pod.told.set_result(None)
            pod.stop = stop
            code = exits.PEER_FAILED if stop.cause else exits.OK
            if stop.cause and stop.cause.index == me:  # a rank of ours was first, our engine or helper has not ended
                code = exits.ENDED_UNASKED
            return Ending(stop.reason, code, stop.cause, asked=stop.cause is None, restart=stop.restart)
        case LeaderLost(what):
            pod.told.set_result(None)
            return Ending(what, exits.PEER_FAILED, Cause(0, what), final=True)
        case StoryEnded(ConfigError() as error):
            for line in error.text().splitlines():
                log.error("%s", line)
            return config_ending(error, me)
        case StoryEnded(GatherTimeout() as error):
            return Ending(str(error), exits.PEER_FAILED, Cause(me, str(error)), final=True)
        case StoryEnded(Mismatched() as error):
            return Ending(str(error), exits.REFUSED, Cause(me, str(error), exits.REFUSED), final=True)
        case StoryEnded(error):
            gate = isinstance(error, GateFailed)
            what = str(error) if gate else f"lwsrun itself failed: {error!r}"
            return Ending(what, exits.ENDED_UNASKED, Cause(me, what), final=not gate)
        case _:
            pass
    return None
