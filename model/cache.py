"""Keys and values of the texts that a model continues, in buffers allocated once.

Shapes: B texts, L new positions of each, S positions there is room for, E dim, K key/value heads, D head channels.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

from model.config import LlamaConfig


class Cache:
    """Of all layers, for a batch of texts whose lengths differ.

    The first call of the model reads all prompts, padded at their ends: causal attention keeps the padding out of the
    prompts' sight, and what it leaves here lies beyond its text, masked until the text has grown over it. After that
    every call adds one token to each text, at the position that the text has reached: each row computes what it would
    compute alone.
    """

    def __init__(
        self, lengths: Sequence[int], room: int, config: LlamaConfig, like: torch.Tensor, *, stride: int = 1
    ) -> None:
        """lengths: tokens of each prompt. room: positions of the longest text at its end. like: dtype and device.
        stride: attention looks at a multiple of so many positions, always by a mask: few shapes, for recorded calls."""
        assert 0 < min(lengths) and max(lengths) <= room
        batch, device = len(lengths), like.device
        shape = (batch, room, config.n_kv_heads, config.head_dim)
        # Zeros, because a weight of zero does not hide what is not a number.
        self.layers = [LayerCache(self, like.new_zeros(shape), like.new_zeros(shape)) for _ in range(config.n_layers)]
        self.room, self._stride = room, stride
        self.positions_B = torch.tensor(lengths, device=device)  # where the next token of each text goes
        self.slots_B = torch.empty_like(self.positions_B)  # the same, counted over the rows laid end to end
        self.reads_prompts = True
        self._longest = max(lengths)
        self._alike = min(lengths) == max(lengths) and stride == 1
        self._rows_B = torch.arange(batch, device=device)
        self._places_S = torch.arange(room, device=device)

    def advance(self) -> None:
        """After the prompts, and after each call since: where the next token goes. Nothing waits for the device.

        Texts that have reached the end of the room stay there; whoever asked for them has had all that fits.
        """
        if self.reads_prompts:
            self.reads_prompts = False
        else:
            self.positions_B.add_(1).clamp_(max=self.room - 1)
        torch.add(self._rows_B * self.room, self.positions_B, out=self.slots_B)
        self._longest = min(self._longest + 1, self.room)

    @property
    def end(self) -> int:
        """Attention looks at the positions before it, in every row."""
        return min(-(-self._longest // self._stride) * self._stride, self.room)

    def turns(self, table: torch.Tensor, length: int) -> torch.Tensor:
        """The rows of a rotary table, (positions, 1, D/2), for `length` new positions; broadcasts to (B, L, 1, D/2)."""
        return table[:length] if self.reads_prompts else table[self.positions_B].unsqueeze(1)

    def mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """What the new token of each text does not see, to add to the scores, (B, 1, 1, S); None where it sees all."""
        if self.reads_prompts or self._alike:
            return None
        hidden_BS = self._places_S[: self.end] > self.positions_B[:, None]
        # Numbers and not booleans, which every layer would turn into numbers of its own.
        mask = torch.zeros(hidden_BS.shape, dtype=dtype, device=hidden_BS.device)
        return mask.masked_fill_(hidden_BS, float("-inf"))[:, None, None]

    def last(self, x_BLE: torch.Tensor) -> torch.Tensor:
        """Each text's last position, (B, 1, E)."""
        return x_BLE[self._rows_B, self.positions_B - 1].unsqueeze(1) if self.reads_prompts else x_BLE


class LayerCache:
    """One layer's part of a `Cache`."""

    def __init__(self, whole: Cache, k_BSKD: torch.Tensor, v_BSKD: torch.Tensor) -> None:
        self._whole = weakref.proxy(whole)  # no circle: gigabytes of a GPU end with their last user
        self.k_BSKD, self.v_BSKD = k_BSKD, v_BSKD

    @property
    def reads_prompts(self) -> bool:
        """Whether new positions are those of prompts, which see one another and nothing that was here before."""
        return self._whole.reads_prompts

    def store(self, k_BLKD: torch.Tensor, v_BLKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new positions; the keys and values that attention is to look at."""
        if self.reads_prompts:
            length = k_BLKD.shape[1]
            self.k_BSKD[:, :length] = k_BLKD
            self.v_BSKD[:, :length] = v_BLKD
            return k_BLKD, v_BLKD
        for new_BLKD, kept_BSKD in ((k_BLKD, self.k_BSKD), (v_BLKD, self.v_BSKD)):
            kept_BSKD.view(-1, *kept_BSKD.shape[2:]).index_copy_(0, self._whole.slots_B, new_BLKD[:, 0])
        return self.k_BSKD[:, : self._whole.end], self.v_BSKD[:, : self._whole.end]
