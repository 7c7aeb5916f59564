"""Hourly intensities: files of several makers, what is wrong in them by line, and the exact integral."""

import math
import random
from pathlib import Path

import pytest

from energy.carbon.grid import intensity
from energy.carbon.series import IntensitySeries, carbon
from energy.carbon.series_file import read_series
from energy.factors import Basis, Factor

OURS = "start_utc,intensity_g_per_kwh\n"
MAPS = (
    "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
    "Carbon intensity gCO₂eq/kWh (Life cycle),Data source\n"
    "2024-01-01 00:00:00,France,France,FR,100,120,x\n2024-01-01 01:00:00,France,France,FR,101,121,x\n"
)
H = 3600.0


def hourly(values: list[float], start: float = 0.0, basis: str = "") -> IntensitySeries:
    starts = tuple(start + i * H for i in range(len(values)))
    return IntensitySeries(starts, tuple(s + H for s in starts), tuple(values), "test", Basis.parse(basis))


def write(folder: Path, text: str, name: str = "grid.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_our_own_columns(tmp_path: Path) -> None:
    series = read_series(write(tmp_path, OURS + "2024-03-31T00:00:00Z,50\n2024-03-31T01:00:00Z,60.5\n"))
    assert series.start_unix_s == (1711843200.0, 1711846800.0) and series.end_unix_s[-1] == 1711850400.0
    assert series.g_per_kwh == (50, 60.5) and series.warnings == () and series.source == "grid.csv"


def test_electricity_maps_asks_which_basis(tmp_path: Path) -> None:
    path = write(tmp_path, MAPS)
    with pytest.raises(ValueError, match="say which"):
        read_series(path)
    series = read_series(path, intensity_column="Carbon intensity gCO₂eq/kWh (Life cycle)")
    assert series.g_per_kwh == (120, 121) and series.geography == "FR"
    assert series.basis == Basis.parse("average lifecycle consumption location")


def test_watttime_is_marginal_and_in_pounds(tmp_path: Path) -> None:
    text = "timestamp,MOER,MOER version,frequency\n2024-01-01 00:00:00+00:00,1000,3,300\n"
    series = read_series(write(tmp_path, text + "2024-01-01 00:05:00+00:00,900,3,300\n"))
    assert series.g_per_kwh == pytest.approx((453.59237, 408.233133)) and series.basis.rate == "marginal"
    assert series.end_unix_s[0] - series.start_unix_s[0] == 300
    answer = (
        '{"data": [{"point_time": "2026-04-01T00:00:00+00:00", "value": 1000},'
        '{"point_time": "2026-04-01T00:05:00+00:00", "value": 900}],'
        '"meta": {"region": "CAISO_NORTH", "signal_type": "co2_moer", "units": "lbs_co2_per_mwh"}}'
    )
    api = read_series(write(tmp_path, answer, "a.json"))
    assert api.g_per_kwh == series.g_per_kwh and api.basis.rate == "marginal"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("2024-01-01T00:00:00Z,5\n2024-01-01T01:00:00Z,-1\n", "line 3: -1 is negative"),
        ("2024-01-01T00:00:00Z,5\n2024-01-01T01:00:00Z,inf\n", "line 3: 'inf' is not finite"),
        ("2024-01-01T00:00:00Z,5\n2024-01-01T01:00:00Z,high\n", "line 3: 'high' is no number"),
        ("2024-01-01T00:00:00Z,5\nyesterday,6\n", "line 3: 'yesterday' is no time"),
        ("2024-01-01T00:00:00Z,5\n,6\n", "line 3: no time"),
        ("2024-01-01T00:00:00Z,5\n2024-01-01T00:00:00Z,6\n", "lines 2 and 3 give 2024-01-01T00:00:00Z twice"),
        ("1704067200,5\n", "line 2: '1704067200' is a number"),
        ("2024-01-01T00:00:00Z,5\n", "one entry alone"),
        ("2024-01-01T00:00:00Z,\n2024-01-01T01:00:00Z,nan\n", "no line has a value"),
        ("", "no entries"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_series(write(tmp_path, OURS + rows))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("time,g/kWh\n2024-03-31T02:00:00,5\n", r"line 2: .* has no time zone"),
        ("a,b\n1,2\n", "no column for the time"),
        ("start_utc,b\n2024-03-31T02:00:00Z,5\n", "no column for the intensity"),
        ("start_utc,value\n2024-03-31T02:00:00Z,5\n", "unit of column 'value' is not clear"),
        (OURS.replace("\n", ",zone\n") + "2024-01-01T00:00:00Z,5,FR\n2024-01-01T01:00:00Z,5,DE\n", "2 zones"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_series(write(tmp_path, text))


def test_json_that_is_none_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        read_series(write(tmp_path, "{", "a.json"))
    with pytest.raises(ValueError, match="list of records"):
        read_series(write(tmp_path, '{"error": "x"}', "a.json"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_series(tmp_path / "b.csv")


def test_what_can_be_read_is_read_with_a_warning(tmp_path: Path) -> None:
    text = OURS + (
        "2024-01-01T01:00:00Z,60\n2024-01-01T00:00:00Z,50\n2024-01-01T02:00:00Z,\n2024-01-01T03:00:00Z,70\n"
        "2024-01-01T03:00:00Z,70\n2024-01-01T06:00:00Z,80\n2024-01-01T07:00:00Z,81\n"
    )
    series = read_series(write(tmp_path, text))
    assert series.g_per_kwh == (50, 60, 70, 80, 81)
    said = " | ".join(series.warnings)
    assert "not in order of time from line 3" in said
    assert "line 6: the same entry again" in said
    assert "line 4: no value" in said
    assert "gap after line 5: 2024-01-01T04:00:00Z to 2024-01-01T06:00:00Z" in said
    assert series.at(1704067200 + 2.5 * H) is None and series.at(1704067200 + 0.5 * H) == 50


def test_local_times_are_found(tmp_path: Path) -> None:
    spring = "Datetime (UTC),g/kWh\n2024-03-31 00:00,5\n2024-03-31 01:00,5\n2024-03-31 03:00,5\n2024-03-31 04:00,5\n"
    assert "are these times local" in read_series(write(tmp_path, spring)).warnings[0]
    autumn = "Datetime (UTC),g/kWh\n2024-10-27 01:00,5\n2024-10-27 02:00,5\n2024-10-27 02:00,6\n2024-10-27 03:00,5\n"
    with pytest.raises(ValueError, match="in autumn"):
        read_series(write(tmp_path, autumn))
    offset = OURS + "2024-03-31T01:00:00+01:00,5\n2024-03-31T03:00:00+02:00,6\n"
    series = read_series(write(tmp_path, offset))
    assert series.start_unix_s == (1711843200.0, 1711846800.0) and "offsets that change" in series.warnings[0]


def test_sizes_that_no_grid_has_are_doubted(tmp_path: Path) -> None:
    low = OURS + "2024-01-01T00:00:00Z,0.3\n2024-01-01T01:00:00Z,0.4\n"
    assert "kg/kWh" in read_series(write(tmp_path, low)).warnings[0]
    high = OURS + "2024-01-01T00:00:00Z,300000\n2024-01-01T01:00:00Z,1\n"
    assert "no grid" in read_series(write(tmp_path, high)).warnings[0]


def test_the_integral_by_hand() -> None:
    # 1 kW from 00:30 to 02:30 under 100, 200 and 400 g/kWh: half an hour, an hour, half an hour
    result = carbon([H / 2, 5 * H / 2], [0.0, 2 * 3.6e6], hourly([100, 200, 400]))
    assert result.carbon_g == pytest.approx(0.5 * 100 + 200 + 0.5 * 400, rel=1e-15)
    assert (result.missing_j, result.missing, result.notes) == (0.0, (), ())


def test_what_is_not_covered_is_missing_unless_a_constant_was_declared() -> None:
    curve = [-H / 2, 2.5 * H], [0.0, 3 * 3.6e6]
    series = hourly([100, 200], basis="average direct")
    result = carbon(*curve, series)
    assert result.carbon_g is None and result.covered_g == pytest.approx(300)
    assert result.missing == ((-H / 2, 0.0), (2 * H, 2.5 * H)) and result.missing_j == pytest.approx(3.6e6)
    assert "missing, not zero" in result.notes[0] and "1970-01-01T02:00:00Z" in result.notes[0]
    filled = carbon(*curve, series, intensity("FR"))
    assert filled.carbon_g == pytest.approx(300 + 56.039)
    assert "declared 56.039" in filled.notes[0] and "mixed bases: direct" in filled.notes[1]
    unknown = Factor("intensity_g_per_kwh", None, "g CO2eq/kWh", "nothing known")
    assert carbon(*curve, series, unknown).carbon_g is None


def test_energy_at_one_moment_and_an_idle_span() -> None:
    series = hourly([100, 200])
    # a counter's growth over a restart is booked at one moment: here at 01:30
    result = carbon([0, 1.5 * H, 1.5 * H, 2 * H], [0.0, 0.0, 3.6e6, 3.6e6], series)
    assert result.carbon_g == pytest.approx(200)


def test_the_integral_holds_against_a_fine_sum_and_however_the_curve_is_cut() -> None:
    generator = random.Random(7)
    for _ in range(25):
        series = hourly([generator.uniform(0, 900) for _ in range(generator.randint(2, 9))], start=1000.0)
        first, last = 1000.0, series.end_unix_s[-1]
        times = sorted(generator.uniform(first, last) for _ in range(generator.randint(2, 40)))
        powers = [generator.uniform(0, 700) for _ in times[1:]]
        energy = [0.0]
        for (a, b), power in zip(zip(times, times[1:], strict=False), powers, strict=True):
            energy.append(energy[-1] + power * (b - a))
        result = carbon(times, energy, series)
        by_hand = math.fsum(
            power * max(0.0, min(b, end) - max(a, start)) / 3.6e6 * g
            for (a, b), power in zip(zip(times, times[1:], strict=False), powers, strict=True)
            for start, end, g in zip(series.start_unix_s, series.end_unix_s, series.g_per_kwh, strict=True)
        )
        assert result.carbon_g == pytest.approx(by_hand, rel=1e-12)
        constant = carbon(times, energy, hourly([385.0] * 10, start=1000.0))
        assert constant.carbon_g == pytest.approx(energy[-1] / 3.6e6 * 385, rel=1e-12)


def test_a_curve_may_fall_for_a_while() -> None:
    """What a node has beyond its parts may be less than nothing in five minutes: the integral is linear."""
    times, energy = [0, H, 2 * H, 3 * H], [0.0, 3 * 3.6e6, 2 * 3.6e6, 4 * 3.6e6]
    assert carbon(times, energy, hourly([100, 200, 400])).carbon_g == pytest.approx(3 * 100 - 200 + 2 * 400)
    missing = carbon(times, energy, IntensitySeries((0, 2 * H), (H, 3 * H), (100, 400), "two hours"))
    assert missing.carbon_g is None and missing.missing_j == -3.6e6 and missing.missing == ((H, 2 * H),)


@pytest.mark.parametrize(
    ("times", "energy", "told"),
    [
        ([0, 2, 1], [0, 1, 2], "back in time at row 3"),
        ([0, 1], [0, math.nan], "not finite at row 2"),
        ([0, math.nan], [0, 1], "not a number"),
    ],
)
def test_curves_that_cannot_be(times: list[float], energy: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        carbon(times, energy, hourly([100]))


def test_a_series_is_whole_and_hashed() -> None:
    series = hourly([100, 200])
    assert series.sha256 == hourly([100, 200]).sha256 != hourly([100, 201]).sha256
    for starts, ends, values, told in (
        ((), (), (), "no entries"),
        ((0.0, 1800.0), (H, 2 * H), (1.0, 2.0), "overlaps"),
        ((0.0,), (0.0,), (1.0,), "ends before"),
        ((0.0,), (H,), (-1.0,), "-1.0 g/kWh"),
    ):
        with pytest.raises(ValueError, match=told):
            IntensitySeries(starts, ends, values, "test")
