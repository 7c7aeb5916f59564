"""Compute of a run: conventions, recomputation, rates, what was lost."""

from typing import Any

import pytest

from energy.accounting.compute import checkpointing_of, compute_account, flop_per_token, recomputed_per_token, tokens_of
from energy.accounting.held import Held
from energy.factors import read_table

LLAMA_65B: dict[str, Any] = {
    "dim": 8192, "n_layers": 80, "vocab_size": 32000, "sequence_length": 2048, "ffn_hidden": 22016,
    "params": 65_285_660_672, "matmul_params": 65_022_197_760,
    "flop_per_token": 6 * 65_022_197_760 + 12 * 80 * 8192 * 2048,
}  # fmt: skip


def step(number: int, attempt: int = 1, batch: int = 100, seconds: float = 2.0) -> dict[str, Any]:
    return {"attempt": attempt, "step": number, "tokens": number * batch, "seconds": seconds}


def held(devices: int | None = 1, hours: float | None = 1.0, by_attempt: dict[int, int] | None = None) -> Held:
    return Held(None if devices is None else True, devices, by_attempt or {}, 0.0, 3600.0, hours)


def test_the_three_conventions_of_llama_65b() -> None:
    flop = flop_per_token(LLAMA_65B)
    assert flop["palm"] == 406_239_313_920
    assert flop["six_n"] == 6 * 65_285_660_672
    assert flop["causal"] == 6 * 65_022_197_760 + 6 * 80 * 8192 * 2048
    assert 1.4e12 * flop["palm"] == pytest.approx(5.7e23, rel=0.01)  # type: ignore[operator]
    assert 1.4e12 * flop["six_n"] == pytest.approx(5.5e23, rel=0.01)


def test_full_checkpointing_computes_each_blocks_forward_but_its_last_product_twice() -> None:
    twice = recomputed_per_token(LLAMA_65B, "full")
    blocks = 65_022_197_760 - 32000 * 8192
    assert twice == 2 * blocks - 2 * 80 * 8192 * 22016 + 4 * 80 * 8192 * 2048
    assert twice is not None and 0.25 < twice / LLAMA_65B["flop_per_token"] < 0.28
    assert recomputed_per_token(LLAMA_65B, "none") == recomputed_per_token(LLAMA_65B, "selective") == 0
    assert recomputed_per_token(LLAMA_65B, None) is None
    assert recomputed_per_token({"dim": 8192}, "full") is None


def test_the_choice_is_read_where_run_json_keeps_it() -> None:
    choice = {"training": {"activation_checkpointing": "full"}}
    assert checkpointing_of(choice) == "full"
    assert checkpointing_of({}) is None
    with pytest.raises(ValueError, match="none, selective, full"):
        checkpointing_of({"training": {"activation_checkpointing": "some"}})


def test_tokens_of_attempts_that_overlap() -> None:
    first, second = [step(n) for n in range(1, 6)], [step(n, 2) for n in range(4, 9)]
    assert tokens_of(first) == (500, 500)
    assert tokens_of(first + second) == (800, 1000)
    assert tokens_of([]) == (0, 0)


def test_llama_65b_as_the_paper_ran_it() -> None:
    """380 tokens/s on each of 2048 A100 (312e12 dense BF16): an MFU of 49 %, and an HFU with full checkpointing."""
    seconds = 4_000_000 / (380 * 2048)
    steps = [step(n, batch=4_000_000, seconds=seconds) for n in range(1, 11)]
    run = {"model": LLAMA_65B, "device_type": "cuda", "training": {"activation_checkpointing": "full"}}
    hours = float(next(row for row in read_table("llama_table15") if row["model"] == "LLaMA-65B")["gpu_hours"])
    account = compute_account(run, steps, held(2048, hours), peak_flops=312e12)
    assert account["tokens_per_s"] == pytest.approx(380 * 2048)
    assert account["mfu"] == pytest.approx(380 * 406_239_313_920 / 312e12)
    assert account["hfu"] / account["mfu"] == pytest.approx(1.261, abs=0.001)
    assert account["hardware_days"] == pytest.approx(42_598, abs=1)
    assert account["gpu_hours"] == hours
    assert "PaLM" in account["mfu_basis"] and "PaLM" in account["flop_convention"]


