"""The power trace of a run, and its joules once more from that alone.

    recorded(ledger)  ->  X.power.parquet  ->  replay(path)      no hardware, no journal

The first window of the file is the square wave that the sensor was characterised with.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from bench.analysis.characterise import Characterisation, characterise
from bench.analysis.energy import Rules
from bench.analysis.joules import Joules, Trial, joules
from bench.analysis.traces import Load, Window, switched_s
from bench.measure.ledger import Ledger
from bench.measure.power import SensorInfo
from bench.measure.power.files import Recorded, TraceFileError, load_windows, parse_windows
from profiles.schema import Implementation, Kind
from profiles.sensors import Traits, completed, published_traits

Label = dict[str, str | int]
SQUARE, WINDOW = "square wave", "window"  # what a recorded window is of
MOST_SQUARE = 20_000  # readings: three minutes of them, and the wave takes one
MOST_TRIALS = 100


def recorded(ledger: Ledger, weight_format: str) -> list[Recorded]:
    """What the sensor said of one format, with all that is needed to compute its joules again.

    The first is the square wave that the sensor was characterised with; the others are the windows.
    """
    plan = ledger.plan.energy
    windows = [w for w in ledger.windows.values() if w.format == weight_format]
    if plan is None or ledger.square is None or not windows:
        return []
    square = ledger.square
    moments = switched_s(square.loads)
    first, last = moments[0], moments[-1]
    whole = Load(((first, 0), (last, sum(load.layers for load in square.loads))))
    label: Label = {"of": SQUARE, "switched_s": json.dumps(moments), "kind": ledger.kind}
    label |= {"rules": json.dumps(asdict(plan.rules)), "layers": ledger.plan.layers}
    idle_s = plan.rules.idle_s
    found = [Recorded(label, Window(whole, square.readings.trace(), idle_s, idle_s))]
    for w in windows:
        label = {"of": WINDOW, "format": w.format, "batch": w.batch, "trial": w.trial}
        found.append(Recorded({**label, **w.kernel.model_dump()}, w.window))
    return found


@dataclass(frozen=True)
class Replayed:
    """What a recorded trace says.

    Attributes:
        info: of the sensor that was recorded.
        characterised: what its square wave shows.
        traits: what the joules were computed with; None: nothing is known of the sensor.
        joules: of every arm; None without traits.
    """

    info: SensorInfo
    characterised: Characterisation
    traits: Traits | None
    joules: Joules | None


def replay(path: Path, content: bytes | None = None) -> Replayed:
    """Computes the joules of a run once more, from the power trace beside its profile.

    Args:
        path: of the trace.
        content: its bytes, where they have been read.

    Raises:
        TraceFileError: it is not such a file, or its readings contradict themselves.
    """
    info, windows = load_windows(path) if content is None else parse_windows(path, content)
    try:
        label, square = next((w.label, w.window) for w in windows if w.label["of"] == SQUARE)
        moments = [float(at) for at in json.loads(str(label["switched_s"]))]
        rules = _rules(str(label["rules"]))
        kind = TypeAdapter(Kind).validate_python(label["kind"])
        layers = int(label["layers"])
        trials = [
            Trial(
                str(w.label["format"]),
                int(w.label["batch"]),
                Implementation.model_validate({n: w.label[n] for n in Implementation.model_fields}),
                int(w.label["trial"]),
                w.window,
            )
            for w in windows
            if w.label["of"] == WINDOW
        ]
        if layers < 1 or any(t.batch < 1 for t in trials):
            raise ValueError("no layers, or no rows of x")
    except (StopIteration, LookupError, ArithmeticError, ValueError, TypeError, RecursionError):
        raise TraceFileError(f"{path} does not say what its windows are of.") from None
    if max(len(square.trace.time_s), len(moments)) > MOST_SQUARE:
        raise TraceFileError(f"{path} has a square wave of more than {MOST_SQUARE} readings.")
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that no sensor says
            characterised = characterise(square.trace, moments, kind)
            found, published = characterised.traits(info.model), published_traits(info.model)
            traits = published if found is None else completed(found, published)
            said = None if traits is None else joules(trials, traits, rules, layers, kind)
    except (LookupError, ArithmeticError, ValueError, TypeError) as error:
        what = str(error.args[-1] if error.args else error).partition("\n")[0]
        raise TraceFileError(f"{path} has readings that no sensor says: {what}") from None
    return Replayed(info, characterised, traits, said)


def _rules(text: str) -> Rules:
    """Rules that a run could have had.

    Raises:
        ValueError: they are not.
    """
    rules = TypeAdapter(Rules).validate_json(text)
    if not all(0 <= value < math.inf for value in asdict(rules).values()):
        raise ValueError("a rule is negative, or not a number")
    if rules.trials > MOST_TRIALS:
        raise ValueError(f"more than {MOST_TRIALS} trials")
    return rules
