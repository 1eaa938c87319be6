"""What every part of a profile is made of: records that refuse nonsense, and numbers with an interval.

A number is a `Quantity` with an interval and the kind of evidence behind it. A value that is not known is
null, and the reason is written down beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["measured", "modelled", "simulated", "imported"]


class Record(BaseModel):
    """Base of every part: unknown fields, NaN and infinity are errors; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Quantity(Record):
    """One number, its interval, and what kind of evidence it is.

    Attributes:
        value: the point estimate; null when there is none.
        low: lower end of the interval, at the profile's confidence; null when there is no interval.
        high: upper end.
        n: how many independent observations (blocks) it rests on; null where that has no meaning.
        kind: measured, modelled, simulated or imported.
        reason: why the value or its interval is null; empty when both are given.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: Annotated[int, Field(ge=0)] | None = None
    kind: Kind = "measured"
    reason: str = ""

    @model_validator(mode="after")
    def _ordered_or_explained(self) -> Quantity:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high come together: give both or neither")
        if self.value is None and self.low is not None:
            raise ValueError("an interval needs a value")
        if self.low is None and not self.reason.strip():
            raise ValueError("a quantity without a value or without an interval needs a reason")
        if (
            self.value is not None
            and self.low is not None
            and self.high is not None
            and not self.low <= self.value <= self.high
        ):
            raise ValueError(f"{self.value} is not within its interval {self.low} to {self.high}")
        return self


def absent(reason: str, kind: Kind = "measured") -> Quantity:
    """A quantity that is not there, and why."""
    return Quantity(value=None, kind=kind, reason=reason)


def scaled(quantity: Quantity, factor: float) -> Quantity:
    """A quantity times a positive number, its interval with it; what is null stays so."""
    ends = {name: getattr(quantity, name) for name in ("value", "low", "high")}
    return quantity.model_copy(
        update={name: None if end is None else factor * end for name, end in ends.items()}
    )


class Facts(Record):
    """Facts of which any may be unknown: each null field is explained in `missing`."""

    missing: dict[str, str] = Field(default={}, description="field name to why it is null")

    @model_validator(mode="after")
    def _every_null_explained(self) -> Facts:
        for name in type(self).model_fields:
            if getattr(self, name) is None and not self.missing.get(name, "").strip():
                raise ValueError(f"{name} is null, so `missing` must say why")
        return self


def quantities(record: BaseModel) -> Iterator[Quantity]:
    """Every quantity inside a record, at any depth of nested records."""
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, Quantity):
            yield value
        elif isinstance(value, BaseModel):
            yield from quantities(value)
