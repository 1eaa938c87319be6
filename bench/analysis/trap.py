"""Everything that `python -m bench.trap` says of a profile, in one place: answers, not yet words or pictures.

from bench.analysis.trap import Questions, analyse
found = analyse(Book.open(profile, samples), Questions(batch=1))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.analysis.advice import accuracy_sentence, advise, memory_sentence
from bench.analysis.at_load import AtLoad, at_load
from bench.analysis.compounding import Law, compounding
from bench.analysis.critical_scale import CriticalScale, costs_of, critical_scale, measured_layers
from bench.analysis.crossing import Crossing, crossing, inverse
from bench.analysis.hops import Chain, chains
from bench.analysis.indices import Index, TrapStep, Weights, indices
from bench.analysis.ladder import Ladder, ladders
from bench.analysis.low_precision import activation_error, lacking_sentences
from bench.analysis.low_precision import ratio as ratio_of
from bench.analysis.phi_curve import (
    CASTING,
    CorCurve,
    PhiPoint,
    Slope,
    bits_stored,
    cor_curves,
    layers_of,
    phi_points,
    slopes,
)
from bench.analysis.replicates import Book
from bench.analysis.resampled import resampled
from bench.analysis.theories import Theories, Unfitted, fit_theories
from bench.analysis.trap_map import TrapMap, trap_map
from bench.analysis.verdict import PATHS, By, Path
from profiles.fidelity import Distribution, Fidelity
from profiles.schema import Quantity
from profiles.shapes import ModelShape, load_models

BYS: tuple[By, ...] = ("time", "energy")


@dataclass(frozen=True)
class Questions:
    """What is asked of a profile.

    Attributes:
        batch: that hops, indices and advice are about.
        hops: K, of the chain and of the error that counts as trust.
        tokens_per_hop: T.
        path: of the trap map.
        by: time or energy, of the trap map.
        weights: of the indices.
        accuracy: of a user's own table, per format.
    """

    batch: int
    hops: int = 4
    tokens_per_hop: int = 256
    path: Path = "fused"
    by: By = "time"
    weights: Weights = field(default_factory=Weights)
    accuracy: Mapping[str, Quantity] | None = None


@dataclass(frozen=True)
class Answers:
    """All that follows from a profile.

    Keys are (format, path, by) of `theories` and `crossings`, and (format, by) of `at_load_crossings`, which
    compare dequantizing at load with the fused kernel. `no_lowp` says which formats lack that path, and why.
    """

    questions: Questions
    ladders: tuple[Ladder, ...]
    phi: tuple[PhiPoint, ...]
    slopes: tuple[Slope, ...]
    cor: tuple[CorCurve, ...]
    theories: Mapping[tuple[str, Path, By], tuple[Theories | Unfitted, ...]]
    crossings: Mapping[tuple[str, Path, By], Crossing]
    at_load_crossings: Mapping[tuple[str, By], Crossing]
    at_load: tuple[AtLoad, ...]
    scales: tuple[CriticalScale, ...]
    maps: tuple[TrapMap, ...]
    chains: tuple[Chain, ...]
    laws: Mapping[tuple[str, Distribution], Law]
    indices: tuple[Index, ...]
    trap_steps: tuple[TrapStep, ...]
    no_lowp: tuple[str, ...]
    memory: str
    advice: str


def analyse(
    book: Book,
    questions: Questions,
    fidelity: Fidelity | None = None,
    other: Book | None = None,
) -> Answers:
    """Every answer.

    Args:
        book: of the profile.
        questions: what is asked; the batch is one of the profile's.
        fidelity: measured for its formats, if it was.
        other: a profile of the same device in the other launch mode, if there is one.
    """
    book, other = resampled(book), None if other is None else resampled(other)
    layers = layers_of(book)
    formats = tuple(dict.fromkeys(c.format for c in layers))
    of = {name: [c for c in layers if c.format == name] for name in formats}
    shapes = load_models()
    own = shapes.get(book.profile.workload.model)
    crossings = {
        (name, path, by): crossing(
            [(c.batch, ratio_of(book, c, path, by)) for c in of[name]], book.kind
        )
        for name in formats
        for path in PATHS
        for by in BYS
    }
    rows, steps = indices(
        book, questions.batch, questions.weights, fidelity, questions.hops, questions.accuracy
    )
    scales, maps = _scales(book, other, formats, questions, list(shapes.values()))
    return Answers(
        questions=questions,
        ladders=tuple(ladders(book)),
        phi=phi_points(book),
        slopes=slopes(book),
        cor=tuple(cor_curves(book)),
        theories={
            (name, path, by): fit_theories(book, of[name], path, bits_stored(book, name), by)
            for name in formats
            for path in CASTING
            for by in BYS
            if by == "time" or book.profile.energy.rows
        },
        crossings=crossings,
        at_load_crossings={
            (name, by): crossing(
                [(c.batch, inverse(ratio_of(book, c, "fused", by))) for c in of[name]], book.kind
            )
            for name in formats
            for by in BYS
        },
        at_load=tuple(at_load(book)),
        scales=scales,
        maps=maps,
        chains=tuple(
            chains(book, questions.hops, questions.tokens_per_hop, questions.batch, other)
        ),
        laws=_laws(fidelity),
        indices=rows,
        trap_steps=steps,
        no_lowp=tuple(lacking_sentences(book)),
        memory=memory_sentence(book.profile, own),
        advice=advise(
            book,
            questions.batch,
            [c for c in layers if c.batch == questions.batch],
            crossings,
            own,
            {
                (c.format, path): accuracy_sentence(
                    c.format,
                    fidelity,
                    questions.hops,
                    questions.accuracy,
                    path,
                    activation_error(book, c) if path == "lowp" else None,
                )
                for c in layers
                if c.batch == questions.batch
                for path in PATHS
            },
        ),
    )


def _scales(
    book: Book,
    other: Book | None,
    formats: Sequence[str],
    questions: Questions,
    shapes: Sequence[ModelShape],
) -> tuple[tuple[CriticalScale, ...], tuple[TrapMap, ...]]:
    """N* of every format, path and batch, and the map of the path that was asked for."""
    scales: list[CriticalScale] = []
    maps: list[TrapMap] = []
    calls = book.profile.workload.layers * sum(o.count for o in book.profile.workload.operators)
    for name in formats:
        for path in PATHS:
            for device, host, eager in _launches(book, other):
                costs = costs_of(device, name, path, host)
                layers = measured_layers(host if eager and host else device, name, eager)
                scales += [
                    critical_scale(
                        device, name, path, cost, calls, eager,
                        ratio_of(book, layers[batch], path, "time") if batch in layers else None,
                    )
                    for batch, cost in costs.items()
                ]  # fmt: skip
                if path == questions.path and costs:
                    bits = bits_stored(device, name)
                    maps.append(
                        trap_map(device, name, path, costs, shapes, bits, eager, questions.by, host)
                    )
    return tuple(scales), tuple(maps)


def _launches(book: Book, other: Book | None) -> Iterator[tuple[Book, Book | None, bool]]:
    """What t0 and c are from, what the host's time is from, and whether that is an eager launch.

    Of eager launches alone, t0 holds whatever the host adds, and no host's time is told apart.
    """
    if other is None:
        yield book, None, book.profile.workload.launch_mode == "eager"
    else:
        graph, eager = (
            (book, other) if book.profile.workload.launch_mode == "graph" else (other, book)
        )
        yield graph, None, False
        yield graph, eager, True


def _laws(fidelity: Fidelity | None) -> dict[tuple[str, Distribution], Law]:
    if fidelity is None:
        return {}
    keys = dict.fromkeys((row.format, row.distribution) for row in fidelity.rows)
    return {
        key: compounding([r for r in fidelity.rows if (r.format, r.distribution) == key])
        for key in keys
    }
