"""Efficiency: what programs reach of a device's best, in six numbers and a word a kind of device.

A product of [m, k] and [k, n] reaches `matmul * m/(m + half_rows) * k/(k + half_features) *
n/(n + half_features)` of the peak: small products start slowly and leave parts of the matrix units
idle. Nothing else bends the roofline.

Those of TPUs are fitted on six rows of Pope et al. 2022 (arXiv:2211.05102): the five of PaLM 540B
on 64 TPU v4 (table 2, and decoding with bfloat16 weights from section 4.4) and the low-latency
prefill of PaLM 62B on 16 (table 3). Those of GPUs are fitted on FasterTransformer's times for 60
tokens in and 20 out on 16 and 32 A100 (table D.3 there), which bends `half_features`, `memory` and
`hop_s`; `matmul` is that of TPUs, and `half_rows` as large as still lets memory, not arithmetic,
limit a product of one row. A hop of either takes with it what programs lose around a collective:
launches, synchronisation and small kernels. A CPU is described by what was measured on it, so it
reaches all of it; what it does one after the other is what our own program does.
`python -m benchmarks.paper_layouts` prints what the numbers predict beside what was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What is reached.

    Attributes:
        matmul: share of the peak that a large product reaches.
        half_rows: rows (tokens) with which a product reaches half of that.
        half_features: features with which it reaches half of that.
        memory: share of the memory bandwidth that reading weights or keys and values reaches.
        score_bytes: bytes that attention moves for each score; 0 where scores never reach memory.
        hop_s: seconds that a hop of a collective takes beside the link's own latency.
        is_asynchronous: whether all that moves in one round waits once, and weights are gathered
            while products run; else one thing follows the other.
    """

    matmul: float
    half_rows: float
    half_features: float
    memory: float
    score_bytes: float
    hop_s: float
    is_asynchronous: bool

    def of_matmul(self, m: float, k: float, n: float) -> float:
        """Return the share of the peak that a product reaches.

        >>> EFFICIENCIES["cpu"].of_matmul(64, 4096, 4096)
        1.0
        """
        features = k / (k + self.half_features) * (n / (n + self.half_features))
        return self.matmul * m / (m + self.half_rows) * features


EFFICIENCIES: Final[Mapping[str, Efficiency]] = MappingProxyType(
    {
        # Scores are written and read as float32, probabilities as bfloat16: 4 + 4 + 2 + 2 bytes.
        "tpu": Efficiency(
            matmul=0.85,
            half_rows=24,
            half_features=1300,
            memory=0.84,
            score_bytes=12,
            hop_s=4.9e-6,
            is_asynchronous=True,
        ),
        "gpu": Efficiency(
            matmul=0.85,
            half_rows=48,
            half_features=1200,
            memory=0.7,
            score_bytes=0,
            hop_s=12e-6,
            is_asynchronous=True,
        ),
        "cpu": Efficiency(
            matmul=1.0,
            half_rows=0,
            half_features=0,
            memory=1.0,
            score_bytes=0,
            hop_s=0.0,
            is_asynchronous=False,
        ),
    }
)
