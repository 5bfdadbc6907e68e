"""Attention's kernels on CUDA against the textbook in float64, by each backend, whole rows and documents."""

from types import SimpleNamespace

import pytest
import torch

from bitnet_trainer.answer import Capture
from bitnet_trainer.batch import Rows
from bitnet_trainer.documents import cumulative_lengths, dense_mask
from bitnet_trainer.models.attention import attend, prefer
from bitnet_trainer.models.attention_backends import BACKENDS, AttentionShape, measure
from bitnet_trainer.models.attention_logits import LargestLogits
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.optim.qk_clip import clip_factors
from families import small_model

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SHAPE = AttentionShape(batch=2, heads=4, key_heads=2, length=320, head_dim=64)
EOS = 1


def rows() -> Rows:
    tokens = torch.randint(2, 60, (2, 320), generator=torch.Generator().manual_seed(0))
    tokens[0, [9, 10, 200]] = tokens[1, 150] = EOS
    return Rows.of_documents(tokens, EOS)


CASES = [(None, True), (None, False), *((each, False) for each in BACKENDS)]


@pytest.mark.parametrize(("backend", "packed"), CASES)
def test_it_is_the_textbooks(backend: str | None, packed: bool) -> None:
    cu_seqlens = cumulative_lengths(rows().position_ids) if packed else None
    short = SHAPE.random(CUDA, torch.bfloat16)
    exact = [each.detach().double().requires_grad_(each.requires_grad) for each in short]
    module = SimpleNamespace(training=False, attention_backend=backend)

    def passes(inputs: list[torch.Tensor], out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (out, *torch.autograd.grad(out, inputs[:3], inputs[3].transpose(1, 2)))

    found = passes(
        short,
        attend(module, *short[:3], None, None if cu_seqlens is None else cu_seqlens.to(CUDA)),
    )
    query, key, value = exact[0], *(each.repeat_interleave(2, dim=1) for each in exact[1:3])
    mask = torch.ones(320, 320, dtype=torch.bool).tril()
    if cu_seqlens is not None:
        mask = dense_mask(cu_seqlens, 2, 320)
    logits = (query @ key.mT / 8).masked_fill(~mask.to(CUDA), -torch.inf)
    expected = passes(exact, (logits.softmax(dim=-1) @ value).transpose(1, 2))
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() / other.norm() < 0.01


def test_each_backend_is_measured() -> None:
    assert set(measure(SHAPE, CUDA)) == set(BACKENDS)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM", "BitNetLlama"])
def test_a_model_sees_documents_as_with_a_dense_mask(architecture: str) -> None:
    view = LanguageModel(small_model(architecture).to(CUDA))
    there = rows().to(CUDA)
    assert there.documents is not None
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        packed = view(there.input_ids, None, Capture(), there.position_ids, there.documents).hidden
        masked = view(there.input_ids, None, Capture(), there.position_ids).hidden
        joined = view(there.input_ids).hidden
    assert (packed - masked).norm() / masked.norm() < 0.02
    assert (packed - joined).norm() / joined.norm() > 0.1


@pytest.mark.parametrize(("backend", "packed"), CASES)
def test_heads_are_clipped_by_their_own_largest_logits(backend: str | None, packed: bool) -> None:
    """By the kernel, from the log-sum-exp where there is one, as by torch from all logits."""
    model = small_model("Qwen3ForCausalLM").to(CUDA).train()
    prefer(model, backend)
    view, there = LanguageModel(model), rows().to(CUDA)
    largest = LargestLogits(model)
    assert largest.kernel

    def found() -> torch.Tensor:
        largest.forget()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            if packed:
                view(there.input_ids, None, Capture(), there.position_ids, there.documents)
            else:
                view(there.input_ids)
        return largest.values.clone()

    by_kernel = found()
    largest.kernel = False
    exact = found()
    torch.testing.assert_close(by_kernel, exact, rtol=0.01, atol=0.01)
    largest.kernel, largest.threshold = True, by_kernel.median().item()
    above = by_kernel > largest.threshold
    assert above.any()
    assert not above.all()
    bounded = found()
    assert torch.equal(bounded[above], by_kernel[above])
    assert torch.equal(clip_factors(bounded, largest.threshold), clip_factors(by_kernel, largest.threshold))
