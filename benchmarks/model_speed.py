"""Our model's training tokens/s against `transformers.LlamaForCausalLM` of the same size, alternating in one process.

    python benchmarks/model_speed.py [--repeats 7]

float32, one process, the same number of threads, the same AdamW (fused) for both; the whole step is timed.
Written to benchmarks/results/model_speed.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from report import machine, write_result

from model.config import LlamaConfig
from model.init import init_weights
from model.optim import make_optimizer
from model.transformer import Llama

SIZES = {
    "laptop": LlamaConfig(dim=128, n_layers=4, n_heads=4, vocab_size=4096, sequence_length=256),
    "small": LlamaConfig(dim=256, n_layers=4, n_heads=4, vocab_size=4096, sequence_length=512),
}
BATCH = 8


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
        transformers.LlamaConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.ffn_hidden,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.sequence_length,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        model(input_ids=inputs, shift_labels=targets, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    results = {}
    for name, config in SIZES.items():
        torch.manual_seed(1)
        tokens = torch.randint(config.vocab_size, (BATCH, config.sequence_length + 1))
        steps = {"hoofprint": ours(config, tokens), "transformers": theirs(config, tokens)}
        for step in steps.values():
            step(), step()
        rates: dict[str, list[float]] = {system: [] for system in steps}
        for _ in range(repeats):
            for system, step in steps.items():
                start = time.perf_counter()
                step(), step()
                rates[system].append(2 * BATCH * config.sequence_length / (time.perf_counter() - start))
        medians = {system: statistics.median(values) for system, values in rates.items()}
        results[name] = {
            "params": config.params,
            "tokens_per_s": rates,
            "median_tokens_per_s": medians,
            "ratio_hoofprint_to_transformers": medians["hoofprint"] / medians["transformers"],
        }
    write_result(
        "model_speed",
        {
            "what": "training tokens/s, float32, one process, whole step with fused AdamW for both",
            "machine": machine() | {"transformers": transformers.__version__, "threads": torch.get_num_threads()},
            "sizes": results,
            "target_ratio": 1.1,
        },
    )


if __name__ == "__main__":
    main()
