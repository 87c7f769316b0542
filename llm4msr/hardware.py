"""What this machine multiplies fast."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def multiplies_bfloat16(device: "torch.device | None" = None) -> bool:
    """Whether it has instructions for it: avx512_bf16 or AMX of a CPU (without a `device`), tensor cores of a GPU."""
    import torch

    if device is not None and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
