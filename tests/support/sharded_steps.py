"""Steps of sharded models beside the same of whole ones, on any number of ranks that see the same rows."""

import copy
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from bitnet_trainer.guards import NonFiniteGuard
from bitnet_trainer.models.convert import convert
from bitnet_trainer.models.view import LanguageModel
from bitnet_trainer.optim import build_adamw, clip_in_update, set_learning_rate
from bitnet_trainer.optim.qk_clip import AttentionHeads
from bitnet_trainer.optim.shards import own_part
from bitnet_trainer.quantization.bitlinear import BitLinear
from bitnet_trainer.quantization.codes import quantize_weights
from bitnet_trainer.quantization.packing import unpack_ternary
from bitnet_trainer.quantization.warmup import set_lambda
from bitnet_trainer.ranks import Ranks
from bitnet_trainer.sharding import shard
from families import VOCABULARY, small_model
from optimizers import small_muonclip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "MHA": ("LlamaForCausalLM", {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3}),
    "GQA": ("LlamaForCausalLM", {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "biases": ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "QK-norm": ("Qwen3ForCausalLM", {}),
    "QK-norm of 1 + gain": ("Gemma3ForCausalLM", {"intermediate_size": 49}),
    "ours": ("BitNetLlama", {}),
}
"""Two ranks cut three heads of queries or keys within one, and 49 or 61 rows into parts of two sizes."""
TOKENS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
NOTHING_TO_CLIP = (-math.inf, -7.0, 0.0, 1.0, math.inf, math.nan)


class Training:
    """A model in training, sharded over the ranks or whole on each."""

    def __init__(
        self,
        ranks: Ranks,
        family: str,
        *,
        sharded: bool,
        muonclip: bool = True,
        alpha: float = 0.5,
        quantized: bool = False,
    ) -> None:
        architecture, changes = FAMILIES[family]
        self.model: PreTrainedModel = small_model(architecture, **changes).train()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name.endswith(("bias", "q_norm.weight", "k_norm.weight")):
                    parameter += 0.3 * torch.randn_like(parameter)
        if quantized:
            convert(self.model)
        self.student = LanguageModel(self.model)
        if sharded:
            shard(self.student, ranks)
        self.optimizer: Any = (
            small_muonclip(self.model, threshold=1.0, alpha=alpha)
            if muonclip
            else build_adamw(self.model, learning_rate=0.01, weight_decay=0.1)
        )

    def backward(self, passes: int = 1) -> Tensor:
        """Gradients and logits of a step; the loss of its last pass."""
        self.optimizer.zero_grad()
        for number in range(passes):
            tokens = TOKENS.roll(number, dims=1)
            answer = self.student(tokens)
            logits = answer.head(answer.hidden)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
        return loss.detach()

    def logits(self) -> Tensor:
        """The largest ones, (L, H)."""
        self.backward()
        return self.optimizer._clip._maxima.values.clone()

    def everything(self) -> dict[str, Tensor]:
        """Weights and the optimiser's state, whole."""
        weights, state = get_state_dict(self.model, self.optimizer)
        named = dict(weights)
        for name, parts in state["state"].items():
            named |= {f"{name} {key}": value for key, value in parts.items()}
        return {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).clone()
            for name, value in named.items()
        }


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def each_rank_holds_its_part(ranks: Ranks) -> None:
    """Of weights, gradients and moments; rows that the ranks do not divide make one part larger."""
    for muonclip in (True, False):
        training = Training(ranks, "MHA", sharded=True, muonclip=muonclip)
        training.backward()
        training.optimizer.step()
        for parameter in training.model.parameters():
            moments = [value for value in training.optimizer.state[parameter].values() if value.ndim]
            assert moments
            for tensor in (parameter, parameter.grad, *moments):
                assert isinstance(tensor, DTensor)
                assert len(tensor.to_local()) <= -(-len(tensor) // ranks.world)


def steps_are_those_of_a_whole_model(ranks: Ranks) -> None:
    """Clipped gradients, updates and QK-clip of every family; by AdamW of one."""
    for family in FAMILIES:
        for muonclip in (True, False) if family == "GQA" else (True,):
            pair = [Training(ranks, family, sharded=sharded, muonclip=muonclip) for sharded in (True, False)]
            for _ in range(2):
                norms = []
                for training in pair:
                    training.backward()
                    set_learning_rate(training.optimizer, 1.0)
                    norms.append(
                        clip_in_update(training.optimizer, 0.1)
                        if training is pair[0]
                        else nn.utils.clip_grad_norm_(training.model.parameters(), 0.1)
                    )
                    training.optimizer.step()
                torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=0)
            found, expected = (training.everything() for training in pair)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=f"{family} {name}")


