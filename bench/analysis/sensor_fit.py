"""Fits behind a characterisation: the grid of a sensor's updates, and the load that each reading averages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import stdtrit

from bench.analysis.sensor_edges import Edges, Floats, edges, polls
from bench.analysis.traces import Trace
from profiles.schema import Kind, Quantity, absent

CONFIDENCE = 0.95
FEWEST_EDGES = 30
EVERY_POLL = 0.9  # of the polls change: updates are as frequent as polls, or more
SANE = 1e100  # of readings and moments; only a file that was made up has larger ones
THINNED = 8  # polls per reading that is kept then: the moment of each within its call matters less
PERIOD_SEARCH = 0.15  # each side of the first guess
MOST_STEPS = 2e8  # of that search, edges times periods: ten times what a square wave takes
CLOSE_TO_PERIOD = 0.2  # of a period, that edges may scatter by
AVERAGING_S = np.geomspace(0.004, 2.0, 60)  # where the search begins
LAG_S = np.linspace(0.0, 0.5, 51)


@dataclass(frozen=True)
class Updates:
    """The sensor's updates: their period, and the one behind each edge.

    Attributes:
        update_s: the period.
        time_s: [edges].
        value: [edges], what was read from then on.
        resolution_s: half-width, 95 %, of what is not known about all of them together.
    """

    update_s: Quantity
    time_s: Floats
    value: Floats
    resolution_s: float


def find_updates(trace: Trace, channel: str, kind: Kind) -> Updates | str:
    """Lays a grid through the edges, or says why there is none.

    A first guess from the smaller distances between edges; then the period at which edges have most nearly
    one phase, |sum exp(2 pi i t / T)|; then a straight line through edges over their number; then, close to
    it, the line with most room between the polls around every edge, since polls that keep step with updates
    miss them all by as much.
    """
    time_s = polls(trace, channel)[0]
    found = edges(trace, channel, None)
    at, count = found.time_s, len(found.time_s)
    if count < FEWEST_EDGES:
        span_s = time_s[-1] - time_s[0]
        return f"it changed {count} times in {span_s:.1f} s; {FEWEST_EDGES} changes are needed"
    poll_s = float(np.median(np.diff(time_s)))
    if count > EVERY_POLL * (len(time_s) - 1):
        return _unresolved(edges(trace, channel, 0.0), poll_s, kind)
    guess_s = _guess(at)
    if not count * (at[-1] - at[0]) * 16 * 2 * PERIOD_SEARCH <= MOST_STEPS * guess_s:
        return f"its changes come {guess_s:.3g} s apart and for {at[-1] - at[0]:.3g} s: too many to search"
    number, (first_s, period_s) = _grid(at, guess_s)
    scatter_s = float(np.sqrt(((at - first_s - period_s * number) ** 2).sum() / (count - 2)))
    if scatter_s > CLOSE_TO_PERIOD * period_s:
        return (
            f"its changes scatter by {scatter_s * 1e3:.1f} ms around a period of "
            f"{period_s * 1e3:.1f} ms: it keeps to none, or is polled too rarely"
        )
    quantile = float(stdtrit(count - 2, (1 + CONFIDENCE) / 2))
    half = quantile * scatter_s / float(np.sqrt(((number - number.mean()) ** 2).sum()))
    periods = period_s + half * np.linspace(-2, 2, 401)
    centred = (number - number.mean())[:, None]
    earliest = (found.time_s - found.half_s)[:, None] - periods * centred
    latest = (found.time_s + found.half_s)[:, None] - periods * centred
    room = latest.min(axis=0) - earliest.max(axis=0)
    best = int(np.argmax(room))
    if room[best] < 0:  # the sensor itself is not that regular
        middle_s, resolution_s = float(at.mean()), quantile * scatter_s
    else:
        period_s = float(periods[best])
        middle_s = float(latest[:, best].min() + earliest[:, best].max()) / 2
        resolution_s = float(room[best]) / 2 + quantile * scatter_s / count
    update = Quantity(value=period_s, low=period_s - half, high=period_s + half, n=count, kind=kind)
    return Updates(update, middle_s + period_s * centred[:, 0], found.value, resolution_s)


def _unresolved(found: Edges, poll_s: float, kind: Kind) -> Updates:
    """Updates that are no rarer than polls: as if each poll were one."""
    reason = f"polls every {poll_s * 1e3:.1f} ms are no more frequent than its updates"
    update = Quantity(
        value=poll_s, low=0.0, high=poll_s, n=len(found.time_s), kind=kind, reason=reason
    )
    every = slice(None, None, THINNED)
    return Updates(update, found.time_s[every], found.value[every], poll_s / 2)


def _guess(at: Floats) -> float:
    """Roughly the period: the smaller distances between edges."""
    distances = np.diff(at)
    return float(np.median(distances[distances <= 1.5 * np.percentile(distances, 25)]))


def _grid(at: Floats, guess: float) -> tuple[Floats, tuple[float, float]]:
    """The number of each edge, and (moment of number 0, period), from a rough period."""
    finest = guess**2 / (16 * (at[-1] - at[0]))
    periods = np.arange(guess * (1 - PERIOD_SEARCH), guess * (1 + PERIOD_SEARCH), finest)
    together = [abs(np.exp(2j * np.pi * (at - at[0]) / period).sum()) for period in periods]
    period, first = float(periods[int(np.argmax(together))]), float(at[0])
    for _ in range(2):
        number: Floats = np.round((at - first) / period)
        period, first = _line(number, at)
    return number, (first, period)


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept.

    Raises:
        FloatingPointError: see `_check_sane`.
    """
    _check_sane(x, y)
    slope, intercept = (float(c) for c in np.polyfit(x, y, 1))
    return slope, intercept


