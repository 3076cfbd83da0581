"""What devices can do: peaks from the vendors' data sheets, and which share of them transformers reach.

Two kinds of figures that are kept apart: `published`, which a vendor or a paper states, and `assumed`, which we take.
Nothing here was measured by this project; what is measured is the machine that the command runs on (`here.py`).
"""

from dataclasses import dataclass

from edgestill.errors import UserError, closest


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes:
        peak: FLOP/s of dense matrix products in bfloat16 (no sparsity, float32 accumulation).
        peak_float32: the same in float32.
        memory, bandwidth: bytes, and bytes a second.
        teacher, student: share of the peak that forward passes, and forward with backward, reach; waiting for other
            devices is in it.
        reserve: what an allocator takes, over the bytes that tensors hold.
        of: how the peak, the shares and the reserve are known: published, assumed, given or measured.
    """

    name: str
    peak: float
    peak_float32: float
    memory: int
    bandwidth: float
    teacher: float = 0.5
    student: float = 0.4
    reserve: float = 1.1
    of: tuple[str, str, str] = ("published", "assumed", "assumed")

    def rate(self, precision: str) -> float:
        """Peak FLOP/s in a precision, float32 or bf16."""
        return self.peak_float32 if precision == "float32" else self.peak


HERE = "here"
"""The machine that the command runs on, measured as it is asked for."""

HARDWARE = {
    one.name: one
    for one in (
        # NVIDIA A100 data sheet, 80 GB SXM. 163 of 312 TFLOP/s in training: Narayanan et al. 2021, arXiv 2104.04473.
        Hardware("a100-80gb", 312e12, 19.5e12, 80 * 10**9, 2.039e12, teacher=0.55, student=0.5),
        # NVIDIA H100 data sheet, SXM; half of the figures with sparsity. Of Llama 3's training, on up to
        # 16,384 of them, 38 to 43 % are stated: arXiv 2407.21783, table 4.
        Hardware("h100-sxm", 989.4e12, 66.9e12, 80 * 10**9, 3.35e12),
        # NVIDIA H200 data sheet, SXM: the H100's processor with more and faster memory.
        Hardware("h200", 989.4e12, 66.9e12, 141 * 10**9, 4.8e12),
        # NVIDIA L4 data sheet; half of the figure with sparsity.
        Hardware("l4", 121e12, 30.3e12, 24 * 10**9, 300e9),
        # NVIDIA Ada architecture whitepaper, appendix A: bfloat16 with float32 accumulation.
        Hardware("rtx-4090", 165.2e12, 82.6e12, 24 * 10**9, 1008e9, teacher=0.55, student=0.45),
    )
}


def hardware(name: str) -> Hardware:
    """A device by name. UserError for one that is not in the table.

    >>> hardware("h100-sxm").memory
    80000000000
    """
    if name not in HARDWARE:
        known = [*HARDWARE, HERE]
        raise UserError(f"hardware.name must be one of {', '.join(known)}; {name!r} came{closest(name, known)}")
    return HARDWARE[name]
