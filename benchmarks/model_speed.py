"""Our model's training tokens/s against `transformers.LlamaForCausalLM` of the same size, taking turns in one process.

    python benchmarks/model_speed.py [--repeats 9]

float32, one process, the same number of threads, the same fused AdamW for both; transformers has `sdpa` attention.
Whole steps are timed.
Each turn gives one ratio; the median of them is the result. Three more figures say what a ratio is made of:
- `products_share`: the step's matrix products and its attention, timed alone on arrays that are reused, as a share of
  our step. Neither model can be faster than these, so a share near 1 bounds any ratio near 1.
- `page_faults_per_step`: fresh memory that the system had to hand out and clear. The C library gives large arrays back
  when they are freed, so a model that writes fewer and smaller ones is faster.
- everything once more with a C library told to keep its memory (`memory_kept`), where both are spared the faults.
Written to benchmarks/results/model_speed.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from report import machine, write_result

from model import native
from model.config import LlamaConfig
from model.init import init_weights
from model.kernels import product
from model.kernels_attention import causal_attention
from model.optim import make_optimizer
from model.transformer import Llama
from model.weights.hf_config import config_dict

SIZES = {
    "laptop": LlamaConfig(dim=128, n_layers=4, n_heads=4, vocab_size=4096, sequence_length=256),
    "small": LlamaConfig(dim=256, n_layers=4, n_heads=4, vocab_size=4096, sequence_length=512),
    "medium": LlamaConfig(dim=512, n_layers=8, n_heads=8, vocab_size=4096, sequence_length=512),
}
BATCH = {"laptop": 8, "small": 8, "medium": 2}  # sequences a step: about a second at most
TARGET_RATIO = 1.1
# glibc: take arrays of any size from the heap, and never give its end back. Other C libraries ignore it.
ALLOCATORS = {
    "default": {},
    "memory_kept": {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}


def ours(config: LlamaConfig, tokens: torch.Tensor) -> Callable[[], None]:
    model = Llama(config)
    init_weights(model, 1)
    optimizer = make_optimizer(model, lr=1e-4)

    def step() -> None:
        (model(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def theirs(config: LlamaConfig, tokens: torch.Tensor) -> Callable[[], None]:
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig.from_dict(config_dict(config) | {"use_cache": False, "attn_implementation": "sdpa"})
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        model(input_ids=inputs, shift_labels=targets, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def products_s(config: LlamaConfig, batch: int) -> float:
    """Seconds of a step's matrix products and attention, forward and backward, each timed alone and warm.

    Of the products those of the faster library, PyTorch's default or the one that our model asks for; of attention the
    faster of PyTorch's kernel and ours.
    """
    rows, d = batch * config.sequence_length, config.dim
    shapes = {  # (inputs, outputs): how many layers of that shape
        (d, d): 4 * config.n_layers,
        (d, config.ffn_hidden): 2 * config.n_layers,
        (config.ffn_hidden, d): config.n_layers,
        (d, config.vocab_size): 1,
    }
    total = 0.0
    for (width_in, width_out), count in shapes.items():
        x, weight, grad = torch.randn(rows, width_in), torch.randn(width_out, width_in), torch.randn(rows, width_out)
        out, grad_x, grad_weight = torch.empty_like(grad), torch.empty_like(x), torch.empty_like(weight)

        def layer(x=x, weight=weight, grad=grad, out=out, grad_x=grad_x, grad_weight=grad_weight) -> None:
            torch.mm(x, weight.t(), out=out)
            torch.mm(grad, weight, out=grad_x)
            torch.mm(grad.t(), x, out=grad_weight)

        def by_kernels(x=x, weight=weight, grad=grad, grad_weight=grad_weight) -> None:
            product(x, weight.t())
            product(grad, weight)
            torch.mm(grad.t(), x, out=grad_weight)

        total += count * min(statistics.median(seconds(one) for _ in range(5)) for one in (layer, by_kernels))
    heads = (batch, config.n_heads, config.sequence_length, config.head_dim)
    qkv = [torch.randn(heads, requires_grad=True) for _ in range(3)]
    grad = torch.randn(heads)

    def attention() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(*qkv, is_causal=True), qkv, grad)

    def in_c() -> None:
        torch.autograd.grad(causal_attention(*qkv), qkv, grad)

    kernels = (attention, in_c) if native.computes(grad) else (attention,)
    return total + config.n_layers * min(statistics.median(seconds(one) for _ in range(5)) for one in kernels)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(name: str, repeats: int) -> dict[str, Any]:
    config, batch = SIZES[name], BATCH[name]
    torch.manual_seed(1)
    tokens = torch.randint(config.vocab_size, (batch, config.sequence_length + 1))
    steps = {"hoofprint": ours(config, tokens), "transformers": theirs(config, tokens)}
    for step in steps.values():
        step(), step()
    rates: dict[str, list[float]] = {system: [] for system in steps}
    page_faults: dict[str, list[int]] = {system: [] for system in steps}
    for repeat in range(repeats):
        for system in sorted(steps, reverse=repeat % 2 == 1):
            before = faults()
            rates[system].append(batch * config.sequence_length / seconds(steps[system]))
            page_faults[system].append(faults() - before)
    medians = {system: statistics.median(values) for system, values in rates.items()}
    ratios = [a / b for a, b in zip(rates["hoofprint"], rates["transformers"], strict=True)]
    return {
        "params": config.params,
        "batch_tokens": batch * config.sequence_length,
        "tokens_per_s": rates,
        "median_tokens_per_s": medians,
        "ratio_of_each_turn": ratios,
        "ratio_hoofprint_to_transformers": statistics.median(ratios),
        "page_faults_per_step": {system: statistics.median(values) for system, values in page_faults.items()},
        "products_share": products_s(config, batch) * medians["hoofprint"] / (batch * config.sequence_length),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", choices=SIZES, help="measure this size here and print it: what the run starts")
    arguments = parser.parse_args()
    if arguments.size:
        print(json.dumps(measure(arguments.size, arguments.repeats)))
        return
    results: dict[str, dict[str, Any]] = {}
    for allocator, environment in ALLOCATORS.items():
        for size in SIZES:  # a process for each: what one leaves in memory must not help or hinder the next
            command = [sys.executable, __file__, "--size", size, "--repeats", str(arguments.repeats)]
            done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True, text=True)
            results.setdefault(allocator, {})[size] = json.loads(done.stdout)
            print(allocator, size, f"{results[allocator][size]['ratio_hoofprint_to_transformers']:.3f}", flush=True)
    write_result(
        "model_speed",
        {
            "what": "training tokens/s, float32, one process, whole step with fused AdamW for both",
            "machine": machine() | {"transformers": transformers.__version__, "threads": torch.get_num_threads()},
            "sizes": results["default"],
            "memory_kept": results["memory_kept"],
            "target_ratio": TARGET_RATIO,
            "met": {  # by each size, in the default environment
                size: found["ratio_hoofprint_to_transformers"] >= TARGET_RATIO
                for size, found in results["default"].items()
            },
        },
    )


if __name__ == "__main__":
    main()
