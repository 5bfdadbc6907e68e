"""Many ranks train what one does, each with the whole model (DDP) or its part (FSDP), as real processes."""

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from bitnet_crds import TerminationReport
from bitnet_trainer.models.packed import load_packed
from bitnet_trainer.objectives.manager import ObjectiveManager
from many_ranks import CRASHED, STEPS, VARIANTS, Part, Runs

TOLERANCE = 1e-5
"""Relative, of each step's loss: sums in another order round otherwise."""

MADE = (
    *((variant, "DDP", 1) for variant in VARIANTS),
    *((variant, "DDP", 2) for variant in ("AdamW", "Masked", "Layers")),
    *((variant, "FSDP", 2) for variant in VARIANTS),
    ("MuonClip", "FSDP", 4),
)
"""What is trained, how it is shared, by how many; CHAIN has MuonClip under DDP, on 2 and 4."""
CHAIN = (
    (1, "DDP", 2),
    (2, "DDP", 3),
    (2, "FSDP", 4),
    (4, "FSDP", 5),
    (4, "DDP", 6),
    (4, "FSDP", 7),
    (1, "DDP", None),
)
"""A run that goes on from what another number of ranks wrote, or as many that shared it the other way."""

many = pytest.mark.parametrize("name", [" ".join(map(str, made)) for made in MADE if made[2] > 1])


