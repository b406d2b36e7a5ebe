"""KV memory: how much of it holds no token, and how much of it sharing saves.

    python -m benchmarks.kv_memory AZURE_CSV [MODEL]

AZURE_CSV is a trace in Azure's format (see benchmarks/lengths.py), MODEL what `alpage bench` takes.

Waste is what Kwon et al. 2023 (arXiv:2309.06180, figure 2) measure: of the token places that
requests hold, the share that holds no token. Beside the engine's pages stands what the same
requests at the same moments would waste if each held one contiguous piece: of the maximum length,
which is the least power of two that the longest request fits in ("Orca Max" in the paper); of its
prompt and of its output rounded up to a power of two ("Pow2"); of what it will really take
("Oracle"). What gets lost between such pieces is not counted.

Savings are those of the paper's section 6.3: pages that sharing saves over pages without sharing.
Places and pages are averaged over steps and then divided, so that the end of a run, when only the
longest requests are left, counts as little as the memory that they hold. Waste and parallel
sampling need no model; which beams survive is for a model to say, so beam search runs on one.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from alpage import LLM
from alpage.serve.kv_memory import KvUsage
from alpage.serve.replay import prepare, replay
from alpage.workload_file import RequestSpec
from benchmarks.kv_simulation import Setting, simulate
from benchmarks.lengths import SHAREGPT_LIKE, Lengths, alpaca_like, read_azure
from benchmarks.results_file import Row, save, to_markdown

_PROMPTS = Path(__file__).parent / "prompts.txt"
_PAGE_SIZES = (8, 16, 32)
_WIDTHS = (2, 4, 6)


def waste_row(name: str, lengths: Lengths) -> Row:
    """Return the waste of each way to hold requests of these lengths."""
    row: dict[str, str | float] = {"lengths": name}
    for page_size in _PAGE_SIZES:
        usages = [usage for usage, _ in simulate(lengths, Setting(page_size=page_size))]
        num_filled = sum(usage.num_filled_slots for usage in usages)
        row[f"pages of {page_size}"] = 1 - num_filled / sum(u.num_held_slots for u in usages)
    max_len = _power_of_two(max(map(sum, lengths)))
    running = [one for _, step in simulate(lengths, Setting()) for one in step]
    num_filled = sum(one.num_filled for one in running)
    for rule, num_places in (
        ("maximum", len(running) * max_len),
        ("power of two", sum(one.num_prompt + _power_of_two(one.num_output) for one in running)),
        ("oracle", sum(one.num_prompt + one.num_output for one in running)),
    ):
        row[f"reserved: {rule}"] = 1 - num_filled / num_places
    return row | {"maximum": f"{max_len:,}"}


def sampling_row(name: str, lengths: Lengths, paper: str) -> Row:
    """Return what sharing saves when several continuations of each prompt are sampled."""
    row: dict[str, str | float] = {"sharing": f"parallel sampling, {name}"}
    for n in _WIDTHS:
        row[str(n)] = _saved(usage for usage, _ in simulate(lengths, Setting(), n=n))
    return row | {"paper": paper}


def beam_row(name: str, llm: LLM, output_lengths: Sequence[int], paper: str) -> Row:
    """Return what sharing saves when a model searches with beams from real prompts."""
    row: dict[str, str | float] = {"sharing": f"beam search, {name}"}
    for width in _WIDTHS:
        specs = [
            RequestSpec(prompt=prompt, output_tokens=num_tokens, beam_width=width)
            for prompt, num_tokens in zip(_prompts(), output_lengths, strict=True)
        ]
        seen = replay(llm.engine, prepare(specs, llm.engine, llm.tokenizer, seed=0))
        row[str(width)] = _saved(step.usage for step in seen.steps)
    return row | {"paper": paper}


def _saved(usages: Iterable[KvUsage]) -> float:
    """Return the pages that sharing saves over those that there would be without it."""
    pages = [(usage.num_held_pages, usage.num_table_entries) for usage in usages]
    num_held, num_unshared = map(sum, zip(*pages, strict=True))
    return 1 - num_held / num_unshared


def _prompts() -> list[str]:
    return _PROMPTS.read_text(encoding="utf-8").splitlines()


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def main() -> None:
    """Print both tables, and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("azure", type=Path)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=2000, help="of each kind of lengths")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    trace = read_azure(options.azure)
    azure = [trace[place] for place in rng.choice(len(trace), options.requests, replace=False)]
    sharegpt = SHAREGPT_LIKE.draw(options.requests, rng)
    alpaca = alpaca_like().draw(options.requests, rng)
    narrow, wide = (alpaca_like(sigma).draw(options.requests, rng) for sigma in (0.8, 1.2))
    beam_outputs = alpaca_like().output.draw(len(_prompts()), rng)
    waste = [
        waste_row("Azure conversations 2023", azure),
        waste_row("ShareGPT-like", sharegpt),
        waste_row("Alpaca-like", alpaca),
    ]
    llm = LLM(options.model)
    # The ranges are those of the paper's figure 16, from width 2 to width 6.
    sharing = [
        sampling_row("Alpaca-like", alpaca, "6.1 to 9.8 %"),
        sampling_row("Alpaca-like, sigma of outputs 0.8", narrow, "6.1 to 9.8 %"),
        sampling_row("Alpaca-like, sigma of outputs 1.2", wide, "6.1 to 9.8 %"),
        sampling_row("ShareGPT-like", sharegpt, "16.2 to 30.5 %"),
        beam_row("Alpaca-like", llm, beam_outputs, "37.6 to 55.2 %"),
        # Beams share all but their last tokens, so it is long outputs that save more than the mean.
        beam_row("58 tokens out", llm, [58] * len(beam_outputs), "37.6 to 55.2 %"),
    ]
    tables = f"{to_markdown(waste)}\n{to_markdown(sharing)}"
    print(tables)
    sizes = {"requests": options.requests, "seed": options.seed}
    save("kv_memory", {**sizes, "waste": waste, "sharing": sharing}, tables)


if __name__ == "__main__":
    main()
