"""What card and report say of a judged version: figures, gates, groups, explanations, data, lineage."""

from collections.abc import Mapping, Sequence
from typing import Any

from steps.document import (
    Block,
    Bullets,
    Cell,
    Pairs,
    Part,
    Picture,
    Pictures,
    Table,
    Text,
    Tone,
    interval,
    number,
    records,
    told,
    with_interval,
)
from steps.fairness_section import fairness_part
from steps.judged import Judged
from steps.metrics import greater_is_better
from steps.verdict import Gate

TONES: Mapping[str, Tone] = {"promoted": "good", "kept": "plain", "rejected": "bad", "pending": "warn"}
FIGURES: Mapping[str, str] = {
    "classes": "Classes",
    "calibration": "Calibration",
    "slices": "Slices",
    "unjudged": "Slices that were not judged",
    "behaviour": "Behaviour",
    "cross_validation": "Cross-validation",
}
"""Fields of an `Evaluation` that are shown as they are, and what their part is called."""
SHOWN_COLUMNS = 15
_TOLD = ("metric", "estimate", "low", "high")


def decided_facts(judged: Judged) -> tuple[tuple[str, str], ...]:
    """When a version was judged, by whom and why, and by which settings that are not the YAML's."""
    facts = (("decided", f"{judged.time:%Y-%m-%d %H:%M} UTC"), ("by", judged.actor), ("why", judged.why or "–"))
    return (*facts, ("judged with --set", told(judged.settings))) if judged.settings else facts


def figures_part(judged: Judged) -> Part:
    """Every figure with its interval, the deciding one first; beside the champion's where there is one."""
    evaluation = judged.evaluation
    champion, compared = evaluation.get("champion"), evaluation.get("challenger_compared")
    if champion and compared:
        return Part("Figures", (_beside(judged, champion, compared), *_about_figures(judged)))
    known = evaluation.get("intervals") or {}
    rows = [
        (_name(name, judged), Cell(with_interval(value, known.get(name))))
        for name, value in _ordered(judged.figures, judged.metric)
    ]
    table = Table(("figure", f"v{judged.version}, own test rows"), tuple(rows))
    return Part("Figures", (table, *_about_figures(judged)) if rows else ())


def gates_part(gates: Sequence[Gate]) -> Part:
    """The gate table: value, threshold, margin, verdict, reason."""
    rows = tuple(
        (
            Cell(gate.name, strong=gate.verdict == "failed"),
            Cell(number(gate.value)),
            Cell(number(gate.threshold)),
            Cell(number(gate.margin), bar=_length(gate)),
            Cell(*_gate_verdict(gate)),
            Cell(gate.reason),
        )
        for gate in gates
    )
    columns = ("gate", "value", "threshold", "margin", "verdict", "reason")
    return Part("Gates", (Table(columns, rows, wide=("reason",)),) if rows else ())


def group_parts(judged: Judged) -> tuple[Part, ...]:
    """Fairness, classes, calibration, slices, behaviour: whatever of these was measured."""
    tables = {"calibration": _calibration(judged.evaluation.get("calibration") or ())}
    shown = [Part(title, tables.get(key, records(judged.evaluation.get(key)))) for key, title in FIGURES.items()]
    parts = (fairness_part(judged.evaluation.get("fairness")), *shown)
    return tuple(part for part in parts if part.blocks)


def explanations_part(judged: Judged, plots: Sequence[Picture] = ()) -> Part:
    """Which columns and terms the model goes by, and how far that is from the champion's; plots of effects below."""
    evaluation = judged.evaluation
    effects, importance = evaluation.get("effects") or {}, evaluation.get("importance") or {}
    blocks: list[Block] = []
    if effects or importance:
        blocks.append(_columns_table(judged, effects, importance))
    if effects:
        scale = evaluation.get("effects_scale") or "output"
        blocks.append(
            Text(
                f"Share of effect: of the mean absolute SHAP effect on the {scale}, over a sample of test rows. "
                f"Shuffled: what shuffling the column costs in {judged.metric}."
            )
        )
    if (drift := evaluation.get("importance_drift")) is not None:
        against = f"v{evaluation.get('champion_version')}"
        blocks.append(
            Text(
                f"Importance drift against {against}: {number(drift)}, the total variation distance of the two shares "
                "(0: the same, 1: no column counts in both)."
            )
        )
    for label, terms in (evaluation.get("tokens") or {}).items():
        blocks.append(_terms_table(label, terms))
    if plots:
        blocks.append(Pictures(tuple(plots)))
    return Part("Explanations", tuple(blocks))


