"""The lanes of `gauntlet run --all`: one that cannot be started, or is lost, costs one model at most."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from flows import lanes, train_all
from flows.all_view import Watch
from flows.lanes import Lane, LaneLost, Order
from models.errors import WorkError


class Silent:
    def step(self, *_: Any) -> None: ...

    def finished(self, _: Any) -> None: ...


class Once:
    """A lane that is used up by one model."""

    def __init__(self, _: Mapping[str, str]) -> None:
        self.used_up = False

    def begin_to_prepare(self) -> None: ...

    def prepare(self) -> None: ...

    def join(self, _: Mapping[str, str]) -> None: ...

    def train(self, order: Order, _: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        self.used_up = True
        return {"verdict": "promoted"}

    def close(self) -> None: ...


def trained(monkeypatch: pytest.MonkeyPatch, lane: Callable[[Mapping[str, str]], Lane], count: int) -> dict[str, Any]:
    """What became of three models: the verdict, or the error."""
    monkeypatch.setattr(lanes, "Lane", lane)
    monkeypatch.setattr(train_all, "_placeholder", lambda *_: "0")
    crew = train_all._Crew("0", Order("", None, [], "", None, ""), cast(Watch, Silent()))
    return {one["model"]: one["verdict"] or one["error"] for one in crew.train(["a", "b", "c"], count)}


def test_a_lane_that_cannot_be_replaced_fails_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Once] = []

    def scarce(env: Mapping[str, str]) -> Lane:
        made.append(Once(env))
        if len(made) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return cast(Lane, made[-1])

    came = trained(monkeypatch, scarce, 1)
    said = "no process to train in could be started: Resource temporarily unavailable"
    assert came == {"a": "promoted", "b": said, "c": "promoted"}


def test_lanes_that_cannot_be_started_are_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Once] = []

    def late(env: Mapping[str, str]) -> Lane:
        made.append(Once(env))
        if len(made) in (1, 2):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return cast(Lane, made[-1])

    assert trained(monkeypatch, late, 2) == dict.fromkeys("abc", "promoted")


def test_a_lane_that_is_lost_while_it_prepares_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([LaneLost("its process was ended by SIGKILL")])

    class Lost(Once):
        def prepare(self) -> None:
            for loss in losses:
                self.used_up = True
                raise loss

    assert trained(monkeypatch, cast(Any, Lost), 2) == dict.fromkeys("abc", "promoted")
    losses = iter([LaneLost("gone")] * 2)
    with pytest.raises(WorkError, match="gone"):
        trained(monkeypatch, cast(Any, Lost), 2)


def test_lanes_that_are_started_ahead_are_the_first_to_train_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Told(Once):
        def __init__(self, env: Mapping[str, str]) -> None:
            super().__init__(env)
            self.said: list[str] = []
            made.append(self)

        def begin_to_prepare(self) -> None:
            self.said.append("prepare")

        def join(self, _: Mapping[str, str]) -> None:
            self.said.append("join")

        def train(self, order: Order, tell: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
            self.said.append("train")
            return super().train(order, tell)

        def close(self) -> None:
            self.said.append("close")

    monkeypatch.setattr(lanes, "Lane", Told)
    with lanes.started_ahead(4):
        made[1].used_up = True  # it died
        assert trained(monkeypatch, cast(Any, Told), 1) == dict.fromkeys("abc", "promoted")
    whole = ["join", "train", "close"]
    assert [one.said for one in made] == [["prepare", *whole], ["close"], whole, whole]
    assert not lanes._ahead
