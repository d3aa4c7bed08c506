"""Card and report: made of the ledger's verdict and the run's evaluation, in one page that needs nothing else."""

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import WorkError
from stacks import registry, runs
from stacks.ledger import open_ledger
from steps.card import card_of
from steps.document import Bullets, Cell, Document, Part, Picture, Pictures, Section, Table, records, with_interval
from steps.judged import Judged
from steps.markdown import plain, to_markdown
from steps.page import to_html
from steps.plots import confusion_plot
from steps.promote import decide
from steps.report import decision_section, report
from tests.steps.arena import Arena, against, config_of, evaluation_of, package_of

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>|`[x](http://evil.example/)"
FIGURES: dict[str, Any] = {
    "importance": {"x": 0.2, HOSTILE: 0.1},
    "effects": {"x": 0.6, HOSTILE: 0.3},
    "effects_scale": "log-odds",
    "champion_effects": {"x": 0.1, "gone": 0.1},
    "importance_drift": 0.42,
    "tokens": {"a": {"refund": 0.5, HOSTILE: -0.25}},
    "notes": (f"v1 reads 3 values of '{HOSTILE}' as missing",),
}
OTHERS: dict[str, Any] = {
    "paired": {"metric": "accuracy", "estimate": 0.1, "low": 0.04, "high": 0.16, "mcnemar_p": 0.01, "rows": 90},
    "intervals": {"accuracy": {"low": 0.84, "high": 0.95}},
    "slices": [{"slice": HOSTILE, "rows": 60, "accuracy": 0.7}],
}


class Page(HTMLParser):
    """What a browser would load and show of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def arena(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """v1 promoted and judged once more, then v2 promoted over it; their evaluations lie in real MLflow runs."""
    folder = tmp_path_factory.mktemp("arena")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GAUNTLET_DATABASE", f"sqlite:///{folder / 'ledger.db'}")
        made = Arena(folder, dict(os.environ))
        made.add_versions(2)
        first = evaluation_of(made.model, mlflow_run_id=_run(made.model, folder / "one", {}))
        for why in ("the first", "once more"):
            decide(config_of(made.model), first, package_of(1, made.model), why=why, actor="ada")
        second = against(1, 0.8, 0.9, made.model, test_rows=90, **FIGURES)
        run_id = _run(made.model, folder / "two", {**second.model_dump(mode="json"), **OTHERS})
        judged = second.model_copy(update={"mlflow_run_id": run_id})
        gates = {"accuracy": {"min": 0.8}, "p95_ms": {"max": 1, "blocking": False}}
        decide(config_of(made.model, gates=gates), judged, package_of(2, made.model), why=HOSTILE, actor="eve")
        yield made


def _run(model: str, folder: Path, evaluation: dict[str, Any]) -> str:
    run_id = runs.start_run(model)
    folder.mkdir()
    (folder / "dependence").mkdir()
    confusion_plot(folder / "dependence" / "01.png", ["a"], *[_labels(["a", "a"])] * 2)
    if evaluation:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    runs.log_files(run_id, folder, "evaluation")
    return run_id


def _labels(words: list[str]) -> Any:
    return np.array(words, dtype=object)


def test_the_report_is_one_page_that_loads_nothing(arena: Arena) -> None:
    page = Page(report(arena.model))
    assert page.loads and all(load.startswith("data:image/png;base64,") for load in page.loads)
    for load in page.loads:
        with Image.open(io.BytesIO(base64.b64decode(load.partition(",")[2], validate=True))) as picture:
            picture.verify()
    style = re.findall(r"<style>(.*?)</style>", report(arena.model), re.S)
    assert "url(" not in style[0] and "@import" not in style[0]
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert f"v2 {'promoted'}" in page.text and "Decision" in page.text
    assert page.text.count("was never monitored") == 1 and "Newest findings" not in page.text


def test_the_report_has_differences_with_intervals_gates_and_explanations(arena: Arena) -> None:
    text = report(arena.model, form="md")
    assert "| **accuracy** | 0.8 | 0.9 (0.84 to 0.95) | +0.1 (+0.04 to +0.16) |" in text
    assert "Of the paired difference in accuracy: mcnemar p 0.01, rows 90." in text
    assert re.search(r"\| \*\*p95_ms\*\* \| 5 \| 1 \| -4 \| ⚠️ warning \| 5, at most 1 is asked \|", text)
    assert re.search(r"\| accuracy \| 0.9 \| 0.8 \| 0.1 \| ✅ passed \|", text)
    assert "| x | 66.7% | 50.0% | 0.2 |" in text
    assert "Importance drift against v1: 0.42" in text
    assert "| refund | +0.5 |" in text
    assert "### Slices" in text and "| 60 | 0.7 |" in text
    assert "### Calibration" not in text, "nothing is shown of what was not measured"


def test_every_figure_s_difference_has_its_interval_and_an_old_evaluation_the_plain_difference(arena: Arena) -> None:
    judged = Judged.of(open_ledger().history(arena.model)[-1])
    old = {
        **judged.evaluation,
        "champion": {"accuracy": 0.8, "log_loss": 0.5, "ece": 0.05},
        "challenger_compared": {"accuracy": 0.9, "log_loss": 0.4, "ece": 0.07},
    }
    del old["differences"]
    text = to_markdown(card_of(replace(judged, evaluation=old)))
    assert "| log_loss ↓ | 0.5 | 0.4 | +0.1 |" in text and "| +0.1 (+0.04 to +0.16) |" in text
    differences = {
        "accuracy": {"estimate": 0.1, "low": 0.04, "high": 0.16},
        "log_loss": {"estimate": 0.1, "low": -0.02, "high": 0.3},
    }
    card = card_of(replace(judged, evaluation={**old, "differences": differences}))
    text = to_markdown(card)
    assert "| **accuracy** | 0.8 | 0.9 (0.84 to 0.95) | +0.1 (+0.04 to +0.16) |" in text
    assert "| log_loss ↓ | 0.5 | 0.4 | +0.1 (-0.02 to +0.3) |" in text
    assert "| ece ↓ | 0.05 | 0.07 | -0.02 |" in text, "a figure that too few resamples allow"
    differences["ece"] = {"estimate": -0.0, "low": -0.0, "high": -0.0}
    equal = to_markdown(card_of(replace(judged, evaluation={**old, "differences": differences})))
    assert "| +0 (+0 to +0) |" in equal, "no difference has no sign"
    assert "Better by: positive where the challenger is better, with the 95 % interval" in text
    assert to_html(card).count('class="span"') == 2


def test_a_calibration_bins_ends_do_not_pass_for_an_interval(arena: Arena) -> None:
    judged = Judged.of(open_ledger().history(arena.model)[-1])
    bins = [{"low": 0.2, "high": 0.4, "rows": 12, "said": 0.31, "happened": 0.25}]
    text = to_markdown(card_of(replace(judged, evaluation={**judged.evaluation, "calibration": bins})))
    assert "| probability | rows | said | happened |" in text
    assert "| above 0.2 up to 0.4 | 12 | 0.31 | 0.25 |" in text


def test_slices_that_were_not_judged_are_named(arena: Arena) -> None:
    judged = Judged.of(open_ledger().history(arena.model)[-1])
    left = [{"where": "site = va", "columns": ["site"], "rows": 31}]
    text = to_markdown(card_of(replace(judged, evaluation={**judged.evaluation, "unjudged": left})))
    assert "### Slices that were not judged" in text and "| site = va | site | 31 |" in text


def test_where_other_rows_were_compared_the_own_test_rows_keep_their_intervals(arena: Arena) -> None:
    judged = Judged.of(open_ledger().history(arena.model)[-1])
    told = {**judged.evaluation, "test_rows": 400, "challenger": {"accuracy": 0.88}}
    text = to_markdown(card_of(replace(judged, evaluation=told)))
    assert "| figure | champion v1 | challenger v2 | better by | v2, all its test rows |" in text
    assert "| **accuracy** | 0.8 | 0.9 | +0.1 (+0.04 to +0.16) | 0.88 (0.84 to 0.95) |" in text
    assert "Compared on 90 of 400 test rows" in text


@pytest.mark.parametrize("form", ["html", "md"])
def test_hostile_names_are_text(arena: Arena, form: Any) -> None:
    text = report(arena.model, form=form)
    assert "<script" not in text and "<img src=x" not in text
    if form == "html":
        page = Page(text)
        assert page.text.count(HOSTILE) >= 5, "column, term, slice, note and reason are shown as they are"
        assert page.handlers == []
    else:
        assert not re.search(r"(?<!\\)\]\(|://", text)
        rows = [line for line in text.splitlines() if "alert" in line and line.startswith("|")]
        assert rows and all(re.search(r"[^\\]`", row) is None for row in rows)


