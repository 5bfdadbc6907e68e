"""Influence: what moves the held-out loss down is measured, alike on all ranks, and gains weight."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitnet_trainer.data import Corpus, Cursor, influenced
from bitnet_trainer.data.packing import pack
from bitnet_trainer.influence import measure_alignments
from bitnet_trainer.ranks import Ranks

S = 16
USEFUL, NOISE = 0, 1


@pytest.fixture
def alone():
    """One rank, without a process group: nothing is to be settled with anybody."""
    return Ranks(0, 1, torch.device("cpu"), None)


@pytest.fixture
def corpus():
    """A source that counts by sevens, and one of tokens drawn at random; each of 120 + 30 sequences."""
    draw = random.Random(0)
    counting = [2 + (7 * place + draw.randrange(2)) % 58 for place in range(150 * S)]
    noise = [draw.randrange(2, 60) for _ in range(150 * S)]
    sources = tuple(
        pack(name, np.array(tokens, np.uint32), S, 0.2)
        for name, tokens in (("counting", counting), ("noise", noise))
    )
    return Corpus(sources, (1.0, 3.0), seed=0)


CURSOR = Cursor((5, 9), (0, 0))


def brute_force(model, corpus, target, sequences):
    """In float64, with plain backward passes over all parameters."""
    model = copy.deepcopy(model).double().eval()
    ends = {
        id(end.weight): end.weight for end in (model.get_input_embeddings(), model.get_output_embeddings())
    }

    def gradient(rows):
        model.zero_grad()
        for parameter in ends.values():
            parameter.requires_grad_(True)
        logits = model(input_ids=rows.input_ids, use_cache=False).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in ends.values()])

    weights = (
        corpus.weights if target is None else [float(source.name == target) for source in corpus.sources]
    )
    count = sequences * (len(corpus.sources) if target is None else 1)
    towards = gradient(corpus.held_out_rows(corpus.take_held_out(CURSOR, count, weights)))
    found = []
    for source in corpus.sources:
        only = [float(other is source) for other in corpus.sources]
        rows = corpus.rows(corpus.take(CURSOR.rebased(), sequences, only)[0])
        found.append(F.cosine_similarity(gradient(rows), towards, dim=0).item())
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target", [None, "noise"])
@pytest.mark.parametrize("frozen", [True, False])
def test_alignments_are_the_cosines_of_embedding_and_head(make_model, corpus, alone, tied, target, frozen):
    """Frozen too, as beside a low-rank correction."""
    model = make_model(tie_word_embeddings=tied)
    model.requires_grad_(not frozen)
    found = measure_alignments(model, corpus, CURSOR, alone, target=target, sequences=3)
    assert found == pytest.approx(brute_force(model, corpus, target, 3), abs=1e-5)
    assert {parameter.requires_grad for parameter in model.parameters()} == {not frozen}


def test_measuring_leaves_no_trace(make_model, corpus, alone):
    model = make_model("llama", attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    model.model.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = measure_alignments(model, corpus, CURSOR, alone)
    assert measure_alignments(model, corpus, CURSOR, alone) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.model.norm.weight.requires_grad
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert torch.equal(grads.pop("model.embed_tokens.weight"), torch.ones_like(model.lm_head.weight))
    assert set(grads.values()) == {None}


def test_a_failure_leaves_no_trace_either(make_model, corpus, alone):
    model = make_model().requires_grad_(False).train()

    def fail(*_):
        raise RuntimeError("out of memory")

    model.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_alignments(model, corpus, CURSOR, alone)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_gradient_that_is_not_finite_says_nothing(make_model, corpus, alone):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert measure_alignments(model, corpus, CURSOR, alone) == (0.0, 0.0)


TWO_RANKS = """
import json, pickle, sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from torch import nn
from bitnet_trainer.data import Cursor
from bitnet_trainer.influence import measure_alignments
from bitnet_trainer.ranks import Ranks

class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(61, 8), nn.Linear(8, 61)
    def get_input_embeddings(self):
        return self.embedding
    def get_output_embeddings(self):
        return self.head
    def forward(self, input_ids, position_ids, use_cache):
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.manual_seed(0)
model = Bigram()
with open(folder + "/corpus", "rb") as file:
    corpus = pickle.load(file)
dist.init_process_group("gloo", store=dist.FileStore(folder + "/store", 2), rank=rank, world_size=2)
together = Ranks(rank, 2, torch.device("cpu"), dist.group.WORLD)
alone = Ranks(0, 1, torch.device("cpu"), dist.group.WORLD)
found = [
    [
        measure_alignments(model, corpus, Cursor((5, 9), (0, 0)), ranks, target="counting", sequences=number)
        for number in (1, 5)
    ]
    for ranks in (together, alone)
]
print(json.dumps(found))
dist.destroy_process_group()
"""


def test_ranks_share_the_sequences_and_get_the_same_numbers(corpus, tmp_path):
    """Also where there are fewer sequences than ranks, and where they cannot be divided."""
    (tmp_path / "corpus").write_bytes(pickle.dumps(corpus))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    (first, alone), (second, _) = (json.loads(worker.communicate(timeout=180)[0]) for worker in workers)
    assert first == second
    assert np.array(first) == pytest.approx(np.array(alone), abs=1e-5)
    assert first[0] != first[1]


def train(model: nn.Module, corpus: Corpus, ranks: Ranks, policy: str) -> tuple[tuple[float, ...], Counter]:
    """30 steps of 8 sequences, measured every 5; the weights in effect at the end, and what was read."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    cursor, weights, read = Cursor.at_start(2), corpus.weights, Counter()
    for step in range(30):
        if policy == "Influence" and step and step % 5 == 0:
            alignments = measure_alignments(model, corpus, cursor, ranks, target="counting")
            weights, cursor = influenced(weights, alignments, smoothing=0.5), cursor.rebased()
        batch, cursor = corpus.take(cursor, 8, weights)
        read.update(id_.source for id_ in batch)
        rows = corpus.rows(batch)
        model(input_ids=rows.input_ids, labels=rows.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights, read


def test_the_useful_source_gains_weight_under_influence_and_under_that_policy_alone(
    make_model, corpus, alone
):
    """It begins with a third of the noise's."""
    weights, read = train(make_model(), corpus, alone, "Influence")
    assert weights[USEFUL] > 4 * weights[NOISE]
    assert read[USEFUL] > read[NOISE]
    still, read = train(make_model(), corpus, alone, "Static")
    assert still == corpus.weights
    assert read == {USEFUL: 60, NOISE: 180}
