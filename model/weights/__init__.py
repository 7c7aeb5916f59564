"""Weights in and out, one tensor at a time: Hugging Face's safetensors, Meta's .pth, our own checkpoints.

A reader of each layout is a `WeightSource`; a writer takes any source. Neither holds more than a few tensors, so
that no process ever needs the memory of the whole model.
"""