@dataclass(frozen=True)
class Trained:
    """What was trained."""

    parts: dict[str, Part]
    """By variant, way of sharing and ranks."""
    chain: Part
    word: TerminationReport
    """The last word of four ranks of which one crashed."""

    def expected(self, name: str) -> Part:
        """What a run should be as: the same on one rank, all sequences in one pass."""
        return self.parts[f"{name.split()[0]} DDP 1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every run of this file, in 1 + 2 + 4 processes."""
    runs = Runs(tmp_path_factory.mktemp("ranks"))
    parts = {
        f"{variant} {how} {ranks}": runs.part(
            # Two passes where tokens that count are spread unevenly.
            ranks,
            how,
            variant,
            8 // ranks // (2 if variant == "Masked" and ranks > 1 else 1),
        )
        for variant, how, ranks in MADE
    }
    chain = [runs.part(n, how, "MuonClip", 8 // n, name="chain", stop_at=stop) for n, how, stop in CHAIN]
    crash = runs.part(4, "FSDP", "AdamW", 2, name="crash", crash=2)

    def of(ranks: int) -> list[Part]:
        return [part for part in (*parts.values(), *chain[:-1]) if part.ranks == ranks]

    with pytest.MonkeyPatch.context() as patch:
        for part in of(1):
            runs.train_alone(part, patch)
        assert runs.train(*of(2)).exit_code == 0
        word = runs.train(*of(4), crash)
        runs.train_alone(chain[-1], patch)
    return Trained(parts, chain[-1], word)


def weights(part: Part, of: str = "model") -> dict[str, torch.Tensor]:
    """The model of the newest checkpoint, or the averages beside it."""
    whole = part.folder / "whole.pt"
    dcp_to_torch_save(part.checkpoint, whole)
    found: dict[str, torch.Tensor] = torch.load(whole)[of]
    return found


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To a five-hundredth of what an update of 5e-3 is; but for a few whose second moment is next to 0."""
    assert found.keys() == expected.keys()
    differences = torch.cat([(found[key] - weight).flatten().abs() for key, weight in expected.items()])
    assert differences.quantile(0.99) < 1e-5


@many
def test_the_losses_are_those_of_one_rank(trained, name):
    """1 x 8 sequences, 2 x 4, 4 x 2; Masked in two passes each, with other numbers of tokens that count."""
    expected = trained.expected(name).losses
    assert trained.parts[name].losses == pytest.approx(expected, rel=TOLERANCE)
    assert len(expected) == STEPS


@many
def test_the_weights_are_those_of_one_rank(trained, name):
    assert_near(weights(trained.parts[name]), weights(trained.expected(name)))


@many
def test_held_out_text_is_measured_alike(trained, name):
    """Also where the ranks do not divide the sequences: one that has none left goes along."""
    expected, found = (
        part.evaluation.model_dump(exclude_none=True)
        for part in (trained.expected(name), trained.parts[name])
    )
    assert found.keys() == expected.keys()
    for figure, value in expected.items():
        assert float(found[figure]) == pytest.approx(float(value), rel=1e-3), figure


def test_a_run_goes_on_under_other_ranks_and_the_other_way_of_sharing(trained):
    assert trained.chain.losses == pytest.approx(trained.expected("MuonClip DDP 1").losses, rel=TOLERANCE)
    for of in ("model", "average"):
        assert_near(weights(trained.chain, of), weights(trained.expected("MuonClip DDP 1"), of))


def test_a_crash_of_one_rank_ends_the_others(trained):
    """Which the launcher has waited for; the step that the others then stood in is in no checkpoint."""
    assert (trained.word.exit_code, trained.word.rank) == (CRASHED, 2)
    assert "rank 2 ended with exit code 42" in trained.word.message


@pytest.mark.parametrize("name", ["AdamW FSDP 2", "Layers FSDP 2", "Correction FSDP 2", "MuonClip FSDP 4"])
def test_what_sharded_ranks_write_is_the_model_whole(trained, name):
    """In stock classes, bit for bit what the checkpoint holds: the last weights, or their averages."""
    part, kept = trained.parts[name], weights(trained.parts[name])
    averaged = part.order.spec.averaging is not None
    if averaged:
        kept |= weights(part, "average")
    if "Correction" not in name:
        stored = load_file(part.folder / "export" / "huggingface" / "model.safetensors")
        assert len(stored) >= 20
        assert [key for key, value in stored.items() if not torch.equal(value, kept[key])] == []
        described = [
            json.loads((run.folder / "export" / "huggingface" / "config.json").read_text())
            for run in (part, trained.expected(name))
        ]
        assert described[0] == described[1]
    exported, inference = (
        load_packed(folder)[0]
        for folder in (part.folder / "export" / "packed", part.checkpoint / "inference")
    )
    tokens = torch.arange(2, 14)[None]
    assert torch.equal(exported(tokens).logits, inference(tokens).logits) != averaged
    reference, _ = load_packed(trained.expected(name).folder / "export" / "packed")
    assert type(exported) is type(reference)
    torch.testing.assert_close(exported(tokens).logits, reference(tokens).logits, rtol=0, atol=0.02)


@pytest.mark.parametrize(("name", "parts"), [("AdamW DDP 2", 1), ("AdamW FSDP 2", 2), ("MuonClip FSDP 4", 4)])
def test_ranks_that_share_parts_write_parts(trained, name, parts):
    """Weights and moments, each rank its own: FSDP is not DDP under another name."""
    held = FileSystemReader(trained.parts[name].checkpoint).read_metadata().state_dict_metadata
    matrices = {key: entry for key, entry in held.items() if key.endswith(("up_proj.weight", "exp_avg"))}
    assert len(matrices) > 2
    assert {len(entry.chunks) for entry in matrices.values()} == {parts}


def test_a_mean_of_means_would_show(trained, tmp_path, monkeypatch):
    """Were each pass normalised by its own tokens, the losses of Masked would differ by far more."""
    runs = Runs(tmp_path)
    called = ObjectiveManager.__call__

    def mean_of_means(self, batch, weights, normalisers):
        own = self.count([batch.cpu_rows], weights)
        return called(self, batch, weights, {name: 4 * own[name] for name in normalisers})

    monkeypatch.setattr(ObjectiveManager, "__call__", mean_of_means)
    part = runs.part(1, "DDP", "Masked", 2)
    runs.train_alone(part, monkeypatch)
    pairs = list(zip(part.losses, trained.expected("Masked DDP 2").losses, strict=True))[1:]
    print([abs(found / right - 1) for found, right in pairs])
    assert max(abs(found / right - 1) for found, right in pairs) > 10 * TOLERANCE
