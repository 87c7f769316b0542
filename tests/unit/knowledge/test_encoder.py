"""A sentence encoder as a source of items' vectors: a tiny random BERT."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge.actor import AskLLM
from llm4msr.knowledge.engines import open_engine, open_tokenizer, soundness
from llm4msr.knowledge.shards import Pass
from llm4msr.knowledge.sources import Source, sources
from llm4msr.storage.vectors import to_matrix
from tests.support.data import config_of

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "green", "black", "tea", "steel", "hammer", ".", ","]
TEXTS = ["green tea", "steel hammer. black, black, black", "tea"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As sentence encoders are published: without what BERT makes of the first token's state."""
    folder = tmp_path_factory.mktemp("bert")
    pieces = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 64}
    shape = BertConfig(vocab_size=len(WORDS), max_position_embeddings=40, initializer_range=0.5, **sizes)
    BertModel(shape, add_pooling_layer=False).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    return folder


def of_encoder(folder: Path, model: Path) -> Config:
    return config_of(folder, extract={"reads": "items", "item_vectors": "encoder", "encoder": str(model)})


def source(config: Config) -> Source:
    (only,) = sources(config.extract)
    return only.pin()


def test_an_encoders_vector_is_the_mean_over_the_texts_tokens(bert: Path, tmp_path: Path):
    extract = source(of_encoder(tmp_path, bert)).extract
    tokenizer = open_tokenizer(extract, own_text=True)
    found = open_engine(extract, encoder=True).vectors([tokenizer(text) for text in TEXTS])
    model, raw = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    with torch.inference_mode():
        each = [model(**raw(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for text in TEXTS]
    np.testing.assert_allclose(found, each, atol=1e-5)


def test_what_the_vocabulary_has_not_is_unknown_and_no_control_token(bert: Path, tmp_path: Path):
    tokenizer = open_tokenizer(source(of_encoder(tmp_path, bert)).extract, own_text=True)
    assert tokenizer("tea zeppelin") == [2, 6, 1, 3]
    assert tokenizer("tea [SEP] tea").count(3) == 1


def test_an_encoder_alone_reads_items_and_scenarios_and_answers_nothing(bert: Path, tmp_path: Path):
    config = of_encoder(tmp_path, bert)
    only = source(config)
    assert (only.name, only.kinds, only.model) == ("encoder", ("items_by_encoder", "scenarios"), str(bert))
    readers = only.readers(config, only.revision(), list)
    assert all(reader.own_text for reader in readers.values())
    assert not any(readers["scenarios"].writes[kind] for kind in only.kinds)
    beside = config.extract.model_copy(update={"item_vectors": ("words", "encoder", "llm")})
    assert [one.kinds for one in sources(beside)] == [
        ("items", "scenarios"),
        ("items_by_encoder",),
        ("items_by_words",),
    ]


def test_an_encoder_gets_texts_as_long_as_it_is_meant_to_read(bert: Path, tmp_path: Path):
    assert soundness.positions(bert) == 32
    only = source(of_encoder(tmp_path, bert))
    assert only.extract.max_prompt_tokens == 30
    only.check()


def test_an_actor_writes_what_the_encoder_says(bert: Path, tmp_path: Path):
    config, name = of_encoder(tmp_path, bert), "items_by_encoder-00000-of-00001-x.parquet"
    only = source(config)
    readers = only.readers(config, only.revision(), list)
    as_read = config.model_copy(update={"extract": only.extract})
    actor = AskLLM(Pass("vectors", as_read, str(tmp_path), readers, [], only.name))
    rows = {"id": [1, 2, 3], "raw_id": ["a", "b", "c"], "fingerprint": ["f", "g", "h"], "prompt": TEXTS}
    (summary,) = actor.ask(pa.table(rows | {"error": [""] * 3, "file": [name] * 3})).to_pylist()
    assert (summary["rows"], summary["failed"]) == (3, 0)
    written = storage.read_table(storage.path(tmp_path) / "vectors" / name)
    assert written["tokens"].to_pylist() == [4, 10, 3]
    assert to_matrix(written["vector"]).shape == (3, 32)


def test_an_encoder_without_a_weight_is_refused(bert: Path, tmp_path: Path):
    copied = Path(shutil.copytree(bert, tmp_path / "copied"))
    weights = load_file(copied / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StorageError, match=r"no weights for encoder\.layer\.1\.output\.dense\.weight \(1 are missing"):
        open_engine(source(of_encoder(tmp_path, copied)).extract, encoder=True)
