"""Accuracy: what 8 and 4 bits cost, of weights and of keys and values, on our own texts.

    python -m benchmarks.accuracy smollm2-135m

Perplexity and choices are held against bfloat16. The text is docs/*.md and docs/adr/*.md, cut to
windows of 512 tokens. Greedy continuations are of benchmarks/prompts.txt.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alpage import LLM, SamplingParams
from alpage.errors import Unsupported
from benchmarks.results_file import save, to_markdown

_ROOT = Path(__file__).parents[1]
_WINDOW_TOKENS = 512
_NUM_PROMPTS = 32
_NUM_GREEDY_TOKENS = 48
# Dtypes of weights, and of keys and values.
_WAYS: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    ("bfloat16", "bfloat16"): {},
    ("bfloat16", "int8"): {"kv_dtype": "int8"},
    ("int8", "bfloat16"): {"quantization": "int8"},
    ("int8", "int8"): {"quantization": "int8", "kv_dtype": "int8"},
    ("int4", "bfloat16"): {"quantization": "int4"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How a model does on the text.

    Attributes:
        perplexity: of the text's tokens but each window's first.
        top1: share of them that were the likeliest.
        answers: greedy continuations of the prompts.
    """

    perplexity: float
    top1: float
    answers: tuple[tuple[int, ...], ...]


def measure(llm: LLM, windows: Sequence[Sequence[int]], prompts: Sequence[str]) -> Accuracy:
    """Return how a model does."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    logprobs, num_first = [], 0
    for output in llm.generate(windows, params):
        assert output.prompt_logprobs is not None
        for token, entry in zip(output.prompt_token_ids, output.prompt_logprobs, strict=True):
            if entry is not None:
                logprobs.append(entry[token].logprob)
                num_first += entry[token].rank == 1
    greedy = SamplingParams(temperature=0, max_tokens=_NUM_GREEDY_TOKENS, ignore_eos=True)
    answers = tuple(tuple(out.outputs[0].token_ids) for out in llm.generate(prompts, greedy))
    return Accuracy(
        perplexity=math.exp(-sum(logprobs) / len(logprobs)),
        top1=num_first / len(logprobs),
        answers=answers,
    )


def agreement(answers: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> float:
    """Return the share of tokens up to where continuations part, of all tokens."""
    same = 0
    for answer, other in zip(answers, others, strict=True):
        pairs = zip(answer, other, strict=True)
        same += next((n for n, (a, b) in enumerate(pairs) if a != b), len(answer))
    return same / sum(len(answer) for answer in answers)


def main() -> None:
    """Measure, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    model = parser.parse_args().model
    paths = sorted(_ROOT.glob("docs/*.md")) + sorted(_ROOT.glob("docs/adr/*.md"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    prompts = (_ROOT / "benchmarks/prompts.txt").read_text(encoding="utf-8").splitlines()
    found: dict[tuple[str, str], Accuracy] = {}
    for dtypes, options in _WAYS.items():
        try:
            llm = LLM(model, dtype="bfloat16", kv_memory="512MiB", **options)
        except Unsupported as error:
            print(error)
            continue
        tokens = llm.tokenizer.encode(text, add_special_tokens=False)
        starts = range(0, len(tokens) - _WINDOW_TOKENS, _WINDOW_TOKENS)
        windows = [tokens[start : start + _WINDOW_TOKENS] for start in starts]
        found[dtypes] = measure(llm, windows, prompts[:_NUM_PROMPTS])
    plain = found["bfloat16", "bfloat16"]
    rows = [
        {
            "weights": weights,
            "keys and values": kv,
            "perplexity": f"{one.perplexity:.4f}",
            "against bfloat16": one.perplexity / plain.perplexity - 1,
            "likeliest token right": one.top1,
            "greedy tokens before the first other": agreement(one.answers, plain.answers),
        }
        for (weights, kv), one in found.items()
    ]
    table = to_markdown(rows)
    print(table)
    save(
        "accuracy",
        {"model": model, "num_tokens": len(windows) * _WINDOW_TOKENS, "rows": rows},
        table,
    )


if __name__ == "__main__":
    main()
