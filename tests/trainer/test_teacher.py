"""The teacher: absent until it is loaded, frozen then, and never quietly missing."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bitnet_crds.protocol import TeacherState
from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows, SequenceId
from bitnet_trainer.errors import BadInput, ModelUnavailable, TeacherUnavailable
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.teacher_logits import teacher_top_k
from bitnet_trainer.quantization.int8_linear import quantize_to_int8
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.teacher import Teacher, load_together
from bitnet_trainer.teacher_cache import LogitsCache

CPU = torch.device("cpu")


@pytest.fixture
def address(make_model, tmp_path):
    make_model("qwen3", seed=1).save_pretrained(tmp_path / "teacher")
    return f"file://{tmp_path}/teacher"


@pytest.fixture
def teacher(address):
    teacher = Teacher(address, None, 61, CPU)
    teacher.load()
    return teacher


@pytest.fixture
def rows(sequences):
    """(6, 12), the third padded from its eighth token on."""
    mask = torch.ones_like(sequences)
    mask[2, 7:] = 0
    ids = tuple(SequenceId(0, 0, index) for index in range(6))
    return Rows(sequences, sequences.masked_fill(mask == 0, -100), mask, ids=ids)


def logits_of(answer):
    return answer.head(answer.hidden)


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


def test_its_answer_is_the_models_and_has_no_gradient(teacher, make_model, rows):
    answer = teacher.answer(rows, Capture(hidden_states=True, projections=frozenset({1})))
    assert teacher.layers == len(answer.hidden_states) == 2
    assert not any(tensor.requires_grad for tensor in (logits_of(answer), *answer.hidden_states))
    assert not any(tensor.requires_grad for tensor in answer.projections[1])
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training
    expected = make_model("qwen3", seed=1)(input_ids=rows.input_ids, attention_mask=rows.attention_mask)
    torch.testing.assert_close(logits_of(answer), expected.logits.detach())


def test_padding_in_front_of_it_is_not_looked_at(teacher, rows):
    """Trap 13: right padding tells nothing of a mask that is ignored, since no token looks at it."""
    left = Rows(rows.input_ids, rows.labels, rows.attention_mask.flip(1))
    other = Rows(left.input_ids.masked_fill(left.attention_mask == 0, 60), left.labels, left.attention_mask)
    said, of_other = (logits_of(teacher.answer(one, Capture())) for one in (left, other))
    torch.testing.assert_close(said[left.tokens], of_other[left.tokens])


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("Auto", "cpu", torch.float32),
        ("Auto", "cuda", torch.bfloat16),
        ("Int8", "cuda", torch.bfloat16),
        ("Float32", "cuda", torch.float32),
        ("BFloat16", "cpu", torch.bfloat16),
    ],
)
def test_its_weights_are_loaded_in_the_precision_asked_for(monkeypatch, precision, device, dtype):
    asked = []

    def none_there(*arguments):
        asked.append(arguments)
        raise ModelUnavailable("none there")

    monkeypatch.setattr("bitnet_trainer.teacher.load_weights", none_there)
    with pytest.raises(TeacherUnavailable, match="none there"):
        Teacher("file:///teacher", "v1", 61, torch.device(device), precision=precision).load()
    assert asked == [("file:///teacher", "v1", dtype)]


def test_with_int8_its_linears_have_8_bits(address, make_model, rows):
    teacher = Teacher(address, None, 61, CPU, precision="Int8")
    teacher.load()
    model = make_model("qwen3", seed=1).requires_grad_(False)
    quantize_to_int8(model)
    said = logits_of(teacher.answer(rows, Capture()))
    assert torch.equal(said, logits_of(LanguageModel(model)(rows.input_ids, rows.attention_mask)))
    assert any(buffer.dtype == torch.int8 for buffer in teacher.model.buffers())


def test_its_top_k_is_of_its_logits(teacher, rows):
    top = teacher.top_k(rows, lambda: teacher.answer(rows, Capture()), 5, 2.0)
    logits = logits_of(teacher.answer(rows, Capture()))
    values, tokens = logits.topk(5)
    torch.testing.assert_close(top.logits, values)
    assert torch.equal(top.tokens, tokens)
    torch.testing.assert_close(top.log_normaliser, (logits / 2).logsumexp(-1))


def test_what_it_said_before_is_not_asked_again(address, make_model, rows, tmp_path):
    def loaded(precision="Auto"):
        teacher = Teacher(address, None, 61, CPU, precision=precision, cache=LogitsCache(tmp_path, "data"))
        teacher.load()
        return teacher

    def not_again():
        raise AssertionError("asked again")

    first = loaded()
    top = first.top_k(rows, lambda: first.answer(rows, Capture()), 5, 2.0)
    replayed = loaded().top_k(rows, not_again, 5, 2.0)
    assert all(torch.equal(one, other) for one, other in zip(replayed, top, strict=True))
    student = LanguageModel(make_model("llama"))(rows.input_ids, rows.attention_mask)
    for tail in ("Bucket", "Renormalized"):
        losses = [teacher_top_k(student, said, rows.labels, 2.0, tail).total for said in (top, replayed)]
        assert losses[0].isfinite()
        assert torch.equal(*losses)
    with pytest.raises(AssertionError, match="asked again"):
        loaded("BFloat16").top_k(rows, not_again, 5, 2.0)
    # Rows that nobody has numbered, such as held-out text, are never taken for others.
    with pytest.raises(AssertionError, match="asked again"):
        first.top_k(Rows.of(rows.input_ids), not_again, 5, 2.0)


def test_another_teacher_at_the_same_address_is_asked_anew(address, make_model, rows, tmp_path):
    cache = LogitsCache(tmp_path / "cache", "data")
    said = []
    for seed in (1, 2):
        make_model("qwen3", seed=seed).save_pretrained(tmp_path / "teacher")
        teacher = Teacher(address, None, 61, CPU, cache=cache)
        teacher.load()
        said.append(teacher.top_k(rows, lambda of=teacher: of.answer(rows, Capture()), 5, 1.0))
    assert not torch.equal(said[0].logits, said[1].logits)


def test_other_vocabularies_are_refused_and_both_named(address):
    teacher = Teacher(address, None, 49152, CPU)
    with pytest.raises(TeacherUnavailable, match=r"vocabulary of 61 .* 49152"):
        teacher.load()
    assert teacher.state is TeacherState.ABSENT


def test_equal_vocabularies_of_other_tokens_are_refused(address, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "teacher")
    tokens = tokenizer.get_vocab()
    Teacher(address, None, 61, CPU, tokens).load()
    swapped = {**tokens, "w5": tokens["w6"], "w6": tokens["w5"]}
    with pytest.raises(TeacherUnavailable, match=r"token 'w[56]' at [56] and the student at [56]"):
        Teacher(address, None, 61, CPU, swapped).load()


@pytest.mark.parametrize("width", [70, 58])
def test_outputs_that_are_padding_alone_are_no_other_vocabulary(make_model, tokenizer, rows, tmp_path, width):
    """Qwen2.5 has 151,936 outputs at 0.5B and 152,064 at 7B, of the same 151,665 tokens."""
    model = make_model(vocab_size=width)
    model.save_pretrained(tmp_path / "teacher")
    known = {token: number for token, number in tokenizer.get_vocab().items() if number < 58}
    smaller = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(known, unk_token="<s>")), unk_token="<s>", eos_token="</s>"
    )
    smaller.save_pretrained(tmp_path / "teacher")
    teacher = Teacher(f"file://{tmp_path}/teacher", None, 61, CPU, tokenizer.get_vocab())
    teacher.load()
    rows = replace(rows, input_ids=rows.input_ids.clamp(max=57))
    answer = teacher.answer(rows, Capture())
    logits = answer.head(answer.hidden)
    assert logits.shape[-1] == 61
    shared = min(width, 61)
    expected = model(rows.input_ids, rows.attention_mask).logits
    torch.testing.assert_close(logits[..., :shared], expected[..., :shared])
    assert (logits[..., shared:] == -math.inf).all()
    top = teacher.top_k(rows, lambda: answer, 5, 1.0)
    assert int(top.tokens.max()) < shared
    # Of padding the teacher has learned nothing, though it answers.
    asked = Teacher(f"file://{tmp_path}/teacher", None, 61, CPU, tokenizer.get_vocab(), largest_token=58)
    with pytest.raises(TeacherUnavailable, match=r"has token 58, and the teacher .* knows 58 tokens"):
        asked.load()


def test_a_teacher_of_another_layout_is_refused_before_it_is_asked(tmp_path):
    config = GPT2Config(vocab_size=61, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    teacher = Teacher(f"file://{tmp_path}", None, 61, CPU)
    with pytest.raises(TeacherUnavailable, match="is a GPT2LMHeadModel, whose decoder layers are not"):
        teacher.load()


def test_a_teacher_that_fails_to_load_never_trains_on(make_model, rows, tmp_path):
    """Trap 7. Even a caller that swallowed the error would get no loss."""
    teacher = Teacher(f"file://{tmp_path}/absent", None, 61, CPU)
    with pytest.raises(TeacherUnavailable, match=r"the teacher cannot be loaded: there is no model at"):
        teacher.load()
    assert teacher.state is TeacherState.ABSENT
    batch = MicroBatch(LanguageModel(make_model()), rows, CPU, layers=2, teacher=teacher)
    for ask in (lambda: batch.teacher, lambda: batch.teacher_top_k(5, 1.0), lambda: batch.teacher_layers):
        with pytest.raises(TeacherUnavailable, match="not loaded"):
            ask()


def test_an_unavailable_teacher_is_not_taken_for_bad_input():
    assert not issubclass(TeacherUnavailable, BadInput)


OTHER_RANK = """
import runpy, sys
runpy.run_path(sys.argv[1])["as_rank"](1, *sys.argv[2:])
"""


def as_rank(rank, store, *addresses):
    """What becomes of the teachers at these addresses, loaded one by one by two ranks together."""
    dist.init_process_group("gloo", f"file://{store}", timeout=timedelta(seconds=60), rank=rank, world_size=2)
    found = []
    try:
        for address in addresses:
            teacher = Teacher(address, None, 61, CPU)
            said = ""
            try:
                load_together(teacher, Ranks(rank, 2, CPU, dist.group.WORLD))
            except TeacherUnavailable as error:
                said = str(error)
            found.append((teacher.state, said))
    finally:
        dist.destroy_process_group()
    return found


def test_every_rank_loads_or_all_say_why_one_could_not(address, tmp_path):
    absent = f"file://{tmp_path}/absent"
    store = str(tmp_path / "ranks")
    other = subprocess.Popen([sys.executable, "-c", OTHER_RANK, __file__, store, address, absent, absent])
    whole, one_lacks, both_lack = as_rank(0, store, address, address, absent)
    assert other.wait(timeout=180) == 0
    assert whole == (TeacherState.READY, "")
    assert one_lacks[0] is both_lack[0] is TeacherState.ABSENT
    assert re.match(r"1 of 2 ranks could not load it.*rank 1 says: .*no model at .*absent", one_lacks[1])
    assert re.match(r"2 of 2 ranks could not load it.*rank 0 says: .*no model at .*absent", both_lack[1])
