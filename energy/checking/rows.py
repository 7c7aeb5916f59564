"""The plausibility checks on one row and on a table of them (what each is for: see `energy.checking.checks`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from energy.checking.claims import (
    TOLERANCE,
    Claim,
    Finding,
    at_its_boundary,
    energy_text,
    grid_energy,
    is_total,
    near,
    number_text,
    tonnes_text,
)
from energy.factors import Accelerator, match_accelerator

# g per kWh: the lowest median life cycle of any source is 11 (wind, IPCC AR5 WG3 annex III); the most carbon-intensive
# country in the tables has 1,306. A grid without any combustion lies below on the direct basis: state the intensity.
LOWEST_G_PER_KWH, HIGHEST_G_PER_KWH = 10.0, 1400.0
HIGHEST_PUE = 3.0
GPU_HEADROOM = 1.05  # a power limit is held on average, not at every moment
NODE_HEADROOM = 2.5  # an 8-GPU server is rated at up to twice its GPUs
# Less than any draws when it does nothing: data-centre devices idle at a tenth of their rated power, cards for desktops
# at a fiftieth.
IDLE_SHARE, IDLE_SHARE_DESKTOP = 0.05, 0.01
LARGEST_DEVICE_W, SMALLEST_DEVICE_W = 2500.0, 5.0
DURATION_TOLERANCE = 0.10  # "about 5 months" is half a month either way
_MWH = "kWh for MWh"
_PRODUCT = re.compile(r"(\d[\d,]*(?:\.\d+)?)\s*[x×*]\s*(1\.\d+)")
Found = tuple[str, str]


def _against(claim: Claim, key: str, printed: float, expected: float, words: str, shown: Callable[[float], str],
             units: str) -> list[Found]:  # fmt: skip
    """Compares a printed figure with the product of the others, and says which slip would explain the difference."""
    if near(claim, key, printed, expected) or not expected:
        return []
    told = f"{words} = {shown(expected)}, printed {shown(printed)}"
    twice = expected * claim.pue if claim.pue is not None and claim.pue > 1.0 + TOLERANCE else None
    if twice is not None and near(claim, key, printed, twice):
        return [("PUE counted twice", f"{told}, which is x {claim.pue:g} once more")]
    for factor, slip in ((1e3, "a thousand times more"), (1e-3, "a thousandth")):
        if near(claim, key, printed, expected * factor):
            return [("unit", f"{told}: {slip}; {units}?")]
    return [("does not follow", told)]


def _energy_follows(claim: Claim) -> list[Found]:
    rated = claim.rated_it_kwh
    if rated is None or claim.embodied:
        return []
    words = f"{number_text(claim.hours or 0)} h x {number_text(claim.power_w or 0)} W"
    found: list[Found] = []
    if claim.energy_it_kwh is not None and not claim.measured:
        found += _against(claim, "energy_it_kwh", claim.energy_it_kwh, rated, words, energy_text, _MWH)
    if claim.energy_facility_kwh is not None and claim.pue is not None and not claim.measured:
        whole, told = rated * claim.pue, f"{words} x PUE {claim.pue:g}"
        found += _against(
            claim, "energy_facility_kwh", claim.energy_facility_kwh, whole, told, energy_text, "kWh for MWh"
        )
    if claim.energy_kwh is not None and not claim.measured:
        if claim.pue is not None:  # had it fitted on either boundary, it would have been put there
            whole, told = rated * claim.pue, f"{words} x PUE {claim.pue:g}"
            found += _against(claim, "energy_kwh", claim.energy_kwh, whole, told, energy_text, _MWH)
        elif not rated * (1 - TOLERANCE) - claim.step.get("energy_kwh", 0.0) <= claim.energy_kwh <= rated * HIGHEST_PUE:
            found += _against(claim, "energy_kwh", claim.energy_kwh, rated, words, energy_text, _MWH)
    return found


def _facility_follows(claim: Claim) -> list[Found]:
    it, facility, pue = claim.energy_it_kwh, claim.energy_facility_kwh, claim.pue
    if it is None or facility is None or pue is None:
        return []
    words = f"{energy_text(it)} x PUE {pue:g}"
    return _against(claim, "energy_facility_kwh", facility, it * pue, words, energy_text, _MWH)


def _carbon_follows(claim: Claim) -> list[Found]:
    if claim.carbon_t is None or claim.intensity_g_per_kwh is None or claim.embodied:
        return []
    grid = grid_energy(claim)
    if grid is None and claim.energy_kwh is not None:
        options = [claim.energy_kwh * factor for factor in (1.0, claim.pue or 1.0)]
        if any(near(claim, "carbon_t", claim.carbon_t, kwh * claim.intensity_g_per_kwh / 1e6) for kwh in options):
            return []
        grid = claim.energy_kwh, energy_text(claim.energy_kwh)
    if grid is None:
        return []
    words = f"{grid[1]} x {claim.intensity_g_per_kwh:g} g/kWh"
    expected = grid[0] * claim.intensity_g_per_kwh / 1e6
    return _against(claim, "carbon_t", claim.carbon_t, expected, words, tonnes_text, "kg for t")


def _own_words(claim: Claim) -> list[Found]:
    """A row whose words make its energy a product with PUE ("230 x 1.12") although its carbon applies PUE to it."""
    own = ((key, getattr(claim, key)) for key in ("energy_gpu_kwh", "energy_it_kwh", "energy_kwh"))
    key, kwh = next(((key, kwh) for key, kwh in own if kwh is not None), ("", None))
    if kwh is None or claim.pue is None or claim.carbon_t is None or claim.intensity_g_per_kwh is None:
        return []
    if not near(claim, "carbon_t", claim.carbon_t, kwh * claim.pue * claim.intensity_g_per_kwh / 1e6):
        return []
    for match in _PRODUCT.finditer(claim.text):
        before, pue = float(match[1].replace(",", "")), float(match[2])
        if pue == claim.pue != 1 and any(near(claim, key, kwh, before * pue * unit) for unit in (1.0, 1e3)):
            told = f"the row's own words have {match[1]} x {pue:g} = {before * pue:g}"
            told += f", so {energy_text(kwh)} holds PUE already"
            return [("PUE counted twice", f"{told}; {tonnes_text(claim.carbon_t)} applies it again")]
    return []


def _implied_factor(claim: Claim) -> list[Found]:
    """Only where no intensity is stated: with one, the product is compared."""
    if claim.carbon_t is None or claim.embodied:
        return []
    if claim.intensity_g_per_kwh is not None and (grid_energy(claim) or claim.energy_kwh is not None):
        return []
    kwh, pue = claim.energy_facility_kwh, 1.0
    if kwh is None:
        own = (claim.energy_it_kwh, claim.energy_gpu_kwh, claim.energy_kwh, claim.rated_it_kwh)
        kwh, pue = next((each for each in own if each is not None), None), HIGHEST_PUE
    if not kwh:
        return []
    g_per_kwh = claim.carbon_t * 1e6 / kwh
    if LOWEST_G_PER_KWH <= g_per_kwh <= HIGHEST_G_PER_KWH * pue:
        return []
    limit = "less than" if g_per_kwh < LOWEST_G_PER_KWH else "more than"
    told = f"{tonnes_text(claim.carbon_t)} over {energy_text(kwh)} is {g_per_kwh / 1000:.4f} kg per kWh"
    told += f", {limit} any grid x PUE"
    if any(50 <= g_per_kwh * factor <= 1000 for factor in (1e3, 1e-3)):
        told += ": kg for t, or kWh for MWh?"
    return [("implied factor", told)]


def idle_floor_w(device: Accelerator) -> float:
    """Watts that a device of known rated power does not fall below, however idle it is."""
    return (device.tdp_w or 0.0) * (IDLE_SHARE_DESKTOP if device.name.startswith("RTX") else IDLE_SHARE)


def _mean_power(claim: Claim) -> list[Found]:
    """Mean power per device, from energy and device-hours, against what the device is rated at."""
    if not claim.hours or claim.embodied:
        return []
    gpu = claim.energy_gpu_kwh
    own = (gpu, claim.energy_it_kwh, claim.energy_kwh, claim.energy_facility_kwh)
    kwh = next((each for each in own if each is not None), None)
    if kwh is None:
        return []
    mean_w, known = kwh * 1000 / claim.hours, match_accelerator(claim.device) if claim.device else None
    if known is None or known.tdp_w is None:
        return []
    tdp_w = known.tdp_w
    headroom = GPU_HEADROOM if gpu is not None else NODE_HEADROOM
    told = f"{energy_text(kwh)} in {number_text(claim.hours)} device-hours is {number_text(mean_w)} W each"
    if mean_w > tdp_w * headroom:
        return [("more than rated power", f"{told}; {claim.device} is rated at {tdp_w:g} W")]
    if mean_w < idle_floor_w(known):
        return [("less than idle", f"{told}, below what {claim.device} ({tdp_w:g} W) draws when it does nothing")]
    return []


def power_warning(power_w: float, device: str | None = None) -> str | None:
    """What is odd about the power (W) of one device: kilowatts, a whole node, or more than it is rated at."""
    if power_w <= 0:
        return None
    known = match_accelerator(device) if device else None
    tdp_w = known.tdp_w if known else None
    if power_w < SMALLEST_DEVICE_W:
        return f"{power_w:g} W for one device is less than any draws: are these kilowatts where watts are meant?"
    if power_w >= 20 * LARGEST_DEVICE_W:
        return f"{power_w:,.0f} W for one device: are these watts where kilowatts are meant?"
    if power_w > LARGEST_DEVICE_W:
        return f"{power_w:,.0f} W is more than one accelerator draws: is it the power of a whole node?"
    if tdp_w is not None and power_w > tdp_w * NODE_HEADROOM:
        return f"{power_w:,.0f} W; {device} is rated at {tdp_w:g} W"
    return None


def _stated_power(claim: Claim) -> list[Found]:
    if claim.power_w is None:
        return []
    odd, tdp_w = power_warning(claim.power_w, claim.device), claim.tdp_w
    if odd is not None:
        return [("unit" if "meant" in odd else "more than rated power", odd)]
    if claim.power_of_gpu and tdp_w is not None and claim.power_w > tdp_w * GPU_HEADROOM:
        return [("more than rated power", f"{claim.power_w:g} W; {claim.device} is rated at {tdp_w:g} W")]
    return []


def _months(claim: Claim) -> list[Found]:
    """Whether devices, duration and energy fit together at the stated power."""
    if not claim.devices or not claim.duration_h or not claim.power_w or claim.measured or claim.embodied:
        return []
    energy, pue = claim.energy_facility_kwh, claim.pue
    if energy is None and claim.energy_kwh is not None:
        energy = claim.energy_kwh
    if energy is None:
        energy, pue = claim.energy_it_kwh, 1.0
    if not energy or pue == 0:
        return []
    days = energy * 1000 / (claim.devices * claim.power_w) / 24
    least, most = (days / pue, days / pue) if pue is not None else (days / 1.5, days)
    stated = claim.duration_h / 24
    if least * (1 - DURATION_TOLERANCE) <= stated <= most * (1 + DURATION_TOLERANCE):
        return []
    span = f"{least:,.0f}" if round(least) == round(most) else f"{least:,.0f} to {most:,.0f}"
    at = f" and PUE {pue:g}" if pue is not None else ""
    return [("months against MWh", f"{energy_text(energy)} is {span} days of {claim.devices:,.0f} devices at "
             f"{claim.power_w:g} W{at}, not the {stated:,.0f} days stated")]  # fmt: skip


def _ranges(claim: Claim) -> list[Found]:
    found = []
    if claim.pue is not None and not 1.0 <= claim.pue <= HIGHEST_PUE:
        found.append(("out of range", f"a PUE of {claim.pue:g}: it is at least 1, and below {HIGHEST_PUE:g} anywhere"))
    g = claim.intensity_g_per_kwh
    if g is not None and g > HIGHEST_G_PER_KWH:
        found.append(("out of range", f"{g:,.0f} g/kWh is more than any grid has"))
    elif g is not None and 0 < g < 1.5:
        found.append(("unit", f"{g:g} g/kWh is less than any grid has: are these kg/kWh?"))
    return found


_CHECKS = (_ranges, _stated_power, _energy_follows, _facility_follows, _carbon_follows, _own_words, _implied_factor,
           _mean_power, _months)  # fmt: skip


def check_claim(claim: Claim) -> list[Finding]:
    """What is implausible about one row, each thing said once."""
    told = at_its_boundary(claim)
    found = dict.fromkeys(each for check in _CHECKS for each in check(told))
    if claim.device_hours is None and any(check == "months against MWh" for check, _ in found):
        # The hours came from the stated duration: that its product is not the energy is the same finding once more.
        found = dict.fromkeys(each for each in found if each[0] != "does not follow")
    return [Finding(check, claim.name, claim.place, message) for check, message in found]


_SUMMED = {
    "carbon_t": tonnes_text,
    "energy_kwh": energy_text,
    "energy_gpu_kwh": energy_text,
    "energy_it_kwh": energy_text,
    "energy_facility_kwh": energy_text,
    "device_hours": lambda hours: f"{number_text(hours)} h",
}


def check_sums(claims: Sequence[Claim]) -> list[Finding]:
    """Whether each total is the sum of the rows above it, back to the total before it."""
    found: list[Finding] = []
    above: list[Claim] = []
    for claim in claims:
        if not is_total(claim.name):
            above.append(claim)
            continue
        for key, shown in _SUMMED.items():
            total = getattr(claim, key)
            parts = [(value, each.step.get(key, 0.0)) for each in above if (value := getattr(each, key)) is not None]
            if total is None or not parts:
                continue
            rows = math.fsum(value for value, _ in parts)
            slack = max(0.001 * abs(total), math.fsum(step for _, step in parts) / 2 + claim.step.get(key, 0.0))
            if abs(total - rows) > slack * 1.001:
                word = "is missing from the rows" if total > rows else "is too much in the rows"
                message = (
                    f"the total is {shown(total)}, the rows add up to {shown(rows)}: {shown(abs(total - rows))} {word}"
                )
                found.append(Finding("rows do not add up", claim.name, claim.place, message))
        above = []
    return found


def check_claims(claims: Sequence[Claim]) -> list[Finding]:
    """All checks over a table."""
    rows = [finding for claim in claims if not is_total(claim.name) for finding in check_claim(claim)]
    return rows + check_sums(claims)
