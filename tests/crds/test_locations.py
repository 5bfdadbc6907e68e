"""Addresses: what each scheme takes, and what they are taken apart into."""

from pathlib import Path

import pytest

from bitnet_crds.errors import WrongValueError
from bitnet_crds.locations import parse_location


@pytest.mark.parametrize(
    ("address", "bucket", "name"),
    [
        ("gs://models/qwen", "models", "qwen"),
        ("gs://models/a/b/model.gguf", "models", "a/b/model.gguf"),
        ("gs://my_models-1.example.org/qwen/", "my_models-1.example.org", "qwen"),
        (f"gs://{'b' * 63}/x", "b" * 63, "x"),
    ],
)
def test_a_place_in_a_bucket(address: str, bucket: str, name: str) -> None:
    location = parse_location(address)
    assert (location.scheme, location.bucket, location.object) == ("gs", bucket, name)
    assert location.claim is None
    with pytest.raises(ValueError, match="no path before it is fetched"):
        _ = location.path


@pytest.mark.parametrize(
    "address",
    [
        "gs://models",
        "gs://models/",
        "gs://Models/x",
        "gs://-models/x",
        "gs://models-/x",
        "gs://mod..els/x",
        "gs://models/../secret",
        f"gs://{'b' * 64}/x",
        "gs:///x",
    ],
)
def test_no_place_in_a_bucket(address: str) -> None:
    with pytest.raises(WrongValueError, match=r"Write .* or gs://bucket/path"):
        parse_location(address)


@pytest.mark.parametrize("bucket", ["ab", ".".join(["b" * 60] * 4)])
def test_a_buckets_name_is_neither_short_nor_long(bucket: str) -> None:
    with pytest.raises(WrongValueError, match=f"a bucket of {len(bucket)} characters"):
        parse_location(f"gs://{bucket}/x")


def test_paths_inside_the_process_that_trains() -> None:
    assert parse_location("file:///a/b").path == Path("/a/b")
    assert parse_location("pvc://claim/b").path == Path("/mnt/pvc/claim/b")
    assert parse_location("pvc://claim/b").claim == "claim"
    assert (parse_location("file:///a").bucket, parse_location("file:///a").object) == (None, None)
