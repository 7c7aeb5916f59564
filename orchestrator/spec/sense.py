"""What the keys of a spec say of each other: each rule yields where in its section the fault is, and what is wrong."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from energy.carbon.grid import intensity as grid_intensity
from model.config import RopeScaling, default_ffn_hidden
from model.sharding import uneven_words
from orchestrator.data.shares import PERIOD, shares
from orchestrator.spec.budget import money
from orchestrator.spec.section import Fault

SOURCED = (
    "pue",
    "intensity",
    "intensity_market",
    "transmission_loss",
    "wue",
    "water_intensity",
    "device_rated_power",
    "node_baseline",
    "node_baselines",
)
TOLD_BY_ONE_OF = {
    "the power of a node": ("node_baseline", "node_baselines", "node_power_command", "node_power_file"),
    "the grid's intensity": ("grid", "intensity"),
    "the grid's intensity by the hour": ("grid_series", "grid_zone"),
}

# Of a URI's query: what is nobody's business but its holder's.
_SECRET = re.compile(r"secret|password|token|key|signature", re.IGNORECASE)


def nearest(value: int, step: int) -> str:
    """The multiples of `step` around `value`, the least one twice over being one."""
    below = value // step * step
    return f"{below} or {below + step}" if below else f"{step}"


# --- model


def rope_scaling(scaling: Any) -> Iterator[Fault]:
    keys = ("kind", "factor", "low_freq_factor", "high_freq_factor", "original_length")
    given = {key: getattr(scaling, key) for key in keys}
    try:
        RopeScaling(**given)  # checks itself
    except ValueError as error:
        yield (), str(error)


def heads_divide_dim(model: Any) -> Iterator[Fault]:
    dim, heads = model.dim, model.n_heads
    if dim % heads or (dim // heads) % 2:
        yield ("n_heads",), f"n_heads {heads} does not divide dim {dim} into heads of even size (rotary pairs)"


def kv_heads_divide_heads(model: Any) -> Iterator[Fault]:
    if model.n_kv_heads is not None and model.n_heads % model.n_kv_heads:
        yield ("n_kv_heads",), f"n_kv_heads {model.n_kv_heads} does not divide n_heads {model.n_heads}"


# --- data


def path_where_needed(source: Any) -> Iterator[Fault]:
    if (source.path is None) != (source.kind == "python-stdlib"):
        yield (), f"kind {source.kind} needs {'no path' if source.path else 'a path to a file or folder'}"


def min_bytes_where_understood(source: Any) -> Iterator[Fault]:
    if source.min_bytes is not None and source.kind != "python-stdlib":
        yield ("min_bytes",), "min_bytes is understood for kind python-stdlib only"


def proportions_add_up(data: Any) -> Iterator[Fault]:
    """To 1; and of the sequences that are dealt in turn, each gives one at least."""
    proportions = [source.proportion for source in data.sources]
    if proportions and abs(sum(proportions) - 1) > 1e-6:
        yield ("sources",), f"the proportions of the sources add up to {sum(proportions):.6g}, expected 1"
    elif proportions and min(counts := shares(proportions)) < 1:
        few = ", ".join(source.name for source, count in zip(data.sources, counts, strict=True) if count < 1)
        yield ("sources",), f"the proportion of {few} is below one sequence in {PERIOD:,}: raise it, or leave it out"


def names_differ(data: Any) -> Iterator[Fault]:
    names = [source.name for source in data.sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield ("sources",), f"two sources have the same name: {', '.join(twice)}"


# --- cluster


def workers_form_a_grid(cluster: Any) -> Iterator[Fault]:
    group = cluster.replicas * cluster.tensor_parallel
    if cluster.workers % group:
        yield (
            (),
            f"workers {cluster.workers} do not divide into replicas {cluster.replicas} x tensor_parallel "
            f"{cluster.tensor_parallel}; nearest: {nearest(cluster.workers, group)}",
        )


def fewest_workers(cluster: Any) -> Iterator[Fault]:
    fewest, group = cluster.min_workers, cluster.replicas * cluster.tensor_parallel
    if fewest is None:
        return
    if fewest > cluster.workers:
        yield ("min_workers",), f"min_workers {fewest} is more than workers {cluster.workers}"
    if fewest < group:
        yield ("min_workers",), f"min_workers {fewest} is less than replicas x tensor_parallel, {group}"


# --- checkpoint


def copies_keep_no_secrets(checkpoint: Any) -> Iterator[Fault]:
    if checkpoint.copy_to is None:
        return
    parts = urlsplit(checkpoint.copy_to)
    user, at, _ = parts.netloc.rpartition("@")  # abfs://container@account and hdfs://user@host hold no secret
    named = [key for key, _ in parse_qsl(parts.query) if _SECRET.search(key)]
    if (at and (parts.scheme == "s3" or ":" in user)) or named:
        yield ("copy_to",), "copy_to holds a name or a password, which all would read here: give it in the environment"


def keeping_some_needs_a_last(checkpoint: Any) -> Iterator[Fault]:
    if checkpoint.keep_every_steps is not None and checkpoint.keep_last is None:
        yield ("keep_every_steps",), "keep_every_steps is given without keep_last, so that all are kept: give both"


# --- energy


def each_is_told_once(energy: Any) -> Iterator[Fault]:
    for what, keys in TOLD_BY_ONE_OF.items():
        given = [key for key in keys if getattr(energy, key) is not None]
        if len(given) > 1:
            yield (), f"{' and '.join(given)} all tell {what}: give one of them"


def figures_have_sources(energy: Any) -> Iterator[Fault]:
    for key in SOURCED:
        if getattr(energy, key) is not None and not getattr(energy, f"{key}_source"):
            yield (key,), f"{key} is given without {key}_source: say where the figure comes from"


def ranges_hold_their_figures(energy: Any) -> Iterator[Fault]:
    figures = {"pue_range": energy.pue, "intensity_range": energy.intensity}
    for key, value in figures.items():
        told = getattr(energy, key)
        if told is None:
            continue
        figure = key.removesuffix("_range")
        if key == "intensity_range" and energy.grid is not None:
            value = grid_intensity(energy.grid).value
        if key == "intensity_range" and energy.grid_series is not None:
            yield (key,), "intensity_range is of a constant: under grid_series each hour has its own; leave one out"
        elif value is None:
            yield (key,), f"{key} is given without {figure}: the range of which figure?"
        elif not told.low <= value <= told.high:
            yield (key,), f"{key} {told.low:g} to {told.high:g} does not hold {figure}, which is {value:g}"


# --- the whole experiment


def weights_bring_their_tokenizer(spec: Any) -> Iterator[Fault]:
    if spec.model.init_from is not None and spec.data.tokenizer.path is None:
        yield (
            ("data",),
            "model.init_from needs tokenizer.path: trained weights mean nothing under a tokenizer that is made for "
            "this text",
        )


def batch_is_whole_sequences(spec: Any) -> Iterator[Fault]:
    batch, length = spec.training.batch_tokens, spec.model.sequence_length
    if batch % length:
        near = nearest(batch, length)
        yield (
            ("training", "batch_tokens"),
            f"batch_tokens {batch} is not a whole number of sequences of {length}; nearest: {near}",
        )


def tokens_fill_a_batch(spec: Any) -> Iterator[Fault]:
    tokens, batch = spec.training.tokens, spec.training.batch_tokens
    if tokens < batch:
        yield ("training", "tokens"), f"tokens {tokens} is less than one batch of {batch}"


def needs_a_gpu(spec: Any) -> Iterator[Fault]:
    """What of the training no CPU can do, whatever cluster.device says."""
    training = spec.training
    if training.dtype == "float8":
        yield ("training", "dtype"), "dtype float8 needs a GPU"
    if training.attention in ("flex", "varlen", "cudnn", "efficient"):
        yield ("training", "attention"), f"attention {training.attention} trains on a GPU only"


def a_cpu_can_do_it(spec: Any) -> Iterator[Fault]:
    if spec.cluster.device == "cpu":
        yield from ((place, f"{text}, and cluster.device is cpu") for place, text in needs_a_gpu(spec))


def float8_goes_with_the_grid(spec: Any) -> Iterator[Fault]:
    """Its products add up over multiples of 16 numbers: over channels, which the model's sizes are, and in the
    gradient of a weight over the tokens of a micro-batch."""
    training, cluster, length = spec.training, spec.cluster, spec.model.sequence_length
    if training.dtype != "float8":
        return
    if cluster.tensor_parallel > 1:
        yield ("training", "dtype"), "dtype float8 and cluster.tensor_parallel do not go together"
    batch, size = training.batch_tokens // length, training.micro_batch_sequences
    counts = range(cluster.min_workers or cluster.workers, cluster.workers + 1)
    shares = [batch // workers for workers in counts if batch % workers == 0]
    found = {sequences for share in shares for sequences in (min(size, share), share % size)}  # the last may be smaller
    if odd := sorted(sequences for sequences in found if sequences * length % 16):
        yield (
            ("training", "dtype"),
            f"dtype float8 needs micro-batches of a multiple of 16 tokens, and one here is {odd[0]} x {length}; "
            f"nearest model.sequence_length: {nearest(length, 16)}",
        )


def tensor_parallel_divides_the_model(spec: Any) -> Iterator[Fault]:
    tensor, model = spec.cluster.tensor_parallel, spec.model
    if tensor == 1:
        return
    for knob in ("n_heads", "n_kv_heads", "ffn_hidden", "sequence_length"):
        size = getattr(model, knob) or (default_ffn_hidden(model.dim) if knob == "ffn_hidden" else tensor)
        if size % tensor:
            yield ("cluster", "tensor_parallel"), f"tensor_parallel {tensor} does not divide model.{knob} {size}"
    tokenizer, cluster = spec.data.tokenizer, spec.cluster
    words = model.vocab_size or (tokenizer.vocab_size if tokenizer.path is None else None)  # else ranks ask the file
    if words and (why := uneven_words(words, tensor, cluster.workers // (tensor * cluster.replicas))):
        yield ("cluster", "tensor_parallel"), why


def attention_can_compute_it(spec: Any) -> Iterator[Fault]:
    training, model = spec.training, spec.model
    half = ("cudnn", "varlen") if spec.cluster.device != "cuda" else ("cudnn", "varlen", "flash")  # a CPU's flash does
    if training.attention in half and training.dtype == "float32":
        yield ("training", "attention"), f"attention {training.attention} computes in bfloat16, not float32"
    if (
        training.attention == "efficient"
        and training.dtype != "float32"
        and model.n_kv_heads not in (None, model.n_heads)
    ):
        yield (
            ("training", "attention"),
            f"attention efficient cannot share key/value heads (model.n_kv_heads {model.n_kv_heads}); expected auto",
        )


def batch_divides_over_ranks(spec: Any) -> Iterator[Fault]:
    batch, length = spec.training.batch_tokens, spec.model.sequence_length
    workers, tensor = spec.cluster.workers, spec.cluster.tensor_parallel
    sequences, ranks = batch // length, workers // tensor
    if batch % length == 0 and workers % tensor == 0 and sequences % ranks:
        near = nearest(sequences, ranks)
        yield ("cluster",), f"batch of {sequences} sequences does not divide over {ranks} ranks; nearest: {near}"


def attention_fits_the_data(spec: Any) -> Iterator[Fault]:
    attention, masked = spec.training.attention, spec.data.document_masking
    if attention in ("flex", "varlen") and not masked:
        yield (
            ("training", "attention"),
            f"attention {attention} is for documents: set data.document_masking, or auto",
        )
    if attention in ("flash", "cudnn") and masked:
        yield (
            ("training", "attention"),
            f"attention {attention} takes no mask of documents; expected auto, varlen, flex, efficient or math",
        )


def budgets_can_be_counted(spec: Any) -> Iterator[Fault]:
    """A limit on something that the spec's other keys leave unknown would never be reached."""
    budget, energy, cluster = spec.energy.budget, spec.energy, spec.cluster
    place = ("energy", "budget")
    if budget.carbon is not None:
        if energy.pue is None:
            yield (*place, "carbon"), "a budget of carbon needs energy.pue and energy.pue_source"
        if energy.grid is None and energy.intensity is None and energy.grid_series is None:
            yield (*place, "carbon"), "a budget of carbon needs energy.grid, or energy.intensity with its source"
    if budget.cost is not None:
        if cluster.gpu_hour_price is None:
            yield (*place, "cost"), "a budget of cost needs cluster.gpu_hour_price, such as 2.50 EUR"
        elif money(budget.cost)[1] != money(cluster.gpu_hour_price)[1]:
            yield (
                (*place, "cost"),
                f"the budget is {budget.cost} and cluster.gpu_hour_price {cluster.gpu_hour_price}: write both in one "
                "currency",
            )
    for key in ("gpu_hours", "cost"):
        if getattr(budget, key) is not None and cluster.device == "cpu":
            yield (*place, key), "on the CPU (cluster.device) there are no GPU-hours: give a budget of energy or carbon"
