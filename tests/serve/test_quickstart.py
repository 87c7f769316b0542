"""The quickstart from data to a ranked list over HTTP, on a small table and words in place of an LLM."""

from pathlib import Path

import pytest

from jobs import quickstart
from tests.support.experiments import MakeExperiment, free_port


@pytest.mark.parametrize("match", [[], ["candidate", "cosines"]], ids=["levels", "match"])
def test_it_shows_a_table_what_is_alike_and_ranked_lists(
    ray_session: None, experiment: MakeExperiment, capsys: pytest.CaptureFixture[str], match: list[str]
) -> None:
    changes = {"extract.reads": "items", "extract.item_vectors": "words", "extract.answers": "none"}
    changes |= {"extract.point_in_time": True, "model.knowledge": "user", "model.match": match, "train.epochs": 1}
    changes |= {"evaluate.variants": ["none"], "serve.port": free_port(), "split.first_events": 20}
    file = Path(str(experiment(changes)))
    file.write_text(f"# A shop of a few days.\n# And more of it.\n{file.read_text()}")
    quickstart.main(str(file), ["train.epochs=2"])
    told = capsys.readouterr().out
    assert "| **all** |" in told
    assert "A shop of a few days.\nAnd more of it.\n\n" in told
    assert "Items that the vectors (words) find alike:\n  Title number " in told
    lists = [line for line in told.splitlines() if line.startswith("  ") and "(knowledge " in line]
    assert len(lists) == quickstart.USERS * quickstart.SCENARIOS
    assert all(line.count("Title number ") == quickstart.SHOWN for line in lists)
    assert ("report.html" in told) == (not match)
