"""The plan against published figures: FLOP exactly, Table 15, the scaling laws, the anchors' own MFU."""

import pytest
from plan_fakes import spec

from energy.factors import accelerator, match_accelerator, read_table
from orchestrator.plan import make_plan
from orchestrator.plan.scaling import laws, same_loss
from orchestrator.plan.throughput import anchor_flop_per_token

SIZES = ("7B", "13B", "33B", "65B")
TABLE_15 = {row["model"]: row for row in read_table("llama_table15")}
MODELS = {row["size"]: row for row in read_table("llama_models")}


@pytest.mark.parametrize("size", SIZES)
def test_flop_are_exact(size: str) -> None:
    plan = make_plan(spec(f"llama_{size.lower()}"))
    model = MODELS[size]
    assert plan["params"] == int(model["params"])
    assert plan["tokens"] == {"7B": 10**12, "13B": 10**12}.get(size, 1_400_000_000_000)
    assert plan["compute_flop"] == int(model["flop_per_token_palm_s2048"]) * plan["tokens"]
    assert plan["flop"]["six_n"]["flop"] == 6 * int(model["params"]) * plan["tokens"]
    attention = 12 * int(model["n_layers"]) * int(model["dim"]) * 2048
    assert plan["compute_flop"] - plan["flop"]["causal"]["flop"] == attention // 2 * plan["tokens"]
    assert "PaLM" in plan["flop_convention"] and "causal" in plan["flop"]["causal"]["convention"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("throughput", ["auto", "llama_paper"])
def test_table_15(size: str, throughput: str) -> None:
    from orchestrator.plan import PlanOptions

    plan = make_plan(spec(f"llama_{size.lower()}"), options=PlanOptions(throughput=throughput))
    printed = TABLE_15[f"LLaMA-{size}"]
    assert plan["gpu_hours"] == pytest.approx(float(printed["gpu_hours"]), rel=0.01)
    assert plan["energy_facility_kwh"] / 1000 == pytest.approx(float(printed["printed_mwh"]), rel=0.015)
    assert plan["carbon_tco2eq"] == pytest.approx(float(printed["printed_tco2eq"]), rel=0.015)
    assert plan["throughput_basis"] == "measured" and not plan["extrapolated"]
    assert "LLaMA paper" in plan["assumptions"][0]["source"]


def test_the_65b_takes_21_days_as_the_paper_says() -> None:
    plan = make_plan(spec("llama_65b"))
    assert plan["wall_days"] == pytest.approx(21, abs=0.5)
    assert plan["flop"]["six_n"]["flop"] == pytest.approx(5.5e23, rel=0.01)
    assert plan["compute_flop"] == pytest.approx(5.7e23, rel=0.01)


@pytest.mark.parametrize(
    "row", [r for r in read_table("throughput_anchors") if r["mfu_printed"]], ids=lambda r: r["system"]
)
def test_the_structure_of_the_anchors_gives_their_printed_mfu(row: dict[str, str]) -> None:
    device = match_accelerator(row["device"])
    assert device is not None
    mfu = float(row["tokens_per_s_per_device"]) * anchor_flop_per_token(row) / device.peak_flops
    assert 100 * mfu == pytest.approx(float(row["mfu_printed"]), abs=1.2)  # they count the embedding or round


def test_losses_of_the_scaling_laws() -> None:
    epoch, hoffmann = laws()["epoch"], laws()["hoffmann"]
    assert hoffmann.loss(70e9, 1.4e12) == pytest.approx(1.9366, abs=1e-4)
    assert epoch.loss(70e9, 1.4e12) == pytest.approx(1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658)


def test_the_cheapest_size_is_cheaper_than_its_neighbours() -> None:
    law = laws()["epoch"]
    loss = law.loss(6.7e9, 1e12)
    params, tokens = law.cheapest(loss)
    assert law.loss(params, tokens) == pytest.approx(loss)
    for other in (0.9 * params, 1.1 * params):
        assert other * (law.tokens_for(loss, other) or 0) > params * tokens
    assert law.tokens_for(law.e + law.a / 1e9**law.alpha, 1e9) is None  # an infinity of tokens would be needed


def test_cheaper_ways_all_have_the_planned_loss() -> None:
    law = laws()["epoch"]
    rows = same_loss(law, 6.7e9, 1e12)
    assert [row["params"] for row in rows] == sorted(row["params"] for row in rows)
    for row in rows:
        assert law.loss(row["params"], row["tokens"]) == pytest.approx(law.loss(6.7e9, 1e12))
    assert min(row["relative_compute"] for row in rows) < 0.9  # 7B on 1T tokens is far past the optimum
    plan = make_plan(spec("llama_7b"))
    cheapest = min(plan["loss"]["same_loss"], key=lambda way: way["relative_compute"])
    assert cheapest["energy_it_kwh"] == pytest.approx(plan["energy_it_kwh"] * cheapest["relative_compute"])


def test_embodied_follows_the_table() -> None:
    plan = make_plan(spec("llama_65b"))
    per_hour_kg = 150 / (5 * 8760) + 5700 / 8 / (4.5 * 8760)
    assert plan["embodied_tco2eq"] == pytest.approx(plan["gpu_hours"] * per_hour_kg / 1000)
    assumed = {each["key"]: each["value"] for each in plan["assumptions"]}
    assert assumed["embodied_g_per_gpu_hour"] == pytest.approx(1000 * per_hour_kg)
    assert plan["low"]["embodied_tco2eq"] < plan["embodied_tco2eq"] < plan["high"]["embodied_tco2eq"]
    assert make_plan(spec("llama_7b", "cluster.accelerator=H200"), options=_at_mfu())["embodied_tco2eq"] is None


def test_rated_power_of_the_table_where_the_spec_gives_none() -> None:
    plan = make_plan(
        spec(
            "llama_7b",
            "cluster.accelerator=H100-80GB",
            "energy.device_rated_power=null",
            "energy.device_rated_power_source=null",
        )  # fmt: skip
    )
    assert plan["device_power_w"] == accelerator("H100-80GB").tdp_w == 700


def _at_mfu() -> object:
    from orchestrator.plan import PlanOptions

    return PlanOptions(mfu=0.4)
