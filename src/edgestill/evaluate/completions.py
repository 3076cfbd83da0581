"""What language models write on: shown in the report, never measured. B prompts, T tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from edgestill.models import TextInput, forward
from edgestill.tasks.tokens import Blocks

PROMPTS, PROMPT, WRITTEN = 4, 48, 48  # how many, and tokens of each


def prompts(blocks: Blocks, length: int) -> list[list[int]]:
    """The beginnings of some blocks, evenly spaced."""
    rows = np.linspace(0, len(blocks) - 1, min(PROMPTS + 2, len(blocks))).astype(np.int64)[1:-1]
    most = max(1, min(PROMPT, length // 2))
    return [blocks.ids[blocks.starts[row] : blocks.starts[row] + most].tolist() for row in rows]


def complete(module: nn.Module, expected: TextInput, begun: Sequence[Sequence[int]], vocabulary: int) -> list[str]:
    """The most probable continuation of each prompt, token by token, as text."""
    device = next(module.parameters()).device
    module.eval()
    written = []
    for prompt in begun:
        ids = torch.tensor([list(prompt)], device=device)
        with torch.inference_mode():
            for _ in range(min(WRITTEN, expected.length - len(prompt))):
                following = forward(module, ids)[:, -1, :vocabulary].argmax(-1, keepdim=True)
                if int(following) == expected.tokenizer.eos_token_id:
                    break
                ids = torch.cat([ids, following], 1)
        written.append(expected.tokenizer.decode(ids[0, len(prompt) :].tolist()))
    return written
