"""The model of a plan has as many rows as the tokenizer that the spec names has pieces."""

from pathlib import Path

from plan_fakes import spec

from orchestrator.data.tokenizer import Tokenizer
from orchestrator.plan import PlanOptions, make_plan


def test_the_tokenizer_of_a_spec_gives_the_model_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    Tokenizer.train(["to be or not to be, that is the question. " * 50], 300, path)
    named = spec("llama_7b", f"data.tokenizer.path={path}")
    plan, all_rows = make_plan(named), make_plan(spec("llama_7b"))
    assert all_rows["params"] - plan["params"] == 2 * 4096 * (32_000 - 300)
    assert plan["warnings"] == []
    assert (
        make_plan(spec("llama_7b", f"data.tokenizer.path={path}", "model.vocab_size=32000"))["params"]
        == all_rows["params"]
    )
    assert make_plan(spec("llama_7b"), options=PlanOptions(vocab_size=300))["params"] == plan["params"]
    path.unlink()
    [warning] = make_plan(named)["warnings"]
    assert "tokenizer.model" in warning and "planned with 32,000 rows; model.vocab_size says" in warning