def data_part(judged: Judged) -> Part:
    """Source, rows, classes and columns; personal columns are named, nothing of what they hold."""
    facts = judged.facts
    if facts is None:
        return Part("Data", (Pairs((("data digest", str(judged.payload.get("data_digest", "–"))),)),))
    pairs = [
        ("source", judged.tags.get("gauntlet.source", "–")),
        ("target", f"{facts.target} ({facts.task})"),
        ("training rows", number(facts.train_rows)),
        ("test rows", number(facts.test_rows)),
        ("split", facts.split),
        ("model family", facts.family),
        ("configurations tried", number(facts.trials)),
        ("quality score", told(judged.evaluation.get("quality_score"))),
    ]
    blocks: list[Block] = [Pairs(tuple(pairs))]
    if facts.classes:
        counts = tuple((Cell(k), Cell(number(a)), Cell(number(b))) for k, (a, b) in facts.classes.items())
        blocks.append(Table(("class", "training rows", "test rows"), counts))
    columns = tuple((Cell(c.name), Cell(c.type), Cell(c.role), Cell(c.description)) for c in facts.columns)
    blocks.append(Table(("column", "type", "role", "description"), columns, wide=("description",)))
    if facts.column_count > len(facts.columns):
        blocks.append(Text(f"and {facts.column_count - len(facts.columns):,} more columns"))
    return Part("Data", tuple(blocks))


def use_parts(judged: Judged) -> tuple[Part, ...]:
    """Intended use, limits and owners, as the YAML's `card` says them."""
    card = judged.facts.card if judged.facts else None
    if card is None or not (card.intended_use or card.limits or card.owners):
        return (Part("Intended use and limits", (Text("Nobody has written them: see `card` in the model's YAML."),)),)
    return (
        Part("Intended use", (Text(card.intended_use or "Not written."),)),
        Part("Limits", (Bullets(card.limits) if card.limits else Text("Not written."),)),
        Part("Owners", (Bullets(card.owners),) if card.owners else ()),
    )


def lineage_part(judged: Judged) -> Part:
    """Ids, digests, commit and seed."""
    return Part("Lineage", (Pairs(judged.lineage),))


def notes_part(judged: Judged) -> Part:
    """What a reader of the figures has to know."""
    notes = (*judged.notes, *(str(note) for note in judged.evaluation.get("notes") or ()))
    return Part("Notes", (Bullets(notes),) if notes else ())


def _calibration(bins: Sequence[Mapping[str, Any]]) -> tuple[Block, ...]:
    """What was said beside what happened; a bin's ends are no interval of either."""
    rows = tuple(
        (
            Cell(f"above {number(one['low'])} up to {number(one['high'])}"),
            *(Cell(number(one[name])) for name in ("rows", "said", "happened")),
        )
        for one in bins
    )
    return (Table(("probability", "rows", "said", "happened"), rows),) if rows else ()


def _beside(judged: Judged, champion: Mapping[str, Any], compared: Mapping[str, Any]) -> Table:
    evaluation, differences = judged.evaluation, _differences(judged.evaluation)
    # Intervals are of all test rows: they belong to the compared figures only where those are the same rows.
    whole = evaluation.get("rows") == evaluation.get("test_rows")
    own = evaluation.get("intervals") or {}
    known = evaluation.get("champion_intervals") or {}
    rows = tuple(
        (
            _name(name, judged),
            Cell(with_interval(champion.get(name), known.get(name))),
            Cell(with_interval(value, own.get(name) if whole else None)),
            _paired_cell(differences[name])
            if name in differences
            else Cell(_gain(_rises(judged, name), champion.get(name), value)),
            *(() if whole else (Cell(with_interval(judged.figures.get(name), own.get(name))),)),
        )
        for name, value in _ordered(compared, judged.metric)
    )
    sides = (f"champion v{evaluation.get('champion_version')}", f"challenger v{judged.version}")
    more = () if whole else (f"v{judged.version}, all its test rows",)
    return Table(("figure", *sides, "better by", *more), rows)