def test_the_steps_that_compile_are_in_no_rate() -> None:
    steps = [{**step(n), "seconds": 2.0, "time_unix_s": 100.0 + 2.0 * n} for n in range(1, 6)]
    steps[0] |= {"seconds": 60.0}  # from 42 to 102 s
    resumed = [{**step(n, 2), "seconds": 2.0, "time_unix_s": 200.0 + 2.0 * n} for n in range(6, 11)]
    resumed[0] |= {"seconds": 40.0}  # from 172 to 212 s
    run = {"model": LLAMA_65B}
    spans = [(41.9, 102.01), (171.0, 212.0), (109.5, 110.9)]  # the last one of validation, told to begin early
    account = compute_account(run, steps + resumed, held(), peak_flops=1e18, compiling=spans)
    assert account["tokens_per_s"] == pytest.approx(100 / 2.0) and account["tokens_useful"] == 1000
    plain = compute_account(run, steps + resumed, held(), peak_flops=1e18)
    assert plain["tokens_per_s"] == pytest.approx(1000 / 116.0)
    assert account["mfu"] / plain["mfu"] == pytest.approx(50 / (1000 / 116))
    assert account["mfu_reserved"] == plain["mfu_reserved"] == pytest.approx(1000 * 406_239_313_920 / (1e18 * 3600))
    alone = compute_account(run, steps[:1], held(), peak_flops=1e18, compiling=spans)
    assert alone["mean_devices"] == 1.0  # they carried its tokens all the same
    assert alone["tokens_per_s"] is None and alone["mfu"] is None  # nothing but compiling: not known, not slow


def test_a_skipped_step_makes_no_run_faster() -> None:
    """It leaves a hole in the steps: its tokens are passed over, and its seconds are in no step."""
    steps = [{**step(n), "seconds": 2.0} for n in (1, 2, 4, 5, 7, 8)]
    account = compute_account({"model": LLAMA_65B}, steps, held(), peak_flops=1e18)
    assert account["tokens_per_s"] == 50.0 and account["tokens_useful"] == 800


def test_lost_steps_are_in_the_hardware_flop_and_not_in_the_result() -> None:
    steps = [step(n) for n in range(1, 6)] + [step(n, 2) for n in range(4, 6)]
    run = {"model": LLAMA_65B, "training": {"activation_checkpointing": "none"}}
    account = compute_account(run, steps, held(), peak_flops=None)
    assert (account["tokens_useful"], account["tokens_lost"]) == (500, 200)
    assert account["compute_flop"] == 500 * 406_239_313_920
    assert account["recomputed_flop"] == 200 * 406_239_313_920
    assert account["hardware_flop"] == 700 * 406_239_313_920
    assert account["useful_share"] == pytest.approx(5 / 7)
    assert account["mfu"] is None and account["hfu"] is None  # the peak is not known: no default


def test_an_attempt_that_kept_other_activations_keeps_its_price() -> None:
    """Out of memory, the run went on with everything computed twice: what came before was not."""
    steps = [step(n) for n in range(1, 6)] + [step(n, 2) for n in range(4, 9)]
    run = {"model": LLAMA_65B, "training": {"activation_checkpointing": "full"},
           "checkpointing_of_attempts": {"1": "none", "2": "full"}}  # fmt: skip
    account, palm = compute_account(run, steps, held(), peak_flops=1e18), LLAMA_65B["flop_per_token"]
    twice = recomputed_per_token(LLAMA_65B, "full")
    assert twice is not None
    assert account["hardware_flop"] == pytest.approx(1000 * palm + 500 * twice)
    assert account["hfu"] / account["mfu"] == pytest.approx(1 + twice / 2 / palm)
    assert account["activation_checkpointing"] == "none, then full"
    assert account["hardware_convention"].startswith("nothing is computed twice; every block's forward")


def test_what_is_not_known_is_null() -> None:
    account = compute_account({"model": {}}, [step(1)], held(hours=0.0), peak_flops=1e12)
    for key in ("compute_flop", "hardware_flop", "mfu", "hfu", "mfu_reserved", "compute_flop_6nd", "recomputed_flop"):
        assert account[key] is None, key
    assert "not known" in account["hardware_convention"]
    assert account["gpu_hours"] == 0.0
    nothing = compute_account({}, [], held(None, None), peak_flops=None)
    for key in (
        "useful_share",
        "tokens_per_s",
        "devices",
        "mean_devices",
        "device_hours",
        "gpu_hours",
        "hardware_days",
    ):
        assert nothing[key] is None, key
    assert compute_account({}, [], held(8), peak_flops=None)["mean_devices"] is None  # they carried no tokens
