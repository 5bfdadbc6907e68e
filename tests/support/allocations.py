"""What a stretch of torch code allocates: its largest tensor, and the most bytes alive at once."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the storages of all tensors that operators return, forward and backward, until they are freed.

    What was there before is not counted, nor what an operator takes and frees inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        """Elements of the largest tensor, whether it had memory of its own or not."""
        self.peak = 0
        """Bytes."""
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.numel())
                storage = leaf.untyped_storage()
                # A view's storage, or that of what is changed in place, was there already.
                if id(storage) not in before and id(storage) not in self._known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(id(storage))
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._remove, id(storage), storage.nbytes()).atexit = False

    def _remove(self, known: int, size: int) -> None:
        self._known.discard(known)
        self._live -= size
