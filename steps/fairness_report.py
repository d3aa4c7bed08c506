"""What is found of a model's fairness: rates of every group, and the gaps between them."""

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(_Part):
    """One rate of one group, and its bootstrap interval; in a regression a mean error in the target's units."""

    value: float
    low: float
    high: float


class Group(_Part):
    """One group.

    Attributes:
        values: Its value in each column of the crossing.
        rows: Its test rows.
        judged: Whether they are enough to be compared.
        rates: Selection rate, TPR, FPR and precision by name; without those whose denominator is 0.
    """

    values: tuple[str, ...]
    rows: int
    judged: bool
    rates: dict[str, Rate]

    @property
    def name(self) -> str:
        """Its values, as a person reads them."""
        return " and ".join(self.values)


class Grouping(_Part):
    """Groups by one sensitive column, or by several crossed: the 30 with the most rows, and of those to judge 100.

    Attributes:
        columns: The columns.
        groups: Their groups.
        beyond: How many smaller groups are left out.
        unjudged: How many of these have rows enough to be judged.
    """

    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    beyond: int = 0
    unjudged: int = 0


class Side(_Part):
    """One of the two groups that a gap's near end comes from.

    Attributes:
        group: Its name.
        rate: Its rate.
        of: How many rows the rate is a share of: of the TPR those of the class, of the precision those selected, ….
        rows: Its rows.
    """

    group: str
    rate: float
    of: int
    rows: int


class Gap(_Part):
    """How far judged groups of one grouping differ in one rate.

    Attributes:
        rate: `selection_rate`, `tpr`, `fpr` or `precision`.
        columns: The grouping.
        positive: The class that counts as selected; of many classes the one with the worst gap.
        value: Largest minus smallest rate, 0 to 1.
        low: The near end of its interval, which holds for all groups, groupings and classes compared (`steps.gaps`).
        high: The far end.
        higher: Of the two groups whose difference has that near end, the one with the higher rate.
        lower: The other.
    """

    rate: str
    columns: tuple[str, ...]
    positive: str
    value: float
    low: float
    high: float
    higher: Side
    lower: Side


class PlainModel(_Part):
    """The same family and parameters, fitted without weights: what reweighing changed.

    Attributes:
        metric: Its figure that decides, on the test rows.
        reweighed: The reweighed model's.
        gaps: Its gaps.
    """

    metric: float
    reweighed: float
    gaps: tuple[Gap, ...]


class FairnessReport(_Part):
    """Rates and gaps on the test rows.

    Attributes:
        positive: The class whose rates are shown; empty for a regression.
        confidence: Of the intervals.
        resamples: Bootstrap resamples behind them.
        min_rows: Groups with fewer rows are shown and not judged.
        groupings: Single columns first, then crossed ones.
        gaps: For each rate and grouping, that of the class with the worst one.
        plain: The model without weights, where the training rows were weighed.
        notes: What a reader of the figures has to know.
    """

    positive: str
    confidence: float
    resamples: int
    min_rows: int
    groupings: tuple[Grouping, ...]
    gaps: tuple[Gap, ...] = ()
    plain: PlainModel | None = None
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, float]:
        """The worst gap of each rate, and its near end, by name; `_plain` of the model without weights."""
        told: dict[str, float] = {}
        for rate in dict.fromkeys(gap.rate for gap in self.gaps):
            gap = max((gap for gap in self.gaps if gap.rate == rate), key=badness)
            told |= {f"{rate}_gap": gap.value, f"{rate}_gap_low": gap.low}
        for gap in sorted(self.plain.gaps if self.plain else (), key=badness):
            told |= {f"{gap.rate}_gap_plain": gap.value, f"{gap.rate}_gap_low_plain": gap.low}
        return told

    def worst(self, rate: str) -> Gap | None:
        """The gap with the largest near end; None where no two judged groups have the rate."""
        return max((gap for gap in self.gaps if gap.rate == rate), key=badness, default=None)


def badness(gap: Gap) -> tuple[float, float]:
    """What gaps are ordered by: the near end, then the gap itself."""
    return gap.low, gap.value
