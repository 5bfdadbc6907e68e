"""Head and loss in one, over chunks of tokens: logits (N, V) never exist, and of a linear head the gradient
is made while a chunk's logits are there, so that no product is computed twice."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitnet_trainer.objectives.token_loss import CHUNK_TOKENS, sum_over_chunks
from bitnet_trainer.precision import product

CHUNK_BYTES = 5 * 2**28
"""Of a chunk's logits on CUDA: 1.25 GiB, which is 4,352 tokens in bfloat16 at V = 152k. Products of so many
tokens are at the card's full rate, and the weight's gradient is read and written seldom."""
_TILE = 128
"""Tokens that products on CUDA take together."""

LogitsLoss = Callable[..., Tensor]
"""A loss a token, `loss(logits, *rows, gradient=...)`: of logits (n, V), and of what else is known of each
token, (n, ...), it gives (n,), float32 or better. With `gradient`, its gradient is written over the logits;
else they stay as they are."""


def sum_over_tokens(
    loss: LogitsLoss,
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    *rows: Tensor,
    chunk_tokens: int | None = None,
    held: int = 1,
) -> Tensor:
    """Adds up `loss` of the logits `head(hidden)` over all tokens.

    Of a plain linear the weight is cast once, its gradient is added up in float32, and the backward pass only
    scales what the forward pass made; under `torch.no_grad` no gradient is made. Any other head is applied in
    the backward pass again.

    Args:
        loss: of the logits of a chunk of tokens.
        hidden: (N, D).
        head: (n, D) -> logits (n, V).
        rows: (N, ...) each, without gradient, cut along N as `hidden` is.
        chunk_tokens: n; as many as fit in CHUNK_BYTES on CUDA if not given, else CHUNK_TOKENS.
        held: how many (n, V) the loss has in memory at once, the logits being one.

    Returns:
        0-dim, float32 or better, with gradient.
    """
    linear = _plain_linear(head)
    if linear is None:
        return _of_any_head(loss, hidden, head, rows, chunk_tokens or CHUNK_TOKENS)
    dtype = _dtype_of_products(hidden)
    chunk = chunk_tokens or tokens_at_once(hidden, linear.out_features * dtype.itemsize * held)
    inputs = (hidden, linear.weight, linear.bias)
    if not _wants_gradient(*inputs):
        return _over_chunks(loss, chunk, dtype, inputs, rows, (False, False, False))[0]
    total: Tensor = _OfLinear.apply(loss, chunk, dtype, *inputs, *rows)
    return total


def _plain_linear(head: object) -> nn.Linear | None:
    """The head, if weight and bias are all that it does: no subclass, and nothing that watches it."""
    if type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks):
        return head
    return None


def _wants_gradient(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    """As a linear would have it."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def tokens_at_once(hidden: Tensor, token_bytes: int) -> int:
    """How many of N tokens (N, D) a chunk has, on CUDA for CHUNK_BYTES with so many of each token.

    All chunks have one size, so that none is left over for a short product.
    """
    if not hidden.is_cuda:
        return CHUNK_TOKENS
    most = max(CHUNK_BYTES // token_bytes // _TILE, 1) * _TILE
    chunks = -(-len(hidden) // most)
    return -(-len(hidden) // max(chunks, 1) // _TILE) * _TILE


class _OfLinear(torch.autograd.Function):
    """`_over_chunks`, with the gradients that it makes."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: LogitsLoss,
        chunk: int,
        dtype: torch.dtype,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *rows: Tensor,
    ) -> Tensor:
        total, gradients = _over_chunks(
            loss, chunk, dtype, (hidden, weight, bias), rows, ctx.needs_input_grad[3:6]
        )
        # Saved, and not kept as attributes, they are freed as soon as the backward pass has been here.
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        ctx.others = len(rows)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            # Not in place: whoever keeps the graph may come again.
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, None, None, *scaled, *[None] * ctx.others


@torch.no_grad()
def _over_chunks(
    loss: LogitsLoss,
    chunk: int,
    dtype: torch.dtype,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    rows: Sequence[Tensor],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The loss of all tokens, and its gradients with regard to those of the inputs that are wanted.

    Args:
        loss: as in `sum_over_tokens`, and `rows` too.
        chunk: tokens at a time.
        dtype: of the products' factors, and of the logits.
        inputs: hidden (N, D), weight (V, D), bias (V,).
        wanted: of which inputs.
    """
    hidden, weight, bias = inputs
    columns = len(weight)
    # Added up in float32: in bfloat16 each chunk would lose what is 1/256 of the sum so far.
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_weight = torch.zeros_like(weight, dtype=_longer(dtype)) if wanted[1] else None
    d_bias = torch.zeros_like(bias, dtype=_longer(dtype)) if bias is not None and wanted[2] else None
    total = torch.zeros((), device=hidden.device, dtype=_longer(dtype))
    weight = weight.to(dtype)
    # Rows that begin at whole 128 bytes: products of others are slow on CUDA.
    width = -(-columns // 64) * 64 if hidden.is_cuda else columns
    buffer = hidden.new_empty(min(chunk, len(hidden)), width, dtype=dtype)
    for begin in range(0, len(hidden), chunk):
        here = slice(begin, begin + chunk)
        x = hidden[here].to(dtype)
        logits = buffer[: len(x), :columns]
        if bias is None:
            torch.mm(x, weight.t(), out=logits)
        else:
            torch.addmm(bias.to(dtype), x, weight.t(), out=logits)
        total += loss(logits, *(each[here] for each in rows), gradient=any(wanted)).sum()
        if d_hidden is not None:
            d_hidden[here] = product(logits, weight, d_hidden.dtype)
        if d_weight is not None:
            _add_product(d_weight, logits.t(), x)
        if d_bias is not None:
            d_bias += logits.sum(0, dtype=d_bias.dtype)
    return total, (d_hidden, d_weight, d_bias)


def _longer(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, added up in the type of the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


# --- any other head


def _of_any_head(
    loss: LogitsLoss,
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    rows: Sequence[Tensor],
    chunk: int,
) -> Tensor:
    def of_chunk(hidden: Tensor, *rows: Tensor) -> Tensor:
        logits = head(hidden)
        if not _wants_gradient(logits):
            return loss(logits.contiguous(), *rows, gradient=False).sum()
        total: Tensor = _OfLogits.apply(loss, logits, *rows)
        return total

    return sum_over_chunks(of_chunk, hidden, *rows, chunk_rows=chunk)


class _OfLogits(torch.autograd.Function):
    """The sum of a loss of logits (n, V), with its gradient."""

    @staticmethod
    def forward(ctx: Any, loss: LogitsLoss, logits: Tensor, *rows: Tensor) -> Tensor:
        # Another's may be what the head gave.
        gradient = logits.clone(memory_format=torch.contiguous_format)
        total = loss(gradient, *rows, gradient=True).sum()
        ctx.save_for_backward(gradient)
        ctx.others = len(rows)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.saved_tensors[0] * scale, *[None] * ctx.others
