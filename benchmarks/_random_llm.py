"""A Llama of a known size with random weights, for speed alone: what it says means nothing."""

from pathlib import Path

from llm4msr.knowledge.engines import models

SHAPES = {
    "0.5b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Layers and widths of a small and of a large dense model, with 8 heads of keys; SmolLM2's vocabulary, tied."""


def random_llm(folder: Path, shape: str) -> Path:
    """Write the model in bfloat16 with SmolLM2's tokenizer; gives back the folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(models.resolve(models.ALIAS))
    config = LlamaConfig(
        **SHAPES[shape],
        num_key_value_heads=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
