"""The section Live: gathered from a real database and MLflow store, drawn, and written down."""

import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stacks import runs
from stacks.findings import record_findings
from stacks.ledger import Ledger, database_url
from steps import show
from steps.document import Document, Link, Links, Part, Pictures, Section
from steps.live import Live, gather, reigns_of
from steps.live_plots import trend_pictures
from steps.live_section import live_section
from steps.markdown import to_markdown
from steps.metrics import CLASSIFICATION
from steps.monitor import folder_of
from steps.page import to_html
from steps.promote import decide
from steps.report import report
from steps.show import show_look
from tests.bentos.watched import NOW, WEEK, alert, finding, watched
from tests.steps.arena import Arena, config_of, evaluation_of, package_of
from tests.steps.test_report import HOSTILE, Page


def _gathered(url: str, *findings: Any) -> Live:
    ledger = Ledger(url)
    ledger.append("promote", "wine", 2, actor="ada")
    record_findings(ledger, findings)
    live = gather(ledger, "wine", "accuracy")
    assert live is not None
    return live


def _markdown(live: Live | None) -> str:
    return to_markdown(Document("wine", "", (live_section("wine", live),)))


def test_what_is_known_is_gathered(url: str) -> None:
    ledger = Ledger(url)
    assert gather(ledger, "wine", "accuracy") is None
    watched(ledger)
    record_findings(ledger, [finding(60, "drift"), finding(0, "drift", model="other")])
    alert(ledger, "long over", raised=70, recovered=60)
    live = gather(ledger, "wine", "accuracy")
    assert live is not None
    assert len(live.findings) == 8 * 3 + 2 and len(live.of("drift")) == 8, "26 weeks, and of this model"
    assert {seen.check: seen.until for seen in live.newest}.keys() == {
        *("performance", "quality", "drift", "prediction_drift", "fairness")
    }
    assert (live.begin, live.end) == (NOW - 8 * WEEK, NOW + timedelta(minutes=5))
    assert [(reign.version, reign.since) for reign in live.reigns] == [(1, NOW - 8 * WEEK), (2, NOW - 4 * WEEK)]
    assert [alert.subject for alert in live.alerts] == ["drift", "performance"]


