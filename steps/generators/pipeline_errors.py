"""Logs of failing pipelines like those of a public set of continuous integration failures."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from steps.generators.ci_lines import (
    ENDINGS,
    HEADLINES,
    NAMES,
    NEUTRAL,
    NEW_SUPPORTS,
    PASSING,
    RECOVERED,
    SUPPORTS,
)
from steps.generators.draws import Array
from steps.generators.knobs import Generator, empty, relabel

CLASSES = tuple(HEADLINES)
REPOS = 96
_SHARES = np.array([0.28, 0.22, 0.15, 0.14, 0.12, 0.09])
_LANGUAGES = {
    "Python": "py", "Java": "java", "TypeScript": "ts", "Go": "go", "Rust": "rs", "Ruby": "rb", "C++": "cpp",
    "Haskell": "hs",
}  # fmt: skip
_OWN, _FOREIGN, _PASSING, _NEUTRAL = 4, 3, 4, 5
_CATALOGUE_SEED = 20_260_101


@dataclass(frozen=True)
class Template:
    """The lines of one kind of failure in one repository; their slots are filled row by row.

    Attributes:
        category: Its class.
        repo: The only repository that it occurs in.
        language: The repository's.
        before: What the pipeline says until it fails.
        failure: Headline and what follows it.
        ending: The last line.
        stamp: How the repository's lines begin: 0 plain, 1 with a time in brackets, 2 with an ISO time.
    """

    category: str
    repo: str
    language: str
    before: tuple[str, ...]
    failure: tuple[str, ...]
    ending: str
    stamp: int


@cache
def templates(new: bool = False) -> tuple[Template, ...]:
    """All templates, the same in every process: 32 a class, two in each of 96 repositories.

    A template is a headline of its own; four lines that others of its class have as well; lines of three other
    classes, which the pipeline got over; and lines of what went well. What tells the class is not that a line is there
    but that several lines of one class are.

    Args:
        new: With wording in place of the lines of its class that no template has otherwise.
    """
    rng = np.random.default_rng(_CATALOGUE_SEED)
    headlines = [(category, line) for category, lines in HEADLINES.items() for line in lines]
    made = []
    for place, chosen in enumerate(rng.permutation(len(headlines))):
        category, headline = headlines[chosen]
        repo = place % REPOS
        foreign = [str(name) for name in rng.permutation([c for c in CLASSES if c != category])[:_FOREIGN]]
        own = _some(rng, SUPPORTS[category], _OWN)
        other = [line + str(rng.choice(RECOVERED)) for name in foreign for line in _some(rng, SUPPORTS[name], 1)]
        passing = [line for name in _some(rng, CLASSES, _PASSING) for line in _some(rng, PASSING[name], 1)]
        before = [*_some(rng, NEUTRAL, _NEUTRAL), *passing, *other]
        failure = [headline, *(_some(rng, NEW_SUPPORTS[category], _OWN) if new else own)]
        made.append(
            Template(
                category=category,
                repo=f"team-{repo % 12}/{NAMES[repo % len(NAMES)]}-{repo}",
                language=list(_LANGUAGES)[repo % len(_LANGUAGES)],
                before=tuple(str(line) for line in rng.permutation(before)),
                failure=tuple(failure),
                ending=str(rng.choice(ENDINGS)),
                stamp=repo % 3,
            )
        )
    return tuple(made)


def logs(rows: int, seed: int, knobs: Mapping[str, float]) -> pd.DataFrame:
    """Draw logs: columns and classes of the real set, its multi-line texts and its noise; no row of it is used.

    Args:
        rows: Number of rows.
        seed: Seed of numpy's PCG64 and, for what fills the slots, of Python's Mersenne Twister.
        knobs: `label_noise` share of rows with the label of another class; `new_templates` share of rows whose
            wording no other row has.

    Returns:
        `log_text`, `repo`, `language` and `error_category`.
    """
    rng = np.random.default_rng(seed)
    category = rng.choice(len(CLASSES), size=rows, p=_SHARES)
    new = rng.random(rows) < knobs["new_templates"]
    by_class = [[place for place, t in enumerate(templates()) if t.category == name] for name in CLASSES]
    chosen = np.array([by_class[c][int(u * len(by_class[c]))] for c, u in zip(category, rng.random(rows), strict=True)])
    wrong = (category + rng.integers(1, len(CLASSES), rows)) % len(CLASSES)
    label = np.where(rng.random(rows) < knobs["label_noise"], wrong, category)
    picked = [templates(bool(is_new))[place] for place, is_new in zip(chosen, new, strict=True)]
    uniform = random.Random(seed).random  # numpy's takes many times as long for one number at a time
    return pd.DataFrame(
        {
            "log_text": [_fill(template, uniform) for template in picked],
            "repo": [template.repo for template in picked],
            "language": [template.language for template in picked],
            "error_category": np.array(CLASSES, dtype=object)[label],
        }
    ).astype(object)


def _some(rng: np.random.Generator, lines: tuple[str, ...], count: int) -> list[str]:
    return [lines[place] for place in rng.permutation(len(lines))[:count]]


def _fill(template: Template, uniform: Callable[[], float]) -> str:
    """One log: most of the lines before the failure, the failure, the ending."""
    kept = [line for line in template.before if uniform() < 0.9]
    slots = _Slots(uniform, _LANGUAGES[template.language])
    lines = [slots.stamp(template.stamp) + line.format_map(slots) for line in (*kept, *template.failure)]
    return "\n".join([*lines, template.ending.format_map(slots)])


class _Slots(dict[str, str]):
    """What a line's slots are filled with: something new whenever it is asked."""

    def __init__(self, uniform: Callable[[], float], suffix: str) -> None:
        super().__init__()
        self._uniform = uniform
        self._suffix = suffix
        self._second = self.number(0, 80_000)

    def __missing__(self, slot: str) -> str:
        return _FILLS[slot](self)

    def stamp(self, kind: int) -> str:
        """How the next line begins."""
        self._second += self.number(0, 9)
        clock = f"{self._second // 3600 % 24:02}:{self._second // 60 % 60:02}:{self._second % 60:02}"
        day = f"2026-02-0{1 + self._second % 9}"
        return ("", f"[{clock}] ", f"{day}T{clock}.{self.number(0, 1000):03}Z ")[kind]

    def number(self, low: int = 1, high: int = 1000) -> int:
        """A whole number, `high` not included."""
        return low + int(self._uniform() * (high - low))

    def name(self) -> str:
        """A word of the project."""
        return NAMES[self.number(0, len(NAMES))]

    def path(self) -> str:
        """A folder."""
        return "/".join(("", "home", "ci", self.name(), self.name()))

    def file(self) -> str:
        """A source file, sometimes with line and column."""
        place = f":{self.number()}:{self.number(1, 80)}" if self.number(0, 2) else ""
        return f"src/{self.name()}/{self.name()}.{self._suffix}{place}"


