"""CPU: what the processor of this machine can do."""

from collections.abc import Collection
from pathlib import Path

# Instructions that multiply bfloat16, as Linux names them: AVX-512 and AMX on x86, the Arm extension.
_BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_features(root: Path = Path("/")) -> frozenset[str]:
    """Return the instruction sets that Linux names for this CPU; empty on other systems.

    Args:
        root: where /proc lies.
    """
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_bf16_compute(features: Collection[str]) -> bool:
    """Return whether such a CPU multiplies bfloat16 itself, and not by way of float32."""
    return not _BF16_FEATURES.isdisjoint(features)
