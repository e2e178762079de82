"""GPU types that a run can be predicted for: memory, bandwidth, arithmetic, an assumed price.

Sources: the vendor's data sheets, dense bfloat16 without sparsity, SXM modules where there are
several (A100 40 and 80 GB, H100, H200, B200 as in an HGX board; L4, L40S and A10G as PCIe cards).
Prices are assumptions of the order that clouds ask on demand; they differ widely and change:
`--gpu-price` says yours.
"""

from dataclasses import dataclass

from jobs.data import did_you_mean
from search.errors import RecipeError

# What large reads and large matrix products reach of the data sheet's peaks. Assumed, on the
# cautious side of what vendors' own kernels show; a measured `timing` in the recipe replaces it.
REACHED_BANDWIDTH = 0.8
REACHED_FLOPS = 0.5


@dataclass(frozen=True, slots=True)
class GPUType:
    """One GPU: memory in GiB, bandwidth in GB/s, TFLOP/s, and an assumed price of an hour."""

    name: str
    memory_gib: float
    bandwidth_gb_s: float
    tflops: float
    usd_per_hour: float

    @property
    def bytes_per_s(self) -> float:
        """Memory traffic that is reached."""
        return REACHED_BANDWIDTH * self.bandwidth_gb_s * 1e9

    @property
    def flops_per_s(self) -> float:
        """Arithmetic that is reached."""
        return REACHED_FLOPS * self.tflops * 1e12


GPU_TYPES = {
    gpu.name: gpu
    for gpu in (
        GPUType("b200", 180, 8000, 2250, 6.00),
        GPUType("h200", 141, 4800, 989, 4.00),
        GPUType("h100", 80, 3350, 989, 3.00),
        GPUType("a100-80", 80, 2039, 312, 1.80),
        GPUType("a100-40", 40, 1555, 312, 1.30),
        GPUType("l40s", 48, 864, 362, 1.20),
        GPUType("a10g", 24, 600, 70, 1.00),
        GPUType("l4", 24, 300, 121, 0.70),
    )
}


# Ray's names of accelerators that are not ours in capitals; its A100 may be either.
_OF_RAY = {"A100-80G": "a100-80", "A100-40G": "a100-40"}


def type_of_accelerator(name: str) -> GPUType | None:
    """The type that Ray calls by that name; None for one that is not known."""
    return GPU_TYPES.get(_OF_RAY.get(name, name.lower()))


def gpu_type(name: str) -> GPUType:
    """The type of that name, in any case; raises RecipeError for one that is not known."""
    known = GPU_TYPES.get(name.lower())
    if known is None:
        hint = did_you_mean(name.lower(), list(GPU_TYPES))
        raise RecipeError(f"unknown GPU type {name!r}: {hint}")
    return known
