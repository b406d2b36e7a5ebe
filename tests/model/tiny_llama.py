"""Tiny Llamas: random checkpoints in Hugging Face's format, and the models they came from."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 300
EOS = 1
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_llama(
    path: Path, *, family: str = "Llama", with_chat: bool = True, **sizes: Any
) -> Any:
    """Write a checkpoint to `path`; return the transformers model."""
    import transformers

    settings = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": EOS,
        "bos_token_id": 0,
        "pad_token_id": 2,
    } | sizes
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        # Wide enough that the likeliest token is no near tie between thousands of equals.
        torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 2
    model.save_pretrained(path)
    write_tokenizer(path, with_chat=with_chat)
    return model


def write_tokenizer(path: Path, *, with_chat: bool) -> None:
    """Write a byte-level tokenizer: every byte is a token, so any text can be encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    backend.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 256}
    if with_chat:
        settings["chat_template"] = CHAT_TEMPLATE
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