def test_champions_are_those_of_the_ledger_on_the_same_axis(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    for action, version in (("promote", 1), ("keep", 2), ("promote", 3), ("rollback", 1)):
        ledger.append(action, "wine", version, actor="ada")  # type: ignore[arg-type]
    history, now = ledger.history("wine"), datetime.now(UTC)
    first, _, third, back = (entry.time for entry in history)
    assert [(r.version, r.since, r.until) for r in reigns_of(history, (), first, now)] == [
        (1, first, third),
        (3, third, back),
        (1, back, now),
    ]
    after = reigns_of(history, (), back + timedelta(seconds=1), now + timedelta(days=1))
    assert [(r.version, r.entry) for r in after] == [(1, None)], "what began before is shown from the begin on"
    assert reigns_of((), (), first, now) == ()


def test_markdown_has_tables_in_place_of_pictures(url: str) -> None:
    ledger = Ledger(url)
    watched(ledger)
    text = _markdown(gather(ledger, "wine", "accuracy"))
    assert "❌ **v2: trouble in performance and drift** 1 of 2 columns drifted." in text
    assert (
        "| drift | ❌ found | 2026-02-23 to 2026-03-02 | v2 | 1 of 2 columns drifted |".replace(
            "| drift", "| **drift**"
        )
        in text
    )
    assert (
        "| 2026-03-02 | v2 | **0.75 (0.71 to 0.79)** | 0.77 (0.75 to 0.8) | – | 0.93 | 0.8 | 300 | ❌ found |" in text
    )
    assert "| column | 2026-01-26 | 2026-02-02 | 2026-02-09 | 2026-02-16 | 2026-02-23 | 2026-03-02 |" in text
    assert "| ash | 0.1125 | 0.15 | 0.1875 | 0.225 | **0.2625** | **0.3** |" in text
    assert "| 2026-03-02 | 88 | 0.99 | 0.97 | 400 | 420 | ✅ held |" in text
    assert "| performance | ❌ critical | 2026-02-23 04:00 UTC | **open** | performance is found |" in text
    assert "| drift | ⚠️ warning | 2026-02-09 04:00 UTC | 2026-02-16 04:00 UTC | drift is found |" in text
    assert "pictures lie" not in text


def test_champions_and_decisions_of_the_time_are_told_the_newest_first(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    for action, version, why in (("promote", 1, "the first"), ("promote", 2, "better"), ("rollback", 1, "worse")):
        ledger.append(action, "wine", version, why=why, actor="ada")  # type: ignore[arg-type]
    ledger.append("monitor", "wine", 1, why="drift in 2 of 5 windows", actor="loop", payload={"decision": "retrain"})
    now = datetime.now(UTC)
    record_findings(ledger, [finding(0, "quality", since=now - WEEK, until=now, looked=now, version=1)])
    live = gather(ledger, "wine", "accuracy")
    assert live is not None and [reign.version for reign in live.reigns] == [1, 2, 1]
    lines = _markdown(live).splitlines()
    told = [line.split(" | ", 1)[1] for line in lines if line.startswith("| 2") and "UTC" in line]
    assert told == [
        "v1 | rollback | ada | worse |",
        "v2 | promote | ada | better |",
        "v1 | promote | ada | the first |",
        "v1 | retrain | drift in 2 of 5 windows |",
    ]


def test_a_model_that_was_never_monitored_says_so_in_one_line() -> None:
    lines = [line for line in _markdown(None).splitlines() if line][1:]
    assert lines == ["## Live", "**wine was never monitored** \\`gauntlet monitor wine\\` looks at what it answered."]


def test_each_trend_is_a_picture_that_is_one(url: str) -> None:
    ledger = Ledger(url)
    watched(ledger)
    live = gather(ledger, "wine", "accuracy")
    assert live is not None
    pictures = trend_pictures(live)
    assert len({picture.title for picture in pictures}) == len({picture.png for picture in pictures}) == 6
    for picture in pictures:
        with Image.open(io.BytesIO(picture.png)) as image:
            image.load()
            assert image.width > 600 and len(image.convert("RGB").getcolors(2**20) or ()) > 50
    section = live_section("wine", live, pictures)
    (block,) = next(part for part in section.parts if part.title == "Trends").blocks
    assert block == Pictures(pictures)
    page = Page(to_html(Document("wine", "", (section,))))
    assert len(page.loads) == 6 and all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "Drift by column and window" in page.text and "0.75 (0.71 to 0.79)" in page.text


def test_all_metrics_of_a_binary_model_are_drawn_and_the_error_of_its_estimate_told(tmp_path: Path) -> None:
    figures = {name: 0.5 for name in CLASSIFICATION if name != "pr_auc_macro"} | {"estimate_error": 0.0125}
    live = _gathered(f"sqlite:///{tmp_path / 'ledger.db'}", finding(0, "performance", figures=figures))
    (picture,) = (each for each in trend_pictures(live) if each.title == "Every metric")
    with Image.open(io.BytesIO(picture.png)) as image:
        assert image.height > 110 * 1.15 * 8, "a panel for each of eight beside the one that decides"
    assert "| its error |" in _markdown(live) and "| 0.0125 |" in _markdown(live)


@pytest.mark.parametrize(
    "figures", [{}, {"labels": 3.0}, {"limit": 0.8}, {"accuracy": 0.9}, {"estimated_accuracy": 0.9}]
)
def test_figures_that_are_missing_are_a_dash_and_no_picture(tmp_path: Path, figures: dict[str, float]) -> None:
    checks: Any = ("performance", "quality", "drift", "prediction_drift", "fairness")
    seen = [finding(ago, check, "unjudged", figures=figures) for ago in (1, 0) for check in checks]
    live = _gathered(f"sqlite:///{tmp_path / 'ledger.db'}", *seen)
    assert len(trend_pictures(live)) <= 1
    text = _markdown(live)
    assert "**v2: no trouble found** 0 of 5 checks could judge their newest window." in text
    assert to_html(Document("wine", "", (live_section("wine", live, trend_pictures(live)),)))


def test_windows_that_end_together_and_columns_that_vanish_are_drawn(tmp_path: Path) -> None:
    weeks = [
        finding(1, "drift", columns={"ash": 0.2, "hue": 0.1}, figures={"threshold": 0.1}),
        finding(0, "drift", columns={"ash": 0.0}),
        finding(0, "drift", columns={"ash": 0.0}),
    ]
    live = _gathered(f"sqlite:///{tmp_path / 'ledger.db'}", *weeks)
    assert len(trend_pictures(live)) == 1
    assert "| hue | 0.1 | – | – |" in _markdown(live)


def test_many_columns_are_cut_and_counted(tmp_path: Path) -> None:
    many = {f"c{number:03}": number / 1_000 for number in range(100)}
    live = _gathered(f"sqlite:///{tmp_path / 'ledger.db'}", finding(0, "drift", columns=many))
    text = _markdown(live)
    assert "85 more columns had less" in text and text.count("| c0") == 15


def test_hostile_names_and_words_are_text(tmp_path: Path) -> None:
    hostile = f"$x_1$ {HOSTILE}"
    drifted = finding(0, "drift", "found", said=hostile, columns={hostile: 0.4}, named=(hostile,))
    measured = finding(0, "performance", figures={hostile: 0.4, "accuracy": 0.5, "accuracy_low": 0.4})
    live = _gathered(f"sqlite:///{tmp_path / 'ledger.db'}", drifted, measured)
    assert len(trend_pictures(live)) == 3
    document = Document("wine", "", (live_section("wine", live, trend_pictures(live)),))
    page = Page(to_html(document))
    assert page.handlers == [] and "script" not in page.tags and page.text.count(HOSTILE) >= 2
    assert "<script" not in to_markdown(document) and "<img src=x" not in to_markdown(document)


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "https://x/<script>", "http://x/) [y](z", "//x", 'http://x/"']
)
def test_a_link_is_an_address_of_the_web(address: str) -> None:
    with pytest.raises(ValueError, match="http or https"):
        Link("page", "there", address)


