"""The experiment file: good ones load, and each bad one says where and what."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from energy.factors import Factor
from orchestrator.driver.accounting import accounting_of
from orchestrator.driver.accounting import declared as declared_factor
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput, dump_experiment, load_experiment

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
LAPTOP = EXPERIMENTS / "laptop.yaml"


def edited(tmp_path: Path, old: str, new: str) -> Path:
    text = LAPTOP.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "spec.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_loads_and_round_trips(path: Path, tmp_path: Path) -> None:
    experiment = load_experiment(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_experiment(experiment), encoding="utf-8")
    assert load_experiment(again) == experiment


@pytest.mark.parametrize(
    ("size", "params", "flop_per_token", "tokens"),
    [
        ("7b", 6738415616, 42863689728, 1_000_000_000_000),
        ("13b", 13015864320, 82142822400, 1_000_000_000_000),
        ("33b", 32528943616, 203705548800, 1_400_000_000_000),
        ("65b", 65285660672, 406239313920, 1_400_000_000_000),
    ],
)
def test_the_papers_four(size: str, params: int, flop_per_token: int, tokens: int) -> None:
    experiment = load_experiment(EXPERIMENTS / f"llama_{size}.yaml")
    config = experiment.llama_config()
    assert (config.params, config.flop_per_token, experiment.training.tokens) == (
        params,
        flop_per_token,
        tokens,
    )
    assert (experiment.batch_sequences, experiment.cluster.workers) == (2048, 2048)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("n_layers: 4", "n_layer: 4", "unknown key n_layer; did you mean n_layers?"),
        ("workers: 2", "workers: 2\n  device: GPU", "got 'GPU'; did you mean cuda?"),
        ("n_heads: 4", "n_heads: 5", "n_heads 5 does not divide dim 128"),
        ("batch_tokens: 8192", "batch_tokens: 8000", "nearest: 7936 or 8192"),
        ("workers: 2", "workers: 3", "batch of 32 sequences does not divide over 3 ranks; nearest: 30 or 33"),
        ("proportion: 1.0", "proportion: 0.5", "add up to 0.5, expected 1"),
        (
            "proportion: 1.0, min_bytes: 20M}",
            "proportion: 0.99998}\n    - {name: few, kind: python-stdlib, proportion: 0.00002}",
            "the proportion of few is below one sequence in 10,000",
        ),
        ("tokens: 1M", "tokens: 1.2 parsecs", "expected a number such as 1.4T"),
        ("sample_interval: 500 ms", "sample_interval: 5 W", "units: ms, s, min, h, d"),
        ("sample_interval: 500 ms", "pue: 1.1", "pue is given without pue_source"),
        ("name: laptop", "name: no/slash", "name"),
        ("tokens: 1M", "tokens: .inf", "expected a finite number"),
        ("tokens: 1M", "tokens: 1e300", "expected at most 1e+18"),
        ("tokens: 1M", f"tokens: 1{400 * '0'}", "expected a finite number"),
        ("tokens: 1M", "tokens: 1M\n  tokens: 2M", "the key stands already in line 20"),
        ("workers: 2", "workers: 2\n  accelerator: H1000", "unknown accelerator 'H1000'; did you mean"),
        ("seed: 1", "seed: -1", "greater than or equal to 0"),
        ("seed: 1", "seed: 18446744073709551616", "less than 9007199254740992"),
        ("peak_lr: 3.0e-3", "peak_lr: .nan", "expected a finite number"),
        ("peak_lr: 3.0e-3", "peak_lr: 3.0e-3\n  betas: [0.9, 1.0]", "less than 1"),
        ("peak_lr: 3.0e-3", "peak_lr: 3.0e-3\n  betas: [0.9]", "the list is too short: entry 2 is missing"),
        ("peak_lr: 3.0e-3", "peak_lr: 3.0e-3\n  betas: [0.9, 0.9, 0.9]", "expected at most 2 entries"),
        ("tokens: 1M", "tokens: 1,4T", "got '1,4T': a comma stands between thousands only, so write 1.4"),
        ("peak_lr: 3.0e-3", "peak_lr: 0,003", "so write 0.003"),
        ("workers: 2", "workers: 2\n  gpu_hour_price: 2,50 EUR", "so write 2.50"),
        ("workers: 2", "workers: 2\n  step_deadline: -1", "step_deadline: expected auto, or a time above 0"),
        ("name: laptop", "name: 2024", "expected text, got 2024: quote it, '2024'"),
        ("seed: 1", "seed: 1\nyes: 2", "yes: unknown key yes"),
        ("seed: 1", "seed: 1\nx: &x [*x]", "unknown key x"),
        ("    - {name", "    python:\n      {name", "sources: expected a list, got {'python':"),
    ],
)
def test_a_fault_is_named_where_it_stands(old: str, new: str, said: str, tmp_path: Path) -> None:
    path = edited(tmp_path, old, new)
    with pytest.raises(BadInput) as raised:
        load_experiment(path)
    message = str(raised.value)
    assert said in message
    assert "nothing was started" in message
    assert f"{path}:" in message


def test_the_line_and_column_of_a_misspelt_key(tmp_path: Path) -> None:
    path = edited(tmp_path, "  n_layers: 4", "  n_layer: 4")
    line = path.read_text().splitlines().index("  n_layer: 4") + 1
    with pytest.raises(BadInput, match=f":{line}:3: model.n_layer"):
        load_experiment(path)


def test_of_a_long_line_the_part_round_the_caret_is_shown(tmp_path: Path) -> None:
    sources = ", ".join(f"{{name: s{number}, kind: python-stdlib, proportion: 0.1}}" for number in range(10))
    text = LAPTOP.read_text(encoding="utf-8").partition("  sources:")
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"{text[0]}  sources: [{sources.replace('s7, kind', 's7, kin')}]\n" + text[2].partition("\n\n")[2])
    with pytest.raises(BadInput) as raised:
        load_experiment(spec)
    _, shown, caret = str(raised.value).split("\n\n")[0].splitlines()
    at = caret.index("^")
    assert len(shown) < 200 and 50 < at < 150 and shown[at:].startswith("{name: s7, kin: ")


def test_all_faults_at_once(tmp_path: Path) -> None:
    path = edited(tmp_path, "n_heads: 4", "n_heads: many\n  colour: red")
    with pytest.raises(BadInput, match="2 faults") as raised:
        load_experiment(path)
    assert str(raised.value).count("^") == 2


def test_overrides() -> None:
    experiment = load_experiment(LAPTOP, ["training.tokens=4M", "data.sources.0.min_bytes=1M", "model.dim=64"])
    assert (experiment.training.tokens, experiment.data.sources[0].min_bytes) == (4_000_000, 1_000_000)
    assert load_experiment(LAPTOP, ["training.tokens=4,194,304"]).training.tokens == 4_194_304
    with pytest.raises(BadInput, match="unknown key dims; did you mean dim"):
        load_experiment(LAPTOP, ["model.dims=64"])
    with pytest.raises(BadInput, match="expected key=value"):
        load_experiment(LAPTOP, ["model.dim"])
    with pytest.raises(BadInput, match="is not valid YAML"):
        load_experiment(LAPTOP, ["name=[a"])


def test_a_fault_from_the_command_line_is_not_pointed_at_in_the_file() -> None:
    with pytest.raises(BadInput) as raised:
        load_experiment(LAPTOP, ["energy.sample_interval=5 W"])
    message = str(raised.value)
    assert message.startswith("--set energy.sample_interval: expected a number")
    assert "500 ms" not in message  # what stands in the file is right


def test_missing_files_are_pointed_at(tmp_path: Path) -> None:
    spec = EXPERIMENTS / "llama_7b.yaml"
    with pytest.raises(BadInput, match="7 faults; nothing was started") as raised:
        load_experiment(spec, need_files=True)
    assert f"{spec}:16:40: data.sources.0.path: no such file or folder: data/commoncrawl" in str(raised.value)
    assert str(raised.value).count("^") == 7
    load_experiment(LAPTOP, need_files=True)


def test_one_round_shows_form_sense_and_missing_files(tmp_path: Path) -> None:
    text = LAPTOP.read_text(encoding="utf-8").replace("n_layers: 4", "n_layer: 4").replace("n_heads: 4", "n_heads: 5")
    text = text.replace("batch_tokens: 8192", "batch_tokens: 8000").replace("vocab_size: 4096", "path: no.model")
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="6 faults") as raised:
        load_experiment(path, ["data.sources.0.kind=python-stdlb"], need_files=True)
    said = str(raised.value)
    for words in ("n_layers is missing", "did you mean n_layers?", "n_heads 5 does not divide dim 128"):
        assert words in said
    for words in ("nearest: 7936 or 8192", "did you mean python-stdlib?", "no such file or folder: no.model"):
        assert words in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 1", "seed: no", "seed: expected a whole number such as 1, got False"),
        ("20M", "1:30", ":71: data.sources.0.min_bytes: 1:30 would be read in sixties"),
        ("tokens: 1M", "tokens: 0100", "0100 would be read in eights"),
        ("tokens: 1M", "tokens: [1", ":21:15: not valid YAML: "),
    ],
)
def test_traps_of_yaml(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        load_experiment(edited(tmp_path, old, new))
    assert said in str(raised.value) and "^" in str(raised.value)
    assert "less than" not in str(raised.value) and "unicode string" not in str(raised.value)


def test_nodes_on_the_command_line_are_workers() -> None:
    spec = EXPERIMENTS / "llama_7b.yaml"
    assert load_experiment(spec, ["cluster.nodes=4", "cluster.gpus_per_node=4"]).cluster.workers == 16
    with pytest.raises(BadInput, match="give one of them"):
        load_experiment(spec, ["cluster.nodes=4", "cluster.workers=4"])
    with pytest.raises(BadInput, match="sixties"):
        load_experiment(spec, ["cluster.nodes=1:30"])
    with pytest.raises(BadInput, match=r"--set cluster.nodes: expected a whole number such as 8, got 0\.5"):
        load_experiment(spec, ["cluster.nodes=0.5"])
    assert load_experiment(spec, ["cluster.nodes=4", "cluster={workers: 64}"]).cluster.workers == 64
    with pytest.raises(BadInput, match=r"cluster"):
        load_experiment(spec, ["cluster.nodes=4", "cluster=null"])


def test_a_warmup_longer_than_the_training_is_doubted() -> None:
    assert load_experiment(LAPTOP).doubts == []
    assert "warmup_steps 500" in load_experiment(LAPTOP, ["training.warmup_steps=500"]).doubts[0]
    [doubt] = load_experiment(
        LAPTOP, ["training.tokens=600k", "training.batch_tokens=393216", "training.warmup_steps=0"]
    ).doubts
    assert "the last 206,784 are not trained; training.tokens=393216" in doubt


def test_the_size_of_a_tokenizer_that_is_there_already_is_doubted(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    there = f"data.tokenizer.path={tmp_path / 'tokenizer.model'}"
    [doubt] = load_experiment(LAPTOP, [there, "data.tokenizer.vocab_size=5000"]).doubts
    assert "vocab_size 5,000" in doubt and "tokenizer.model" in doubt
    assert load_experiment(LAPTOP, [there, "data.tokenizer.vocab_size=32000"]).doubts == []


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\x00", "a: !!int x", "a: " + "[" * 3000, "a: " + "9" * 5000])
def test_a_file_that_is_no_experiment(text: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput):
        load_experiment(path)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    validator = jsonschema.Draft202012Validator(Experiment.model_json_schema(mode="validation"))
    validator.check_schema(validator.schema)
    return validator


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_editors_accept_the_experiments_as_written(path: Path, schema: jsonschema.Draft202012Validator) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in schema.iter_errors(written)] == []
    written["training"] |= {"tokens": "1_400_000", "batch_tokens": "4,194,304", "peak_lr": "3e-4"}
    written["energy"] |= {"sample_interval": "0.5 s", "intensity": "0.385 kg/kWh"}
    assert schema.is_valid(written)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "tokens", "1.4 parsec"),
        ("training", "tokens", "1,4T"),
        ("training", "tokens", 0),
        ("training", "peak_lr", "3e-4 W"),
        ("energy", "intensity", "385 W"),
        ("energy", "sample_interval", True),
        ("model", "dims", 64),
    ],
)
def test_editors_refuse_what_the_loader_refuses(
    section: str, key: str, value: object, schema: jsonschema.Draft202012Validator
) -> None:
    written = yaml.safe_load(LAPTOP.read_text(encoding="utf-8"))
    written[section][key] = value
    assert len(list(schema.iter_errors(written))) == 1
    with pytest.raises(BadInput):
        load_experiment(LAPTOP, [f"{section}.{key}={value}"])


def test_schema_has_every_section() -> None:
    assert {"model", "data", "training", "cluster", "energy"} <= Experiment.model_json_schema()["properties"].keys()


RANGE = "energy.{}_range={{low: {}, high: {}, source: our meters}}"


def test_a_range_goes_with_its_factor(tmp_path: Path) -> None:
    declared = [RANGE.format("pue", 1.05, 1.2), RANGE.format("intensity", "300", "500")]
    experiment = load_experiment(EXPERIMENTS / "llama_65b.yaml", declared)
    accounting = accounting_of(experiment)["accounting"]
    pue, intensity = (Factor.from_dict(accounting[key]) for key in ("pue", "intensity_g_per_kwh"))
    assert (pue.low, pue.value, pue.high) == (1.05, 1.1, 1.2) and pue.note == "range: our meters"
    assert (intensity.low, intensity.value, intensity.high) == (300, 385, 500)
    again = tmp_path / "again.yaml"
    again.write_text(dump_experiment(experiment), encoding="utf-8")
    assert accounting_of(load_experiment(again)) == accounting_of(experiment)
    # A range of the tables comes with the name, and gives way to one that is declared.
    named = ["energy.pue=aws fleet 2025"]
    assert declared_factor(load_experiment(EXPERIMENTS / "llama_65b.yaml", named).energy, "pue").high == 1.46
    other = load_experiment(EXPERIMENTS / "llama_65b.yaml", [*named, declared[0]]).energy
    assert declared_factor(other, "pue").high == 1.2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([RANGE.format("pue", 1.2, 1.3)], "pue_range 1.2 to 1.3 does not hold pue, which is 1.1"),
        ([RANGE.format("intensity", 385.5, 400)], "does not hold intensity, which is 385"),
        ([RANGE.format("pue", 1.05, 1.2), "energy.pue=null", "energy.pue_source=null"], "the range of which figure?"),
        ([RANGE.format("intensity", 300, 500), "energy.grid_series=hours.csv"], "each hour has its own"),
        (["energy.pue_range={low: 1.0, high: 1.2}"], "source"),
        (["energy.intensity_range={low: -3, high: 500, source: x}"], "greater than or equal to 0"),
    ],
)
def test_a_range_that_cannot_be_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput, match="energy") as told:
        load_experiment(EXPERIMENTS / "llama_65b.yaml", overrides)
    assert said in str(told.value)
