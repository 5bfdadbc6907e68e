"""bitnetctl with a run whose checkpoints are in a bucket."""

from gcs_server import gcs_server, upload


def test_a_run_in_a_bucket_is_run_and_its_status_read_here(make_bitnetctl, tmp_path, monkeypatch):
    bitnetctl = make_bitnetctl()
    bitnetctl.document["spec"]["checkpoint"]["uri"] = "gs://bucket/runs"
    monkeypatch.setenv("BITNET_RUN_CACHE", str(tmp_path / "cache"))
    with gcs_server() as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        upload("bucket", {"something": b"else"})
        code, output = bitnetctl("run", str(bitnetctl.file))
        assert code == 0
        place = f"gs://bucket/runs/default/{bitnetctl.document['metadata']['name']}"
        assert f"{place}/export/huggingface" in output
        assert f"{place}/loss.png" in output
        code, output = bitnetctl("run", str(bitnetctl.file))
        assert code == 0
        assert f"and {place}" in output.replace("\n", "")
    code, output = bitnetctl("status", str(bitnetctl.file))
    assert code == 0
    assert place in output


def test_without_credentials_it_trains_on_this_machine_and_says_where(make_bitnetctl, tmp_path, monkeypatch):
    # Warnings are seen while it trains, at the latest a second after they are given.
    bitnetctl = make_bitnetctl(steps=80)
    bitnetctl.document["spec"]["checkpoint"] |= {"uri": "gs://bucket/runs", "required": False}
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "cache"
    for name, value in {
        "BITNET_RUN_CACHE": str(cache),
        "CLOUDSDK_CONFIG": str(tmp_path),
        "NO_GCE_CHECK": "true",
    }.items():
        monkeypatch.setenv(name, value)
    code, output = bitnetctl("run", str(bitnetctl.file))
    assert code == 0
    assert "GCS disabled: training continues, checkpoints stay on " in output.replace("\n", " ")
    folder = cache / "bucket/runs/default" / bitnetctl.document["metadata"]["name"]
    assert list((folder / "checkpoints").glob("step-*/COMMITTED"))
    for words in (output, bitnetctl("status", str(bitnetctl.file))[1]):
        out_of = words.replace("\n", "").replace(" ", "")
        _, _, places = out_of.partition("whatcameout")
        assert f"{folder}/export/huggingface" in places
        assert "gs://" not in places