def test_links_lead_there_and_paths_are_text() -> None:
    links = Links((Link("<one>", "run 1", "https://mlflow.example/#/a/b"), Link("two", "run 2")))
    document = Document("t", "", (Section("s", "h", "plain", "", (), (Part("p", (links,)),)),))
    page = Page(to_html(document))
    assert page.loads == ["https://mlflow.example/#/a/b"] and page.tags.count("a") == 1
    text = to_markdown(document)
    assert "- [&lt;one&gt;](<https://mlflow.example/#/a/b>) run 1\n- two run 2" in text


@pytest.fixture(scope="module")
def arena(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Arena, str]]:
    """v1 promoted and monitored; Evidently's pages lie in its real MLflow run."""
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GAUNTLET_DATABASE", f"sqlite:///{folder / 'ledger.db'}")
        made = Arena(folder, dict(os.environ))
        made.add_versions(1)
        run_id = runs.start_run(made.model)
        for look in ("2026-02-16/4 00", "2026-02-23/4 00", "2026-02-23/4 05", "2026-03-02/4 00"):
            (folder / look).mkdir(parents=True)
            (folder / look / "drift.html").write_text("<p>")
            (folder / look / "report.html").write_text("<p>")
            runs.log_files(run_id, folder / look, f"monitoring/{look}")
        evaluation = evaluation_of(made.model, mlflow_run_id=run_id)
        decide(config_of(made.model), evaluation, package_of(1, made.model), why="the first", actor="ada")
        ledger = Ledger(database_url())
        more: dict[str, Any] = {"model": made.model, "version": 1}
        record_findings(ledger, [finding(0, "drift", "found", columns={"x": 0.3}, named=("x",), **more)])
        yield made, run_id


def test_the_report_has_both_sections_and_leads_to_evidently_s_pages(arena: tuple[Arena, str]) -> None:
    made, run_id = arena
    text = report(made.model, form="md")
    assert text.index("## Decision") < text.index("## Live")
    assert "**v1: trouble in drift**" in text
    newest, older = (
        text.index(f"- monitoring/{look}/drift.html v1") for look in ("2026-03-02/4 00", "2026-02-23/4 05")
    )
    assert newest < older and run_id in text
    page = Page(report(made.model))
    assert (
        "drift.html" in page.text
        and "report.html" not in page.text
        and all(load.startswith("data:image/png") for load in page.loads)
    )


def test_where_there_is_a_server_the_pages_are_linked_without_its_password(
    arena: tuple[Arena, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run_id = arena
    path, newest = runs.list_files(run_id, "monitoring", "drift.html", 2)
    assert newest == "monitoring/2026-03-02/4 00/drift.html"
    assert runs.address_of(run_id, path) is None
    monkeypatch.setattr(runs, "_experiment_of", lambda uri, run: "7")
    monkeypatch.setattr(runs, "tracking_uri", lambda: "https://ada:hidden@mlflow.example:5443/team/")
    address = runs.address_of(run_id, path)
    end = f"#/experiments/7/runs/{run_id}/artifacts/monitoring/2026-02-23/4%2005/drift.html"
    assert address == f"https://mlflow.example:5443/team/{end}"
    assert Link("page", "there", address).url == address
    assert runs.list_files("0" * 32, "monitoring", "drift.html", 2) == ()


def test_the_report_is_kept_beside_what_a_look_saw(arena: tuple[Arena, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, run_id = arena
    seen = finding(0, "drift", model=made.model, version=1)
    page = show_look(seen)
    assert "Decision" in page and "trouble in drift" in page
    (kept,) = runs.read_files(run_id, folder_of(seen), ".html").values()
    assert kept.decode() == page
    monkeypatch.setattr(show, "report", lambda _: 1 / 0)
    assert "There is no report: ZeroDivisionError" in show_look(seen), "what was found is not lost with it"