def quantized_layers_gather_codes(ranks: Ranks) -> None:
    """Once a step, 2 bits a weight, and before lambda is 1 the weights, once a pass. Gradients are those of a
    whole model, on one rank in compiled layers too, and so are codes, also where no step keeps them."""
    for family in ("MHA", "QK-norm of 1 + gain")[: ranks.world]:
        pair = [Training(ranks, family, sharded=sharded, quantized=True) for sharded in (True, False)]
        shared, student = pair[0].student.shared, pair[0].student
        assert shared is not None
        parts = [part for part in student.modules() if isinstance(part, BitLinear)]
        if ranks.world == 1:
            student.compile_layers("eager")
        floats = {}
        for lam in (0.5, 1.0, 1.0):
            for training in pair:
                set_lambda(training.model, lam)
            with gathered() as sent, shared.codes_kept():
                losses = [training.backward(passes=2) for training in pair]
            torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
            for own, expected in zip(*(training.model.parameters() for training in pair), strict=True):
                torch.testing.assert_close(own.grad.full_tensor(), expected.grad, rtol=1e-3, atol=1e-5)
                for parameter in (own, expected):
                    own_part(parameter.data).sub_(own_part(parameter.grad), alpha=0.3)
            rows = [-(-part.out_features // ranks.world) for part in parts]
            packed = sum(each * -(-part.in_features // 4) for each, part in zip(rows, parts, strict=True))
            assert sent[torch.uint8] == (packed if lam == 1 else 0)
            floats[lam] = sent[torch.float32]
        weights = 4 * sum(each * part.in_features for each, part in zip(rows, parts, strict=True))
        assert floats[0.5] - floats[1.0] == 2 * weights
        found: list[tuple[Any, Any]] = []
        for part in parts:
            part.register_forward_pre_hook(partial(_noted, found))
        with torch.no_grad():
            hidden = [training.student(TOKENS).hidden for training in pair]
        torch.testing.assert_close(*hidden, rtol=1e-4, atol=1e-5)
        assert len(found) == len(parts)
        for kept, weight in found:
            codes, scale = quantize_weights(weight.full_tensor())
            assert torch.equal(unpack_ternary(kept.packed, weight.shape[1]), codes.to(torch.int8))
            torch.testing.assert_close(kept.scale, scale, rtol=1e-6, atol=0)
        assert all(part.kept is part.whole is None for part in parts)


def _noted(found: list[tuple[Any, Any]], part: BitLinear, *_: object) -> None:
    found.append((part.kept, part.weight))


@contextmanager
def gathered() -> Iterator[Counter[torch.dtype]]:
    """Inside, bytes that this rank sends to be gathered are counted, by dtype, whoever asks for it."""
    sent: Counter[torch.dtype] = Counter()
    with ExitStack() as patches:
        # What torch 2.15 calls by the second name has only the first in torch 2.11.
        for name in ("all_gather_into_tensor", "all_gather_single"):
            if hasattr(dist, name):
                patches.enter_context(patch.object(dist, name, _counting(getattr(dist, name), sent)))
        yield sent


def _counting(function: Callable[..., Any], sent: Counter[torch.dtype]) -> Callable[..., Any]:
    def called(output_tensor: Tensor, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[input_tensor.dtype] += input_tensor.nbytes
        return function(output_tensor, input_tensor, *args, **kwargs)

    return called


def logits_come_under_the_threshold(ranks: Ranks) -> None:
    """For any alpha, however ranks cut through heads; each layer with the other left alone."""
    for family in FAMILIES:
        before = Training(ranks, family, sharded=False).logits()
        for number, alpha in ((0, 0.5), (1, 0.5), (0, 0.0), (0, 1.0))[: 4 if family == "GQA" else 1]:
            training = Training(ranks, family, sharded=True, alpha=alpha)
            clip, threshold = training.optimizer._clip, before[number].median().item()
            clip._threshold = threshold
            clip._layers = tuple(
                layer if index == number else AttentionHeads((), (), 1, normed=True)
                for index, layer in enumerate(clip._layers)
            )
            assert (training.logits()[number] > threshold).any(), family
            training.optimizer.step()
            after = training.logits()[number]
            assert (after <= threshold * (1 + 1e-5)).all(), f"{family}, alpha {alpha}: {after} > {threshold}"


def what_is_not_over_the_threshold_changes_no_bit(ranks: Ranks) -> None:
    """Trap 11: a negative maximum gave NaN."""
    for family in FAMILIES:
        training = Training(ranks, family, sharded=True)
        before = dict(training.everything())
        for largest in NOTHING_TO_CLIP:
            training.optimizer.zero_grad()
            training.optimizer._clip._maxima.values.fill_(largest)
            training.optimizer.step()
        assert differing(before, training.everything()) == [], family


def a_bad_value_in_one_ranks_part_leaves_no_trace(ranks: Ranks) -> None:
    """In weights, moments or step counts of any rank, and each counts it."""
    for muonclip in (True, False):
        training = Training(ranks, "GQA", sharded=True, muonclip=muonclip)
        guard = NonFiniteGuard(ranks.device)
        training.backward()
        training.optimizer.step()  # moments are there from now on
        for poison in (None, math.nan, None):
            loss = training.backward()
            parameters = list(training.model.parameters())
            if poison is not None and ranks.rank == ranks.world - 1:
                parameters[1].grad.to_local().view(-1)[0] = poison
            norm = clip_in_update(training.optimizer, 1.0)
            guard.judge(loss, norm, training.optimizer)
            set_learning_rate(training.optimizer, 1.0)
            before = copy.deepcopy(training.everything())
            training.optimizer.step()
            assert bool(differing(before, training.everything())) == (poison is None)
        assert guard.counts().tolist() == [1, 0]
        assert all(value.isfinite().all() for value in training.everything().values())


CHECKS: tuple[Callable[[Ranks], None], ...] = (
    each_rank_holds_its_part,
    steps_are_those_of_a_whole_model,
    quantized_layers_gather_codes,
    logits_come_under_the_threshold,
    what_is_not_over_the_threshold_changes_no_bit,
    a_bad_value_in_one_ranks_part_leaves_no_trace,
)


def joined(store: str, rank: int, world: int) -> Ranks:
    """This process among `world`, by way of a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    group = dist.group.WORLD
    assert group is not None
    return Ranks(rank, world, torch.device("cpu"), group)


if __name__ == "__main__":
    ranks = joined(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    for check in CHECKS:
        check(ranks)
    dist.barrier()
    dist.destroy_process_group()
