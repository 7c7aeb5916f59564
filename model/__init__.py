"""The LLaMA model and its training numerics. `model.config`, `.flops`, `.sharding` and `.memory` need no torch."""
