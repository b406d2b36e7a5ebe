"""Scaling: what an output token costs, by the tokens before it and the sequences beside it.

    python -m benchmarks.scaling smollm2-135m

Steps of the engine's own runner that give every sequence one token, over pages that hold noise.
The floor is what bytes and operations of such a step take at this machine's ceilings.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from alpage import LLM, SamplingParams
from alpage.cli.load_plot import Curve, Plot, draw
from alpage.cli.page import to_page, write_page
from alpage.cost import roofline_s, step_bytes, step_flops
from alpage.ops.kv import scale_bytes
from alpage.runtime import Ceilings, measure_ceilings
from alpage.serve.batch import Batch, Opened, Row
from alpage.serve.runner import Runner
from alpage.serve.slots import DrawRule
from benchmarks.results_file import save, to_markdown

_CONTEXTS = (256, 1024, 2048, 4096, 8192)
_BATCHES = (1, 8, 32, 128)
_BUDGET_S = 3.0
_MIN_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Steps of `batch` sequences of `context` tokens each.

    Attributes:
        step_s: the median.
        floor_s: the least that the ceilings allow.
    """

    batch: int
    context: int
    step_s: float
    floor_s: float

    @property
    def token_s(self) -> float:
        """Of a step, for each token that comes of it."""
        return self.step_s / self.batch


def steps_s(runner: Runner, batch: int, context: int) -> Iterator[float]:
    """Yield how long steps take."""
    size = runner.pool.page_size
    pages_each = -(-context // size)
    for slot in range(batch):
        runner.open(str(slot), DrawRule(params=SamplingParams(temperature=0), seed=0, end_ids=()))
    opened = tuple(Opened(slot, str(slot), (1,)) for slot in range(batch))
    rows = tuple(
        Row(
            request_id=str(slot),
            slot=slot,
            index=0,
            start=context - 1,
            tokens=(1 + slot,),
            page_start=0,
            pages=tuple(range(slot * pages_each, (slot + 1) * pages_each)),
            num_draws=1,
        )
        for slot in range(batch)
    )
    runner.run(Batch(opened=opened, rows=rows))
    begin_s, num_steps = time.perf_counter(), 0
    while num_steps < _MIN_STEPS or time.perf_counter() - begin_s < _BUDGET_S:
        start_s = time.perf_counter()
        runner.run(Batch(rows=rows))
        yield time.perf_counter() - start_s
        num_steps += 1
    for slot in range(batch):
        runner.close(str(slot))


def floor_s(runner: Runner, batch: int, context: int, ceilings: Ceilings) -> float:
    """Return the least that a step could take."""
    profile = runner.profile
    flops = step_flops(
        profile.shape,
        num_tokens=batch,
        num_attended_pairs=batch * context,
        num_logit_rows=batch,
    )
    num_bytes = step_bytes(
        profile.shape,
        num_tokens=batch,
        num_kv_tokens_read=batch * (context - 1),
        weight_element_bytes=profile.weight_element_bytes,
        kv_element_bytes=profile.kv_dtype.itemsize,
        kv_scale_bytes=scale_bytes(profile.kv_dtype),
    )
    return roofline_s(
        flops,
        num_bytes,
        flops_per_s=ceilings.matmul_flops_per_s,
        bytes_per_s=ceilings.memory_bytes_per_s,
    )


def measure(runner: Runner) -> list[Point]:
    """Return every context and batch for which there are pages."""
    profile = runner.profile
    points = []
    for batch in _BATCHES:
        for context in _CONTEXTS:
            if batch * -(-context // runner.pool.page_size) > runner.pool.num_pages:
                continue
            ceilings = measure_ceilings(profile.device, profile.dtype, profile.quantization)
            step_s = median(steps_s(runner, batch, context))
            least_s = floor_s(runner, batch, context, ceilings)
            points.append(Point(batch=batch, context=context, step_s=step_s, floor_s=least_s))
            print(f"{batch} x {context:,}: {step_s * 1e3:.1f} ms, floor {least_s * 1e3:.1f} ms")
    return points


def to_rows(points: list[Point]) -> list[dict[str, str]]:
    """Return a line for each batch: milliseconds a token, and the floor's share of them."""
    by_place = {(point.batch, point.context): point for point in points}
    rows = []
    for batch in _BATCHES:
        row = {"sequences": str(batch)}
        for context in _CONTEXTS:
            point = by_place.get((batch, context))
            text = "-"
            if point is not None:
                share = point.floor_s / point.step_s
                text = f"{point.token_s * 1e3:.2f} ms ({share:.0%})"
            row[f"{context:,} tokens"] = text
        rows.append(row)
    return rows


def to_plot(points: list[Point]) -> str:
    """Return curves of steps over contexts, one for each batch."""
    curves = [
        Curve(
            name=f"{batch} sequences",
            points=[(p.context, p.step_s / batch * 1e3) for p in points if p.batch == batch],
            has_dots=True,
        )
        for batch in _BATCHES
    ]
    return draw(Plot(title="Cost of a token", across="tokens before it", up="ms", curves=curves))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--kv-memory", default="6.5GB")
    parser.add_argument("--quantization")
    asked = parser.parse_args()
    llm = LLM(asked.model, kv_memory=asked.kv_memory, quantization=asked.quantization)
    (engine,) = llm.engine.engines
    assert isinstance(engine.runner, Runner)
    # Pages that nobody has written to are one page of zeros, which no memory is read for.
    engine.runner.pool.kv_L2PGSK.normal_()
    points = measure(engine.runner)
    rows = to_rows(points)
    table = to_markdown(rows)
    print(table)
    figures = [
        {"batch": p.batch, "context": p.context, "step_s": p.step_s, "floor_s": p.floor_s}
        for p in points
    ]
    save("scaling", {"model": asked.model, "rows": figures}, table)
    footer = "<p>python -m benchmarks.scaling</p>"
    text = to_page("Cost of a token", "<h1>Cost of a token</h1>", to_plot(points), footer)
    write_page(Path(__file__).parent / "results" / "scaling.html", text)


if __name__ == "__main__":
    main()
