"""Chains of decoder layers with quantized weights beside the same chain in 16 bits: how errors compound.

    x ── norm ── qkv ── v ── o ──(+)── norm ── gate, up ── silu(gate) up ── down ──(+)── next layer
    └──────────────────────────────┘ └────────────────────────────────────────────┘

It is a whole decoder layer at a context of one token, where softmax has one entry and attention returns v. A
hop is one pass through all layers; what it returns, normalised, is what the next hop begins with, through
the same weights. Nothing is sampled in between, which in a real model may mend an error or make it a whole
wrong token: the drift is a proxy.

Matrices that write back into the stream (o, down) are smaller by sqrt(2 layers), as GPT-2 begins: without
that a random chain forgets its input within a few layers, whatever its weights are stored in.

Its matrices are narrow, and the largest of a row's weights grows with the row: a format with one scale per row
would look better than it is (a matrix of int8-ch with heavy tails by a factor of 2.7). So rows get the scale of
rows as wide as a model's. Groups are no wider there, and get what they have.

Products are computed by the fused kernel itself where the CPU has one for the format. Seeds fix everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from kernels.formats import WeightFormat
from kernels.packing import WEIGHT_STD, Weights, quantize, round_to
from profiles.fidelity import ChainShape, Distribution, FidelityRow

Floats = NDArray[np.float32]
Products = list[Callable[[Floats], Floats]]  # qkv, o, gate_up, down

SHAPE = ChainShape(
    hidden=256, intermediate=768, heads=4, kv_heads=2, layers=8, hops=8, batch=4, activation="bf16"
)
SEEDS = (1, 2, 3, 4, 5, 6)  # six: the fewest with a 95 % interval of their median
DISTRIBUTIONS: tuple[Distribution, ...] = ("gaussian", "heavy-tailed")
TYPICAL_WIDTH = 4096  # columns for which WEIGHT_STD keeps the size of activations
BACK_INTO_STREAM = (1, 3)  # o and down
MODEL_WIDTHS = (4096, 4096, 4096, 14336)  # columns of qkv, o, gate_up, down: Llama-3.1-8B's
TAIL_FREEDOM = 3  # of Student's t: the heaviest whole one with a variance
TAIL_STD = np.sqrt(TAIL_FREEDOM / (TAIL_FREEDOM - 2))


def measure(
    formats: Sequence[WeightFormat],
    shape: ChainShape = SHAPE,
    seeds: Sequence[int] = SEEDS,
    report: Callable[[str], None] = lambda what: None,
) -> Iterator[FidelityRow]:
    """Errors of every format and kind of weights at 1, 2, 4, ... layers and hops.

    Args:
        formats: quantized ones.
        shape: of the chain; widths must divide into the formats' groups.
        seeds: one chain each.
        report: told what comes next.

    Raises:
        ValueError: the widths do not divide into a format's groups.
    """
    for weight_format in formats:
        for distribution in DISTRIBUTIONS:
            report(f"{weight_format.name}, {distribution} weights")
            found: dict[int, list[float]] = {}
            implementation = ""
            for seed in seeds:
                errors, implementation = chain_errors(weight_format, distribution, shape, seed)
                for depth, error in errors.items():
                    found.setdefault(depth, []).append(error)
            for depth, each in found.items():
                yield FidelityRow(
                    format=weight_format.name, distribution=distribution,
                    implementation=implementation, layers=depth, hops=depth // shape.layers,
                    errors=tuple(each),
                )  # fmt: skip


def depths(shape: ChainShape) -> tuple[int, ...]:
    """1, 2, 4, ... layers within a hop, then the ends of 1, 2, 4, ... hops."""
    within = {1 << i for i in range(shape.layers.bit_length()) if 1 << i <= shape.layers}
    hops = {(1 << i) * shape.layers for i in range(shape.hops.bit_length()) if 1 << i <= shape.hops}
    return tuple(sorted(within | hops))


def chain_errors(
    weight_format: WeightFormat, distribution: Distribution, shape: ChainShape, seed: int
) -> tuple[dict[int, float], str]:
    """||y - y16|| / ||y16|| at each depth of one chain, and who computed the products."""
    from kernels.cpu.product import fused_product

    low: list[Products] = []
    high: list[Products] = []
    implementation = ""
    for layer in range(shape.layers):
        low.append([])
        high.append([])
        for index, (n, k) in enumerate(operator_sizes(shape)):
            w = random_matrix(n, k, distribution, (seed, layer, index))
            others = row_extremes(n, k, MODEL_WIDTHS[index] - k, distribution, (seed, layer, index))
            if index in BACK_INTO_STREAM:
                w /= np.float32(np.sqrt(2 * shape.layers))
                others /= np.float32(np.sqrt(2 * shape.layers))
            quantized = quantize_rows(w, others, weight_format, shape)
            product, implementation = fused_product(quantized, shape.batch)
            low[-1].append(product)
            high[-1].append(_exact(w, shape))
    rng = np.random.default_rng((seed, 0))
    x = rng.standard_normal((shape.batch, shape.hidden), dtype=np.float32)
    wanted = set(depths(shape))
    ours, theirs = chain(low, x, shape), chain(high, x, shape)
    errors = {}
    for depth, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        if depth in wanted:
            errors[depth] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return errors, implementation


def operator_sizes(shape: ChainShape) -> tuple[tuple[int, int], ...]:
    """(n, k) of qkv, o, gate_up and down."""
    head = shape.hidden // shape.heads
    return (
        ((shape.heads + 2 * shape.kv_heads) * head, shape.hidden),
        (shape.hidden, shape.hidden),
        (2 * shape.intermediate, shape.hidden),
        (shape.hidden, shape.intermediate),
    )


def random_matrix(n: int, k: int, distribution: Distribution, seed: tuple[int, ...]) -> Floats:
    """W [n, k] of standard deviation 0.02 sqrt(4096 / k), reproducible from the seed."""
    rng = np.random.default_rng(seed)
    if distribution == "gaussian":
        w = rng.standard_normal((n, k))
    else:
        w = rng.standard_t(TAIL_FREEDOM, (n, k)) / TAIL_STD
    scaled: Floats = (w * WEIGHT_STD * np.sqrt(TYPICAL_WIDTH / k)).astype(np.float32)
    return scaled


def row_extremes(
    n: int, k: int, others: int, distribution: Distribution, seed: tuple[int, ...]
) -> Floats:
    """The largest and the smallest of `others` more weights of each row of random_matrix, [n, 2].

    Drawn directly: the largest of m exceeds x with probability p where each does with 1 - (1 - p)^(1/m).
    Of thousands, the largest and the smallest are as good as independent.
    """
    rng = np.random.default_rng((*seed, 1))
    each = -np.expm1(np.log(rng.uniform(size=(n, 2))) / others)
    if distribution == "gaussian":
        largest = norm.isf(each)
    else:
        largest = student.isf(each, TAIL_FREEDOM) / TAIL_STD
    found: Floats = (largest * (1, -1) * WEIGHT_STD * np.sqrt(TYPICAL_WIDTH / k)).astype(np.float32)
    return found


def quantize_rows(
    w: Floats, others: Floats, weight_format: WeightFormat, shape: ChainShape
) -> Weights:
    """W [n, k], scaled as if its rows went on beyond k; `others` are the extremes of what follows, [n, 2]."""
    if weight_format.group_size is not None:
        return quantize(w, weight_format, shape.activation)
    n, k = w.shape
    whole_words = np.zeros((n, weight_format.weights_per_whole), np.float32)
    whole_words[:, :2] = others
    wide = quantize(np.hstack([w, whole_words]), weight_format, shape.activation)
    return replace(wide, codes=np.ascontiguousarray(wide.codes[:, :k]))


def chain(layers: list[Products], x: Floats, shape: ChainShape) -> Iterator[Floats]:
    """What each layer of each hop returns, float32 [batch, hidden]."""
    values = shape.kv_heads * (shape.hidden // shape.heads)
    for _ in range(shape.hops):
        for qkv, o, gate_up, down in layers:
            v = qkv(_normalised(x, shape))[:, -values:]
            heads = v.reshape(shape.batch, shape.kv_heads, -1)
            attention = np.repeat(heads, shape.heads // shape.kv_heads, axis=1)
            x = x + o(round_to(attention.reshape(shape.batch, -1), shape.activation))
            gate, up = np.split(gate_up(_normalised(x, shape)), 2, axis=1)
            x = x + down(round_to(gate / (1 + np.exp(-gate)) * up, shape.activation))
            yield x
        x = _normalised(x, shape)


def _exact(w: Floats, shape: ChainShape) -> Callable[[Floats], Floats]:
    """The product with 16-bit weights; sums in float32, y rounded, as the kernels do it."""
    from kernels.cpu.product import multiply

    values = round_to(w, shape.activation)
    return lambda x: round_to(multiply(x, values), shape.activation)


def _normalised(x: Floats, shape: ChainShape) -> Floats:
    """RMS norm without weights, rounded to the activation dtype."""
    size = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-6)
    return round_to(x / size, shape.activation)
