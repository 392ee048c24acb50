"""A Transformer that reads a sentence and writes its translation (Vaswani et al. 2017).

Layers are PyTorch's own, normalised before each part (pre-norm); one table of piece vectors serves
source, target and output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losslab.experiment.tasks.text.subwords import PAD

QUERY, KEY, VALUE = 0, 1, 2  # in the order of PyTorch's joint projection


@dataclass(frozen=True)
class Shape:
    """The sizes of a `Translator`.

    Args:
        width: Numbers a piece.
        heads: Of every attention; they divide ``width``.
        inner: Units of the hidden layer of every feed-forward part.
        layers: Of the encoder, and of the decoder.
        dropout: As in PyTorch's layers, and on the piece vectors.
    """

    width: int
    heads: int
    inner: int
    layers: int
    dropout: float


class Translator(nn.Module):
    """``(source, target so far)`` in, logits of the next piece out.

    Both are int64 piece numbers ``(sentences, length)``, `PAD` behind the end. The answer has one
    row for every piece of the target that is no padding, ``(pieces, vocabulary)``, sentence by
    sentence: no work goes into the others.

    A batch of sentences of all lengths is mostly padding. So it is computed in ``at_once``
    sentences, the shortest first, each lot trimmed to its longest sentence; that changes nothing
    but the time.
    """

    def __init__(self, vocabulary: int, shape: Shape, at_once: int = 16) -> None:
        super().__init__()
        self.width, self.at_once = shape.width, at_once
        self.words = nn.Embedding(vocabulary, shape.width, padding_idx=PAD)
        self.dropout = nn.Dropout(shape.dropout)
        settings: dict[str, Any] = {
            "d_model": shape.width,
            "nhead": shape.heads,
            "dim_feedforward": shape.inner,
            "dropout": shape.dropout,
            "batch_first": True,
            "norm_first": True,
        }
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**settings),
            shape.layers,
            norm=nn.LayerNorm(shape.width),
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**settings), shape.layers, norm=nn.LayerNorm(shape.width)
        )
        self._initialise()

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        source, target = inputs
        lengths = torch.stack([(source != PAD).sum(1), (target != PAD).sum(1)])
        order = lengths.sum(0).argsort(stable=True)
        grid = torch.arange(target.numel(), device=target.device).view_as(target)
        hidden, places = [], []
        for rows in order.split(self.at_once):
            longest = lengths[:, rows].amax(1).tolist()
            read, written = source[rows, : longest[0]], target[rows, : longest[1]]
            kept = written != PAD
            hidden.append(self.decode(written, self.encode(read), read == PAD)[kept])
            places.append(grid[rows, : longest[1]][kept])
        return self.logits(torch.cat(hidden)[torch.cat(places).argsort()])

    def encode(self, source: Tensor) -> Tensor:
        """What was read of each piece, ``(sentences, length, width)``."""
        answer: Tensor = self.encoder(self.embed(source), src_key_padding_mask=source == PAD)
        return answer

    def decode(self, target: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """What is to follow each piece, ``(sentences, length, width)``, before `logits`.

        A piece sees those before it, so padding, which comes last, needs no mask.
        """
        length = target.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        answer: Tensor = self.decoder(
            self.embed(target),
            memory,
            tgt_mask=later,
            tgt_is_causal=True,
            memory_key_padding_mask=padding,
        )
        return answer

    def embed(self, pieces: Tensor, start: int = 0) -> Tensor:
        """Vectors of pieces at the places ``start``, ``start + 1``, …"""
        vectors = self.words(pieces) * math.sqrt(self.width)
        places = positions(start, pieces.shape[1], self.width).to(vectors)
        embedded: Tensor = self.dropout(vectors + places)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.words.weight)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.startswith("words"):
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.words.weight, std=self.width**-0.5)
        with torch.no_grad():
            self.words.weight[PAD].zero_()


def positions(start: int, length: int, width: int) -> Tensor:
    """The waves of Vaswani et al., ``(length, width)``, for places from ``start`` on."""
    place = torch.arange(start, start + length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    return torch.stack([(place * rate).sin(), (place * rate).cos()], dim=2).flatten(1)[:, :width]


class Decoding:
    """A translator writing several translations of each sentence, piece by piece.

    Keys and values of what has been read and written are kept, so a step computes the new pieces
    alone. ``ways`` is the number of translations a sentence.
    """

    def __init__(self, model: Translator, source: Tensor, ways: int) -> None:
        self.model, self.ways, self.length = model, ways, 0
        memory = model.encode(source)
        self.visible = (source != PAD)[:, None, None, :]
        self.read = [
            (_heads(layer.multihead_attn, KEY, memory), _heads(layer.multihead_attn, VALUE, memory))
            for layer in model.decoder.layers
        ]
        self.written: list[tuple[Tensor, Tensor] | None] = [None] * len(self.read)

    def step(self, pieces: Tensor) -> Tensor:
        """The logits ``(sentences, ways, vocabulary)`` of what follows ``pieces``, the last ones
        ``(sentences, ways)``."""
        sentences, ways = pieces.shape
        x = self.model.embed(pieces.view(-1, 1), self.length)
        self.length += 1
        for number, layer in enumerate(self.model.decoder.layers):
            own = layer.norm1(x)
            query, key, value = (_heads(layer.self_attn, part, own) for part in (QUERY, KEY, VALUE))
            before = self.written[number]
            if before is not None:
                key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
            self.written[number] = key, value
            x = x + _joined(layer.self_attn, F.scaled_dot_product_attention(query, key, value))
            # the ways of a sentence ask what was read as if they were the words of one sentence
            asked = layer.norm2(x).view(sentences, ways, -1)
            query = _heads(layer.multihead_attn, QUERY, asked)
            found = F.scaled_dot_product_attention(query, *self.read[number], self.visible)
            x = x + _joined(layer.multihead_attn, found).view_as(x)
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
        norm = self.model.decoder.norm
        assert norm is not None
        return self.model.logits(norm(x)).view(sentences, ways, -1)

    def keep(self, sentences: Tensor, ways: Tensor) -> None:
        """Go on with these sentences ``(kept,)``, and of each with these ways ``(kept, ways)``."""
        rows = (sentences[:, None] * self.ways + ways).flatten()
        self.ways = ways.shape[1]
        self.written = [
            None if pair is None else (pair[0][rows], pair[1][rows]) for pair in self.written
        ]
        if len(sentences) < len(self.visible):
            self.visible = self.visible[sentences]
            self.read = [(keys[sentences], values[sentences]) for keys, values in self.read]


def _heads(attention: nn.MultiheadAttention, part: int, x: Tensor) -> Tensor:
    """Queries, keys or values by head, ``(sentences, heads, length, width of a head)``."""
    weight, bias = attention.in_proj_weight.chunk(3)[part], attention.in_proj_bias.chunk(3)[part]
    return F.linear(x, weight, bias).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _joined(attention: nn.MultiheadAttention, heads: Tensor) -> Tensor:
    """What the heads found, put together, ``(sentences, length, width)``."""
    joined: Tensor = attention.out_proj(heads.transpose(1, 2).flatten(2))
    return joined
