"""GPT-2.  Radford et al., Language Models are Unsupervised Multitask Learners, 2019; module names as in transformers.

The "32M" setting of FedRTS (Huang et al., NeurIPS 2025, arXiv:2501.19122; evidence: its code) is the default: hidden
256, 8 layers, 16 heads, 2048 positions, 50,257 tokens.

Deviation: the tied table of tokens is one parameter, `lm_head.weight`; common code lists it a second time, as
`wte.weight`, in its state. All that is counted, masked and sent here is counted, masked and sent once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse.errors import ConfigError, ShapeError

__all__ = ["GPT2", "gpt2"]

_SPREAD = 0.02  # of initial weights


class Attention(nn.Module):
    """Causal self-attention of several heads: `(batch, length, hidden)` -> the same."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.c_attn = nn.Linear(hidden, 3 * hidden)  # queries, keys and values
        self.c_proj = nn.Linear(hidden, hidden)
        self.heads = heads
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        mixed = self.c_attn(x).view(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        y: Tensor = self.c_proj(heads.transpose(1, 2).reshape(batch, length, hidden))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers of four times the width, with GELU: `(batch, length, hidden)` -> the same."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = nn.Linear(hidden, 4 * hidden)
        self.c_proj = nn.Linear(4 * hidden, hidden)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(y, self.dropout, self.training)


class Block(nn.Module):
    """Attention, then the two linear layers, each normalised before and added to its input."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden)
        self.attn = Attention(hidden, heads, dropout)
        self.ln_2 = nn.LayerNorm(hidden)
        self.mlp = MLP(hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class GPT2(nn.Module):
    """Tables of tokens and positions, blocks, a last norm, and the table of tokens again.

    Args:
        vocabulary: tokens.
        hidden: width.
        layers: blocks.
        heads: of the attention; they share the width.
        context: longest text, in tokens.
        dropout: after the embedding, in the attention and after both parts of a block.

    Raises:
        ConfigError: a size below 1, a width that the heads cannot share, or a dropout outside [0, 1).
    """

    def __init__(self, vocabulary: int, hidden: int, layers: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        if min(vocabulary, hidden, layers, heads, context) < 1:
            raise ConfigError(
                "vocabulary, hidden, layers, heads and context must be at least 1, got "
                f"{vocabulary}, {hidden}, {layers}, {heads} and {context}"
            )
        if hidden % heads:
            raise ConfigError(f"hidden = {hidden} is no multiple of heads = {heads}; every head takes an equal part")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be a share in [0, 1), got {dropout}")
        self.wpe = nn.Embedding(context, hidden)
        self.h = nn.ModuleList(Block(hidden, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden)
        self.lm_head: nn.Module = nn.Linear(hidden, vocabulary, bias=False)
        self.context = context
        self.hidden = hidden
        self.dropout = dropout
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        """As GPT-2: normal weights, zero biases; the 2 * layers outputs that are summed up start smaller together."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                share = math.sqrt(2 * layers) if name.endswith("c_proj") else 1.0
                nn.init.normal_(module.weight, std=_SPREAD / share)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(batch, length)` int64 -> `(batch, length, vocabulary)` logits of the token that follows each.

        Raises:
            ShapeError: tokens have other axes, or more places than the context.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.context:
            raise ShapeError(
                f"GPT2 expects tokens of shape (batch, length) with length up to {self.context}, "
                f"got {tuple(tokens.shape)}"
            )
        x = self._embedded(tokens) + self.wpe.weight[: tokens.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        logits: Tensor = self.lm_head(self.ln_f(x))
        return logits

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Rows of the table of tokens `(batch, length, hidden)`."""
        if isinstance(self.lm_head, nn.Linear):
            return F.embedding(tokens, self.lm_head.weight)
        # Another layer has taken its place, which may hold no dense weight: its outputs for the unit vectors are
        # the columns of the table, and gradients of both uses reach it the same way. Not called as a module, because a
        # lookup is no product to those who watch and count the calls.
        units = torch.eye(self.hidden, device=tokens.device)
        return F.embedding(tokens, self.lm_head.forward(units).t())


def gpt2(
    vocabulary: int = 50257,
    hidden: int = 256,
    layers: int = 8,
    heads: int = 16,
    context: int = 2048,
    dropout: float = 0.1,
) -> GPT2:
    """GPT-2: 19,708,672 parameters by default, of which 12,865,792 are the table of tokens."""
    return GPT2(vocabulary, hidden, layers, heads, context, dropout)
