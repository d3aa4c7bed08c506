"""The runbooks: one of each subject, short, and every command in them is one that there is, with these options."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.main import get_command

from flows.command import app
from stacks.alerts import SUBJECTS

FOLDER = Path(__file__).parents[1] / "docs" / "runbooks"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
COMMAND = re.compile(r"`gauntlet ([a-z]+)([^`]*)`")


def options() -> Mapping[str, set[str]]:
    """The commands, each with its options."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in commands.items()
    }


def test_every_subject_has_its_short_page() -> None:
    assert set(PAGES) == {*SUBJECTS, "README"}
    for subject in SUBJECTS:
        assert len(PAGES[subject].splitlines()) <= 40 and PAGES[subject].startswith(f"# {subject}\n")
        for word in ("**Means**", "**Look**", "**Decide**", "**Over**"):
            assert word in PAGES[subject], subject
        assert f"({subject}.md)" in PAGES["README"]


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_are_commands(page: str) -> None:
    known = options()
    used = COMMAND.findall(PAGES[page])
    assert len(used) == PAGES[page].count("`gauntlet ") and (used or page == "README")
    for name, rest in used:
        assert name in known, f"gauntlet {name}"
        assert set(re.findall(r"--[a-z-]+", rest)) <= known[name], f"gauntlet {name}{rest}"


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        assert (FOLDER / target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_its_keys_are_keys_of_a_model(page: str) -> None:
    from models.config import ModelConfig

    for path in re.findall(r"`(monitoring\.[a-z_.]+)", PAGES[page]):
        section = ModelConfig
        for key in path.rstrip(".").split("."):
            assert key in section.model_fields, path
            section = section.model_fields[key].annotation  # type: ignore[assignment]
