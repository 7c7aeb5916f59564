"""Runs beside each other: their figures, the differences against the first, and what cannot be compared.

Two numbers are compared only where they mean the same. Losses need one tokenizer and one validation set, energies one
boundary (per token one tokenizer, too), MFU one FLOP convention, and the totals of a run that did not end as planned
are of what it did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dashboards.figures.catalogue import Source
from dashboards.figures.curves import energy_at
from dashboards.figures.drawing import Drawing
from dashboards.figures.pareto import pareto_drawing
from energy.boundaries import covered_by
from energy.human import digits, human_energy, percent
from energy.runs import flat
from energy.units import JOULE_PER_KWH

FIGURES = (
    "params", "tokens", "loss", "energy_it_kwh", "energy_facility_kwh", "joule_per_token", "carbon_tco2eq", "gpu_hours",
    "mfu",
)  # fmt: skip
TOTALS = ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "gpu_hours")
OF_ENERGY = ("energy_it_kwh", "energy_facility_kwh", "joule_per_token", "carbon_tco2eq")
BY_TOKEN = ("loss", "joule_per_token")  # of tokens, which are pieces of text only by one tokenizer
LESS_IS_BETTER = ("loss", "energy_it_kwh", "energy_facility_kwh", "joule_per_token", "carbon_tco2eq", "gpu_hours")
MORE_IS_BETTER = ("mfu",)
SHARE_APART = 0.2  # shares of measured energy that differ by more are worth a word
SAME = 5e-4  # a smaller relative change is none
AS_FACTOR = 4.0  # so many times more is said as a factor: 2,843 % more is hard to think of
UNTIMED = ("name",)  # keys of a spec that say nothing of what was trained


@dataclass(frozen=True)
class Compared:
    """One run as it stands in a comparison. Figures that are not known are None.

    figures: by the names of FIGURES; means: what each group of them rests on; path: (IT kWh, validation loss) of each
    evaluation; spec: its keys with dots.
    """

    name: str
    folder: str
    status: str
    purpose: str
    partial: bool
    trained_fraction: float | None
    figures: dict[str, float | None]
    low_kwh: float | None
    high_kwh: float | None
    means: dict[str, Any]
    path: list[tuple[float, float]] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        told = {"name": self.name, "path": self.folder, "status": self.status, "purpose": self.purpose,
                "partial": self.partial, "trained_fraction": self.trained_fraction}  # fmt: skip
        interval = {"energy_it_low_kwh": self.low_kwh, "energy_it_high_kwh": self.high_kwh}
        return told | self.figures | interval | self.means


def sense_of(figure: str, relative: float) -> str:
    """Whether a change of a figure is "better" or "worse"; "" for one that has no such sense."""
    if figure not in (*LESS_IS_BETTER, *MORE_IS_BETTER):
        return ""
    return "better" if (relative < 0) == (figure in LESS_IS_BETTER) else "worse"


def _tokenizer(folder: Path) -> str | None:
    path = folder / "tokenizer.model"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _validation_set(run: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the validation loss is of: sources, how much was held out, and by which seed and length."""
    data = run.get("data") or {}
    if data.get("validation_tokens") is None:
        return None
    sources = [(source.get("name"), source.get("proportion"), source.get("tokens"), source.get("held_out"))
               for source in data.get("sources") or []]  # fmt: skip
    length = (run.get("model") or {}).get("sequence_length")
    sequences = (spec.get("training") or {}).get("evaluation_sequences")
    return {"tokens": data["validation_tokens"], "sources": sources, "length": length, "sequences": sequences}


