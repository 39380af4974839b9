"""What a machine can do at best: its own matmul rate at a model's shapes, and what its maker publishes."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

SECONDS = 0.15  # of products for each shape
LEAST = 5  # products of a shape
# Dense 16-bit TFLOP/s without sparsity, from the makers' data sheets; the first name that is in the device's wins.
PUBLISHED = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "A40": 150,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}


def published_peak(name: str, dtype: torch.dtype) -> float | None:
    """TFLOP/s that the maker of a GPU publishes for dense 16-bit products; None for others."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    words = f"{name.replace('-', ' ')} "
    return next((float(rate) for known, rate in PUBLISHED.items() if f"{known} " in words), None)


def matmul_rate(
    shapes: Mapping[tuple[int, int], int], tokens: int, *, dtype: torch.dtype, device: torch.device
) -> float:
    """Operations per second of a model's own products, forward and for the gradient of the input, measured now.

    For each shape the median time of x W^T and of its gradient's g W, weighted by how often the model has the shape:
    all operations over all time.

    Args:
        shapes: (inputs, outputs) -> how many linear layers have them.
        tokens: rows of x, as many as a micro-batch has.
        dtype: of the products.
        device: where.
    """
    operations = seconds = 0.0
    for (inner, outer), count in shapes.items():
        x = torch.randn(tokens, inner, device=device, dtype=dtype)
        g = torch.randn(tokens, outer, device=device, dtype=dtype)
        w = torch.randn(outer, inner, device=device, dtype=dtype)
        operations += 2 * 2.0 * tokens * inner * outer * count
        seconds += count * (_median(lambda x=x, w=w: x @ w.t(), device) + _median(lambda g=g, w=w: g @ w, device))
    return operations / seconds


@torch.no_grad()
def _median(product: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds that a product takes."""
    product()
    _wait(device)
    taken: list[float] = []
    begun = time.perf_counter()
    repeat = 20 if device.type == "cuda" else 1  # so that starting and waiting weigh little
    while len(taken) < LEAST or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        for _ in range(repeat):
            product()
        _wait(device)
        taken.append((time.perf_counter() - start) / repeat)
    return statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
