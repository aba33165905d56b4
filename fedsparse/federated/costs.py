"""What a round costs by formula, next to what the ledger measures; every column ends in `_modelled`.

Two ways of counting. *Exact* follows the densities of layers. *Paper* follows the tables of Huang et al. (FedRTS,
NeurIPS 2025, arXiv:2501.19122, App. F.4): sparse arithmetic is the overall density times dense arithmetic, weights
travel as 32-bit values with a bitmap, memory is three times the weights. Published ratios are reproduced by it;
published absolute FLOPs are not. In neither do norms, activations and the loss count, nor what a method asks of its
clients before round 0.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsparse.errors import ConfigError
from fedsparse.federated.plan import ClientSettings
from fedsparse.methods.roles import CostRow
from fedsparse.pattern import Topology

__all__ = ["Layer", "Sizes", "Work", "dense_bytes", "forward_flops", "round_costs", "sizes", "sparse_bytes"]

_VALUE_BITS = 32
_OPTIMIZER_NUMBERS = {"sgd": 1, "adam": 2, "adamw": 2}  # a parameter; of SGD with momentum


@dataclass(frozen=True)
class Layer:
    """One Linear or Conv2d as the formulas see it.

    Attributes:
        shape: of its weight.
        places: how often one sample uses each weight: pixels of a picture, tokens of a text.
        inputs: numbers that one sample leaves behind for the backward pass.
    """

    shape: tuple[int, ...]
    places: int
    inputs: int

    @property
    def size(self) -> int:
        """Elements of its weight."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Sizes:
    """A dense network as the formulas see it.

    Attributes:
        layers: every Linear and Conv2d by the name of its weight.
        trainable: parameters (P).
        buffers: elements of other float tensors, such as running statistics (n_b).
    """

    layers: Mapping[str, Layer]
    trainable: int
    buffers: int

    def kept(self, topology: Topology) -> int:
        """Trainable parameters under masks."""
        return self.trainable - sum(pattern.size - pattern.nnz for pattern in topology.values())


@dataclass(frozen=True, eq=False)
class Work:
    """One client's part in a round: under which masks, on how many samples, and what its method adds."""

    topology: Topology
    samples: int
    row: CostRow