def read_compared(source: Source) -> Compared:
    """A run's place in a comparison, from its record and its ledgers. ValueError for a record that cannot be read."""
    run, record, folder = source.run.read_run(), source.record, Path(source.run.path)
    data, energy, compute = record["data"], record["energy"], record["compute"]
    validation = data["validation_loss"]
    interval = record["uncertainty"]["energy_it_kwh"] or {}
    spec = source.spec()
    evaluations = source.run.evaluations()
    path: list[tuple[float, float]] = []
    if evaluations and source.account.power:
        joules = energy_at(source.account, np.array([each["time_unix_s"] for each in evaluations], dtype=float))
        losses = [float(each["validation_loss"]) for each in evaluations]
        path = list(zip((joules / JOULE_PER_KWH).tolist(), losses, strict=True))
    return Compared(
        name=folder.name,
        folder=str(folder),
        status=str(record["run"]["status"]),
        purpose=str(record["run"]["purpose"] or "not said"),
        partial=bool(record["run"]["partial"]),
        trained_fraction=record["run"]["trained_fraction"],
        figures={
            "params": record["model"].get("params"),
            "tokens": data["tokens_trained"] if record["model"].get("params") else None,
            "loss": data["training_loss"] if validation is None else validation,
            "energy_it_kwh": energy["energy_it_kwh"],
            "energy_facility_kwh": energy["energy_facility_kwh"],
            "joule_per_token": energy["joule_per_token"],
            "carbon_tco2eq": record["carbon"]["carbon_tco2eq"],
            "gpu_hours": record["time"]["gpu_hours"],
            "mfu": compute["mfu"],
        },
        low_kwh=interval.get("low"),
        high_kwh=interval.get("high"),
        means={
            "loss_kind": "validation" if validation is not None else "training",
            "tokenizer_sha256": _tokenizer(folder),
            "validation_set": _validation_set(run, spec),
            "boundary": energy["boundary"],
            "covers": covered_by(energy),
            "share_measured": energy["share_measured"],
            "pue": energy["pue"],
            "intensity_g_per_kwh": record["carbon"]["intensity_g_per_kwh"],
            "series_sha256": record["carbon"]["series_sha256"],
            "flop_convention": compute["flop_convention"],
            "peak_flops": compute["peak_flops"],
        },
        path=path,
        spec={key: value for key, value in flat(spec).items() if key not in UNTIMED},
    )


def obstacles(one: Compared, other: Compared) -> list[tuple[tuple[str, ...], str]]:
    """(figures that cannot be compared between two runs, why); without figures: what the reader must know."""
    found: list[tuple[tuple[str, ...], str]] = []

    def differs(key: str) -> bool:
        return bool(one.means[key] != other.means[key])

    have_loss = one.figures["loss"] is not None and other.figures["loss"] is not None
    by_token = tuple(key for key in BY_TOKEN if None not in (one.figures[key], other.figures[key]))
    if by_token and differs("tokenizer_sha256"):
        found.append((by_token, "other tokenizers: a token is not the same piece of text"))
    if have_loss and differs("loss_kind"):
        found.append((("loss",), f"{one.means['loss_kind']} loss against {other.means['loss_kind']} loss"))
    elif have_loss and not differs("tokenizer_sha256") and differs("validation_set"):
        found.append((("loss",), "losses on other validation sets"))
    if differs("covers") and None not in (one.means["covers"], other.means["covers"]):
        found.append((OF_ENERGY, f"other boundaries: {one.means['covers']} against {other.means['covers']}"))
    if one.figures["mfu"] is not None and other.figures["mfu"] is not None and differs("flop_convention"):
        names = [str(run.means["flop_convention"]).partition(":")[0] for run in (one, other)]
        found.append((("mfu",), f"other FLOP conventions: {names[0]} against {names[1]}"))
    for run in (one, other):
        if run.partial:
            share = run.trained_fraction
            done = "not known how much of its plan" if share is None else f"{percent(share)} of its planned tokens"
            found.append((TOTALS, f"{run.name} is partial ({run.status}, {done}): its totals are of that alone"))
    shares = [run.means["share_measured"] for run in (one, other)]
    if None not in shares and abs(shares[0] - shares[1]) > SHARE_APART:
        text = f"measured of the energy: {percent(shares[0])} against {percent(shares[1])}; the rest is modelled"
        found.append(((), text))
    known = one.figures["carbon_tco2eq"] is not None and other.figures["carbon_tco2eq"] is not None
    grids = ("pue", "intensity_g_per_kwh", "series_sha256")
    if known and any(differs(key) for key in grids):
        told = [_grid(run) for run in (one, other)]
        found.append(((), f"carbon on other grounds: {told[0]} against {told[1]}"))
    elif differs("pue") and None not in [run.figures["energy_facility_kwh"] for run in (one, other)]:
        found.append(((), f"facility energy by other PUEs: {one.means['pue']} against {other.means['pue']}"))
    return found


def _grid(run: Compared) -> str:
    grams = run.means["intensity_g_per_kwh"]
    grid = "a grid series" if run.means["series_sha256"] else "no intensity" if grams is None else f"{grams:g} g/kWh"
    return f"PUE {run.means['pue']}, {grid}"


