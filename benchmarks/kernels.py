"""The integer kernels against bf16 on the layers and attention of Stable Diffusion 2.1's U-Net at latents of 64 x 64.

    python benchmarks/kernels.py [--batch 1 4 16] [--peak-int8 TOPS] [--peak-bf16 TFLOPS] [--bandwidth TB/S]

bf16 is torch's own: cuBLAS and cuDNN, channels last. Integers are timed from a bf16 input to a bf16 output: quantizing
the activation and the product with bias, per tensor with static ranges (w8a8, w4a4) and per token with dynamic ones
("w4a4 tokens"); weights are symmetric per channel, activations asymmetric. Before a layer is timed, its int32 sums are
compared with the reference's. Attention is timed against torch's own, quantizing included, and compared with the
reference as well; its codes are int8 whatever the bits.

Times are medians in microseconds of CUDA graphs with cold caches; "roof" is the share of what the card could do at
best, by operations at its int8 (or bf16) peak or by bytes that have to move, whichever takes longer. Peaks are known
for H100, H200 and A100; give those of another card.

It needs a CUDA GPU. docs/integers.md has the figures of one.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from quantsr import kernels
from quantsr.kernels.operands import align, pack, part_sums
from quantsr.terminal import print_whole

DENSE = {"H200": (989, 1979, 4.8), "H100": (989, 1979, 3.35), "A100": (312, 624, 2.0)}
"""bf16 TFLOPS, int8 TOPS and TB/s of the SXM cards, dense, from their data sheets."""


@dataclass(frozen=True)
class Layer:
    """One layer: a convolution of ``side`` x ``side`` positions with a kernel of 1 or 3, or (0) a linear layer of
    ``side`` tokens an image."""

    name: str
    inputs: int
    outputs: int
    side: int
    kernel: int = 0
    stride: int = 1

    @property
    def window(self) -> kernels.Window:
        if not self.kernel:
            return kernels.Window()
        pad = self.kernel // 2
        return kernels.Window((self.kernel,) * 2, (self.stride,) * 2, (pad, pad), (1, 1))

    @property
    def positions(self) -> tuple[int, ...]:
        """Of one image's input."""
        return (self.side, self.side) if self.kernel else (self.side,)

    def rows(self, batch: int) -> int:
        """Positions of the output."""
        return batch * ((self.side // self.stride) ** 2 if self.kernel else self.side)


LAYERS = [
    Layer("conv 3x3", 320, 320, 64, 3),
    Layer("conv 3x3", 960, 320, 64, 3),
    Layer("conv 3x3", 640, 640, 32, 3),
    Layer("conv 3x3", 1920, 640, 32, 3),
    Layer("conv 3x3", 1280, 1280, 16, 3),
    Layer("conv 3x3", 2560, 1280, 16, 3),
    Layer("conv 3x3", 1280, 1280, 8, 3),
    Layer("conv 3x3 stride 2", 320, 320, 64, 3, 2),
    Layer("conv 1x1", 960, 320, 64, 1),
    Layer("conv 1x1", 2560, 1280, 16, 1),
    Layer("linear", 320, 320, 4096),
    Layer("linear", 320, 2560, 4096),
    Layer("linear", 1280, 320, 4096),
    Layer("linear", 640, 5120, 1024),
    Layer("linear", 2560, 640, 1024),
    Layer("linear", 1280, 10240, 256),
    Layer("linear", 5120, 1280, 256),
    Layer("linear (prompt)", 1024, 640, 77),
]


@dataclass(frozen=True)
class Attention:
    """Both products of attention, of the queries and keys of one image."""

    heads: int
    channels: int
    queries: int
    keys: int


ATTENTIONS = [
    Attention(5, 64, 4096, 4096),
    Attention(10, 64, 1024, 1024),
    Attention(20, 64, 256, 256),
    Attention(5, 64, 4096, 77),
    Attention(1, 512, 4096, 4096),  # The autoencoder's.
]


def roof(layer: Layer, batch: int, peak: float, bandwidth: float, weight_bytes: float) -> float:
    """The least seconds that a layer takes.

    Args:
        layer, batch: what is computed, from a 16-bit input to a 16-bit output.
        peak: operations per second, a multiplication and an addition being two.
        bandwidth: bytes per second.
        weight_bytes: of one weight.
    """
    taps, rows = max(1, layer.kernel) ** 2, layer.rows(batch)
    operations = 2 * rows * layer.outputs * layer.inputs * taps
    positions = batch * torch.Size(layer.positions).numel()
    moved = 2 * positions * layer.inputs + 2 * rows * layer.outputs
    return max(operations / peak, (moved + layer.inputs * layer.outputs * taps * weight_bytes) / bandwidth)


def activation(layer: Layer, batch: int, device: str) -> Tensor:
    """A bf16 input, channels last in memory: ``(tokens, c)`` or ``(b, h, w, c)``."""
    shape = (batch, *layer.positions) if layer.kernel else (batch * layer.side,)
    return torch.randn(*shape, layer.inputs, device=device, dtype=torch.bfloat16)


def in_bf16(layer: Layer, x: Tensor) -> Callable[[], Tensor]:
    """The call that torch is timed by."""
    kernel = (layer.kernel,) * 2 if layer.kernel else ()
    weight = torch.randn(layer.outputs, layer.inputs, *kernel, device=x.device, dtype=x.dtype)
    bias = torch.randn(layer.outputs, device=x.device, dtype=x.dtype)
    if not layer.kernel:
        return lambda: F.linear(x, weight, bias)
    images, weight = x.movedim(-1, 1), weight.contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(images, weight, bias, layer.stride, layer.kernel // 2)


def in_integers(
    layer: Layer, x: Tensor, bits: int, by_token: bool, backend: kernels.Backend = "auto"
) -> tuple[Callable[[], Tensor], Callable[[], bool]]:
    """The call that the kernels are timed by, and one that compares its sums with the reference's."""
    half, sizes, taps = 2 ** (bits - 1), (layer.inputs,), layer.window.taps
    codes = align(torch.randint(-half, half, (layer.outputs, taps, layer.inputs), dtype=torch.int8), sizes)
    stored = pack(codes) if bits <= 4 else codes
    tensors = [t.to(x.device) for t in (stored, part_sums(codes, sizes), torch.rand(layer.outputs, 1))]
    weight = kernels.QuantizedWeight(*tensors, zero=None, sizes=sizes, bits=bits)
    bias = torch.randn(layer.outputs, device=x.device)
    step, center = torch.full((1,), 4 / half, device=x.device), torch.full((1,), -2.0, device=x.device)
    shared = {"padding": layer.window.padding, "sums": False, "backend": backend}

    def quantized() -> kernels.QuantizedInput:
        if by_token:
            return kernels.quantize_tokens(x, bits, sizes, symmetric=False, **shared)
        return kernels.quantize(x, step, center, bits, sizes, **shared)

    def call() -> Tensor:
        return kernels.product(quantized(), weight, layer.window, bias, dtype=x.dtype, backend=backend)

    def exact() -> bool:
        found = [kernels.accumulate(quantized(), weight, layer.window, which) for which in (backend, "reference")]
        return torch.equal(*found)

    return call, exact


def attention_calls(
    case: Attention, batch: int, device: str, backend: kernels.Backend = "auto"
) -> tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], bool]]:
    """The calls that torch and the kernel are timed by, and one that compares the kernel with the reference."""
    lengths = (case.queries, case.keys, case.keys)
    q, k, v = (
        torch.randn(batch, n, case.heads, case.channels, device=device, dtype=torch.bfloat16).transpose(1, 2)
        for n in lengths
    )
    step, center = torch.full((1,), 4 / 128, device=device), torch.full((1,), -2.0, device=device)
    probabilities = kernels.Probabilities(step / 16, torch.full((1,), -128.0, device=device), 8)

    def attended(which: kernels.Backend) -> Tensor:
        factors = (kernels.quantize(x, step, center, 8, x.shape[-1:], backend=which) for x in (q, k, v.mT))
        return kernels.attention(*factors, probabilities, case.channels, q.dtype, which)

    def near() -> bool:
        """Whether all but few are equal: the last bit of a probability decides between two codes."""
        same = torch.isclose(attended(backend).float(), attended("reference").float(), rtol=0.02, atol=1e-3)
        return bool(same.float().mean() > 0.99)

    return lambda: F.scaled_dot_product_attention(q, k, v), lambda: attended(backend), near


