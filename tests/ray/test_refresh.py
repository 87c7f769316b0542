"""Codes for a bundle in service that are made of newer vectors."""

from pathlib import Path

from llm4msr import storage
from llm4msr.bundle.files import CODES
from llm4msr.export.export import export
from llm4msr.export.refresh import Served, refresh
from llm4msr.storage import StageOutput
from llm4msr.training.trained import TrainedModel
from tests.support.data import config_of, prepare_and_make_knowledge, publish_trained, write_data


def test_codes_are_made_anew_where_failed_rows_were_asked_once_more(tmp_path: Path, ray_session: None) -> None:
    config = config_of(write_data(tmp_path), split={"by": "user"}, model={"knowledge": "user"})

    def knowledge(unknown_users: int) -> tuple[StageOutput, StageOutput]:
        data, made = prepare_and_make_knowledge(config, unknown_users)
        info = made.manifest.info | {"dtype": "float32"}
        return data, StageOutput(made.folder, made.manifest.model_copy(update={"info": info}))

    data, failed = knowledge(unknown_users=3)
    bundle = Served.open(export(config, TrainedModel(config, data, failed, publish_trained(config))))
    before = refresh(config, data, failed, bundle)
    assert refresh(config, data, failed, bundle).reused
    storage.remove(failed.folder)
    data, whole = knowledge(unknown_users=0)
    assert whole.manifest.fingerprint == failed.manifest.fingerprint
    after = refresh(config, data, whole, bundle)
    assert after.manifest.files[CODES].rows == before.manifest.files[CODES].rows + 3
