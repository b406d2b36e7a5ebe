"""Pope et al. 2022: what "Efficiently Scaling Transformer Inference" measured, as data.

arXiv:2211.05102: context limits (table 1), PaLM on TPU v4 (tables 2 and 3, section 4.4), how much
of the peak two layouts reach (figure 7), and FasterTransformer's times for a model of 530 billion
parameters on A100 (tables D.2 to D.4).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, final

from alpage.cost import Precision, Step, Terms, forward_terms
from alpage.hardware import Cluster, Mesh, resolve_cluster
from alpage.layout import LAYOUTS, Attention, attentions
from alpage.shapes import named_shape
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A forward step that the paper measured, in the layout that it chose.

    Attributes:
        name: model, phase and what else tells it from others.
        model: of the catalogue of shapes.
        lengths: of the mesh axes x, y and z.
        layout: of the blocks.
        over: what attention is cut over.
        step: what was computed.
        weights: their dtype.
        paper_s: seconds that were measured.
        paper_mfu: share of the peak, as the paper rounds it; None where it gives none.
        is_fitted: whether the constants of `alpage.cost` were fitted on it.
    """

    name: str
    model: str
    lengths: tuple[int, int, int]
    layout: str
    over: Literal["heads", "batch"]
    step: Step
    weights: str
    paper_s: float
    paper_mfu: float | None
    is_fitted: bool

    @property
    def shape(self) -> ModelShape:
        """Sizes of the model."""
        return named_shape(self.model)

    @property
    def mesh(self) -> Mesh:
        """The paper's devices along its axes."""
        x, y, z = self.lengths
        return self.cluster.mesh(x=x, y=y, z=z)

    @property
    def cluster(self) -> Cluster:
        """The paper's devices."""
        x, y, z = self.lengths
        return resolve_cluster(f"tpu-v4-{x * y * z}")

    @property
    def attention(self) -> Attention:
        """How the paper attends."""
        ways = attentions(LAYOUTS[self.layout])
        return ways[-1] if self.over == "batch" else ways[0]

    @property
    def precision(self) -> Precision:
        """The paper's dtypes."""
        return Precision(weights=self.weights)

    def terms(self) -> Terms:
        """Return what the model of cost gives for what the paper ran."""
        return forward_terms(self.shape, self.attention, self.mesh, self.step, self.precision)


def _prefill(num_sequences: int) -> Step:
    return Step(num_sequences=num_sequences, num_new_tokens=2048, num_past_tokens=0)


def _decode(num_sequences: int) -> Step:
    return Step(num_sequences=num_sequences, num_new_tokens=1, num_past_tokens=2048)


def _rows() -> tuple[Row, ...]:
    cube, slice_16, slice_8, slice_32 = (4, 4, 4), (2, 4, 2), (2, 2, 2), (4, 2, 4)
    low, high = _prefill(1), _prefill(512)
    bf16 = "bfloat16"
    # The paper gives decoding by 64 tokens. That of bfloat16 weights comes from section 4.4.
    fields = (
        ("540B, low-latency prefill", cube, "ws_2d", "heads", low, "int8", 0.29, 0.43),
        ("540B, low-latency decode", cube, "ws_2d", "batch", 64, "int8", 1.82 / 64, 0.14),
        ("540B, decode of bfloat16", cube, "ws_2d", "batch", 64, bf16, 0.0369, None),
        ("540B, high-throughput prefill", cube, "wg_xyz", "batch", high, bf16, 85.2, 0.76),
        ("540B, high-throughput decode", cube, "ws_2d", "batch", 512, bf16, 6.0 / 64, 0.33),
        ("62B, low-latency prefill", slice_16, "ws_2d", "heads", low, "int8", 0.16, 0.36),
        ("62B, low-latency decode", slice_16, "ws_2d", "batch", 32, "int8", 0.73 / 64, 0.08),
        ("62B, high-throughput prefill", slice_32, "wg_xyz", "batch", high, bf16, 20.2, 0.73),
        ("62B, high-throughput decode", slice_8, "ws_2d", "batch", 512, bf16, 5.1 / 64, 0.37),
    )  # fmt: skip
    return tuple(
        Row(
            name=name,
            model=f"palm-{name.partition(',')[0].lower()}",
            lengths=lengths,
            layout=layout,
            over=over,
            step=_decode(step) if isinstance(step, int) else step,
            weights=weights,
            paper_s=paper_s,
            paper_mfu=paper_mfu,
            is_fitted=name.startswith("540B") or name == "62B, low-latency prefill",
        )
        for name, lengths, layout, over, step, weights, paper_s, paper_mfu in fields
    )


# Tables 2 and 3, and a row from section 4.4.
ROWS: Final = _rows()

# Sections 1 and 4.4: 64 new tokens after 1920 that are cached, and 64 generated; and the share of
# the peak of 1984 tokens in and 64 out.
CHAT_S: Final = 1.9
OFFLINE_MFU: Final = 0.73
# Section 4.3: what decoding at batch 512 takes more with a serial block.
SERIAL_SHARE: Final = 0.14
# Figure 7 and its text: tokens between which gathering weights becomes the faster.
GATHER_FROM_TOKENS: Final = (250_000, 300_000)

# Table 1: tokens of context that fit when 30 % of the memory is for keys and values, by what is
# attended with, the sharding of attention, and the batch.
CONTEXTS: Final[Mapping[tuple[str, str, int], int]] = {
    ("multi-head", "heads", 128): 1320,
    ("multi-head", "heads", 512): 330,
    ("multi-query", "heads", 128): 660,
    ("multi-query", "heads", 512): 165,
    ("multi-query", "batch", 128): 43_000,
    ("multi-query", "batch", 512): 10_700,
}

# Figure 7: PaLM 540B prefilling so many tokens on 64 chips, share of the peak with weights
# stationary and with weights gathered, read off the drawing.
FIGURE_7: Final[Mapping[int, tuple[float, float]]] = {
    131_072: (0.30, 0.20),
    262_144: (0.38, 0.38),
    524_288: (0.42, 0.55),
    1_048_576: (0.50, 0.76),
}
