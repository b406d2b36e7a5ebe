"""Tiny GPT-2s, Mixtrals and PaLMs: random checkpoints, and what each is compared with."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tiny_llama import EOS, VOCAB_SIZE, make_tiny_llama, write_tokenizer

MAX_POSITIONS = 256


def make_tiny(path: Path, family: str, **sizes: Any) -> Any:
    """Write a checkpoint to `path`; return its oracle, called and made to generate alike."""
    if family == "Mixtral":
        model = make_tiny_llama(path, family=family, **({"num_local_experts": 4} | sizes))
        # Its other ways to compute them know no float64.
        model.set_experts_implementation("eager")
        return model
    return {"GPT2": _make_tiny_gpt2, "PaLM": _make_tiny_palm}[family](path, **sizes)


def _make_tiny_gpt2(path: Path, **sizes: Any) -> Any:
    import transformers

    settings = {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
        "eos_token_id": EOS,
        "bos_token_id": 0,
        "pad_token_id": 2,
    } | sizes
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    write_tokenizer(path, with_chat=True)
    return model


def _make_tiny_palm(path: Path, **sizes: Any) -> "PlainPaLM":
    config: dict[str, Any] = {
        "architectures": ["PaLMForCausalLM"],
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "eos_token_id": EOS,
    } | sizes
    D, H, F_ = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    K, G = config.get("head_dim", D // H), config.get("num_key_value_heads", 1)
    shapes = {"model.embed_tokens": (config["vocab_size"], D), "model.norm": (D,)}
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.input_layernorm": (D,),
            f"{block}.self_attn.q_proj": (H * K, D),
            f"{block}.self_attn.k_proj": (G * K, D),
            f"{block}.self_attn.v_proj": (G * K, D),
            f"{block}.self_attn.o_proj": (D, H * K),
            f"{block}.mlp.gate_proj": (F_, D),
            f"{block}.mlp.up_proj": (F_, D),
            f"{block}.mlp.down_proj": (D, F_),
        }
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head"] = (config["vocab_size"], D)
    torch.manual_seed(0)
    tensors = {f"{name}.weight": torch.randn(shape) * 0.5 for name, shape in shapes.items()}
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    write_tokenizer(path, with_chat=True)
    return PlainPaLM(config, tensors)


class PlainPaLM:
    """PaLM as the paper writes it: float64, every matrix of its own, one sequence, no cache."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.config = config
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}

    def __call__(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._logits(tokens_L) for tokens_L in tokens_BL])

    def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(max_tokens):
            tokens.append(int(self._logits(torch.tensor(tokens))[-1].argmax()))
            if tokens[-1] == EOS:
                break
        return tokens[len(prompt) :]

    def _weight(self, name: str) -> torch.Tensor:
        return self.tensors[f"{name}.weight"]

    def _norm(self, x_LD: torch.Tensor, name: str) -> torch.Tensor:
        variance, mean = torch.var_mean(x_LD, -1, correction=0, keepdim=True)
        eps = self.config.get("layer_norm_eps", 1e-6)
        return (x_LD - mean) / (variance + eps).sqrt() * self._weight(name)

    def _logits(self, tokens_L: torch.Tensor) -> torch.Tensor:
        x_LD = self._weight("model.embed_tokens")[tokens_L]
        for layer in range(self.config["num_hidden_layers"]):
            block = f"model.layers.{layer}"
            normed_LD = self._norm(x_LD, f"{block}.input_layernorm")
            gate_LF = normed_LD @ self._weight(f"{block}.mlp.gate_proj").T
            up_LF = normed_LD @ self._weight(f"{block}.mlp.up_proj").T
            swish_LF = gate_LF * torch.sigmoid(gate_LF)
            mlp_LD = (swish_LF * up_LF) @ self._weight(f"{block}.mlp.down_proj").T
            x_LD = x_LD + self._attention(normed_LD, f"{block}.self_attn") + mlp_LD
        x_LD = self._norm(x_LD, "model.norm")
        if "lm_head.weight" in self.tensors:
            return x_LD @ self._weight("lm_head").T
        return x_LD @ self._weight("model.embed_tokens").T / self.config["hidden_size"] ** 0.5

    def _attention(self, x_LD: torch.Tensor, name: str) -> torch.Tensor:
        H, G = self.config["num_attention_heads"], self.config.get("num_key_value_heads", 1)
        q_HLK, k_GLK, v_GLK = (
            (x_LD @ self._weight(f"{name}.{part}_proj").T)
            .unflatten(-1, (heads, -1))
            .transpose(0, 1)
            for part, heads in (("q", H), ("k", G), ("v", G))
        )
        q_HLK, k_GLK = self._turned(q_HLK), self._turned(k_GLK)
        outs = []
        for head in range(H):
            k_LK, v_LK = k_GLK[head * G // H], v_GLK[head * G // H]
            score_LL = q_HLK[head] @ k_LK.T / k_LK.shape[-1] ** 0.5
            future_LL = torch.ones_like(score_LL).triu(1).bool()
            outs.append(F.softmax(score_LL.masked_fill(future_LL, -torch.inf), -1) @ v_LK)
        return torch.cat(outs, -1) @ self._weight(f"{name}.o_proj").T

    def _turned(self, x_HLK: torch.Tensor) -> torch.Tensor:
        """Multiply pairs (j, j + K/2), as complex numbers, with e^(i position theta^(-2j/K))."""
        _, L, K = x_HLK.shape
        theta = self.config.get("rope_theta", 1e4)
        frequency_J = theta ** (-2 * torch.arange(K // 2, dtype=torch.float64) / K)
        angle_LJ = torch.outer(torch.arange(L, dtype=torch.float64), frequency_J)
        pair_HLJ = torch.complex(x_HLK[..., : K // 2], x_HLK[..., K // 2 :])
        turned_HLJ = pair_HLJ * torch.polar(torch.ones_like(angle_LJ), angle_LJ)
        return torch.cat((turned_HLJ.real, turned_HLJ.imag), -1)
