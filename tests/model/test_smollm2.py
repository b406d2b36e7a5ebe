"""A real model, SmolLM2-135M-Instruct, against transformers; each reads the GGUF itself."""

import pytest
import torch

from alpage import LLM, BeamSearchParams, SamplingParams
from alpage.models import catalogue

pytestmark = [pytest.mark.slow, pytest.mark.smollm2]

NUM_TOKENS = 64
QUESTIONS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "The three laws of thermodynamics are",
    "import numpy as np\n\n# Compute the mean of a list\n",
    "Q: What is the largest planet in the solar system?\nA:",
    "Roses are red, violets are",
    "To make a cup of tea, first",
    "The French Revolution began in",
    "1, 1, 2, 3, 5, 8,",
    "Translate to Spanish: Good morning.\n",
    "Photosynthesis is the process by which",
    "SELECT name FROM users WHERE",
    "A haiku about winter:\n",
    "The quick brown fox",
    "Dear Sir or Madam,\n\nI am writing to",
    "In machine learning, overfitting means",
    "The mitochondria is",
    "Here is a list of five fruits:\n1.",
    "Albert Einstein was born in",
    "<html>\n<head>\n<title>",
    "My favourite season is autumn because",
    "The derivative of x^2 is",
    "Größere Städte in Deutschland sind",
    "An algorithm is",
    "It was the best of times, it was",
    "The human heart has",
    "JSON example: {",
    "Yesterday I went to the market and bought",
    "The Great Wall of China was built",
    "If all cats are mammals and all mammals are animals, then",
]


@pytest.fixture(scope="module")
def path():
    return catalogue.resolve("smollm2-135m")


@pytest.fixture(scope="module")
def oracle(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def llm(path):
    return LLM(path, dtype="float32", device="cpu", kv_memory="1GiB", notify=lambda line: None)


def test_greedy_tokens_equal_transformers(llm, oracle):
    """Given our tokens, transformers would have chosen each of them: so it would have made them."""
    assert len(QUESTIONS) == 32
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for output in llm.generate(QUESTIONS, params):
        ours = list(output.outputs[0].token_ids)
        assert len(ours) == NUM_TOKENS
        whole = torch.tensor([[*output.prompt_token_ids, *ours]])
        with torch.no_grad():
            chosen = oracle(whole).logits[0].argmax(-1)
        start = len(output.prompt_token_ids) - 1
        assert chosen[start:-1].tolist() == ours, output.prompt


def test_greedy_tokens_equal_generate(llm, oracle):
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    for output in llm.generate(QUESTIONS[:2], params):
        prompt = torch.tensor([output.prompt_token_ids])
        found = oracle.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(llm.engine.limits.eos_ids),
        )[0, prompt.shape[1] :].tolist()
        assert found == list(output.outputs[0].token_ids)


def test_beams_equal_generate(llm, oracle):
    params = BeamSearchParams(beam_width=4, max_tokens=24)
    output = llm.generate(QUESTIONS[1], params)[0]
    prompt = torch.tensor([output.prompt_token_ids])
    found = oracle.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        do_sample=False,
        num_beams=4,
        num_return_sequences=4,
        eos_token_id=sorted(llm.engine.limits.eos_ids),
        return_dict_in_generate=True,
        output_scores=True,
    )
    for beam, sequence, score in zip(
        output.outputs, found.sequences, found.sequences_scores, strict=True
    ):
        ours = list(beam.token_ids)
        assert sequence[prompt.shape[1] :].tolist()[: len(ours)] == ours
        assert beam.score == pytest.approx(score.item(), rel=1e-4)


def test_a_seed_gives_the_same_tokens_in_any_batch(llm):
    params = SamplingParams(seed=3, max_tokens=40, ignore_eos=True)
    together = llm.generate(QUESTIONS[:8], params)
    for question, output in zip(QUESTIONS, together, strict=False):
        alone = llm.generate(question, params)[0]
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids


def test_chat_answers_and_ends(llm):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = llm.chat(messages, SamplingParams(temperature=0, max_tokens=60))[0].outputs[0]
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert "<|im_end|>" not in answer.text
