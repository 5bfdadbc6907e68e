"""Text in a bucket: copied once a machine, and told plainly where it cannot be read."""

from fractions import Fraction
from pathlib import Path

import pytest

from bitnet_trainer.data import SourceText, open_source, place_in
from bitnet_trainer.errors import DataUnavailable
from gcs_faults import Fault
from gcs_server import upload

EOS = 1


@pytest.fixture
def read(tmp_path, tokenizer, monkeypatch):
    """Reads a place in a bucket, as a list of token ids, on a machine such as "one"."""

    def read(address, machine="one", share=0):
        monkeypatch.setenv("BITNET_TEXT_CACHE", str(tmp_path / machine))
        name, _, path = address.removeprefix("gs://").partition("/")
        text = SourceText("web", place_in(name, path))
        return open_source(text, tokenizer, tmp_path / "run" / "tokens", Fraction(share)).tokens.tolist()

    return read


def downloads(proxy):
    return [path for method, path in proxy.seen if method == "GET" and "alt=media" in path]


def copied(root: Path) -> set[str]:
    return {"/".join(path.relative_to(root).parts[1:]) for path in root.glob("*/**/*") if path.is_file()}


def test_a_folder_is_read_as_one_on_a_disk_and_nothing_else_is_fetched(bucket, proxy, read, tmp_path):
    files = {
        "text/b.jsonl": b'{"text": "w3"}\n',
        "text/a.txt": b"w2",
        "text/deeper/c.txt": b"w4",
        "text/.hidden.txt": b"w5",
        "text/.git/d.txt": b"w6",
        "text/weights.bin": b"w7",
        "texts/e.txt": b"w8",
    }
    upload(bucket.bucket, files)
    folder = tmp_path / "disk"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert read(f"gs://{bucket.bucket}/text") == [2, EOS, 3, EOS, 4, EOS]
    assert copied(tmp_path / "one") == {"a.txt", "b.jsonl", "deeper/c.txt"}
    assert read(f"gs://{bucket.bucket}/text/") == [2, EOS, 3, EOS, 4, EOS]
    assert len(downloads(proxy)) == 3, "the second time the copy is read"
    assert read(f"gs://{bucket.bucket}/text", machine="two") == [2, EOS, 3, EOS, 4, EOS]
    assert len(downloads(proxy)) == 6


def test_a_file_is_read_alone_and_anew_once_it_is_replaced(bucket, read):
    upload(bucket.bucket, {"a.txt": b"w2", "a.txt.more": b"w9"})
    assert read(f"gs://{bucket.bucket}/a.txt") == [2, EOS]
    upload(bucket.bucket, {"a.txt": b"w3"})
    assert read(f"gs://{bucket.bucket}/a.txt") == [3, EOS]


def test_what_is_wrong_with_a_record_is_told_by_its_address(bucket, read):
    address = f"gs://{bucket.bucket}/text"
    upload(bucket.bucket, {"text/a.jsonl": b'{"text": "w2"}\nno json\n', "text/sub/b.parquet": b"PAR1"})
    with pytest.raises(DataUnavailable, match=f"source 'web': {address}/sub/b.parquet is not Parquet"):
        read(address)
    with pytest.raises(DataUnavailable, match=f"{address}/a.jsonl, line 2 is not JSON"):
        read(f"{address}/a.jsonl")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nothing", "there is nothing at gs://.*/nothing .*correct the path"),
        ("text/missing.txt", "there is nothing at gs://.*missing.txt .*correct the path"),
        ("binary", "the folder gs://.*/binary holds no .txt, .*Put one there, or mend its uri"),
        ("blank", "gs://.*/blank holds no text. Put text in it, or remove the source"),
    ],
)
def test_a_place_without_text_is_refused(bucket, read, path, says):
    upload(bucket.bucket, {"text/a.txt": b"w2", "binary/b.bin": b"", "blank/c.txt": b" \n"})
    with pytest.raises(DataUnavailable, match=f"source 'web': .*{says}"):
        read(f"gs://{bucket.bucket}/{path}")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, "may not be read .*roles/storage.objectViewer"),
        (404, "there is no bucket"),
        (503, "cannot be reached, or does not answer .*way to it"),
        (429, "cannot be reached, or does not answer .*way to it"),
        (400, "cannot be reached, or does not answer .*way to it"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_told(bucket, proxy, read, status, says):
    proxy.faults.append(Fault("GET", "/o", status))
    with pytest.raises(DataUnavailable, match=f"source 'web': gs://.*{says}") as told:
        read(f"gs://{bucket.bucket}/text")
    assert told.value.transient is (status in (503, 429))


def test_a_copy_without_room_is_told_with_where_it_goes(bucket, read, tmp_path):
    upload(bucket.bucket, {"a.txt": b"w2"})
    (tmp_path / "full").write_text("no folder")
    with pytest.raises(DataUnavailable, match=r"cannot be kept in .*full .*BITNET_TEXT_CACHE"):
        read(f"gs://{bucket.bucket}/a.txt", machine="full")
