"""Base weights in 4 bits, and back.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3: a weight matrix is cut into blocks of ``blocksize`` numbers in
its own order; each block is divided by its largest magnitude and every number becomes the nearest of 16 levels (NF4: quantiles of the normal
distribution, appendix E; FP4: a 4-bit float). The largest magnitudes are numbers of their own, and double quantization holds them in 8 bits, 256 to
a second constant. A product first gives the weights back in the dtype of its input: 4.127 bits are held for each, no digit is computed in 4.

The levels and kernels are those of bitsandbytes, on CPUs and CUDA. Weights are rounded to bf16 before they are quantized, so that a base in fp32
and one in bf16 have the same 4 bits, and the mean that double quantization subtracts is summed in fp64, so that it does not depend on the
number of threads. The product itself is a plain one: the CPU kernels of bitsandbytes 0.50 misread rows that end within a block. An adapter that was trained on such a base is only right on the same one: ``models.attach`` sees to it.

What linear layers hold is quantized, and GPT-2's transposed ones; embeddings, the language-model head, norms, and experts that a model keeps in
one tensor stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.core.errors import MissingExtraError, UnsupportedError

KINDS = ("nf4", "fp4")
BLOCKSIZES = (64, 128, 256, 512, 1024)
_SECOND_BLOCK = 256
"""Magnitudes to a second constant: the paper's, and the only number that the kernels know."""


@dataclass(frozen=True)
class Quantization:
    """How a base is held: ``kind`` nf4 or fp4, ``double`` quantization of the magnitudes, weights in a block."""

    kind: str = "nf4"
    double: bool = True
    blocksize: int = 64

    @property
    def bits(self) -> float:
        """Bits a weight takes, its share of the constants included."""
        return 4 + (8 + 32 / _SECOND_BLOCK if self.double else 32) / self.blocksize

    def as_dict(self) -> dict[str, Any]:
        """Plain form for manifests."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any] | None) -> Quantization | None:
        """Inverse of ``as_dict``; None for a base that is not quantized. Raises UnsupportedError for a kind that is not known here."""
        if data is None:
            return None
        known = set(data) == set(asdict(Quantization()))
        if not known or data["kind"] not in KINDS or data["blocksize"] not in BLOCKSIZES:
            raise UnsupportedError(
                f"quantization must be {' or '.join(KINDS)} in blocks of {', '.join(map(str, BLOCKSIZES))}; got {dict(data)}",
                hint="Use the Luthier that wrote it.",
            )
        return Quantization(**data)


def library(purpose: str = "4-bit base weights") -> Any:
    """``bitsandbytes.functional``. Raises MissingExtraError, which says what it is for, when it is not installed."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(
        logging.ERROR
    )  # it misses a kernel that is not used here
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} need bitsandbytes, which is not installed", hint="pip install 'luthier[qlora]'"
        ) from error
    return functional


class QuantizedLinear(nn.Linear):
    """y = x W^T + b with W held in 4 bits; frozen.

    ``weight`` holds two numbers a byte, int8: some models cast their activations to the dtype of a layer's weight unless it is that. The
    constants are in ``state``, which dtype changes leave alone. ``transposed``: it was a GPT-2 layer.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, quantization: Quantization, *, transposed: bool = False
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.quantization, self.transposed = quantization, transposed
        packed, self.state = _pack(weight.detach(), quantization)
        self.weight = nn.Parameter(packed, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        """Shapes: input (..., in), result (..., out)."""
        if input.device.type == "cuda" and self.in_features % self.quantization.blocksize == 0:
            from bitsandbytes import matmul_4bit  # has kernels for few rows

            out: Tensor = matmul_4bit(input, self.weight.view(torch.uint8), self.state, bias=self.bias)
        elif torch.is_grad_enabled() and input.requires_grad:
            out = cast(Tensor, _Product.apply(input, self))  # type: ignore[no-untyped-call]
        else:
            out = nn.functional.linear(input, self.dequantized(input.dtype), self.bias)
        return out

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W in ``dtype``, shape (out, in): exactly what inputs of that dtype are multiplied with."""
        size, state = self.in_features * self.out_features, self.state
        magnitudes = state.absmax
        if state.nested:
            magnitudes = library().dequantize_blockwise(magnitudes, state.state2) + state.offset
        # blocks as rows: of rows that end within a block the CPU kernel makes other numbers than were quantized
        flat = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.weight.view(torch.uint8), magnitudes, state.blocksize, state.quant_type, self._rows(), dtype
        )
        return cast(Tensor, flat.view(-1)[:size].view(self.out_features, self.in_features))

    def _rows(self) -> tuple[int, int]:
        if self.in_features % self.quantization.blocksize == 0:
            return self.out_features, self.in_features
        return 2 * self.weight.numel() // self.quantization.blocksize, self.quantization.blocksize

    @property
    def held_bytes(self) -> float:
        """What W takes, constants included."""
        return self.in_features * self.out_features * self.quantization.bits / 8

    def extra_repr(self) -> str:
        """What ``print`` says about the layer."""
        return f"{super().extra_repr()}, {self.quantization.kind}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.state is not None:
            self.state.to(self.weight.device)
        return self


