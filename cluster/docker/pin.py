"""Write beside each pin the sha256 of its wheel: `python cluster/docker/pin.py cluster/docker/gpu.txt`.

Run it where Python and platform are the image's: 3.11, Linux on x86-64. The file's NAME==VERSION stay as they are; pip
takes the wheel that fits this machine, and adds nothing. For cpu.txt let it see PyTorch's own index, too:
`PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

PIP = ["install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:", "--report", "-"]


def normal(name: str, version: str) -> str:
    """One spelling of a name that can be written in several."""
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def hashes(pins: list[str]) -> dict[str, str]:
    """The sha256 of a wheel for this machine, of each pin."""
    done = subprocess.run([sys.executable, "-m", "pip", *PIP, *pins], stdout=subprocess.PIPE, check=True, text=True)
    return {
        normal(each["metadata"]["name"], each["metadata"]["version"]): each["download_info"]["archive_info"]["hashes"][
            "sha256"
        ]
        for each in json.loads(done.stdout)["install"]
    }


def pin(file: Path) -> None:
    """Write the file anew, a pin and its hash a line."""
    pins = [line.split()[0] for line in file.read_text().splitlines()]
    known = hashes(pins)
    file.write_text("".join(f"{each} --hash=sha256:{known[normal(*each.split('=='))]}\n" for each in pins))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        pin(Path(name))
