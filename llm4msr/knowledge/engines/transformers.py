"""The engine that runs wherever PyTorch does: Hugging Face transformers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llm4msr.arrays import Singles
from llm4msr.errors import StorageError
from llm4msr.knowledge.engines import models
from llm4msr.knowledge.engines.base import REPETITION_PENALTY, Billed, JsonSchema, Pooling

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a padded batch, padding included: more is slower on a CPU, and fewer leave a GPU idle."""
BATCH_ANSWERS = 16
_POOLER = "pooler."
"""What some encoders make of their first token's state: it is not read here, and not every encoder has it."""


class TransformersEngine:
    """An `Engine` that pads prompts of like length into batches, on a GPU where there is one.

    Shape suffixes: B prompts of a batch, T tokens of its longest prompt, D width of the hidden state.
    """

    def __init__(self, folder: Path, pooling: Pooling, dtype: str, layer: int = 0, encoder: bool = False):
        """Load the model in `folder` with weights of `dtype`, a name in `torch`; an `encoder` cannot answer.

        Vectors are pooled from the states of this `layer`, counted from 1; 0 = the last one, after the final norm.

        Raises:
            StorageError: weights are missing, or of other shapes than config.json says.
        """
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with models.quiet():
            loaded = (AutoModel if encoder else AutoModelForCausalLM).from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below: its own error names none of them
                trust_remote_code=False,
            )
        self.model: PreTrainedModel = loaded[0]
        if other := sorted(loaded[1]["mismatched_keys"], key=str):
            name, shape, expected = other[0]
            raise StorageError(
                f"{folder}: the weights {name} are {list(shape)}, and config.json says {list(expected)} "
                f"({len(other)} differ); config.json and weights are of two models: copy it again"
            )
        missing = sorted(key for key in loaded[1]["missing_keys"] if not (encoder and key.startswith(_POOLER)))
        if missing:  # transformers would make them up
            raise StorageError(f"{folder}: no weights for {missing[0]} ({len(missing)} are missing); copy it again")
        self.model.eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.pooling, self.layer = pooling, layer
        self.cached_tokens, self.billed, self.refused = 0, Billed(), dict[int, str]()

    @property
    def width(self) -> int:
        """Width D of the hidden state."""
        return int(self.model.config.hidden_size)

    @torch.inference_mode()
    def vectors(self, tokens: Sequence[list[int]]) -> Singles:
        """Pooled hidden states, float32 [N, D]; prompts of like length share a padded batch."""
        pooled_ND = np.zeros((len(tokens), self.width), np.float32)
        most = BATCH_TOKENS[self.device] // (4 if self.layer else 1)  # the states of all layers are kept for a moment
        for rows in batches([len(ids) for ids in tokens], most):
            ids_BT, mask_BT = self._pad([tokens[row] for row in rows], left=False)
            states_BTD = self._states(ids_BT, mask_BT).float()
            lengths_B = mask_BT.sum(1)
            if self.pooling == "last":
                vectors_BD = states_BTD[torch.arange(len(rows)), lengths_B - 1]
            elif self.pooling == "mean":
                vectors_BD = (states_BTD * mask_BT[..., None]).sum(1) / lengths_B[:, None]
            else:
                assert_never(self.pooling)
            pooled_ND[rows] = vectors_BD.cpu().numpy()
        return pooled_ND

    def _states(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Hidden states of the layer: [B, T, D]."""
        out = self.model.base_model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=bool(self.layer))
        states_BTD: torch.Tensor = out.hidden_states[self.layer] if self.layer else out.last_hidden_state
        return states_BTD

    @torch.inference_mode()
    def answers(
        self, tokens: Sequence[list[int]], max_tokens: int, schemas: Sequence[JsonSchema] | None = None
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
            answers_BT = out_BT[:, ids_BT.shape[1] :]
            texts += [self.tokenizer.decode(ids_T, skip_special_tokens=True).strip() for ids_T in answers_BT]
        return texts

    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)

    def _pad(self, tokens: Sequence[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and their mask, both int64 [B, T], padded on the left or on the right."""
        longest, largest = max(map(len, tokens)), max(map(max, tokens))
        if largest >= (size := self.model.get_input_embeddings().num_embeddings):  # a GPU would end the process
            raise StorageError(f"token {largest} of {size} that the model knows: its tokenizer is another model's")
        ids_BT = torch.full((len(tokens), longest), self._pad_id())
        mask_BT = torch.zeros_like(ids_BT)
        for row, ids in enumerate(tokens):
            columns = slice(longest - len(ids), longest) if left else slice(len(ids))
            ids_BT[row, columns] = torch.tensor(ids)
            mask_BT[row, columns] = 1
        return ids_BT.to(self.device), mask_BT.to(self.device)


def batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows of prompts of like length, as many as fit into `max_tokens` when padded, at least one."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
