"""The sharding plan as data: no process group, no GPU, no memory for weights."""

from dataclasses import replace

import pytest
import torch

from model.config import LlamaConfig
from model.sharding import ROOT, Layout, ShardingPlan, sharding_plan
from model.transformer import Llama

LLAMA_65B = LlamaConfig(dim=8192, n_layers=80, n_heads=64, vocab_size=32000)


def plan_of(layout: Layout, config: LlamaConfig = LLAMA_65B, prefetch: int = 1) -> ShardingPlan:
    with torch.device("meta"):
        return sharding_plan(Llama(config), layout, prefetch)


@pytest.mark.parametrize("layout", [Layout(), Layout(1, 2048), Layout(8, 256), Layout(1, 256, 8), Layout(4, 64, 8)])
def test_every_weight_is_somewhere_and_no_rank_has_more_than_its_part(layout: Layout) -> None:
    plan = plan_of(layout)
    held = 0
    for each in plan.parameters:
        elements = torch.Size(each.shape).numel()
        held += elements
        pieces = layout.world // each.copies
        assert elements / pieces <= each.bytes_per_rank / 4 < elements / pieces + torch.Size(each.shape[1:]).numel()
    assert held == LLAMA_65B.params
    assert plan.bytes_per_rank >= 4 * LLAMA_65B.params / (layout.shards * layout.tensor)


def test_65b_on_the_papers_2048_gpus_takes_129_mb_of_weights_each() -> None:
    plan = plan_of(Layout.of(2048))
    even = 4 * 65_285_660_672 / 2048
    assert even < plan.bytes_per_rank < 1.02 * even  # 22,016 rows do not divide by 2,048: some have 11, and some 10
    assert round(plan.bytes_per_rank / 1e6) == 129
    block = 4 * 8192 * 8192 + 3 * 8192 * 22016 + 2 * 8192
    assert plan.gathered_bytes("blocks.7", itemsize=2) == 2 * block
    assert plan.gathered_bytes(ROOT, itemsize=2) == 2 * (2 * 32000 * 8192 + 8192)


def test_tensor_parallelism_cuts_outputs_then_inputs_and_leaves_the_rest_whole() -> None:
    plan = plan_of(Layout(1, 4, 8))
    cuts = {each.name.removeprefix("blocks.0."): each.tensor_cut for each in plan.parameters}
    assert {name for name, cut in cuts.items() if cut == 0 and not name.startswith("blocks.")} == {
        "embedding.weight",
        "output.weight",
        "attention.wq.weight",
        "attention.wk.weight",
        "attention.wv.weight",
        "ffn.w_gate.weight",
        "ffn.w_up.weight",
    }
    assert cuts["attention.wo.weight"] == cuts["ffn.w_down.weight"] == 1
    assert cuts["attention_norm.weight"] is cuts["ffn_norm.weight"] is cuts["norm.weight"] is None
    shapes = {each.name: (each.gathered_shape, each.rank_shape, each.copies) for each in plan.parameters}
    assert shapes["blocks.3.attention.wq.weight"] == ((1024, 8192), (256, 8192), 1)
    assert shapes["blocks.3.ffn.w_down.weight"] == ((8192, 2752), (2048, 2752), 1)
    assert shapes["output.weight"] == ((4000, 8192), (1000, 8192), 1)
    assert dict(plan.styles)["blocks.79.ffn"] == "gathers" and plan_of(Layout(1, 4)).styles == ()


def test_the_grid_divides_ranks_and_data() -> None:
    layout = Layout.of(16, replicas=2, tensor=4)
    assert layout == Layout(2, 2, 4) and layout.data_ranks == 4
    assert [layout.data_rank(rank) for rank in (0, 3, 4, 15)] == [0, 0, 1, 3]
    with pytest.raises(ValueError, match="12 ranks"):
        Layout.of(12, replicas=2, tensor=4)
    with pytest.raises(ValueError, match="tensor must be positive"):
        Layout(1, 1, 0)


@pytest.mark.parametrize(("knob", "changes"), [("n_heads", {"n_heads": 6}), ("n_kv_heads", {"n_kv_heads": 2})])
def test_a_head_is_not_cut(knob: str, changes: dict) -> None:
    config = LlamaConfig(**({"dim": 48, "n_layers": 1, "n_heads": 8, "ffn_hidden": 64, "vocab_size": 97} | changes))
    with pytest.raises(ValueError, match=f"tensor_parallel 4 does not divide {knob}"):
        plan_of(Layout(1, 1, 4), config)


def test_uneven_words_go_with_two_shards_at_most() -> None:
    config = LlamaConfig(dim=48, n_layers=1, n_heads=8, n_kv_heads=8, ffn_hidden=64, vocab_size=97)
    assert plan_of(Layout(1, 2, 2), config).layout.tensor == 2
    with pytest.raises(ValueError, match="2 over 4 shards does not divide vocab_size 97; .* model.vocab_size 98"):
        plan_of(Layout(1, 4, 2), config)
    with pytest.raises(ValueError, match="tensor_parallel 8 leaves a rank without words of vocab_size 17"):
        plan_of(Layout(1, 1, 8), replace(config, vocab_size=17))


def test_what_is_gathered_ahead() -> None:
    config = LlamaConfig(dim=16, n_layers=4, n_heads=2, vocab_size=97)
    plan = plan_of(Layout(1, 2), config)
    assert plan.units == ("blocks.0", "blocks.1", "blocks.2", "blocks.3", ROOT)
    assert plan.ahead(ROOT) == ("blocks.0",) and plan.ahead("blocks.1") == ("blocks.2",) and not plan.ahead("blocks.3")
    assert plan.behind(ROOT) == ("blocks.3",) and plan.behind("blocks.1") == ("blocks.0",)
    two = plan_of(Layout(1, 2), config, prefetch=2)
    assert two.ahead("blocks.0") == ("blocks.1", "blocks.2") and two.behind("blocks.3") == ("blocks.2", "blocks.1")
    assert plan_of(Layout(1, 2), config, prefetch=0).ahead(ROOT) == ()


def test_the_table_puts_equal_blocks_together() -> None:
    lines = plan_of(Layout(2, 4, 8)).table().splitlines()
    assert lines[0] == "64 ranks: 2 replicas x 4 shards x 8 tensor"
    row = next(line for line in lines if line.startswith("blocks.*.ffn.w_down.weight"))
    assert row.split("  ")[1:] and "80" in row.split() and "8192 x 22016" in row
    assert "2 replicas, rows / 4, inputs / tensor 8" in row and f"{4 * 2048 * 2752:,}" in row
    assert len(lines) == 1 + 1 + 9 + 3 + 1 and lines[-1].endswith("1 gathered ahead")
