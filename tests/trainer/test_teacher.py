"""The teacher: absent until it is loaded, frozen then, and never quietly missing."""

import pytest
import torch

from bitnet_crds.protocol import TeacherState
from bitnet_trainer.errors import BadInput, TeacherUnavailable
from bitnet_trainer.objectives.cross_entropy import CrossEntropyObjective
from bitnet_trainer.objectives.manager import ObjectiveManager
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.teacher_logits import TeacherLogitsObjective
from bitnet_trainer.teacher import Teacher

CPU = torch.device("cpu")


@pytest.fixture
def address(make_model, tmp_path):
    make_model("qwen3", seed=1).save_pretrained(tmp_path)
    return f"file://{tmp_path}"


def test_a_teacher_is_absent_until_it_is_loaded_and_after_it_is_unloaded(address):
    teacher = Teacher(address, None, 61, CPU)
    assert teacher.state is TeacherState.ABSENT
    teacher.load()
    assert teacher.state is TeacherState.READY
    loaded = teacher.model
    teacher.load()
    assert teacher.model is loaded
    teacher.unload()
    assert teacher.state is TeacherState.ABSENT


def test_it_says_loading_while_it_loads(address, monkeypatch):
    teacher = Teacher(address, None, 61, CPU)
    seen = []
    monkeypatch.setattr("bitnet_trainer.teacher.load_weights", lambda *_: seen.append(teacher.state) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        teacher.load()
    assert seen == [TeacherState.LOADING]
    assert teacher.state is TeacherState.ABSENT


def test_its_logits_are_the_models_and_have_no_gradient(address, make_model, sequences):
    teacher = Teacher(address, None, 61, CPU)
    teacher.load()
    logits = teacher(sequences)
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training
    torch.testing.assert_close(logits, make_model("qwen3", seed=1)(sequences).logits.detach())


def test_other_vocabularies_are_refused_and_both_named(address):
    teacher = Teacher(address, None, 49152, CPU)
    with pytest.raises(TeacherUnavailable, match=r"vocabulary of 61 .* 49152"):
        teacher.load()
    assert teacher.state is TeacherState.ABSENT


def test_a_teacher_that_fails_to_load_never_trains_on(make_model, sequences, tmp_path):
    """Even a caller that swallowed the error would get no loss."""
    teacher = Teacher(f"file://{tmp_path}/absent", None, 61, CPU)
    with pytest.raises(TeacherUnavailable, match=r"the teacher cannot be loaded: there is no model at"):
        teacher.load()
    assert teacher.state is TeacherState.ABSENT
    manager = ObjectiveManager(
        {"crossEntropy": CrossEntropyObjective(), "teacherLogits": TeacherLogitsObjective(1.0)}
    )
    with pytest.raises(TeacherUnavailable, match="not loaded"):
        manager(
            MicroBatch(make_model(), sequences, teacher=teacher), {"crossEntropy": 1, "teacherLogits": 1}, 1
        )


def test_an_unavailable_teacher_is_not_taken_for_bad_input():
    assert not issubclass(TeacherUnavailable, BadInput)
