"""What an import brings into a fresh process: serving nothing of training, the command line's help nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data import config_of, write_data

COMMAND = "import sys; sys.argv = ['llm4msr', *{arguments!r}]\ntry:\n    from llm4msr.cli.main import main; main()\n"
COMMAND += "except SystemExit as end:\n    assert not end.code"


def modules_after(code: str, *arguments: str) -> set[str]:
    """All modules of a fresh process once it has run the code with these arguments."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, sep='\\n')", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines())


def packages_after(code: str, *arguments: str) -> set[str]:
    return {name.split(".")[0] for name in modules_after(code, *arguments)}


@pytest.mark.parametrize("module", ["serve.app", "serve.endpoint", "bundle.ranker"])
def test_what_serves_loads_nothing_of_what_trains_asks_or_explains(module: str):
    ours = {name for name in modules_after(f"import llm4msr.{module}") if name.startswith("llm4msr.")}
    assert f"llm4msr.{module}" in ours
    rooms = {name.split(".")[1] for name in ours}
    assert not rooms & {"training", "knowledge", "data", "explain", "export", "score", "cli", "pipeline"}


def test_prompts_are_planned_without_the_classes_of_models(llama: Path):
    code = (
        "import pathlib, sys; from llm4msr.hardware import multiplies_bfloat16\n"
        "from llm4msr.knowledge.engines.tokens import PromptTokenizer\n"
        "multiplies_bfloat16(); PromptTokenizer(pathlib.Path(sys.argv[1]), 100)"
    )
    packages = packages_after(code, str(llama))
    assert "tokenizers" in packages
    assert "torch" not in packages


def test_extraction_is_planned_without_pytorch():
    assert "torch" not in packages_after("import llm4msr.knowledge.extract")


def test_the_nets_load_neither_ray_nor_storage():
    names = modules_after("import llm4msr.model.net, llm4msr.model.serving_net")
    assert "torch" in names
    assert not {name.split(".")[0] for name in names} & {"ray", "pandas", "fastapi", "vllm"}
    assert "llm4msr.storage" not in names


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["knowledge", "--help"], ["init", "--help"], ["config", "schema"]],
)
def test_help_loads_nothing_heavy(arguments: list[str]):
    packages = packages_after(COMMAND.format(arguments=arguments))
    assert "llm4msr" in packages
    assert not packages & {"torch", "ray", "pandas", "pyarrow", "vllm", "transformers", "fastapi"}


def test_preparing_a_small_table_waits_neither_for_torch_nor_for_ray(tmp_path: Path):
    config = config_of(write_data(tmp_path))
    code = "import sys\nfrom llm4msr import Config, pipeline\npipeline.prepare(Config.model_validate_json(sys.argv[1]))"
    packages = packages_after(code, config.model_dump_json())
    assert "pyarrow" in packages
    assert not packages & {"torch", "ray", "fastapi", "transformers", "sklearn"}


def test_a_first_config_and_its_check_wait_neither_for_torch_nor_for_ray(tmp_path: Path):
    files, out = str(write_data(tmp_path)), str(tmp_path / "config.toml")
    for arguments in (["init", files, "--out", out], ["check", out]):
        packages = packages_after(COMMAND.format(arguments=arguments))
        assert "pyarrow" in packages
        assert not packages & {"torch", "ray", "fastapi", "transformers", "sklearn"}


def test_work_on_one_item_waits_neither_for_torch_nor_for_ray():
    code = "import os, pyarrow as pa\nfrom llm4msr.ray_session import run_each\n"
    code += (
        "def work(batch, more): return pa.table({'n': [batch['n'][0].as_py() + more] * 2, 'pid': [os.getpid()] * 2})\n"
    )
    code += "assert [*run_each(work, [], more=1)] == []\n"
    code += "assert [*run_each(work, [{'n': 1}], more=1)] == [{'n': 2, 'pid': os.getpid()}] * 2"
    packages = packages_after(code)
    assert "pyarrow" in packages
    assert not packages & {"torch", "ray"}


@pytest.mark.parametrize("module", ["serve.client", "serve.proxy"])
def test_a_client_and_a_proxy_are_light(module: str):
    packages = packages_after(f"import llm4msr.{module}")
    assert not packages & {"torch", "ray", "pandas", "pyarrow", "numpy", "fastapi"}


def test_a_training_does_not_load_the_compiler_of_torch(tmp_path: Path):
    """Which takes over a second, and would do so in every worker."""
    config = config_of(write_data(tmp_path), model={"knowledge": "none"}, train={"epochs": 1})
    code = "import sys\nfrom llm4msr import Config, pipeline\nfrom llm4msr.training import dataset, loop\n"
    code += "config = Config.model_validate_json(sys.argv[1])\npipeline.prepare(config)\n"
    code += "loop.fit(config, dataset.Dataset.open(config, *pipeline.inputs(config)))"
    names = modules_after(code, config.model_dump_json())
    assert "torch" in names
    assert "torch._dynamo" not in names
