"""Training on the CPU beside transformers and torchtitan: `python benchmarks/training/run.py`."""