class _Product(torch.autograd.Function):
    """y = x W^T + b with W and b frozen; the backward pass dequantizes W again and so keeps nothing of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.dequantized(x.dtype), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantized(gradient.dtype), None


def _pack(weight: Tensor, quantization: Quantization) -> tuple[Tensor, Any]:
    """The packed numbers, (out * in / 2, 1) int8, the last block filled up with zeros; and bitsandbytes' state with the constants. On ``meta``
    only the shape is real."""
    missing = -weight.numel() % quantization.blocksize
    if weight.device.type == "meta":
        return torch.empty((weight.numel() + missing) // 2, 1, dtype=torch.int8, device="meta"), None
    if weight.device.type not in ("cpu", "cuda"):
        raise UnsupportedError(
            f"4-bit base weights are for cpu and cuda; got device {weight.device.type}", hint="train.device: cpu"
        )
    functional = library()
    flat = nn.functional.pad(weight.to(torch.bfloat16).float().reshape(-1), (0, missing))
    packed, state = functional.quantize_4bit(
        flat,
        blocksize=quantization.blocksize,
        compress_statistics=False,
        quant_type=quantization.kind,
    )
    if quantization.double:
        offset = state.absmax.double().mean().float()
        magnitudes, second = functional.quantize_blockwise(state.absmax - offset, blocksize=_SECOND_BLOCK)
        state = functional.QuantState(
            absmax=magnitudes,
            shape=state.shape,
            dtype=state.dtype,
            blocksize=state.blocksize,
            code=state.code,
            quant_type=state.quant_type,
            offset=offset,
            state2=second,
        )
    state.shape = weight.shape
    return packed.view(torch.int8), state


def quantize(module: Any, quantization: Quantization, device: torch.device | None = None) -> int:
    """Quantize the linear layers of a Hugging Face model in place, one after the other, on ``device`` (left out: where each is); returns how many.

    Raises MissingExtraError without bitsandbytes, UnsupportedError for devices that it has no kernels for.
    """
    from transformers.pytorch_utils import Conv1D

    library()
    head, count = module.get_output_embeddings(), 0
    for name, layer in list(module.named_modules()):
        transposed = type(layer) is Conv1D
        if layer is head or not (transposed or type(layer) is nn.Linear):
            continue
        weight = layer.weight.T if transposed else layer.weight
        bias = layer.bias
        if device is not None:
            weight, bias = weight.to(device), None if bias is None else bias.to(device)
        made = QuantizedLinear(weight, bias, quantization, transposed=transposed).train(layer.training)
        module.set_submodule(name, made)
        count += 1
    return count


def quantized_layers(module: Any) -> Iterator[tuple[str, QuantizedLinear]]:
    """Name and layer of all that ``module`` holds in 4 bits."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear))


def unseen(module: Any) -> int:
    """Weights that ``module`` has beyond the entries of its parameters: two of 4 bits are in one."""
    return sum(layer.in_features * layer.out_features - layer.weight.numel() for _, layer in quantized_layers(module))


def held_bytes(module: Any, bytes_each: int) -> float:
    """What the weights of ``module`` take, ``bytes_each`` those that are not in 4 bits."""
    packed = [layer for _, layer in quantized_layers(module)]
    plain = sum(p.numel() for p in module.parameters()) - sum(layer.weight.numel() for layer in packed)
    return float(plain * bytes_each + sum(layer.held_bytes for layer in packed))


def dequantize(module: Any) -> None:
    """Plain linear layers in fp32 in place of the quantized ones, inside adapters or not; ``restore_transposed`` comes after merging."""
    for name, layer in list(quantized_layers(module)):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(layer.dequantized(), requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
        plain.transposed = layer.transposed  # type: ignore[assignment]
        module.set_submodule(name, plain)


def restore_transposed(module: Any) -> None:
    """GPT-2's own layers where ``dequantize`` left plain ones, so that the model is what its config says."""
    from transformers.pytorch_utils import Conv1D

    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and getattr(layer, "transposed", False):
            made = Conv1D(layer.out_features, layer.in_features)
            made.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
            made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
            module.set_submodule(name, made)