def attention_roof(case: Attention, batch: int, peak: float, bandwidth: float) -> float:
    """The least seconds that attention takes, from 16-bit factors to a 16-bit result; see :func:`roof`."""
    rows = batch * case.heads * case.channels
    return max(4 * rows * case.queries * case.keys / peak, 4 * rows * (case.queries + case.keys) / bandwidth)


VARIANTS = {"w8a8": (8, False), "w4a4": (4, False), "w4a4 tokens": (4, True)}


def seconds_of(call: Callable[[], Tensor]) -> float:
    """Median of a call in a CUDA graph: what the GPU takes, without the time that Python takes to launch kernels."""
    from triton.testing import do_bench

    call()  # Compiles and chooses tiles, which a graph cannot record.
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return do_bench(graph.replay, return_mode="median") / 1e3


def measured(layer: Layer, batch: int, peaks: tuple[float, float, float]) -> Iterator[str]:
    """The cells of a layer's row."""
    x = activation(layer, batch, "cuda")
    plain = seconds_of(in_bf16(layer, x))
    yield f"{plain * 1e6:.0f}"
    yield f"{roof(layer, batch, peaks[0] * 1e12, peaks[2] * 1e12, 2) / plain:.0%}"
    for name, (bits, by_token) in VARIANTS.items():
        call, exact = in_integers(layer, x, bits, by_token)
        if not exact():
            sys.exit(f"{name} of {layer} does not compute the integers of the reference: nothing was timed")
        seconds = seconds_of(call)
        yield f"{seconds * 1e6:.0f}"
        yield f"{roof(layer, batch, peaks[1] * 1e12, peaks[2] * 1e12, bits / 8) / seconds:.0%}"
        yield f"{plain / seconds:.2f}"


