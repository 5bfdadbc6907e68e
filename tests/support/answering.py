"""A language model of a few lines that answers as objectives ask, and rows for it to answer."""

from collections.abc import Callable, Iterator

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitnet_trainer.answer import Answer, Capture, Projections
from bitnet_trainer.batch import IGNORED, Rows, SequenceId
from bitnet_trainer.objectives.micro_batch import MicroBatch
from bitnet_trainer.objectives.top_k import TopK, top_k_of

CPU = torch.device("cpu")
VOCABULARY = 11
MASK = VOCABULARY - 1
"""In no text."""

few = settings(max_examples=25, deadline=None)
"""For properties whose twin is slow."""


class SmallModel(nn.Module):
    """Causal: a token sees the mean of the values up to itself. Float64."""

    def __init__(
        self, seed: int, *, layers: int = 4, width: int = 8, widths: tuple[int, int, int] = (8, 4, 4)
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([*(nn.Linear(width, own) for own in widths), nn.Linear(widths[2], width)])
            for _ in range(layers)
        )
        self.head = nn.Linear(width, VOCABULARY)
        self.double()
        self.seen: list[Tensor] = []

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002
        capture: Capture,
        position_ids: Tensor | None = None,  # noqa: ARG002
        documents: Tensor | None = None,  # noqa: ARG002
    ) -> Answer:
        self.seen.append(input_ids.clone())
        places = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        x, states, kept = self.embedding(input_ids), [], {}
        for number, (queries, keys, values, out) in enumerate(self.layers):
            if number in capture.projections:
                kept[number] = Projections(queries(x), keys(x), values(x))
            x = x + torch.tanh(out(values(x).cumsum(1) / places))
            states.append(x)
        return Answer(x, self.head, tuple(states) if capture.hidden_states else (), kept)


class SmallTeacher:
    """A small model as a teacher that is loaded."""

    def __init__(self, model: SmallModel) -> None:
        self.model = model

    @property
    def layers(self) -> int:
        return len(self.model.layers)

    @torch.no_grad()
    def answer(self, rows: Rows, capture: Capture) -> Answer:
        return self.model(rows.input_ids, rows.attention_mask, capture)

    def top_k(self, rows: Rows, answer: Callable[[], Answer], k: int, temperature: float) -> TopK:  # noqa: ARG002
        return top_k_of(answer().hidden, answer().head, k, temperature)


def batch_of(student: SmallModel, rows: Rows, objective, teacher: SmallModel | None = None) -> MicroBatch:
    """A micro batch that keeps what one objective wants kept."""
    layers = len(student.layers)
    return MicroBatch(
        student,
        rows,
        CPU,
        layers=layers,
        teacher=None if teacher is None else SmallTeacher(teacher),
        capture=objective.capture(layers),
    )


def rows_of(*lengths: int, seed: int = 0, padded_to: int | None = None) -> Rows:
    """Random text of so many tokens a row; padding is the token 0, which is in the text too."""
    length = padded_to or max(lengths)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.arange(length) < torch.tensor(lengths)[:, None]
    text = torch.randint(MASK, (len(lengths), length), generator=generator) * tokens
    return Rows(
        input_ids=text,
        labels=text.masked_fill(~tokens, IGNORED),
        attention_mask=None if tokens.all() else tokens.long(),
        ids=tuple(SequenceId(source=0, epoch=0, index=100 * seed + row) for row in range(len(lengths))),
    )


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Rows of 0 to 9 tokens, some tokens IGNORED."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    rows = rows_of(*lengths, seed=draw(st.integers(0, 10_000)))
    ignored = torch.rand(rows.labels.shape, generator=torch.Generator().manual_seed(len(lengths)))
    return Rows(
        rows.input_ids,
        rows.labels.masked_fill(ignored < draw(st.sampled_from([0.0, 0.3, 1.0])), IGNORED),
        rows.attention_mask,
        ids=rows.ids,
    )


def predicted(labels: Tensor) -> Iterator[tuple[int, int, int]]:
    """Where something is predicted: (row, place, the token after it)."""
    for row, tokens in enumerate(labels.tolist()):
        for place in range(len(tokens) - 1):
            if tokens[place + 1] != IGNORED:
                yield row, place, tokens[place + 1]


def gradients_of(total: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """By parameter; 0 where there is none."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(
        total, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, found, strict=True))


def assert_same(found: Tensor, twin: Tensor, model: nn.Module) -> None:
    """The same value, and the same gradient for all of the model's parameters."""
    torch.testing.assert_close(found, twin)
    if not twin.requires_grad:
        assert not twin, "only a sum of nothing has no gradient"
        twin = twin + sum(0 * parameter.sum() for parameter in model.parameters())
    torch.testing.assert_close(gradients_of(found, model), gradients_of(twin, model))
