"""A spec trains alike on any grid of ranks and with any choice of how a step is computed, and the run says which."""

import shutil
from pathlib import Path

import pytest
from tiny import eager_rank, train, write_spec

from energy.runs import RunFolder
from orchestrator.driver.in_use import in_words, keep_choices
from orchestrator.spec.file import BadInput, load_experiment

STEPS = 12  # some behind the checkpoint of step 8
MASKED = "data.document_masking=true"
GRIDS = {
    "tensor": (2, ["cluster.workers=2", "cluster.tensor_parallel=2", "training.activation_checkpointing=selective"]),
    "replicas": (
        4,
        ["cluster.workers=4", "cluster.replicas=2", "cluster.tensor_parallel=2", "training.micro_batch_sequences=1"]
        + ["training.activation_checkpointing=full", "training.gradient_reduction=each_micro_batch"],
    ),
    "replicas of shards": (
        4,
        ["cluster.workers=4", "cluster.replicas=2", "training.micro_batch_sequences=1"]
        + ["training.gradient_reduction=each_micro_batch"],
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    folder = tmp_path_factory.mktemp("grids")
    spec = write_spec(folder, steps=STEPS)
    return spec, train(spec, folder / "whole")


def losses(run: RunFolder) -> list[float]:
    return [step["loss"] for step in run.steps()]


@pytest.mark.parametrize("name", GRIDS)
def test_the_loss_curve_does_not_depend_on_the_grid(name: str, whole: tuple[Path, RunFolder], tmp_path: Path) -> None:
    spec, run = whole
    world, overrides = GRIDS[name]
    found = train(spec, tmp_path / "run", world, overrides=overrides)
    assert losses(found) == pytest.approx(losses(run), abs=1e-4)
    assert [e["grad_norm"] for e in found.steps()] == pytest.approx([e["grad_norm"] for e in run.steps()], rel=1e-3)
    evaluated = [[e["validation_loss"] for e in each.evaluations()] for each in (found, run)]
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-4)


@pytest.mark.parametrize("overrides", [["cluster.workers=2"], GRIDS["tensor"][1]], ids=["shards", "tensor"])
def test_compiled_blocks_train_alike_on_a_grid(
    overrides: list[str], whole: tuple[Path, RunFolder], tmp_path: Path
) -> None:
    """Whole graphs of each block, within FSDP's gathers and among tensor parallelism's, as by default on GPUs."""
    spec, run = whole
    found = train(spec, tmp_path / "run", 2, overrides=[*overrides, "training.compile=true"], rank=eager_rank)
    assert keep_choices(found, attempt=1)["compile"]
    assert losses(found) == pytest.approx(losses(run), abs=1e-4)


def test_a_checkpoint_goes_on_under_another_grid(whole: tuple[Path, RunFolder], tmp_path: Path) -> None:
    spec, run = whole
    checkpoint = run.path / "checkpoints" / "step-00000008"
    shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / checkpoint.name)
    found = train(spec, tmp_path / "run", 2, overrides=GRIDS["tensor"][1])
    assert [step["step"] for step in found.steps()] == list(range(9, STEPS + 1))
    assert losses(found) == pytest.approx(losses(run)[8:], abs=1e-4)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_changes_no_bit_of_the_curve(mode: str, whole: tuple[Path, RunFolder], tmp_path: Path) -> None:
    spec, run = whole
    found = train(spec, tmp_path / "run", overrides=[f"training.activation_checkpointing={mode}"])
    assert losses(found) == losses(run)


def test_masked_documents_train_alike_on_any_grid_and_not_as_unmasked(
    whole: tuple[Path, RunFolder], tmp_path: Path
) -> None:
    spec, run = whole
    one = train(spec, tmp_path / "one", overrides=[MASKED])
    two = train(spec, tmp_path / "two", 2, overrides=[MASKED, *GRIDS["tensor"][1]])
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert losses(one) != pytest.approx(losses(run), abs=1e-4)
    assert keep_choices(one, 1)["attention"] == "flash with a mask"


def test_the_run_says_what_it_computes_with(whole: tuple[Path, RunFolder], tmp_path: Path) -> None:
    spec, run = whole
    found = train(spec, tmp_path / "run", 2, overrides=[*GRIDS["tensor"][1], "training.tokens=512"])
    assert keep_choices(found, attempt=2) is None
    choices = keep_choices(found, attempt=1)
    assert found.read_run()["training"] == choices
    assert found.read_run()["checkpointing_of_attempts"] == {"1": "selective"}
    assert choices["activation_checkpointing"] == "selective" and choices["layout"]["tensor"] == 2
    assert in_words(choices) == (
        "activation checkpointing selective (as the spec says); attention flash; float32; shards 1 x tensor parallel 2"
    )
    assert (found.path / "logs" / "sharding.txt").read_text().startswith("2 ranks: 1 replicas x 1 shards x 2 tensor")
    own = keep_choices(run, attempt=1)
    assert (own["activation_checkpointing"], own["compile"]) == ("none", False)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.workers=3", "cluster.replicas=2"], "workers 3 do not divide into replicas 2"),
        (["cluster.workers=4", "cluster.tensor_parallel=4"], "tensor_parallel 4 does not divide model.n_heads 2"),
        (
            ["cluster.workers=8", "cluster.tensor_parallel=2", "model.vocab_size=301"],
            "tensor_parallel 2 over 4 shards does not divide vocab_size 301; .* model.vocab_size 302",
        ),
        (["training.attention=cudnn", "training.dtype=float32", "cluster.device=auto"], "cudnn computes in bfloat16"),
        (["training.attention=flash", "training.dtype=float32", "cluster.device=cuda"], "flash computes in bfloat16"),
        (
            ["training.attention=efficient", "cluster.device=cuda", "training.dtype=bfloat16", "model.n_kv_heads=1"],
            "efficient cannot share key/value heads .model.n_kv_heads 1.",
        ),
        (["cluster.device=cpu", "training.dtype=float8"], "dtype float8 needs a GPU, and cluster.device is cpu"),
        (
            ["cluster.workers=2", "cluster.tensor_parallel=2", "training.dtype=float8"],
            "dtype float8 and cluster.tensor_parallel do not go together",
        ),
        (
            [
                "cluster.device=auto",
                "training.dtype=float8",
                "training.batch_tokens=264",
                "model.sequence_length=24",
                "training.micro_batch_sequences=8",
            ],
            "multiple of 16 tokens, and one here is 3 x 24; nearest model.sequence_length: 16 or 32",
        ),
        (["cluster.workers=32", "cluster.tensor_parallel=2"], "does not divide over 16 ranks"),
        (["training.attention=varlen", "cluster.device=auto"], "set data.document_masking"),
        (["training.attention=cudnn", "cluster.device=auto", MASKED], "takes no mask of documents"),
        (["training.attention=efficient"], "trains on a GPU only, and cluster.device is cpu"),
        (["training.activation_checkpointing=some"], "'auto', 'none', 'selective' or 'full'"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        load_experiment(write_spec(tmp_path), overrides)