def _check_sane(*numbers: Floats) -> None:
    """Nothing that LAPACK would complain of on the terminal.

    Raises:
        FloatingPointError: a number is not finite, or its square might not be.
    """
    if not all((abs(some) < SANE).all() for some in numbers):
        raise FloatingPointError(f"numbers beyond {SANE:g}")


class LoadFit:
    """Readings over the mean of the load before each update.

    Args:
        at: [n], the updates.
        watts: [n], what was read.
        switched: moments at which the load went on, off, ...
        averaging: [n], seconds that each reading is the mean of, where these are known.
    """

    def __init__(
        self, at: Floats, watts: Floats, switched: Floats, averaging: Floats | None = None
    ) -> None:
        self.at, self.watts, self.averaging = at, watts, averaging
        # Seconds for which the load was on, up to each switch, and up to long after the last one.
        on = np.diff(switched) * (np.arange(len(switched) - 1) % 2 == 0)
        far = max(float(at.max()), float(switched[-1])) + 1.0
        still_on = (far - switched[-1]) * (len(switched) % 2)
        self._when = np.append(switched, far)
        self._on_s = np.concatenate([[0.0], np.cumsum(np.append(on, still_on))])
        self.averaging_s, self.lag_s = 0.0, 0.0
        self.idle_w, self.swing_w, self.residual_w, self.explained = 0.0, 0.0, 0.0, 0.0

    def load(self, averaging_s: float, lag_s: float) -> Floats:
        """[n], the mean of the load over what each reading covers."""
        width = averaging_s if self.averaging is None else self.averaging
        until = self.at - lag_s
        on_s = np.interp(until, self._when, self._on_s)
        mean: Floats = (on_s - np.interp(until - width, self._when, self._on_s)) / width
        return mean

    def unexplained(self, averaging_s: float, lag_s: float) -> float:
        """Share of the variance of readings that the best line over the load leaves."""
        if averaging_s <= 1e-4:
            return 1.0
        load = self.load(averaging_s, lag_s)
        x, y = load - load.mean(), self.watts - self.watts.mean()
        spread = float((x @ x) * (y @ y))
        return 1.0 - float(x @ y) ** 2 / spread if spread > 0 else 1.0

    def search(self) -> None:
        """Finds the averaging window and the lag that leave least, and the line that goes with them."""
        widths = AVERAGING_S if self.averaging is None else np.array([1.0])
        starts = sorted((self.unexplained(w, lag), w, lag) for w in widths for lag in LAG_S)
        _, self.averaging_s, self.lag_s = starts[0]
        best = minimize(
            lambda p: self.unexplained(math.exp(p[0]), p[1]),
            [math.log(self.averaging_s), self.lag_s],
            method="Nelder-Mead",
            options={
                "xatol": 1e-5,
                "fatol": 1e-12,
                "initial_simplex": [
                    [math.log(self.averaging_s) + dw, self.lag_s + dl]
                    for dw, dl in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.01))
                ],
            },
        )
        if self.averaging is None:
            self.averaging_s = math.exp(best.x[0])
        self.lag_s = float(best.x[1])
        load = self.load(self.averaging_s, self.lag_s)
        self.swing_w, self.idle_w = _line(load, self.watts)
        left = self.watts - self.idle_w - self.swing_w * load
        self.residual_w = float(np.sqrt((left**2).sum() / max(1, len(left) - 4)))
        self.explained = 1.0 - self.unexplained(self.averaging_s, self.lag_s)

    def quantities(self, resolution_s: float, kind: Kind) -> tuple[Quantity, Quantity]:
        """Averaging window and lag, with what noise and the grid of updates leave open.

        The intervals are those of least squares, linearised: the inverse of J^T J times the variance of the
        residuals. The grid of updates shifts all readings alike, so its error, a bound, is added to the lag's.
        """
        step = 1e-4
        columns = [np.ones(len(self.at)), self.load(self.averaging_s, self.lag_s)]
        for dw, dl in ((step, 0.0), (0.0, step)):
            if dw and self.averaging is not None:
                continue
            up = self.load(self.averaging_s + dw, self.lag_s + dl)
            down = self.load(self.averaging_s - dw, self.lag_s - dl)
            columns.append(self.swing_w * (up - down) / (2 * step))
        jacobian = np.column_stack(columns)
        freedom = len(self.at) - jacobian.shape[1]
        _check_sane(jacobian)
        covariance = np.linalg.pinv(jacobian.T @ jacobian) * self.residual_w**2
        half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * np.sqrt(np.diag(covariance))
        lag = _positive(self.lag_s, float(half[-1]) + resolution_s, len(self.at), kind)
        if self.averaging is not None:
            return absent("a counter misses no time, so it averages over all of it", kind), lag
        return _positive(self.averaging_s, float(half[2]), len(self.at), kind), lag


def _positive(value: float, half: float, n: int, kind: Kind) -> Quantity:
    """Seconds that cannot be negative."""
    low, high = max(0.0, value - half), max(0.0, value + half)
    return Quantity(value=min(max(value, low), high), low=low, high=high, n=n, kind=kind)
