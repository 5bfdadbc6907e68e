"""What a micro batch is made of: rows of tokens on the CPU, and which sequences they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_trainer.documents import cumulative_lengths

IGNORED = -100
"""Label of a position or row that nothing is learned from, as in transformers and torch."""


@dataclass(frozen=True)
class SequenceId:
    """One training sequence."""

    source: int
    """Index of the source."""
    epoch: int
    """How often the source had been read to its end before."""
    index: int
    """Index of the sequence in its source."""


@dataclass(frozen=True)
class Rows:
    """B sequences of S tokens, padded on the right where they are shorter."""

    input_ids: Tensor
    """(B, S) int64."""
    labels: Tensor
    """(B, S) int64, not shifted; IGNORED where a token is not to be predicted, as on padding."""
    attention_mask: Tensor | None = None
    """(B, S) int64: 1 for a token, 0 for padding; none where there is no padding."""
    position_ids: Tensor | None = None
    """(B, S) int64: each token's place in its document, where no document of a row sees another; none where
    a row is one text. Not together with an attention_mask."""
    documents: Tensor | None = None
    """(N + 1,) int32: the `cumulative_lengths` of position_ids, which are found on the way to a GPU."""
    classes: Tensor | None = None
    """(B,) int64: the label of each row, for classification."""
    ids: tuple[SequenceId, ...] = ()
    """Which sequence each row is; what is drawn at random for a row, or kept of it, goes by this."""

    @classmethod
    def of(cls, input_ids: Tensor, ids: Sequence[SequenceId] = ()) -> "Rows":
        """Rows without padding, every token of which is to be predicted."""
        return cls(input_ids=input_ids, labels=input_ids, ids=tuple(ids))

    @classmethod
    def of_documents(cls, input_ids: Tensor, end: int, ids: Sequence[SequenceId] = ()) -> "Rows":
        """Rows without padding, of documents that each end in the token `end` and see no other.

        A document that a row cuts in two is two. The first token of each is not to be predicted: the token
        before it is another document's.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        begins = F.pad(input_ids[:, :-1] == end, (1, 0))
        position_ids = places - torch.where(begins, places, 0).cummax(dim=1).values
        labels = input_ids.masked_fill(position_ids == 0, IGNORED)
        return cls(input_ids, labels, position_ids=position_ids, ids=tuple(ids))

    @property
    def tokens(self) -> Tensor:
        """(B, S) bool: where there is a token, and not padding."""
        if self.attention_mask is None:
            return torch.ones_like(self.input_ids, dtype=torch.bool)
        return self.attention_mask.bool()

    def __len__(self) -> int:
        """B."""
        return len(self.input_ids)

    def __getitem__(self, rows: slice) -> "Rows":
        """Some of the rows."""
        return replace(
            self,
            input_ids=self.input_ids[rows],
            labels=self.labels[rows],
            attention_mask=None if self.attention_mask is None else self.attention_mask[rows],
            position_ids=None if self.position_ids is None else self.position_ids[rows],
            documents=None,
            classes=None if self.classes is None else self.classes[rows],
            ids=self.ids[rows],
        )

    def share(self, rank: int, world: int) -> "Rows":
        """Every `world`-th row from `rank` on, and as many for each rank: where none is left, a row of which
        nothing counts. Ranks that hold parts of a model make all passes together."""
        own = self[rank::world]
        return own if len(own) == -(-len(self) // world) else own._with_an_empty_row(self[:1])

    def _with_an_empty_row(self, like: "Rows") -> "Rows":
        def joined(own: Tensor | None, more: Tensor | None) -> Tensor | None:
            return None if own is None or more is None else torch.cat((own, more))

        nothing = torch.full_like(like.labels, IGNORED)
        return replace(
            self,
            input_ids=torch.cat((self.input_ids, like.input_ids)),
            labels=torch.cat((self.labels, nothing)),
            attention_mask=joined(self.attention_mask, like.attention_mask),
            position_ids=joined(self.position_ids, like.position_ids),
            documents=None,
            classes=joined(self.classes, nothing[:, 0]),
            ids=self.ids + like.ids,
        )

    def to(self, device: torch.device) -> "Rows":
        """The same rows on a device, without the host waiting for it."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or device.type != "cuda" or tensor.is_cuda:
                return tensor
            # From memory that is not pinned the host would wait for all kernels before the copy, and for
            # ever for a collective whose other rank has died.
            return tensor.pin_memory().to(device, non_blocking=True)

        ids, labels = moved(self.input_ids), moved(self.labels)
        assert ids is not None
        assert labels is not None
        documents = self.documents
        if self.position_ids is not None and device.type == "cuda" and not self.position_ids.is_cuda:
            documents = moved(cumulative_lengths(self.position_ids))
        return replace(
            self,
            input_ids=ids,
            labels=labels,
            attention_mask=moved(self.attention_mask),
            position_ids=moved(self.position_ids),
            documents=documents,
            classes=moved(self.classes),
        )
