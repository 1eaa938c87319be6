"""Shapes of real models, and the linear operators that one decoder layer runs when it is served.

Serving engines fuse the projections that read the same input: query, key and value become one
matrix, gate and up another. A layer is then four operators y[batch, n] = x[batch, k] W[n, k]^T:

    qkv_proj      n = (query_heads + 2 kv_heads) head_dim   k = hidden
    o_proj        n = hidden                                k = query_heads head_dim
    gate_up_proj  n = 2 intermediate                        k = hidden
    down_proj     n = hidden                                k = intermediate

The numbers are in `shapes.toml`, with their source.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from profiles.schema import Operator

SHAPES_FILE = Path(__file__).with_name("shapes.toml")


@dataclass(frozen=True)
class ModelShape:
    """One model: the fields of its config.json that fix the linear operators."""

    name: str
    hub_id: str
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    tied_embeddings: bool
    read_from: str
    read_on: date

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The four operators of one decoder layer."""
        attention = self.query_heads * self.head_dim
        keys_and_values = 2 * self.kv_heads * self.head_dim
        return (
            Operator(name="qkv_proj", n=attention + keys_and_values, k=self.hidden),
            Operator(name="o_proj", n=self.hidden, k=attention),
            Operator(name="gate_up_proj", n=2 * self.intermediate, k=self.hidden),
            Operator(name="down_proj", n=self.hidden, k=self.intermediate),
        )

    @property
    def lm_head(self) -> Operator:
        """The operator after the last layer; 16-bit by default, and never part of a layer."""
        return Operator(name="lm_head", n=self.vocab, k=self.hidden)

    @property
    def layer_params(self) -> int:
        """Weights in the operators of one layer."""
        return sum(o.n * o.k * o.count for o in self.operators)

    @property
    def linear_params(self) -> int:
        """Weights that one decode step multiplies with: all layers and lm_head."""
        return self.layers * self.layer_params + self.vocab * self.hidden

    @property
    def params(self) -> int:
        """All weights but norms and biases; embeddings tied to lm_head count once."""
        return self.linear_params + (0 if self.tied_embeddings else self.vocab * self.hidden)


def load_models() -> dict[str, ModelShape]:
    """Every model in `shapes.toml`, by name."""
    tables = tomllib.loads(SHAPES_FILE.read_text(encoding="utf-8"))
    return {name: ModelShape(name=name, **fields) for name, fields in tables.items()}


def load_model(name: str) -> ModelShape:
    """The model of that name, in any mixture of cases.

    Raises:
        ValueError: no such model; the message lists those that exist.
    """
    models = load_models()
    for known, shape in models.items():
        if known.lower() == name.lower():
            return shape
    raise ValueError(f"there is no model named {name!r}; choose one of {', '.join(models)}.")