def _differences(evaluation: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Figure to the paired difference with its ends; of earlier releases' evaluations the deciding one alone."""
    paired = evaluation.get("paired") or {}
    return {**({paired["metric"]: paired} if "metric" in paired else {}), **(evaluation.get("differences") or {})}


def _gain(rises: bool, before: object, now: object) -> str:
    if not (isinstance(before, int | float) and isinstance(now, int | float)):
        return "–"
    return _signed(now - before if rises else before - now)


def _paired_cell(paired: Mapping[str, Any]) -> Cell:
    estimate, ends = paired.get("estimate"), interval(paired)
    if ends is None or not isinstance(estimate, int | float):
        return Cell(_signed(estimate))
    low, high = ends
    reach = max(abs(low), abs(high), abs(estimate)) or 1.0
    low_at, at, high_at = (0.5 + end / reach / 2 for end in (low, estimate, high))
    return Cell(f"{_signed(estimate)} ({_signed(low)} to {_signed(high)})", span=(low_at, at, high_at, 0.5))


def _about_figures(judged: Judged) -> tuple[Block, ...]:
    evaluation = judged.evaluation
    if not evaluation:
        return ()
    metric = judged.metric
    said = [
        f"{metric} decides; of figures with ↓ lower is better. Plain linear model: {number(evaluation.get('linear'))}; "
        f"a model that ignores its input: {number(evaluation.get('dummy'))}."
    ]
    rows, tested = evaluation.get("rows"), evaluation.get("test_rows")
    if evaluation.get("champion"):
        said.append(f"Compared on {number(rows)} of {number(tested)} test rows, none of which either was trained on.")
    if _differences(evaluation):
        said.append(
            "Better by: positive where the challenger is better, with the 95 % interval of the paired difference."
        )
    paired = evaluation.get("paired") or {}
    more = {name: item for name, item in paired.items() if name not in _TOLD and item is not None}
    if more:
        said.append(f"Of the paired difference in {paired.get('metric')}: {told(more)}.")
    return (Text(" ".join(said)),)


def _name(figure: str, judged: Judged) -> Cell:
    return Cell(figure if _rises(judged, figure) else f"{figure} ↓", strong=figure == judged.metric)


def _rises(judged: Judged, figure: str) -> bool:
    """Whether more of a figure is better, the user's own included."""
    return greater_is_better(figure) and figure not in ((judged.evaluation).get("smaller_is_better") or ())


def _ordered(figures: Mapping[str, Any], first: str) -> list[tuple[str, Any]]:
    return sorted(figures.items(), key=lambda item: item[0] != first)


def _columns_table(judged: Judged, effects: Mapping[str, float], importance: Mapping[str, float]) -> Table:
    before = judged.evaluation.get("champion_effects") or {}
    totals = [sum(each.values()) or 1.0 for each in (effects, before)]
    largest = max((value / totals[0] for value in effects.values()), default=1.0) or 1.0
    rows = []
    for name in list(effects or importance)[:SHOWN_COLUMNS]:
        share = effects.get(name, 0.0) / totals[0]
        row = [Cell(name)]
        if effects:
            row.append(Cell(f"{share:.1%}", fill=share / largest))
        if before:
            row.append(Cell(f"{before[name] / totals[1]:.1%}" if name in before else "–"))
        row.append(Cell(number(importance.get(name))))
        rows.append(tuple(row))
    columns = ["column"]
    columns += ["share of effect"] if effects else []
    columns += [f"champion v{judged.evaluation.get('champion_version')}"] if before else []
    return Table((*columns, "shuffled"), tuple(rows))


def _terms_table(label: str, terms: Mapping[str, float]) -> Table:
    largest = max((abs(effect) for effect in terms.values()), default=1.0) or 1.0
    rows = tuple((Cell(term), Cell(f"{effect:+.3g}", bar=effect / largest)) for term, effect in terms.items())
    return Table((f"term, for {label}", "mean effect"), rows)


def _gate_verdict(gate: Gate) -> tuple[str, Tone]:
    if gate.verdict == "failed":
        return ("failed", "bad") if gate.blocking else ("warning", "warn")
    return gate.verdict, "good" if gate.verdict == "passed" else "plain"


def _length(gate: Gate) -> float | None:
    """The margin as a share of the largest number of its row."""
    if gate.margin is None:
        return None
    reach = max(abs(gate.margin), abs(gate.value or 0.0), abs(gate.threshold or 0.0))
    return gate.margin / reach if reach else 0.0


def _signed(value: object) -> str:
    # 0.0 added, or no difference in a figure of which less is better would be -0.
    return f"{value + 0.0:+.4g}" if isinstance(value, int | float) else "–"
