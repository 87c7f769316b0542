"""`extract.dtype = "auto"`: what the machines multiply fast, unless the store has vectors in another format."""

from llm4msr import pipeline
from llm4msr.hardware import multiplies_bfloat16
from llm4msr.knowledge import inspect
from tests.support.experiments import MakeExperiment
from tests.support.fixtures import Spine


def test_a_new_store_has_the_format_of_its_machines_and_a_later_pass_keeps_the_stores(
    spine: Spine, experiment: MakeExperiment
) -> None:
    auto = {"extract.dtype": "auto", "extract.answers": "none", "extract.max_users": 8}
    made = experiment(auto, {"prepare": spine.folder("prepare")})
    first = pipeline.extract(made.config)
    fast = "bfloat16" if multiplies_bfloat16() else "float32"
    assert first.manifest.info["dtype"] == fast
    assert inspect.verify(made.config, first, 4)["compared"] == 4

    other = "float32" if fast == "bfloat16" else "bfloat16"
    fixed = made.config.model_copy(update={"extract": made.config.extract.model_copy(update={"dtype": other})})
    second = pipeline.extract(fixed)
    assert second.manifest.info["kept"] == 0

    more = made.config.model_copy(update={"extract": made.config.extract.model_copy(update={"max_users": 16})})
    third = pipeline.extract(more)
    assert third.manifest.info["dtype"] == other
    assert third.manifest.info["kept"] == second.manifest.rows
