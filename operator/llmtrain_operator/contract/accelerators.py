"""Accelerators by name: peak compute and memory, from their makers' data sheets.

Guarantee: dense figures without sparsity, for bf16 with fp32 accumulation. Limits: what the table does not name is
unknown, never guessed; no prices, which differ by a factor of three between sellers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_GB: Final = 10**9


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind. `peak`: dense bf16 FLOP/s. `memory`: bytes, as its maker counts them. `bandwidth`: of that memory, in
    bytes per second. `expected`: FLOP/s that a well configured run of a large model is seen to reach at least; None
    where there is no such experience."""

    name: str
    peak: float
    memory: int
    bandwidth: float
    expected: float | None = None


def _kind(name: str, tera_flops: float, gigabytes: int, bandwidth: float, expected: float | None = None) -> Accelerator:
    floor = expected * 1e12 if expected else None
    return Accelerator(name, tera_flops * 1e12, gigabytes * _GB, bandwidth * _GB, floor)


ACCELERATORS: Final = (
    _kind("GB200", 2500, 186, 8000),
    _kind("B200", 2250, 180, 8000),
    _kind("H200 NVL", 835, 141, 4800),
    _kind("H200", 989, 141, 4800),
    _kind("GH200", 989, 96, 4000),
    _kind("H100 PCIe", 756, 80, 2000),
    _kind("H100 NVL", 835, 94, 3900),
    _kind("H100", 989, 80, 3350),
    _kind("H800", 989, 80, 3350),
    _kind("H20", 148, 96, 4000),
    # EleutherAI, Transformer Math 101 (2023): below 115 TFLOP/s on an A100 something is probably misconfigured.
    _kind("A100 80GB", 312, 80, 2039, 115),
    _kind("A100", 312, 40, 1555, 115),
    _kind("A800", 312, 80, 2039, 115),
    _kind("A10G", 70, 24, 600),
    _kind("A10", 125, 24, 600),
    _kind("A30", 165, 24, 933),
    _kind("L40S", 362, 48, 864),
    _kind("L40", 181, 48, 864),
    _kind("L4", 121, 24, 300),
    _kind("RTX 4090", 165, 24, 1008),
    _kind("RTX 3090", 71, 24, 936),
    _kind("MI325X", 1307, 256, 6000),
    _kind("MI300X", 1307, 192, 5300),
    _kind("MI250X", 191.5, 64, 1638),
)
"""Of those with two dies, such as MI250X, one device is one die. The first whose name's words are all in a device's
name is the one, so the more special comes first."""

PRODUCT_LABELS: Final = (
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
)
"""Node labels that name the accelerator."""


def find(device: str) -> Accelerator | None:
    """The accelerator that a device's name or a node's product label means, such as `NVIDIA A100-SXM4-80GB`,
    `nvidia-h100-80gb` or `H100`; None for others."""
    words = _words(device)
    return next((each for each in ACCELERATORS if _words(each.name) <= words), None)


def _words(name: str) -> frozenset[str]:
    spaced = name.upper().replace("-", " ").replace("_", " ").replace("/", " ")
    return frozenset(spaced.split())
