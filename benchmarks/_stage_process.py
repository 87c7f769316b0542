"""A stage in a process of its own, so that it can be killed, or joins a Ray of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm4msr.config import Config

CODE = """
import sys
from llm4msr import Config, pipeline
getattr(pipeline, sys.argv[1])(Config.model_validate_json(open(sys.argv[2]).read()))
"""


def start_stage(
    stage: str, config: Config, folder: Path, variables: Mapping[str, str], **streams: Any
) -> subprocess.Popen[bytes]:
    """Start `pipeline.STAGE(config)` with these environment variables added; the config passes through `folder`."""
    file = folder / "config.json"
    file.write_text(config.model_dump_json())
    return subprocess.Popen([sys.executable, "-c", CODE, stage, str(file)], env=os.environ | variables, **streams)
