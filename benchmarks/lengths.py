"""Lengths: how many tokens the requests of known workloads have.

The data sets of the paged-attention paper are not redistributed here. The paper has their means
(Kwon et al. 2023, arXiv:2309.06180, figure 11): ShareGPT 161.31 tokens in and 337.99 out, Alpaca
19.31 in and 58.45 out. Lengths of these means are drawn from lognormal distributions, whose sigmas
the paper does not have. Alpaca's come from the first 43 records of the data set, instruction and
input together, tokens roughly counted: for prompts the spread of the logarithms and the one that
the coefficient of variation implies agree on 0.55; for outputs the former is 1.2, the latter 0.8,
and 1.0 lies between. ShareGPT's are assumed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from alpage.workload_file import load_workload

Lengths: TypeAlias = list[tuple[int, int]]  # prompt and output tokens of each request


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """Lengths with a mean, a spread and bounds.

    Attributes:
        mean: of the lengths, after clipping.
        sigma: standard deviation of their logarithm, before clipping.
        low: the least length.
        high: the greatest length.
    """

    mean: float
    sigma: float
    low: int
    high: int

    def draw(self, num_lengths: int, rng: np.random.Generator) -> list[int]:
        """Return lengths whose sum is `num_lengths * mean`, rounded.

        Clipping moves the mean, so the scale is found by bisection; what rounding leaves over goes
        to the first lengths that have room for it, one token each.
        """
        shape = np.exp(rng.normal(0.0, self.sigma, num_lengths))
        wanted = round(num_lengths * self.mean)
        smallest, largest = 0.0, self.high / shape.min()
        for _ in range(64):
            middle = (smallest + largest) / 2
            is_low = self._scaled(shape, middle).sum() < wanted
            smallest, largest = (middle, largest) if is_low else (smallest, middle)
        lengths = self._scaled(shape, smallest)
        missing = wanted - int(lengths.sum())
        room = np.flatnonzero((lengths > self.low) & (lengths < self.high))[: abs(missing)]
        lengths[room] += np.sign(missing)
        return [int(length) for length in lengths]

    def _scaled(self, shape: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
        return np.clip(np.rint(scale * shape), self.low, self.high).astype(np.int64)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LengthModel:
    """Prompt and output lengths, drawn independently of each other."""

    prompt: Lognormal
    output: Lognormal

    def draw(self, num_requests: int, rng: np.random.Generator) -> Lengths:
        """Return the lengths of requests."""
        prompts = self.prompt.draw(num_requests, rng)
        return list(zip(prompts, self.output.draw(num_requests, rng), strict=True))


SHAREGPT_LIKE = LengthModel(
    prompt=Lognormal(mean=161.31, sigma=1.2, low=4, high=1024),
    output=Lognormal(mean=337.99, sigma=0.9, low=4, high=1024),
)


def alpaca_like(output_sigma: float = 1.0) -> LengthModel:
    """Return lengths like Alpaca's, more or less spread."""
    return LengthModel(
        prompt=Lognormal(mean=19.31, sigma=0.55, low=4, high=256),
        output=Lognormal(mean=58.45, sigma=output_sigma, low=1, high=512),
    )


def read_azure(path: Path) -> Lengths:
    """Return the lengths of a trace in the format of the Azure LLM inference traces.

    Raises:
        InvalidValue: a column is missing, or a value is no positive number; the line is named.
    """
    return [(spec.prompt_tokens or 0, spec.output_tokens) for spec in load_workload(path)]