def sizes(model: nn.Module, sample: Tensor) -> Sizes:
    """Looks at a dense network during one forward pass of a sample; the network is left as it is."""
    places: dict[str, int] = {}
    inputs: dict[str, int] = {}
    layers = {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}

    def watch(name: str, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        rows = module.get_parameter("weight").shape[0]
        places[name] = places.get(name, 0) + output.numel() // rows
        inputs[name] = inputs.get(name, 0) + given[0].numel()

    hooks = [
        layer.register_forward_hook(lambda m, x, y, name=name: watch(name, m, x, y)) for name, layer in layers.items()
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(sample.unsqueeze(0).to(next(model.parameters()).device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return Sizes(
        {n: Layer(tuple(layer.weight.shape), places[n], inputs[n]) for n, layer in layers.items() if n in places},
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        sum(b.numel() for b in model.buffers() if b.is_floating_point()),
    )


# ---- bytes
def dense_bytes(network: Sizes, *, value_bits: int = _VALUE_BITS) -> int:
    """O_d: all trainable parameters at `value_bits`, and the buffers at 32 bits."""
    return _bytes(network.trainable * value_bits + network.buffers * _VALUE_BITS)


def sparse_bytes(network: Sizes, topology: Topology, *, codec: str = "paper", value_bits: int = _VALUE_BITS) -> int:
    """O_s: pruned weights in sparse form, everything else as in `dense_bytes`.

    Args:
        codec: `paper` writes a bitmap below a density of 0.9 and the dense weight from there on; `auto` takes the
            smallest of dense, bitmap, coordinates and compressed rows or columns.

    Raises:
        ConfigError: another codec.
    """
    if codec not in ("auto", "paper"):
        raise ConfigError(f"unknown codec {codec!r}; expected auto or paper")
    pruned = sum(_weight_bits(p.shape, p.nnz, codec, value_bits) for p in topology.values())
    others = network.trainable - sum(pattern.size for pattern in topology.values())
    return _bytes(pruned + others * value_bits + network.buffers * _VALUE_BITS)


def _weight_bits(shape: tuple[int, ...], kept: int, codec: str, value_bits: int) -> int:
    rows, size = shape[0], math.prod(shape)
    columns = size // rows
    dense, bitmap = size * value_bits, size + kept * value_bits
    if codec == "paper":
        return bitmap if 10 * kept < 9 * size else dense
    by_row = kept * _index_bits(columns) + rows * _index_bits(kept)
    by_column = kept * _index_bits(rows) + columns * _index_bits(kept)
    coordinates = kept * _index_bits(size)
    return min(dense, bitmap, min(coordinates, by_row, by_column) + kept * value_bits)


def _index_bits(choices: int) -> int:
    """ceil(log2(choices)), 0 for none."""
    return max(choices - 1, 0).bit_length()


def _bytes(bits: int) -> int:
    return -(-bits // 8)


# ---- arithmetic
def forward_flops(network: Sizes, topology: Topology) -> int:
    """Floating-point operations of one sample's forward pass: 2 per kept weight and place it is used at."""
    kept = {name: topology[name].nnz if name in topology else layer.size for name, layer in network.layers.items()}
    return sum(2 * layer.places * kept[name] for name, layer in network.layers.items())


def _exact_flops(network: Sizes, work: Work, client: ClientSettings) -> int:
    """Forward and two products backward for every sample, and what the engine adds for pruned gradients.

    These take the weight gradient at all positions, streamed, on a mini-batch of their own.
    """
    dense, sparse = forward_flops(network, Topology()), forward_flops(network, work.topology)
    trained, probed = _samples(work, client)
    if work.row.probes is None:
        return (2 * sparse + dense) * trained
    return 3 * sparse * trained + (2 * sparse + dense) * probed


def _paper_flops(network: Sizes, work: Work, client: ClientSettings) -> int:
    """3 F_s (E - e) + (F_s + 2 F_d) e with F_s = d F_d, over E mini-batches of which e look at pruned weights too."""
    dense = forward_flops(network, Topology())
    sparse = network.kept(work.topology) * dense // network.trainable
    trained, probed = _samples(work, client)
    if work.row.probes is None:
        probed = trained
    return 3 * sparse * (trained - probed) + (sparse + 2 * dense) * probed


def _samples(work: Work, client: ClientSettings) -> tuple[int, int]:
    """Samples in the mini-batches of local training, and in those that look at pruned weights."""
    return work.samples * client.epochs, (work.row.probes or 0) * min(work.samples, client.batch_size)


# ---- memory
def _memory(network: Sizes, work: Work, client: ClientSettings) -> dict[str, int]:
    """Bytes of a training client by what they hold; weights with a bitmap, as `sparse_bytes`."""
    kept = 4 * network.kept(work.topology)
    stateless = client.optimizer == "sgd" and client.momentum == 0
    batch = min(work.samples, client.batch_size)
    return {
        "weights": sparse_bytes(network, work.topology),
        "gradients": kept,
        "optimizer": 0 if stateless else kept * _OPTIMIZER_NUMBERS[client.optimizer],
        "activations": 4 * batch * sum(layer.inputs for layer in network.layers.values()),
        "adjustment": work.row.buffer_bytes,
    }


# ---- a round
def round_costs(network: Sizes, clients: Iterable[Work], settings: ClientSettings) -> dict[str, int]:
    """Modelled columns of a round: sums over the clients that answered, and the memory of the largest of them.

    Args:
        network: the dense network of the method.
        clients: who answered, at least one; gone through once.
        settings: of local training.
    """
    down = up = exact = paper = 0
    memory: dict[str, int] = {}
    for work in clients:
        weights = sparse_bytes(network, work.topology, value_bits=work.row.value_bits)
        down += weights * (1 + work.row.models_down)
        up += weights + 4 * work.row.numbers_up
        exact += _exact_flops(network, work, settings)
        paper += _paper_flops(network, work, settings)
        memory = max(memory, _memory(network, work, settings), key=lambda parts: sum(parts.values()))
    return {
        "flops_exact_modelled": exact,
        "flops_paper_modelled": paper,
        "bytes_down_paper_modelled": down,
        "bytes_up_paper_modelled": up,
        **{f"memory_{part}_modelled": size for part, size in memory.items()},
        "memory_total_modelled": sum(memory.values()),
        "memory_paper_modelled": 3 * memory["weights"],
    }
