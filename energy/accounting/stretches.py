"""A device's stretches of metering put together: each moment once, cut to the stretches' edges, gaps between them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from energy.accounting.curves import Curve, Gap, gap_between
from energy.accounting.placement import was_others
from energy.accounting.whole_node import Span, beyond, known_spans
from energy.ledger.readings import Session
from energy.metering.track import LONGEST_UPDATE_S
from energy.sensors import device_key

Stretch = tuple[dict[str, Any], Session, Curve, str]  # a device's description, where it was metered, its curve, ledger


class Machines:
    """Tells devices apart wherever they were metered: a GPU by its UUID, what else a machine has by the machine's boot
    too. Meters in several containers of one machine have a name each for it, and read the same CPUs."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def key(self, about: dict[str, Any], header: dict[str, Any]) -> str:
        """The same for the same device; `header`: of the stretch in which it was metered."""
        key = device_key(about)
        return key if about["kind"] == "gpu" else self._first(header, about["uuid"].partition("@")[0], key)

    def node(self, header: dict[str, Any]) -> str:
        """The name under which the machine was met first."""
        return self._first(header, "", header["node"])

    def _first(self, header: dict[str, Any], what: str, name: str) -> str:
        boot = header.get("boot_id")
        return name if boot is None else self._known.setdefault((boot, what), name)


def unite(found: dict[str, list[Stretch]]) -> list[list[Stretch]]:
    """The stretches of each device. Where a whole GPU was metered too, its MIG instances are in that."""
    whole = {key for key in found if " " not in key}
    united: dict[str, list[Stretch]] = {}
    for key, stretches in found.items():
        uuid = key.partition(" ")[0]
        united.setdefault(uuid if uuid in whole else key, []).extend(stretches)
    return list(united.values())


def join(stretches: list[Stretch], warnings: list[str]) -> tuple[dict[str, Any], list[Curve], list[Gap]]:
    """(description, curves, gaps) of a device in order of time; what was not plain is added to the warnings.

    A stretch is cut to its own start and end (Session.span), but not where a crash ended it and metering went on: there
    the curve, the gap and the next curve meet at the counter's updates, and nothing lies between them. Where others had
    the node meanwhile there is no gap: `energy.accounting.placement` says what is left out.
    """
    stretches.sort(key=lambda stretch: float(stretch[2].time_unix_s[0]))
    about = stretches[-1][0]
    named = f"{about['name']} ({about['uuid']})"
    curves: list[Curve] = []
    gaps: list[Gap] = []
    last: Stretch | None = None
    for place, stretch in enumerate(stretches):
        _, session, curve, ledger = stretch
        start, end = session.span()
        following = stretches[place + 1][2] if place + 1 < len(stretches) else None
        goes_on = (
            following is not None
            and not was_others(stretches[place + 1][1])
            and (not session.ended or float(following.time_unix_s[0]) < float(curve.time_unix_s[-1]))
        )
        if last is not None and float(curve.time_unix_s[0]) < float(last[2].time_unix_s[-1]):
            others = [_unknown_to(earlier, curve.between(start, end)) for earlier in curves]
            also = ", and what one of them does not know the other tells" if any(others) else ""
            warnings.append(f"{named} is in {ledger} and in {last[3]} at the same time: counted once{also}")
            curves = [part for old, spans in zip(curves, others, strict=True) for part in _filled(old, curve, spans)]
            start = max(start, float(last[2].time_unix_s[-1]))
            if start >= float(curve.time_unix_s[-1]):
                continue
        elif last is not None and not last[1].ended and not was_others(session):
            gap = gap_between(last[1], last[2], session, curve, about)
            gaps.append(gap)
            warnings.append(f"{named}: {gap.text}")
            start = float(curve.time_unix_s[0])
        warnings += [f"{named}: {text}" for text in curve.warnings]
        if not goes_on and about["method"] == "counter" and math.isnan(curve.power_w[-1]):
            # What was used while a counter could not be read it tells afterwards; here there is no afterwards.
            lost_s = end - float(curve.time_unix_s[-1])
            if lost_s > LONGEST_UPDATE_S:
                warnings.append(f"{named}: the last {lost_s:.1f} s are missing, and their energy is not in the total")
        curves.append(curve.between(start, float(curve.time_unix_s[-1]) if goes_on else end))
        if was_others(session):
            # Rows may be a minute apart, and the attempt before have waited in vain since the last one.
            curves[-1].attempt[:1] = curves[-1].attempt[1:2]
        last = stretch
    return about, curves, gaps


def _unknown_to(curve: Curve, other: Curve) -> list[Span]:
    """The time of which another meter of the same device knows what this one does not."""
    unknown = beyond([(float(curve.time_unix_s[0]), float(curve.time_unix_s[-1]))], known_spans([curve]))
    return beyond(unknown, beyond(unknown, known_spans([other])))


def _filled(curve: Curve, other: Curve, spans: list[Span]) -> list[Curve]:
    """The curve with the other one's in these spans. What is counted over all of a curve stays with the first part."""
    parts, since = [], -math.inf
    for start, end in spans:
        parts += [curve.between(since, start), other.between(start, end)]
        since = end
    parts.append(curve.between(since, math.inf))
    told = replace(parts[0], gap_s=max(0.0, curve.gap_s - math.fsum(end - start for start, end in spans)))
    nothing: dict[str, Any] = dict.fromkeys(("integrated_j", "gap_s", "unknown_s", "counter_j", "held_j"), 0.0)
    return [told, *(replace(part, samples=0, **nothing) for part in parts[1:])]