def test_two_versions_side_by_side_that_never_met(arena: Arena) -> None:
    text = report(arena.model, (2, 1), "md")
    assert "| figure | champion v2 | challenger v1 | better by |" in text
    assert "v1 was not judged against v2: each has the figures of its own test rows, from the same data" in text
    assert "no interval of a paired difference because the test rows of v1 are not at hand: its MLflow run" in text
    assert report(arena.model, (1, 2), "md") == report(arena.model, form="md"), "they did meet"
    assert "| **accuracy** | 0.8 |" not in report(arena.model, (1,), "md")


def test_settings_that_are_not_the_yaml_s_are_on_card_and_report(arena: Arena) -> None:
    judged = Judged.of(open_ledger().history(arena.model)[-1])
    asked = replace(judged, payload={**judged.payload, "settings": ["gates.ece.max=0.2", HOSTILE]})
    for document in (card_of(asked), Document("t", "", (decision_section(asked),))):
        assert f"judged with --setgates.ece.max=0.2, {HOSTILE}" in Page(to_html(document)).text
        assert "- judged with --set: gates.ece.max=0.2, &lt;script&gt;" in to_markdown(document)
    assert "judged with --set" not in to_markdown(card_of(judged))


def test_what_was_never_judged_is_said(arena: Arena) -> None:
    with pytest.raises(WorkError, match=r"v7 of '.*' was never judged \(there is: v1, v2\)"):
        report(arena.model, (1, 7))
    with pytest.raises(WorkError, match="no version of 'nobody' was ever judged; `gauntlet run nobody`"):
        report("nobody")


