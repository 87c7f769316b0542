"""The engine that runs wherever PyTorch does: Hugging Face transformers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm4msr.arrays import Singles
from llm4msr.errors import StorageError
from llm4msr.knowledge.engines import models
from llm4msr.knowledge.engines.base import REPETITION_PENALTY, Pooling

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a padded batch, padding included: more is slower on a CPU, and fewer leave a GPU idle."""
BATCH_ANSWERS = 16


class TransformersEngine:
    """See `llm4msr.knowledge.engines.base.Engine`."""

    def __init__(self, folder: Path, pooling: Pooling, dtype: str):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with models.quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below: its own error names none of them
                trust_remote_code=False,
            )
        self.model: Any = loaded[0]
        if other := sorted(loaded[1]["mismatched_keys"], key=str):
            name, there, wanted = other[0]
            raise StorageError(
                f"{folder}: the weights {name} are {list(there)}, and config.json says {list(wanted)} "
                f"({len(other)} differ); config.json and weights are of two models: copy it again"
            )
        if missing := sorted(loaded[1]["missing_keys"]):  # transformers would make them up
            raise StorageError(f"{folder}: no weights for {missing[0]} ({len(missing)} are missing); copy it again")
        self.model.eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.pooling = pooling
        self.cached_tokens = 0

    @property
    def width(self) -> int:
        """Width of the hidden state."""
        return int(self.model.config.hidden_size)

    @torch.inference_mode()
    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        """Pooled hidden states, float32 [N, D]; prompts of like length share a padded batch."""
        pooled = np.zeros((len(tokens), self.width), np.float32)
        for at in _batches([len(ids) for ids in tokens], BATCH_TOKENS[self.device]):
            ids_BT, mask_BT = self._pad([tokens[i] for i in at], left=False)
            states_BTD = self.model.base_model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
            lengths_B = mask_BT.sum(1)
            if self.pooling == "last":
                vectors_BD = states_BTD[torch.arange(len(at)), lengths_B - 1]
            else:
                vectors_BD = (states_BTD * mask_BT[..., None]).sum(1) / lengths_B[:, None]
            pooled[at] = vectors_BD.cpu().numpy()
        return pooled

    @torch.inference_mode()
    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[dict[str, Any]] | None = None
    ) -> list[str]:
        """Greedy answers; transformers cannot hold them to a schema."""
        texts: list[str] = []
        for start in range(0, len(tokens), BATCH_ANSWERS):
            ids_BT, mask_BT = self._pad(tokens[start : start + BATCH_ANSWERS], left=True)
            out_BT = self.model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=max_tokens,
                do_sample=False,
                repetition_penalty=REPETITION_PENALTY,
                pad_token_id=self._pad_id(),
            )
            answers = out_BT[:, ids_BT.shape[1] :]
            texts += [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers]
        return texts

    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)

    def _pad(self, tokens: Sequence[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        longest, largest = max(map(len, tokens)), max(map(max, tokens))
        if largest >= (known := self.model.get_input_embeddings().num_embeddings):  # a GPU would end the process
            raise StorageError(f"token {largest} of {known} that the model knows: its tokenizer is another model's")
        ids_BT = torch.full((len(tokens), longest), self._pad_id())
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(tokens):
            place = slice(longest - len(ids), longest) if left else slice(len(ids))
            ids_BT[row, place] = torch.tensor(ids)
            mask_BT[row, place] = 1
        return ids_BT.to(self.device), mask_BT.to(self.device)


def _batches(lengths: list[int], room: int) -> Iterator[list[int]]:
    """Places of prompts of like length, as many as `room` tokens hold, at least one."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[at] > room:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
