"""FasterTransformer: its times for a model of 530 billion parameters, and ours for the same runs.

Milliseconds that NVIDIA published for MT-NLG 530B on A100 of 80 GB, tensor-parallel over 16 and 32
of them, as tables D.2 to D.4 of Pope et al. 2022 (arXiv:2211.05102) repeat them. The times of three
pipeline stages of 8 are left out: `alpage.cost` prices steps that run on all devices.
"""

from collections.abc import Collection, Mapping
from typing import Final

from alpage.cost import Precision, Step, forward_terms
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.planners import Candidate, choose_layout
from alpage.shapes import named_shape

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Tokens in and out -> devices -> milliseconds for each batch; None where memory did not suffice.
MEASURED_MS: Final[Mapping[tuple[int, int], Mapping[int, tuple[int | None, ...]]]] = {
    (20, 8): {
        16: (565, 598, 616, 660, 730, 865, 1191, 1862, 3341),
        32: (431, 455, 493, 523, 575, 672, 942, 1431, 2483),
    },
    (60, 20): {
        16: (1379, 1515, 1512, 1631, 1868, 2361, 3383, 5406, None),
        32: (1037, 1110, 1198, 1295, 1454, 1804, 2646, 4099, 7203),
    },
    (128, 8): {
        16: (585, 667, 765, 990, 1377, 2251, 4002, None, None),
        32: (451, 508, 606, 766, 1074, 1741, 3114, 5784, 11_232),
    },
}
FITTED: Final = (60, 20)
# What section 5 of the paper and the tables give for the best share of the peak.
PEAK_MFU: Final[Mapping[int, float]] = {16: 0.46, 32: 0.33}

_HALF = Precision(weights="float16", compute="float16", kv="float16")


def run_s(num_devices: int, lengths: tuple[int, int], batch: int) -> float:
    """Return what the model of cost gives for a run of FasterTransformer.

    The first token comes from the prefill, and every other one from a step of its own.
    """
    num_in, num_out = lengths
    shape, attention = named_shape("mt-nlg-530b"), attentions(LAYOUTS["megatron"])[0]
    mesh = resolve_cluster(f"a100-{num_devices}").mesh(x=1, y=1, z=num_devices)
    return sum(
        forward_terms(shape, attention, mesh, step, _HALF).step_s
        for step in _steps(num_in, num_out, batch)
    )


def palm_run_s(lengths: tuple[int, int], batch: int, layouts: Collection[str]) -> float:
    """Return what the model of cost gives for PaLM 540B on 64 TPU v4.

    Args:
        lengths: tokens in and out.
        batch: sequences.
        layouts: of which each phase takes the best.
    """
    prefill, *decodes = _steps(*lengths, batch)
    shape, best = named_shape("palm-540b"), _fastest(decodes[-1], layouts)
    decode_s = sum(
        forward_terms(shape, best.attention, best.mesh, step, best.precision).step_s
        for step in decodes
    )
    return _fastest(prefill, layouts).step_s + decode_s


def mfu(model: str, cluster: str, lengths: tuple[int, int], batch: int, seconds: float) -> float:
    """Return the share of the peak of a run: two operations a weight and token, in and out."""
    where = resolve_cluster(cluster)
    peak = where.device.flops_per_s_of("bfloat16") * where.num_devices
    return 2 * named_shape(model).num_parameters * batch * sum(lengths) / (seconds * peak)


def _fastest(step: Step, layouts: Collection[str]) -> Candidate:
    choice = choose_layout(named_shape("palm-540b"), resolve_cluster("tpu-v4-64"), step)
    return next(one for one in choice.candidates if one.layout.name in layouts)


def _steps(num_in: int, num_out: int, batch: int) -> list[Step]:
    prefill = Step(num_sequences=batch, num_new_tokens=num_in, num_past_tokens=0)
    decodes = [
        Step(num_sequences=batch, num_new_tokens=1, num_past_tokens=num_past)
        for num_past in range(num_in, num_in + num_out - 1)
    ]
    return [prefill, *decodes]
