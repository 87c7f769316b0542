"""What results were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version


def machine(*libraries: str) -> str:
    """Processor, cores and versions, as one line."""
    with open("/proc/cpuinfo") as stream:
        names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    found = []
    for library in libraries:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    processor = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores ({processor}), Python {platform.python_version()}, {', '.join(found)}"
