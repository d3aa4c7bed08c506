"""Paths on S3 through the real s3fs, against a server that speaks S3; and that other paths are read as before."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from models.errors import LIMIT, DataError
from steps import split_parts
from steps.ingest import ingest_frame, source_digest
from steps.partitions import in_turn, remove_parts
from tests.steps.partitioned import ingested, parquet_config, raw_table, write_partitions
from tests.steps.tables import make_config, make_table, write

SECRET = "hunter2-secret-key"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket with rows.csv and rows.parquet, reached by the usual variables."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="loans")
    client.put_object(Bucket="loans", Key="day/rows.csv", Body=make_table().to_csv(index=False).encode())
    make_table().to_parquet(tmp_path / "rows.parquet")
    client.put_object(Bucket="loans", Key="rows.parquet", Body=(tmp_path / "rows.parquet").read_bytes())
    return "loans"


def _refused(path: str, *said: str) -> None:
    with pytest.raises(DataError) as caught:
        ingest_frame(make_config(path))
    text = str(caught.value)
    assert len(text) <= LIMIT and SECRET not in text and caught.value.__suppress_context__
    for part in said:
        assert part in text, text


def test_csv_and_parquet_on_s3_are_the_same_data_as_a_file(bucket: str, tmp_path: Path) -> None:
    here = ingest_frame(make_config(write(tmp_path, make_table()))).digest
    assert ingest_frame(make_config(f"s3://{bucket}/day/rows.csv")).digest == here
    parquet = [{"name": "file", "kind": "parquet", "path": f"s3://{bucket}/rows.parquet"}]
    assert ingest_frame(make_config(sources=parquet)).digest == here


def test_a_changed_object_is_seen(bucket: str) -> None:
    import boto3

    config = make_config(f"s3://{bucket}/day/rows.csv")
    first = source_digest(config)
    changed = make_table(seed=1).to_csv(index=False).encode()
    boto3.client("s3").put_object(Bucket=bucket, Key="day/rows.csv", Body=changed)
    assert source_digest(config) != first
    with pytest.raises(DataError, match="changed while it was read"):
        ingest_frame(config, None, first)


def test_a_missing_bucket_or_key_says_which(bucket: str) -> None:
    _refused(
        f"s3://{bucket}/none.csv", f"there is no file s3://{bucket}/none.csv", "correct `path`", "--source made_up"
    )
    _refused("s3://no-such-bucket/rows.csv", "there is no bucket s3://no-such-bucket/rows.csv", "correct `path`")
    _refused(f"s3://{bucket}", f"s3://{bucket}", "path")


def test_no_credentials_and_no_server_name_the_variables(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _refused(f"s3://{bucket}/day/rows.csv", "cannot be read", "AWS_ENDPOINT_URL")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    _refused(f"s3://{bucket}/day/rows.csv", "cannot be read", "AWS_ACCESS_KEY_ID")


def test_other_ways_to_write_a_path_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, make_table())
    digest = ingest_frame(make_config(path)).digest
    monkeypatch.setenv("GAUNTLET_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for way in ("data.csv", "./data.csv", "~/data.csv", f"file://{path}", f"simplecache::file://{path}"):
        assert ingest_frame(make_config(way)).digest == digest, way
    make_table().to_csv(tmp_path / "data.csv.gz", index=False)
    assert pd.read_csv(tmp_path / "data.csv.gz").shape == (200, 6)
    with pytest.raises(DataError, match="a gzip file"):
        ingest_frame(make_config("data.csv.gz"))


def test_partitions_are_read_from_s3_and_written_to_it(bucket: str, tmp_path: Path) -> None:
    import boto3

    here = write_partitions(tmp_path / "rows", raw_table(90), 2)
    client = boto3.client("s3")
    for path in here.iterdir():
        client.put_object(Bucket=bucket, Key=f"parts/{path.name}", Body=path.read_bytes())
    local = ingested(parquet_config(here), tmp_path / "raw")
    config = parquet_config(f"s3://{bucket}/parts/")
    remote = ingested(config, f"s3://{bucket}/raw")
    assert (remote.digest, len(remote.frame)) == (local.digest, 90)
    pd.testing.assert_frame_equal(remote.frame.read(remote.frame.parts[1]), local.frame.read(local.frame.parts[1]))
    train, test = split_parts.part(in_turn, config, remote.frame, f"s3://{bucket}/train", f"s3://{bucket}/test")
    assert len(train) + len(test) == 90
    remove_parts(f"s3://{bucket}/raw")
    kept = [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert not [key for key in kept if key.startswith("raw/")] and [key for key in kept if key.startswith("train/")]
