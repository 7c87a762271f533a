"""The machine that a plan is for: data sheet numbers, and assumptions about what share of them a job reaches.

Nothing here was measured by this project. The numbers of a device are its vendor's; the efficiencies are round figures
of the size that users of Megatron report, and every one can be replaced: `replace(preset("h100"), gemm_efficiency=0.6)`.
"""

import dataclasses
from dataclasses import dataclass

from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class Hardware:
    """One GPU and its links. Rates are per GPU and, for links, in one direction."""

    name: str
    bf16_flops: float
    """FLOPs a second in dense bf16 GEMMs, without sparsity."""
    fp8_flops: float | None
    """The same in FP8; None where the device has none."""
    memory_bytes: float
    memory_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second that a GPU sends within its node."""
    network_bandwidth: float
    """Bytes a second that a GPU's share of the network cards sends to other nodes."""
    gpus_per_node: int = 8

    host_bandwidth: float = 25e9
    """Assumption: bytes a second between a GPU and the host's memory, and what a GPU's share of the host's processors
    reads and writes there."""
    gemm_efficiency: float = 0.70
    """Assumption: share of the peak that large dense GEMMs reach (projections, output layer)."""
    attention_efficiency: float = 0.55
    """Assumption: the same of fused attention, counted over the causal half."""
    expert_efficiency: float = 0.55
    """Assumption: the same of grouped GEMMs of wide experts (F of `wide_expert` and more)."""
    narrow_expert_efficiency: float = 0.30
    """Assumption: the same of grouped GEMMs of the narrowest experts (F towards 0); between the two it rises with F."""
    wide_expert: int = 2048
    """Assumption: hidden size of an expert from which it counts as wide."""
    fp8_efficiency: float = 0.75
    """Assumption: what FP8 reaches of those shares, casts and scaling included."""
    memory_efficiency: float = 0.80
    """Assumption: share of the memory bandwidth that element-wise kernels reach."""
    link_efficiency: float = 0.75
    """Assumption: share of the links that collectives within a node reach."""
    network_efficiency: float = 0.70
    """Assumption: share of the network that collectives across nodes reach."""
    kernel_seconds: float = 5e-6
    """Assumption: the least that a kernel takes, its launch included; small layers are bound by it."""
    usable_memory: float = 0.92
    """Assumption: share of the memory that is left beside the context, communication buffers and fragmentation."""

    def expert_share(self, ffn: int) -> float:
        """Efficiency of a grouped GEMM of experts with this hidden size."""
        width = min(1.0, ffn / self.wide_expert)
        return self.narrow_expert_efficiency + width * (self.expert_efficiency - self.narrow_expert_efficiency)

    def assumptions(self) -> dict[str, float]:
        """The assumed values by name, for a report to state."""
        return {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if "efficiency" in item.name
            or item.name in ("wide_expert", "kernel_seconds", "usable_memory", "host_bandwidth")
        }


PRESETS = (
    # NVIDIA A100 80GB SXM data sheet; NVLink 600 GB/s both ways; DGX A100: one 200 Gb/s card a GPU.
    Hardware("a100", 312e12, None, 80e9, 2.039e12, 300e9, 25e9),
    # NVIDIA H100 SXM data sheet, without sparsity; NVLink 900 GB/s both ways; DGX H100: one 400 Gb/s card a GPU.
    Hardware("h100", 989.4e12, 1978.9e12, 80e9, 3.35e12, 450e9, 50e9),
    # NVIDIA H200 SXM data sheet; links as H100.
    Hardware("h200", 989.4e12, 1978.9e12, 141e9, 4.8e12, 450e9, 50e9),
    # NVIDIA DGX B200 data sheet divided by 8; NVLink 1.8 TB/s both ways; one 400 Gb/s card a GPU.
    Hardware("b200", 2250e12, 4500e12, 180e9, 8.0e12, 900e9, 50e9),
    # NVIDIA GB200 NVL72 data sheet divided by 72; NVLink as B200's, among the GPUs of a rack and not of a node alone.
    Hardware("gb200", 2500e12, 5000e12, 186e9, 8.0e12, 900e9, 50e9, 72),
    # AMD Instinct MI300X data sheet; 7 links of 64 GB/s each way to the node's other GPUs; one 400 Gb/s card a GPU.
    Hardware("mi300x", 1307.4e12, 2614.9e12, 192e9, 5.3e12, 448e9, 50e9),
)


def preset(name: str) -> Hardware:
    """Hardware by name.

    Raises:
        CompeteError: there is no preset of this name.
    """
    for hardware in PRESETS:
        if hardware.name == name.lower():
            return hardware
    raise CompeteError(f"--gpu {name} is unknown: choose from {', '.join(known.name for known in PRESETS)}")
