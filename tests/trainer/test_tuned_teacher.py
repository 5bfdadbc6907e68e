"""A tuned teacher where it is kept: whole or not there, in a folder and in a bucket."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitnet_crds import Order, plan
from bitnet_crds.protocol import tuned_teacher_address
from bitnet_trainer import cloud, tuned_teacher
from bitnet_trainer.errors import CheckpointError
from bitnet_trainer.export.folder import write_folder
from bitnet_trainer.models.load import load_model
from bitnet_trainer.tuned_teacher import MARKER, TunedTeacher, tuning_of
from gcs_faults import Fault
from small_specs import phases_of, spec_of

TEXT, OTHER_TEXT = "a" * 64, "b" * 64


def order_of(uri, scratch="/scratch", tune=None, **changes):
    changes = {"workers": {"microBatchSize": 4}, "phases": phases_of([50, 100], 1), **changes}
    teacher = {"from": "hf://big/teacher", "tune": tune or {"tokens": 640}}
    spec = spec_of(checkpoint={"uri": uri}, teacher=teacher, **changes)
    return Order(namespace="ml", name="a", job="a-0", spec=spec, plan=plan(spec), scratch=str(scratch))


@pytest.fixture(params=["file", "gs"])
def order(request, tmp_path):
    if request.param == "file":
        return order_of(f"file://{tmp_path}/runs")
    bucket = request.getfixturevalue("bucket")
    return order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch")


def weights_at(order):
    return load_model(tuned_teacher_address(order)).model.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_there_once_it_was_written_and_loads_as_any_model(order, make_model, tokenizer, tmp_path):
    kept, model = TunedTeacher(order), make_model("qwen3")
    assert kept.found() is None
    kept.write(model, tokenizer, kept.hash_of(TEXT))
    assert TunedTeacher(order).found() == kept.hash_of(TEXT)
    loaded = load_model(kept.address)
    assert same(loaded.model.state_dict(), model.state_dict())
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    # On a machine whose disk is only lent, nothing of it stays.
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))


def test_another_takes_its_place_whole(order, make_model, tokenizer):
    kept = TunedTeacher(order)
    kept.write(make_model("qwen3"), tokenizer, "one")
    kept.write(make_model("llama", seed=1), tokenizer, "other")
    assert kept.found() == "other"
    assert same(weights_at(order), make_model("llama", seed=1).state_dict())


def test_what_it_was_tuned_on_has_one_hash(tmp_path):
    def hash_of(text=TEXT, uri=f"file://{tmp_path}/runs", **changes):
        return TunedTeacher(order_of(uri, **changes)).hash_of(text)

    one = hash_of()
    assert len(one) == 16
    # Where it is kept and who asks for it make no other teacher.
    assert hash_of(uri="file:///elsewhere") == one
    assert hash_of(quantization={"subLN": "AllProjections"}) == one
    others = [
        hash_of(OTHER_TEXT),
        hash_of(seed=1),
        hash_of(tune={"tokens": 1280}),
        hash_of(tune={"tokens": 640, "learningRate": 1e-3}),
    ]
    assert len({one, *others}) == 1 + len(others)


def test_whatever_the_order_is_for_its_run_has_one_tuned_teacher(tmp_path):
    order = order_of(f"file://{tmp_path}/runs")
    tuning = order.model_copy(update={"purpose": "TuneTeacher"})
    assert TunedTeacher(order).hash_of(TEXT) == TunedTeacher(tuning).hash_of(TEXT)
    assert tuning_of(order) == tuning_of(tuning)
    plain = spec_of()
    assert tuning_of(Order(namespace="ml", name="a", job="a-0", spec=plain, plan=plan(plain))) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_marker_that_says_nothing_is_none(tmp_path, make_model, tokenizer, content):
    kept = TunedTeacher(order_of(f"file://{tmp_path}/runs"))
    kept.write(make_model(), tokenizer, "one")
    (tmp_path / "runs/ml/a/teacher" / MARKER).write_text(content)
    assert kept.found() is None


def killed(*_):
    raise KeyboardInterrupt


def test_killed_at_its_marker_there_is_none_and_the_next_one_is_whole(
    tmp_path, make_model, tokenizer, monkeypatch
):
    kept = TunedTeacher(order_of(f"file://{tmp_path}/runs"))
    kept.write(make_model(), tokenizer, "old")
    with monkeypatch.context() as at_the_marker:
        at_the_marker.setattr(tuned_teacher, "write_folder", lambda *given: killed(write_folder(*given)))
        with pytest.raises(KeyboardInterrupt):
            kept.write(make_model(seed=1), tokenizer, "new")
    assert kept.found() is None
    kept.write(make_model(seed=1), tokenizer, "new")
    assert kept.found() == "new"


def test_killed_while_it_is_written_the_old_one_stays_and_what_was_begun_goes(
    tmp_path, make_model, tokenizer, monkeypatch
):
    run = tmp_path / "runs/ml/a"
    kept = TunedTeacher(order_of(f"file://{tmp_path}/runs"))
    kept.write(make_model(), tokenizer, "old")
    begun = run / ".teacher-begun"
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(b"half")
    with monkeypatch.context() as in_the_middle:
        in_the_middle.setattr(tuned_teacher, "save_tokenizer", killed)
        with pytest.raises(KeyboardInterrupt):
            kept.write(make_model(seed=1), tokenizer, "new")
    assert kept.found() == "old"
    assert [path.name for path in run.iterdir()] == ["teacher"]
    assert AutoModelForCausalLM.from_pretrained(run / "teacher")


def test_in_a_bucket_the_marker_goes_first_and_comes_last(
    bucket, proxy, tmp_path, make_model, tokenizer, monkeypatch
):
    kept = TunedTeacher(order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch"))
    uploaded = []

    def upload(bucket, name, file, writer):
        uploaded.append(file.name)
        return real(bucket, name, file, writer)

    real = cloud.upload
    monkeypatch.setattr(cloud, "upload", upload)
    kept.write(make_model(), tokenizer, "old")
    assert uploaded[-1] == MARKER
    assert {"model.safetensors", "config.json", "tokenizer.json"} < set(uploaded)

    proxy.seen.clear()
    proxy.faults = [Fault("POST", "^/upload/", 403)]
    with pytest.raises(CheckpointError, match=r"checkpoint.uri: gs://.* may not be written"):
        kept.write(make_model(seed=1), tokenizer, "new")
    assert next(path for method, path in proxy.seen if method == "DELETE").count(MARKER)
    proxy.faults = []
    assert kept.found() is None
    kept.write(make_model(seed=1), tokenizer, "new")
    assert kept.found() == "new"
    assert same(load_model(kept.address).model.state_dict(), make_model(seed=1).state_dict())


def test_files_that_are_no_model_are_not_replaced(tmp_path, make_model, tokenizer):
    kept = TunedTeacher(order_of(f"file://{tmp_path}/runs"))
    mine = tmp_path / "runs/ml/a/teacher/notes.md"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(CheckpointError, match="holds files that are no export"):
        kept.write(make_model(), tokenizer, "one")
    assert mine.read_text() == "mine"


def test_a_folder_that_takes_nothing_is_said_plainly(tmp_path, make_model, tokenizer, monkeypatch):
    kept = TunedTeacher(order_of(f"file://{tmp_path}/runs"))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(tuned_teacher, "flush", full)
    with pytest.raises(CheckpointError, match=r"No space left on device"):
        kept.write(make_model(), tokenizer, "one")
    assert kept.found() is None


@pytest.mark.parametrize(
    ("status", "says"), [(403, "may not be read"), (503, "storage cannot be reached, or does not answer")]
)
def test_storage_that_does_not_answer_is_said_plainly(bucket, proxy, tmp_path, status, says):
    kept = TunedTeacher(order_of(f"gs://{bucket.bucket}/runs", tmp_path / "scratch"))
    proxy.faults = [Fault("GET", "teacher", status)]
    with pytest.raises(CheckpointError, match=rf"checkpoint\.uri: gs://.* {says}") as told:
        kept.found()
    assert told.value.transient is (status == 503)
