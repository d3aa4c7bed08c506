"""The model card of a judged version (Mitchell et al. 2019), as HTML and Markdown beside its Release."""

from pathlib import Path

from stacks.ledger import Entry
from steps.document import Document, Section
from steps.judged import Judged
from steps.markdown import to_markdown
from steps.page import to_html
from steps.sections import (
    TONES,
    data_part,
    decided_facts,
    explanations_part,
    figures_part,
    gates_part,
    group_parts,
    lineage_part,
    notes_part,
    use_parts,
)


def card_of(judged: Judged) -> Document:
    """The card of a version: what it is for, its limits, data, figures, gates and lineage."""
    verdict = judged.verdict
    section = Section(
        title="Model card",
        headline=verdict.decision.capitalize(),
        tone=TONES.get(verdict.decision, "plain"),
        said=verdict.reason,
        facts=decided_facts(judged),
        parts=(
            *use_parts(judged),
            data_part(judged),
            figures_part(judged),
            gates_part(verdict.gates),
            *group_parts(judged),
            explanations_part(judged),
            notes_part(judged),
            lineage_part(judged),
        ),
    )
    described = judged.facts.description if judged.facts else ""
    return Document(f"{judged.model} v{judged.version}", described, (section,))


def write_card(entry: Entry, folder: Path) -> tuple[Path, ...]:
    """Write the card of a ledger entry that holds a verdict: `card-<sequence>.html` and `.md`.

    Raises:
        WorkError: MLflow cannot be asked.
    """
    card = card_of(Judged.of(entry))
    paths = tuple(folder / f"card-{entry.sequence:06d}.{ending}" for ending in ("html", "md"))
    for path, text in zip(paths, (to_html(card), to_markdown(card)), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths
