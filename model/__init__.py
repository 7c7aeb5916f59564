"""The LLaMA model and its training numerics. `model.config` and `model.flops` need no torch."""
