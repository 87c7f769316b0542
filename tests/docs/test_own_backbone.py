"""The backbone that the guide shows trains, as it stands there, through its import path."""

import re
from pathlib import Path

import pytest
import torch

from llm4msr.training import loop
from llm4msr.training.dataset import Dataset
from tests.support.data import config_of, prepare_and_make_knowledge, write_data
from tests.support.experiments import ROOT

PATH = re.compile(r"model\.backbone=((\w+)\.(\w+):\w+)")


def test_the_guides_backbone_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (ROOT / "docs" / "backbone.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)[0]
    path, package, module = PATH.findall(guide)[0]
    assert len(code.splitlines()) <= 15

    (tmp_path / package).mkdir()
    (tmp_path / package / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLM4MSR_CACHE", str(tmp_path / "cache"))
    config = config_of(write_data(tmp_path), model={"backbone": path}, train={"epochs": 1}, split={"by": "user"})
    data = Dataset.open(config, *prepare_and_make_knowledge(config))
    untrained = data.new_net(config)
    assert f"{type(untrained.backbone).__module__}:{type(untrained.backbone).__name__}" == path

    trained = loop.fit(config, data)
    assert trained.progress.epoch == 1
    assert trained.progress.best_auc > 0.55  # every other item is liked: see tests/support/data.py
    for name, parameter in untrained.backbone.named_parameters():
        assert not torch.equal(trained.net[f"backbone.{name}"], parameter), name
