"""A real stream with a real shift: bike sharing, watched week by week, with and without training anew.

`python -m benchmarks.stream [--picture FILE]` prints tables in Markdown and, as its last line, one JSON object, and
draws the picture of docs/drift-stream.md. A champion of the first half of 2011 answers the 18 months that follow; the
loop beside it trains anew at the end of each month whose last weeks hold trouble. Without the data set (see
`GAUNTLET_DATA`) it says so and measures nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stacks.home import clone_dir, environment

if TYPE_CHECKING:
    from stacks.findings import Finding
    from tests.steps.bikes import Month

PICTURE = clone_dir() / "docs" / "bike_sharing.png"
_DOTS = 110


def draw(path: Path, findings: Sequence["Finding"], months: Sequence["Month"], holdout: float) -> None:
    """Draw the error over time above, the drift of each column and week below."""
    import numpy as np
    from matplotlib.figure import Figure

    performance, drift = ([f for f in findings if f.check == check] for check in ("performance", "drift"))
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    ends = [finding.until for finding in performance]
    value, low, high = ([finding.figures[name] for finding in performance] for name in ("mae", "mae_low", "mae_high"))
    above.fill_between(ends, low, high, color="tab:red", alpha=0.2, linewidth=0)
    above.plot(ends, value, color="tab:red", label="never trained again: MAE of the window, 95 % interval")
    begins, frozen, kept = _errors(months)
    above.step(begins, frozen, where="post", color="tab:red", linewidth=0.8, linestyle=":", label="the same, by month")
    above.step(begins, kept, where="post", color="tab:blue", linewidth=2, label="with the loop, by month")
    above.axhline(holdout, color="grey", linestyle="--", linewidth=0.8, label="holdout of early 2011")
    for begin, promoted in zip(begins[1:], [month.promoted for month in months], strict=True):
        above.plot([begin], [0], marker="^" if promoted else "x", color="tab:blue", clip_on=False)
    above.set_xlim(begins[0], begins[-1])
    above.set_ylabel("bikes an hour")
    above.legend(loc="upper left", fontsize=8, title="▲ challenger promoted   × kept the champion", title_fontsize=8)
    seen = [finding for finding in drift if finding.columns]
    names = list(seen[0].columns)
    heat = np.array([[finding.columns[name] for finding in seen] for name in names])
    edges = [seen[0].since, *(finding.until for finding in seen)]
    mesh = below.pcolormesh(edges, range(len(names) + 1), heat, cmap="Reds", vmin=0, vmax=0.8)
    below.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    below.invert_yaxis()
    figure.colorbar(mesh, ax=below, label="distance", pad=0.01)
    figure.savefig(path, dpi=_DOTS)


def _errors(months: Sequence["Month"]) -> tuple[list[Any], list[float], list[float]]:
    """Edges of the months, and the error of both sides, the last one twice: as a line of steps is drawn."""
    from tests.steps.bikes import END

    frozen, kept = [month.error(month.frozen) for month in months], [month.error(month.answers) for month in months]
    return [*(month.begin for month in months), END], [*frozen, frozen[-1]], [*kept, kept[-1]]


def table(findings: Sequence["Finding"], months: Sequence["Month"]) -> str:
    """One line a month: what the weeks said, and what the two sides were worth."""
    from tests.steps.bikes import gained

    lines = [
        "| month | weeks found: performance, drift | columns named | MAE (RMSE) frozen | loop | gain [95 %] | then |"
    ]
    lines.append("|" + "---|" * 7)
    for month in months:
        ended = [f for f in findings if (f.until.year, f.until.month) == (month.begin.year, month.begin.month)]
        counts = _named(ended)
        named = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        cells = [f"{_found(ended, check)} of {_judged(ended, check)}" for check in ("performance", "drift")]
        both = [f"{month.error(a):.1f} ({month.error(a, 'rmse'):.1f})" for a in (month.frozen, month.answers)]
        gain = gained(month.frozen, month.answers, month.truth) if month.version > 1 else None
        told = f"{gain.estimate:.1f} [{gain.low:.1f}, {gain.high:.1f}]" if gain else ""
        then = "promoted" if month.promoted else "kept" if month.trouble else "quiet"
        lines.append(
            f"| {month.begin:%Y-%m} | {', '.join(cells)} | {named} | {both[0]} | {both[1]} | {told} | {then} |"
        )
    return "\n".join(lines)


def _named(findings: Sequence["Finding"]) -> Counter[str]:
    """In how many weeks each column drifted."""
    return Counter(name for finding in findings if finding.check == "drift" for name in finding.named)


def _judged(findings: Sequence["Finding"], check: str) -> int:
    return sum(finding.check == check and finding.state != "unjudged" for finding in findings)


def _found(findings: Sequence["Finding"], check: str) -> int:
    return sum(finding.check == check and finding.state == "found" for finding in findings)


def measure(data: Path, folder: Path, picture: Path, deals: int) -> dict[str, Any]:
    """Watch the stream, the stream dealt anew, and the loop; print, draw, and return the figures."""
    import numpy as np

    from tests.steps.bikes import BEGIN, Hours, Trained, gained, joined, looped, watched

    hours = Hours.read(data)
    first = Trained.on(hours.between(None, BEGIN), 1, folder)
    findings = watched(f"sqlite:///{folder / 'frozen.db'}", first, hours)
    told: dict[str, Any] = {"rows": len(hours.rows), "holdout": first.holdout}
    told |= {"performance": _found(findings, "performance"), "drift": _found(findings, "drift")}
    told["columns"] = _named(findings)
    dealt: list[Finding] = []
    for seed in range(deals):
        anew = hours.dealt_anew(seed)
        trained = Trained.on(anew.between(None, BEGIN), 1, folder / str(seed))
        dealt += watched(f"sqlite:///{folder / f'{seed}.db'}", trained, anew)
    told["dealt_weeks"] = _judged(dealt, "performance")
    told["dealt_found"] = _found(dealt, "performance") + _found(dealt, "drift")
    told["dealt_named"] = sum(bool(finding.named) for finding in dealt)
    months = looped(f"sqlite:///{folder / 'loop.db'}", first, hours, folder)
    later = [month for month in months if month.version > 1]
    sides = joined([month.frozen for month in later]), joined([month.answers for month in later])
    truth = np.concatenate([month.truth for month in later])
    for metric in ("mae", "rmse"):
        gain = gained(*sides, truth, metric)
        told[f"{metric}_gain"] = [round(figure, 2) for figure in (gain.estimate, gain.low, gain.high)]
    print(table(findings, months))
    draw(picture, findings, months, first.holdout)
    return told


def main() -> int:
    """Measure, print, and return 1 where the stream is not seen, or a quiet one is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--deals", type=int, default=2, help="how often the rows are dealt anew over time")
    options = parser.parse_args()
    data = Path(os.environ.get("GAUNTLET_DATA") or clone_dir().parent / "shared" / "data").resolve()
    if not (data / "bike_sharing").is_dir():
        print("no bike_sharing there: set GAUNTLET_DATA to the folder of real data; nothing was measured")
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(environment(Path(home)) | {"GAUNTLET_SECRET": "benchmark"})
        told = measure(data, Path(home), options.picture, options.deals)
    met = told["performance"] > 70 and not told["dealt_found"] and told["mae_gain"][1] > 0 and told["rmse_gain"][1] > 0
    print(json.dumps({"benchmark": "stream", **told, "seconds": round(time.monotonic() - began), "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