def test_every_judged_version_has_its_card(arena: Arena, tmp_path: Path) -> None:
    for version, sequence, word in ((1, 1, "Promoted"), (1, 2, "Kept"), (2, 3, "Promoted")):
        for ending in ("html", "md"):
            path = f"evidence/card-{sequence:06d}.{ending}"
            card = registry.fetch_file(arena.model, version, path, tmp_path / "fetched").read_text()
            assert word in card and "Gates" in card and "Lineage" in card and "d" * 64 in card
            assert "<script" not in card


@pytest.mark.parametrize("run_id", ["", "0" * 32, "no id"])
def test_a_run_that_is_gone_leaves_a_card_that_says_so(arena: Arena, run_id: str) -> None:
    judged = Judged.of(_with_run(open_ledger().history(arena.model)[-1], run_id))
    assert (judged.evaluation, judged.facts, judged.verdict.decision) == ({}, None, "promoted")
    text = to_markdown(card_of(judged))
    assert "MLflow has no evaluation of this version any more" in text
    assert "| accuracy | 0.9 |" in text, "the ledger's figure"


def _with_run(entry: Any, run_id: str) -> Any:
    return replace(entry, payload={**entry.payload, "mlflow_run_id": run_id})


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ({"a": {"recall": 0.5, "low": 0.4, "high": 0.6}}, ["|  | recall | interval |", "| a | 0.5 | 0.4 to 0.6 |"]),
        ([{"slice": "x", "verdict": "failed"}], ["| slice | verdict |", "| x | ❌ failed |"]),
        ({"ece": 0.03, "bins": [{"mean": 0.1, "share": 0.2}]}, ["- ece: 0.03", "bins:", "| 0.1 | 0.2 |"]),
        ({"ece": 0.03, "low": None, "high": None}, ["- ece: 0.03"]),
        ({"mean": 0.8, "folds": [0.7, None, 0.9]}, ["- mean: 0.8", "- folds: 0.7, –, 0.9"]),
        (
            [{"label": "a", "rows": 9, "figures": {"recall": 0.5}, "intervals": {"recall": {"low": 0.4, "high": 0.6}}}],
            ["| label | rows | recall |", "| a | 9 | 0.5 (0.4 to 0.6) |"],
        ),
        (
            [{"columns": ["sex"], "groups": [{"values": ["0"], "rates": {"tpr": {"value": 1, "low": 0, "high": 1}}}]}],
            ["- columns: sex", "groups:", "| values | tpr |", "| 0 | 1 (0 to 1) |"],
        ),
        (
            [{"rate": "tpr", "value": 0.2, "low": 0.1, "high": 0.3, "higher": {"group": "1", "rate": 0.9}}],
            ["| rate | value | higher |", "| tpr | 0.2 (0.1 to 0.3) | group 1, rate 0.9 |"],
        ),
        ([], []),
        (None, []),
        ({}, []),
    ],
)
def test_figures_of_any_form_become_tables(value: Any, lines: list[str]) -> None:
    page = Document("t", "", (Section("s", "h", "plain", "", (), (Part("p", records(value)),)),))
    text = to_markdown(page)
    assert all(line in text for line in lines), text
    assert ("### p" in text) == bool(lines)
    assert len(Page(to_html(page)).text) > 1_000


def test_long_tables_are_cut_and_say_so() -> None:
    blocks = records([{"n": number} for number in range(1_000)])
    assert isinstance(blocks[0], Table) and len(blocks[0].rows) == 50
    assert "950 more" in str(blocks[1])


def test_no_figure_is_a_dash_and_an_interval_without_ends_is_none() -> None:
    assert with_interval(float("nan"), None) == "–"
    assert with_interval(0.5, {"low": 0.4, "high": None}) == "0.5"
    assert with_interval(12_345, {"low": 1, "high": 2.5}) == "12,345 (1 to 2.5)"


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_whatever_a_document_says_is_escaped(render: Callable[[Document], str]) -> None:
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    blocks = (
        Table((HOSTILE,), ((Cell(HOSTILE),), (Cell(HOSTILE, "good"),), (Cell(HOSTILE, strong=True),)), (HOSTILE,)),
        Pictures((Picture(HOSTILE, png.getvalue()),)),
        Bullets((HOSTILE,)),
    )
    section = Section(HOSTILE, HOSTILE, "bad", HOSTILE, ((HOSTILE, HOSTILE),), (Part(HOSTILE, blocks),))
    text = render(Document(HOSTILE, HOSTILE, (section,)))
    assert "<script" not in text and "<img src=x" not in text and 'onerror=alert(2)>"' not in text
    if render is to_markdown:
        assert not re.search(r"(?<!\\)\]\(|://", text)


def test_markdown_calls_nobody() -> None:
    assert plain("@team *x* <b>\n| `y`") == "@<!-- -->team \\*x\\* &lt;b&gt; \\| \\`y\\`"
