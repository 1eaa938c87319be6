"""The power trace of a run, and its joules once more from that alone.

    recorded(ledger)  ->  X.power.parquet  ->  replay(path)      no hardware, no journal

The first window of the file is the square wave that the sensor was characterised with.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from bench.analysis.characterise import Characterisation, characterise
from bench.analysis.energy import Rules
from bench.analysis.joules import Joules, Trial, joules
from bench.analysis.traces import Load, Window, switched_s
from bench.measure.ledger import Ledger
from bench.measure.power import SensorInfo
from bench.measure.power.files import Recorded, TraceFileError, load_windows
from profiles.schema import Implementation, Kind
from profiles.sensors import Traits, completed, published_traits

Label = dict[str, str | int]
SQUARE, WINDOW = "square wave", "window"  # what a recorded window is of


def recorded(ledger: Ledger, kind: Kind) -> list[Recorded]:
    """What the sensor said in a run, with all that is needed to compute its joules again.

    The first is the square wave that the sensor was characterised with; the others are the windows.
    """
    plan = ledger.plan.energy
    if plan is None or ledger.square is None:
        return []
    square = ledger.square
    moments = switched_s(square.loads)
    first, last = moments[0], moments[-1]
    whole = Load(((first, 0), (last, sum(load.layers for load in square.loads))))
    label: Label = {"of": SQUARE, "switched_s": json.dumps(moments), "kind": kind}
    label |= {"rules": json.dumps(asdict(plan.rules)), "layers": ledger.plan.layers}
    idle_s = plan.rules.idle_s
    found = [Recorded(label, Window(whole, square.readings.trace(), idle_s, idle_s))]
    for w in ledger.windows.values():
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


def replay(path: Path) -> Replayed:
    """Computes the joules of a run once more, from the power trace beside its profile.

    Raises:
        TraceFileError: it is not such a file.
    """
    info, windows = load_windows(path)
    try:
        square = next(w for w in windows if w.label["of"] == SQUARE)
        moments = [float(at) for at in json.loads(str(square.label["switched_s"]))]
        rules = TypeAdapter(Rules).validate_json(str(square.label["rules"]))
        kind = TypeAdapter(Kind).validate_python(square.label["kind"])
        layers = int(square.label["layers"])
        characterised = characterise(square.window.trace, moments, kind)
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
    except (StopIteration, KeyError, ValueError, TypeError):
        raise TraceFileError(f"{path} does not say what its windows are of.") from None
    found, published = characterised.traits(info.model), published_traits(info.model)
    traits = published if found is None else completed(found, published)
    said = None if traits is None else joules(trials, traits, rules, layers, kind)
    return Replayed(info, characterised, traits, said)