@dataclass(frozen=True)
class Comparison:
    """Runs, the first being what the others are held against."""

    runs: list[Compared]

    def blocked(self, other: Compared) -> set[str]:
        """The figures of a run that cannot be compared with those of the first."""
        return {key for keys, _ in obstacles(self.runs[0], other) for key in keys}

    def blocked_at_any_moment(self, other: Compared) -> set[str]:
        """As `blocked`, of two runs each up to some moment: how they ended does not matter there."""
        return {key for keys, _ in obstacles(self.runs[0], other) if keys != TOTALS for key in keys}

    def differences(self, other: Compared) -> dict[str, dict[str, float | None] | None]:
        """{figure: {absolute, relative}} against the first; None where one is not known or they do not compare."""
        blocked, first = self.blocked(other), self.runs[0]
        found: dict[str, dict[str, float | None] | None] = {}
        for key in FIGURES:
            before, after = first.figures[key], other.figures[key]
            if before is None or after is None or key in blocked:
                found[key] = None
            else:
                found[key] = {"absolute": after - before, "relative": after / before - 1 if before else None}
        return found

    def caveats(self) -> list[str]:
        """Everything that cannot be compared or must be known, a sentence each: 'a and b: why'."""
        first = self.runs[0]
        told = [
            text if text.startswith((f"{first.name} is", f"{run.name} is")) else f"{first.name} and {run.name}: {text}"
            for run in self.runs[1:]
            for _, text in obstacles(first, run)
        ]
        return list(dict.fromkeys(told))

    def sentences(self) -> list[str]:
        """How much energy each run took to the loss that both it and the first reached, by their evaluations."""
        first, found = self.runs[0], []
        for other in self.runs[1:]:
            if self.blocked_at_any_moment(other) & {"loss", "energy_it_kwh"} or not first.path or not other.path:
                continue
            loss = max(min(loss for _, loss in run.path) for run in (first, other))
            before, after = (next(kwh for kwh, at in run.path if at <= loss) for run in (first, other))
            if not before > 0:
                continue
            change = after / before - 1
            how = f"{percent(abs(change))} {'more' if change > 0 else 'less'} energy than"
            if abs(change) < 0.005:
                how = "the same energy as"
            elif change >= AS_FACTOR:
                how = f"{digits(after / before)} times the energy of"
            found.append(
                f"{other.name} reached validation loss {loss:.3f} with {how} {first.name} "
                f"({human_energy(after)} against {human_energy(before)}, at their evaluations)"
            )
        return found

    def changed_keys(self) -> dict[str, list[Any]]:
        """The keys of the specs that are not the same in all runs, each with its value in every run; None: not set."""
        with_spec = [run for run in self.runs if run.spec]  # a run of `measure` has none
        keys = dict.fromkeys(key for run in with_spec for key in run.spec)
        differ = [key for key in keys if any(run.spec.get(key) != with_spec[0].spec.get(key) for run in with_spec)]
        return {key: [run.spec.get(key) for run in self.runs] for key in differ}

    def as_json(self) -> dict[str, Any]:
        first, others = self.runs[0], self.runs[1:]
        return {
            "runs": [run.as_json() for run in self.runs],
            "differences": [{"run": run.name, "against": first.name, **self.differences(run)} for run in others],
            "not_comparable": [
                {"run": run.name, "against": first.name, "figures": list(keys), "why": why}
                for run in others
                for keys, why in obstacles(first, run)
            ],
            "sentences": self.sentences(),
            "changed_keys": self.changed_keys(),
        }

    def figure(self) -> Drawing:
        """Loss against energy; runs whose loss or energy does not compare with the first's say so beneath."""
        return pareto_drawing(
            [
                {"name": run.name, "partial": run.partial, "path": run.path, "low_kwh": run.low_kwh,
                 "high_kwh": run.high_kwh, "energy_it_kwh": run.figures["energy_it_kwh"], "loss": run.figures["loss"],
                 "comparable": run is self.runs[0] or not self.blocked_at_any_moment(run) & {"loss", "energy_it_kwh"}}
                for run in self.runs
            ],
            self.caveats(),
        )  # fmt: skip


def compare(sources: Sequence[Source]) -> Comparison:
    """Two runs or more. ValueError for fewer, and for a run that is named twice."""
    if len(sources) < 2:
        raise ValueError("a comparison needs two runs or more")
    paths = [Path(source.run.path).resolve() for source in sources]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice.name} is named twice: a run is not compared with itself")
    runs = [read_compared(source) for source in sources]
    if len({run.name for run in runs}) < len(runs):  # folders of one name in several places: told apart by their paths
        runs = [Compared(**{**vars(run), "name": run.folder}) for run in runs]
    return Comparison(runs)