def measured_attention(case: Attention, batch: int, peaks: tuple[float, float, float]) -> Iterator[str]:
    """The cells of attention's row."""
    plain_call, call, near = attention_calls(case, batch, "cuda")
    if not near():
        sys.exit(f"{case} is not what the reference computes: nothing was timed")
    plain, seconds = seconds_of(plain_call), seconds_of(call)
    for taken, peak in ((plain, peaks[0]), (seconds, peaks[1])):
        yield f"{taken * 1e6:.0f}"
        yield f"{attention_roof(case, batch, peak * 1e12, peaks[2] * 1e12) / taken:.0%}"
    yield f"{plain / seconds:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="images (default 1 4 16)")
    parser.add_argument("--peak-bf16", type=float, help="TFLOPS of the card, dense")
    parser.add_argument("--peak-int8", type=float, help="TOPS of the card, dense")
    parser.add_argument("--bandwidth", type=float, help="TB/s of the card")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("the kernels are timed on a CUDA GPU, and torch finds none here: run this where there is one")
    card = torch.cuda.get_device_name()
    known = next((peaks for name, peaks in DENSE.items() if name in card), (None, None, None))
    given = (args.peak_bf16, args.peak_int8, args.bandwidth)
    peaks = tuple(own or found for own, found in zip(given, known, strict=True))
    if None in peaks:
        parser.error(f"the peaks of {card} are not known here: give --peak-bf16, --peak-int8 and --bandwidth")
    for batch in args.batch:
        table = Table(box=None, pad_edge=False, title=f"{card}, batch {batch}: microseconds")
        table.add_column("layer", no_wrap=True)
        for title in ("bf16", "roof", *(f"{a}{b}" for a in VARIANTS for b in ("", "\nroof", "\nspeedup"))):
            table.add_column(title, justify="right", no_wrap=True)
        for layer in LAYERS:
            name = f"{layer.name} {layer.inputs}-{layer.outputs} at {layer.side}"
            table.add_row(name, *measured(layer, batch, peaks))
        for case in ATTENTIONS:
            name = f"attention {case.heads} x {case.channels}, {case.queries} by {case.keys}"
            table.add_row(name, *measured_attention(case, batch, peaks))
        print_whole(table)


if __name__ == "__main__":
    main()