_FILLS: Mapping[str, Callable[[_Slots], str]] = {
    "n": lambda slots: str(slots.number()),
    "name": _Slots.name,
    "path": _Slots.path,
    "file": _Slots.file,
    "id": lambda slots: f"{slots.number(1 << 28, 1 << 32):08x}{slots.number(1 << 28, 1 << 32):08x}",
    "time": lambda slots: f"2026-02-{slots.number(10, 29)} {slots.number(10, 24)}:{slots.number(10, 60)}",
    "version": lambda slots: f"{slots.number(0, 9)}.{slots.number(0, 30)}.{slots.number(0, 20)}",
    "url": lambda slots: f"https://{slots.name()}.example.org/{slots.name()}/{slots.number()}",
    "ip": lambda slots: f"10.{slots.number(0, 256)}.{slots.number(0, 256)}.{slots.number(1, 255)}",
    "duration": lambda slots: f"{slots.number(0, 90)}.{slots.number(0, 10)}s",
}


def _longer(lines: int) -> Callable[[pd.DataFrame, Array, np.random.Generator], pd.DataFrame]:
    """Logs that grow by so many lines of progress for each unit of strength, all that say the same."""

    def effect(frame: pd.DataFrame, strength: Array, rng: np.random.Generator) -> pd.DataFrame:  # noqa: ARG001
        grown = [
            text if not s or not isinstance(text, str) else "Progress: still running\n" * round(s * lines) + text
            for text, s in zip(frame["log_text"], strength, strict=True)
        ]
        return frame.assign(log_text=np.array(grown, dtype=object))

    return effect


def _dumped(frame: pd.DataFrame, strength: Array, rng: np.random.Generator) -> pd.DataFrame:
    """Logs that hold a memory dump of 400,000 characters, each with its row's strength as probability."""
    chosen: Any = rng.random(len(frame)) < strength
    dump = "\n".join(f"{place:08x}: " + "deadbeef " * 8 for place in range(0, 5_000 * 16, 16))[:400_000]
    return frame.assign(log_text=frame["log_text"].mask(chosen, dump + "\n" + frame["log_text"]))


GENERATOR = Generator(
    draw=logs,
    own={"label_noise": 0.02, "new_templates": 0.0},
    effects={
        "drift": _longer(10),
        "bias": relabel("error_category", dict.fromkeys(CLASSES, "other"), group=("language", "Java")),
        "missing": empty("log_text"),
        "outliers": _dumped,
    },
)
