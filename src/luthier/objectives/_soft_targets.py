"""How far a student's distribution is from its teacher's (Hinton et al. 2015, section 2): over labels, and over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.decode import causal_model, logits
from luthier.objectives._loss import CHUNK
from luthier.objectives._teacher import TeacherHead

Direction = Literal["forward", "reverse"]


def divergence(student: Tensor, teacher: Tensor, temperature: float, direction: Direction) -> Tensor:
    """Sum over rows of KL(teacher || student) (forward) or KL(student || teacher) (reverse) of softmax(logits / temperature), in nats."""
    log_q = (student.float() / temperature).log_softmax(-1)
    log_p = (teacher.float() / temperature).log_softmax(-1)
    if direction == "forward":
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True)


@dataclass(frozen=True)
class TokenTerms:
    """Sums over tokens: ``value`` with its gradient; of it, the divergence (without T^2) and the cross-entropy."""

    value: Tensor
    divergence: float
    cross_entropy: float


@dataclass(frozen=True)
class Mixture:
    """alpha T^2 KL + (1 - alpha) cross-entropy."""

    alpha: float
    temperature: float
    direction: Direction


def token_terms(
    module: Any, hidden: Tensor, targets: Tensor, head: TeacherHead, states: Tensor, mixture: Mixture
) -> TokenTerms:
    """The mixture for tokens: ``hidden`` (tokens, width) of the student, ``states`` (tokens, the teacher's width) of the teacher.

    Logits of a few tokens exist at a time, and the gradient is made on the way, so that none are computed twice. Where one of the
    two heads has rows for more tokens than there are, the divergence is over what both have.
    """
    sums = [0.0, 0.0]

    def piece(part: Tensor, start: int) -> Tensor:
        stop = start + len(part)
        ours = logits(module, part).float()
        with torch.no_grad():
            theirs = logits(head, states[start:stop])
        both = min(ours.shape[-1], theirs.shape[-1])
        apart = divergence(ours[:, :both], theirs[:, :both], mixture.temperature, mixture.direction)
        right = F.cross_entropy(ours, targets[start:stop], reduction="sum")
        sums[0] += float(apart.detach())
        sums[1] += float(right.detach())
        return mixture.alpha * mixture.temperature**2 * apart + (1 - mixture.alpha) * right

    layer = causal_model(module).get_output_embeddings()
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    value = _InPieces.apply(piece, torch.is_grad_enabled(), hidden, *trained)  # type: ignore[no-untyped-call]
    return TokenTerms(value, *sums)


def soft_cross_entropy(
    module: Any, hidden: Tensor, teacher: Any, states: Tensor, temperature: float, weights: Tensor
) -> Tensor:
    """Sum over tokens of ``weights`` (tokens) times the cross-entropy of the student's softened distribution with the teacher's, in nats.

    ``hidden`` and ``states`` (tokens, width) are last hidden states of the language models ``module`` and ``teacher``; in pieces as ``token_terms``.
    """

    def piece(part: Tensor, start: int) -> Tensor:
        stop = start + len(part)
        ours = logits(module, part).float()
        with torch.no_grad():
            theirs = logits(teacher, states[start:stop]).float()
        both = min(ours.shape[-1], theirs.shape[-1])
        wanted = (theirs[:, :both] / temperature).softmax(-1)
        each = -(wanted * (ours[:, :both] / temperature).log_softmax(-1)).sum(-1)
        return (each * weights[start:stop]).sum()

    layer = causal_model(module).get_output_embeddings()
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    value: Tensor = _InPieces.apply(piece, torch.is_grad_enabled(), hidden, *trained)  # type: ignore[no-untyped-call]
    return value


@dataclass(frozen=True)
class Product:
    """Logits that are not made yet: ``features`` (tokens, width) @ ``weight`` (vocabulary, width) transposed + ``bias`` (vocabulary) or None."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self, features: Tensor) -> Tensor:
        """Of some of the features, fp32."""
        return F.linear(features, self.weight, self.bias).float()


def vocabulary_divergence(student: Product, teacher: Product, temperature: float) -> Tensor:
    """Sum over tokens of KL(teacher || student), softened, in nats; as ``token_terms`` does, a few tokens at a time and over what both have."""

    def piece(part: Tensor, start: int) -> Tensor:
        ours = student.logits(part)
        with torch.no_grad():
            theirs = teacher.logits(teacher.features[start : start + len(part)])
        both = min(ours.shape[-1], theirs.shape[-1])
        return divergence(ours[:, :both], theirs[:, :both], temperature, "forward")

    trained = [each for each in (student.weight, student.bias) if each is not None and each.requires_grad]
    value: Tensor = _InPieces.apply(piece, torch.is_grad_enabled(), student.features, *trained)  # type: ignore[no-untyped-call]
    return value


class _InPieces(torch.autograd.Function):
    """Sum of ``piece(rows of hidden)``, some rows at a time, with the gradients for hidden and parameters made on the way."""

    @staticmethod
    def forward(
        ctx: Any, piece: Callable[[Tensor, int], Tensor], learns: bool, hidden: Tensor, *parameters: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        learns = learns and any(ctx.needs_input_grad)
        grads = [torch.zeros_like(each, dtype=torch.float32) for each in parameters] if learns else []
        slope = torch.zeros_like(hidden) if learns else None
        for start in range(0, len(hidden), CHUNK):
            part = hidden[start : start + CHUNK]
            if slope is None:
                total += piece(part, start)
                continue
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                value = piece(part, start)
                found: Sequence[Tensor | None] = torch.autograd.grad(value, [part, *parameters], allow_unused=True)
            total += value.detach()
            if found[0] is not None:  # it is always read
                slope[start : start + CHUNK] = found[0]
            for grad, more in zip(grads, found[1:], strict=True):
                if more is not None:
                    grad.add_(more)
        ctx.save_for_backward(slope, *grads)
        ctx.dtypes = [each.dtype for each in parameters]
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        slope, *grads = ctx.saved_tensors
        scale = upstream[0]
        first = (slope * scale).to(slope.dtype)
        return (None, None, first, *((g * scale).to(kind) for g, kind in zip(grads, ctx.dtypes, strict=True)))
