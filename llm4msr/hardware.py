"""What this machine multiplies fast, and with how many threads."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether it has instructions for it: avx512_bf16 or AMX of a CPU; of a GPU (`cuda`), from Ampere on."""
    if device == "cpu" and (flags := _cpu_flags()):
        return not flags.isdisjoint(_INSTRUCTIONS)  # PyTorch says the same, after a second or two to load it
    import torch

    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return any(bool(capabilities.get(name)) for name in _INSTRUCTIONS)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one core: more would add up sums in another order, and wait for each other where others work too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_flags() -> set[str]:
    """What Linux says that an x86 CPU has; elsewhere nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
