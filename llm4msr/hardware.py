"""What this machine multiplies fast."""


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether it has instructions for it: avx512_bf16 or AMX of a CPU; of a GPU (`cuda`), from Ampere on."""
    import torch

    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
