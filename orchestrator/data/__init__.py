"""Text to training sequences: sources -> tokenizer -> shards -> stream.

`sources` reads documents in a fixed order, `tokenizer` turns text into ids and back exactly, `shards` caches
the ids of each source in memory-mapped files, `corpus` holds them open, and `stream` deals sequences by their
global index, whatever the number of ranks.
Nothing here imports torch.
"""
