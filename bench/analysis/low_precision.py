"""The path without dequantization: `lowp`, whose tensor cores take codes of W and of x (W8A8, W4A4).

It stands beside fused and unfused wherever a path is asked about: B*, N*, the trap map, hops and advice. Its
time is that of quantizing x and of the product, as in bench.dequant; there is no phi, for nothing is
dequantized, and so neither COR nor a theory of casting. A comparison holds its speed-up but no ratio of joules:
that is made here of the layer's energy rows (--energy full has windows of lowp), the sensor's gain cancelling,
trials unpaired.

Many formats have no such product, many devices neither, and a model has no time for quantizing x: which
formats lack the path, and why, is said.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import Book
from bench.analysis.verdict import By, Path, ratio_of
from profiles.schema import Comparison, Quantity, absent

NO_PRODUCT = "the profile has no kernel whose tensor cores take its codes"


def ratio(book: Book, c: Comparison, path: Path, by: By) -> Quantity:
    """best16 / arm of a comparison of a layer, in time or gross joules."""
    if path != "lowp" or by == "time":
        return ratio_of(c, path, by)
    a, b = (
        book.joules.get((c.format, c.batch, kernel)) if kernel else None
        for kernel in (c.best16, c.lowp)
    )
    if a is None or b is None:
        why = book.profile.energy.reason or "best16 and lowp had no energy windows at this batch"
        return absent(why, book.kind)
    return book.quantity(a / b)


def lacking(book: Book) -> dict[str, str]:
    """Formats whose layer has no `lowp` time at any batch, and why."""
    found: dict[str, str] = {}
    layers = layers_of(book)
    for name in dict.fromkeys(c.format for c in layers):
        mine = [c for c in layers if c.format == name]
        if all(c.speedup_lowp.value is None for c in mine):
            found[name] = _why(book, mine)
    return found


def lacking_sentences(book: Book) -> Iterator[str]:
    """One per reason."""
    why = lacking(book)
    for reason in dict.fromkeys(why.values()):
        names = ", ".join(name for name, each in why.items() if each == reason)
        yield f"No lowp path for {names}: {reason}."


def activation_error(book: Book, c: Comparison) -> float | None:
    """What quantizing x changes y by, over the largest |y|: the largest of the layer's operators."""
    if c.lowp is None:
        return None
    known = [
        row.activation_error
        for row in book.profile.rows
        if (row.format, row.batch, row.arm, row.implementation)
        == (c.format, c.batch, "lowp", c.lowp.implementation)
        and row.activation_error is not None
    ]
    return max(known, default=None)


def _why(book: Book, mine: list[Comparison]) -> str:
    """The profile's own reason; that of a row that failed where no such kernel ran."""
    if any(c.lowp is not None or c.lowp_product is not None for c in mine):
        return next((c.speedup_lowp.reason for c in mine if c.speedup_lowp.reason), NO_PRODUCT)
    failed = [
        row.failure or row.time_s.reason
        for row in book.profile.rows
        if (row.format, row.arm) == (mine[0].format, "lowp") and row.time_s.value is None
    ]
    return next((reason for reason in failed if reason), NO_PRODUCT)
