"""Export checkpoint: write a GGUF file as the directory in bfloat16 that other engines read.

    python -m benchmarks.peers.export_checkpoint MODEL.gguf DIRECTORY

The GGUF's weights are widened to what they stand for and rounded to bfloat16, so that all engines
start from the same numbers.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Export."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    known = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    widened = AutoModelForCausalLM.from_pretrained(**known, dtype=torch.float32)
    # What was read from a GGUF does not let itself be saved: its weights go into a plain model.
    plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**known))
    plain.load_state_dict(widened.state_dict())
    plain.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**known).save_pretrained(target)


if __name__ == "__main__":
    main()
