"""Checkpoints of a run: written beside the training, kept, copied, checked, chosen again."""
