"""docs/sources.md shows what the schema takes."""

import re
from pathlib import Path
from typing import get_args

import yaml

from models.config import SqlSource, UrlSource
from tests.steps.tables import make_config

PAGE = (Path(__file__).parents[1] / "docs" / "sources.md").read_text()


def test_the_examples_are_loaded_by_the_schema() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    config = make_config(**yaml.safe_load(block))
    assert [source.kind for source in config.sources] == ["csv", "parquet", "sql", "url", "http"]
    assert config.on_bad_row == "quarantine" and config.max_bad_rows == 0.02
    assert isinstance(config.source("warehouse"), SqlSource) and isinstance(config.source("published"), UrlSource)
    assert config.source("warehouse").label == "a query to postgresql://db.example.org:5432/lending"


def test_every_kind_of_source_is_on_the_page() -> None:
    from models.config import Source

    kinds = {kind for one in get_args(get_args(Source)[0]) for kind in get_args(one.model_fields["kind"].annotation)}
    assert len(kinds) == 7
    assert all(f"`{kind}`" in PAGE for kind in kinds)
