"""The report of a model, in one page or as Markdown: its last decision, challenger beside champion; and its work."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from models.errors import WorkError
from stacks import runs
from stacks.ledger import Entry, open_ledger
from steps.compare import Comparison
from steps.document import Document, Part, Picture, Pictures, Section
from steps.facts import EVALUATION_FOLDER
from steps.judged import Judged
from steps.live import gather
from steps.live_plots import trend_pictures
from steps.live_section import live_section
from steps.markdown import to_markdown
from steps.page import to_html
from steps.rematch import rematch
from steps.sections import (
    TONES,
    decided_facts,
    explanations_part,
    figures_part,
    gates_part,
    group_parts,
    lineage_part,
    notes_part,
)

Format = Literal["md", "html"]
MOST_PICTURES: Final = 40
_TOLD: Final = ("effects.png", "importance.png")  # as a table
_EFFECTS: Final = ("dependence/", "tokens.png")


def report(model: str, versions: Sequence[int] = (), form: Format = "html") -> str:
    """Tell of a model's last decision, or of two versions side by side, and of the champion at work.

    Args:
        model: The model.
        versions: None: the version judged last, against the champion of that moment. One: that version. Two: the
            first is shown as the one that stands, the second as the challenger.
        form: Markdown, or one HTML page with its pictures inside.

    Raises:
        WorkError: A version was never judged, or MLflow cannot be asked.
    """
    document = report_document(model, versions, with_pictures=form == "html")
    return to_html(document) if form == "html" else to_markdown(document)


def report_document(model: str, versions: Sequence[int] = (), *, with_pictures: bool = True) -> Document:
    """The report as a document, see `report`.

    Args:
        model: The model.
        versions: As `report` takes them.
        with_pictures: Whether trends are drawn, and not written down as tables.
    """
    judged = Judged.of(_entry(model, versions[-1] if versions else None))
    if len(versions) == 2:
        judged = _beside(judged, Judged.of(_entry(model, versions[0])))
    described = judged.facts.description if judged.facts else ""
    live = gather(open_ledger(), model, judged.metric)
    pictures = trend_pictures(live) if live and with_pictures else None
    sections = (decision_section(judged), live_section(model, live, pictures))
    return Document(f"{model}: report", described, sections)


def decision_section(judged: Judged) -> Section:
    """Verdict, figures, gates, plots, groups, explanations and lineage of a judged version."""
    verdict = judged.verdict
    against = f"v{verdict.former}" if verdict.former else "no champion"
    plots, effects = _plots(judged)
    facts = (
        ("challenger", f"v{judged.version}"),
        ("judged against", against),
        ("rows compared", f"{verdict.rows:,}" if verdict.former else "–"),
        *decided_facts(judged),
    )
    return Section(
        title="Decision",
        headline=f"v{judged.version} {verdict.decision}",
        tone=TONES.get(verdict.decision, "plain"),
        said=verdict.reason,
        facts=facts,
        parts=(
            figures_part(judged),
            gates_part(verdict.gates),
            Part("Plots", (Pictures(tuple(plots)),) if plots else ()),
            *group_parts(judged),
            explanations_part(judged, effects),
            notes_part(judged),
            lineage_part(judged),
        ),
    )


def _entry(model: str, version: int | None) -> Entry:
    """The newest ledger entry with a verdict on a version; on any when there is none."""
    judged = [entry for entry in open_ledger().history(model) if "verdict" in entry.payload]
    own = [entry for entry in judged if version in (None, entry.version)]
    if own:
        return own[-1]
    if version is None:
        raise WorkError(f"no version of '{model}' was ever judged; `gauntlet run {model}` trains and judges one")
    known = sorted({entry.version for entry in judged if entry.version is not None})[-20:]
    there = ", ".join(f"v{number}" for number in known)
    raise WorkError(f"v{version} of '{model}' was never judged (there is: {there or 'no judged version'})")


def _beside(judged: Judged, other: Judged) -> Judged:
    """A version beside another than the champion it was judged against: both on its test rows, where that can be."""
    if judged.evaluation.get("champion_version") == other.version and judged.evaluation.get("champion"):
        return judged
    met = rematch(judged, other)
    evaluation = {
        **judged.evaluation,
        "champion_version": other.version,
        "champion_effects": other.evaluation.get("effects"),
        "importance_drift": None,
    }
    if met.champion is None or met.paired is None:
        return replace(judged, evaluation={**evaluation, **_apart(judged, other)}, notes=_notes(judged, other, met))
    compared = {
        "champion": met.champion,
        "challenger_compared": met.challenger,
        "paired": met.paired.model_dump(mode="json"),
        "differences": {name: each.model_dump(mode="json") for name, each in met.differences().items()},
        "rows": met.rows,
    }
    return replace(judged, evaluation={**evaluation, **compared}, notes=_notes(judged, other, met))


def _apart(judged: Judged, other: Judged) -> dict[str, Any]:
    """What an evaluation has of two versions that were not compared: the figures of each on its own test rows."""
    return {
        "champion": dict(other.figures),
        "challenger_compared": dict(judged.figures),
        "champion_intervals": other.evaluation.get("intervals"),
        "paired": None,
        "differences": {},
        "rows": judged.evaluation.get("test_rows"),
    }


def _notes(judged: Judged, other: Judged, met: Comparison) -> tuple[str, ...]:
    """How two versions come to stand beside each other that were not champion and challenger."""
    said = f"v{judged.version} was not judged against v{other.version}"
    if met.paired is not None:
        return (*judged.notes, f"{said}: this report put both on the test rows of v{judged.version}.", *met.notes)
    same = judged.payload.get("data_digest") == other.payload.get("data_digest")
    return (
        *judged.notes,
        f"{said}: each has the figures of its own test rows, from {'the same' if same else 'different'} data, and "
        f"there is no interval of a paired difference because {'; '.join(met.notes)}.",
    )


def _plots(judged: Judged) -> tuple[list[Picture], list[Picture]]:
    """The plots of the challenger's MLflow run: of its answers, and of effects."""
    files = runs.read_files(judged.run_id, EVALUATION_FOLDER, ".png") if judged.run_id else {}
    wanted = [(name, png) for name, png in files.items() if name not in _TOLD][:MOST_PICTURES]
    answers = [Picture(_title(name), png) for name, png in wanted if not name.startswith(_EFFECTS)]
    effects = [(name, png) for name, png in wanted if name.startswith(_EFFECTS)]
    titles = [f"Effect by value, {place} of {len(effects)}" for place in range(1, len(effects) + 1)]
    named = ["Terms" if name == "tokens.png" else title for (name, _), title in zip(effects, titles, strict=True)]
    return answers, [Picture(title, png) for title, (_, png) in zip(named, effects, strict=True)]


def _title(name: str) -> str:
    words = name.removesuffix(".png").replace("_", " ").replace("/", " ")
    return "ROC curve" if words == "roc" else words[:1].upper() + words[1:]
