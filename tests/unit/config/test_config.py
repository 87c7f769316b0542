import ast
import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pydantic
import pytest

from llm4msr import config as configs
from llm4msr.config import Config, Section, load
from llm4msr.config.training import Variant
from llm4msr.errors import ConfigError, StorageError
from tests.support.data import config_of

SECTIONS = [section for section in vars(configs).values() if inspect.isclass(section) and issubclass(section, Section)]
MINIMAL = 'name = "x"\n[source]\nkind = "table"\npath = "data"\n'


@pytest.fixture
def minimal(tmp_path: Path) -> str:
    file = tmp_path / "minimal.toml"
    file.write_text(MINIMAL)
    return str(file)


def test_only_name_and_source_are_required(minimal: str):
    config = load(minimal)
    assert config == Config.model_validate({"name": "x", "source": {"kind": "table", "path": "data"}})
    assert (config.seed, config.split.kind, config.split.valid, config.split.test) == (1, "time", 0.1, 0.1)
    assert (config.model.backbone, config.model.knowledge, config.model.control) == ("mmoe", "both", "none")
    assert (config.extract.engine, config.extract.rows_per_shard) == ("auto", "auto")
    assert (config.extract.reads, config.extract.pooling, config.extract.point_in_time) == ("items", "mean", True)
    assert (config.train.epochs, config.train.batch_size, config.serve.port) == (20, 4096, 8000)
    assert config.root == "runs/x"


def test_what_reads_users_has_the_published_form_unless_told(minimal: str):
    extract = load(minimal, ["extract.reads=users"]).extract
    assert (extract.pooling, extract.point_in_time) == ("last", False)
    assert load(minimal, ["extract.reads=users", "extract.pooling=mean"]).extract.pooling == "mean"


def test_root_is_storage_where_it_is_given(minimal: str):
    assert load(minimal, ["storage=s3://bucket/a"]).root == "s3://bucket/a"


@pytest.mark.parametrize("file", sorted((Path(configs.__file__).parents[2] / "jobs" / "configs").glob("*.toml")))
def test_shipped_configs_load(file: Path):
    assert load(str(file)).name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key 'train.epoch'; did you mean 'epochs'\?"),
        ("modle.backbone=star", r"unknown key 'modle'; did you mean 'model'\?"),
        ("source.table.iten=x", r"unknown key 'source.table.iten'; did you mean 'items?'\?"),
        ("split.zzzz=1", r"unknown key 'split.zzzz'; known keys: kind, by, valid"),
        ("train.epochs=0", r"'train.epochs': .*greater than or equal to 1 \(given: 0\)"),
        ("train.epochs=many", r"'train.epochs': .*integer.* \(given: 'many'\)"),
        ("model.backbone=wide", r"'model.backbone': .*'mmoe'.* \(given: 'wide'\)"),
        ("split.valid=0.95", r"'split': valid \+ test = 1.05 leaves no training rows"),
        ("train.workers=0", r"'train.workers': write a number from 1 on, or the least and the most.*\(given: 0\)"),
        ("train.workers=[4, 2]", r"'train.workers': write a number .*\(given: \[4, 2\]\)"),
        ('extract={reads="users", point_in_time=true}', r"'extract': point_in_time is for reads = 'items'"),
        ("extract.snapshots=0", r"'extract.snapshots': .*greater than or equal to 1"),
        ("train.sparse=often", r"'train.sparse"),
        ("model.hidden=[]", r"'model.hidden': .*at least 1 item"),
        ("model.hidden=[64, 0]", r"'model.hidden.1': .*greater than or equal to 1 \(given: 0\)"),
        ("evaluate.seeds=[3, 3]", r"'evaluate.seeds': a seed stands there twice"),
        ("evaluate.seeds=[-1]", r"'evaluate.seeds.0': .*greater than or equal to 0 \(given: -1\)"),
        (f"evaluate.seeds=[{2**63}]", r"'evaluate.seeds.0': .*less than or equal to 9223372036854775807"),
        (f"seed={2**64}", r"'seed': .*less than or equal to 9223372036854775807"),
        ("name=../escape", r"'name': .*pattern"),
        ("train=5", r"'train': "),
    ],
)
def test_wrong_keys_and_values_are_named_with_the_file(minimal: str, override: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        load(minimal, [override])
    assert str(caught.value).startswith(minimal)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ('name = "x"\n', "source"),
        ('[source]\nkind = "table"\npath = "p"\n', "name"),
        ('name="x"\n[source]\nkind="table"\n', "source.path"),
    ],
)
def test_missing_key_is_named(tmp_path: Path, text: str, missing: str):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=f"'{missing}' is missing; .*--set {missing}="):
        load(str(tmp_path / "c.toml"))


def test_every_error_is_told_at_once(minimal: str):
    with pytest.raises(ConfigError) as caught:
        load(minimal, ["train.epochs=0", "serve.port=99999"])
    assert "train.epochs" in str(caught.value)
    assert "serve.port" in str(caught.value)


def test_what_is_not_toml_is_refused(tmp_path: Path):
    (tmp_path / "c.toml").write_text("name = [")
    with pytest.raises(ConfigError, match=r"c\.toml: not valid TOML"):
        load(str(tmp_path / "c.toml"))


@pytest.mark.parametrize(
    ("data", "encoding"), [(b'name = "\xff\xfe"', r"byte 9 is 0xff"), ('name = "x"'.encode("utf-16"), "UTF-16")]
)
def test_another_encoding_is_named(tmp_path: Path, data: bytes, encoding: str):
    (tmp_path / "c.toml").write_bytes(data)
    with pytest.raises(StorageError, match=rf"c\.toml: the encoding is .*{encoding}.*; save it as UTF-8"):
        load(str(tmp_path / "c.toml"))


def test_a_mark_and_line_ends_of_other_systems_change_nothing(tmp_path: Path):
    plain = tmp_path / "plain.toml"
    plain.write_text('name = "x"\nsource = {kind = "table", path = "."}\n')
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert load(str(tmp_path / "windows.toml")) == load(str(plain))


def test_a_key_that_only_says_how_to_run_enters_no_fingerprint(tmp_path: Path):
    (tmp_path / "c.toml").write_text('name = "x"\nsource = {kind = "table", path = "."}\n')
    base = load(str(tmp_path / "c.toml"))
    how = load(str(tmp_path / "c.toml"), ["train.workers=3", "extract.rows_per_shard=7", "extract.user_template=t.txt"])
    assert (how.train.identity(), how.extract.identity()) == (base.train.identity(), base.extract.identity())
    assert load(str(tmp_path / "c.toml"), ["train.epochs=3"]).train.identity() != base.train.identity()


def test_unreadable_file_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match=r"absent\.toml: cannot be read"):
        load(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=5", "train", "epochs", 5),
        ("train.learning_rate=1e-2", "train", "learning_rate", 0.01),
        ("train.workers=4", "train", "workers", 4),
        ("train.workers=[2, 4]", "train", "workers", (2, 4)),
        ("model.backbone=star", "model", "backbone", "star"),
        ('model.backbone="star"', "model", "backbone", "star"),
        ("model.hidden=[8, 4]", "model", "hidden", (8, 4)),
        ('evaluate.variants=["none", "shuffled"]', "evaluate", "variants", ("none", "shuffled")),
        ("evaluate.variants=[none]", "evaluate", "variants", ("none",)),
        ("evaluate.variants=[none, 'user',shuffled,]", "evaluate", "variants", ("none", "user", "shuffled")),
        ("evaluate.variants=[]", "evaluate", "variants", ()),
        (" split.valid = 0.2", "split", "valid", 0.2),
        ("extract.model=/a/b=c", "extract", "model", "/a/b=c"),
    ],
)
def test_set_reads_toml_values_and_bare_words(minimal: str, override: str, section: str, key: str, value: object):
    assert getattr(getattr(load(minimal, [override]), section), key) == value


def test_a_bare_word_for_a_list_says_how_to_write_it(minimal: str):
    with pytest.raises(ConfigError, match=r"'evaluate\.variants': .*\(given: 'none'\); write \[none\]"):
        load(minimal, ["evaluate.variants=none"])


def test_set_reaches_nested_sections_and_the_last_one_wins(minimal: str):
    config = load(minimal, ["source.table.user=a", "source.table.user=b", "seed=7"])
    assert config.source.table.user == "b"
    assert config.source.table.item == "item_id"
    assert config.seed == 7


@pytest.mark.parametrize("override", ["train.epochs", "=5", "  =5"])
def test_set_of_a_wrong_form_says_the_right_one(minimal: str, override: str):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load(minimal, [override])


def test_set_does_not_descend_into_a_value(minimal: str):
    with pytest.raises(ConfigError, match="'name' is a value, not a section"):
        load(minimal, ["name.first=a"])


@pytest.mark.parametrize("value", ["inf", "nan", "1e999"])
@pytest.mark.parametrize("key", ["train.learning_rate", "train.weight_decay", "serve.timeout_s"])
def test_numbers_are_finite(minimal: str, key: str, value: str):
    with pytest.raises(ConfigError, match=f"'{key}': .*finite"):
        load(minimal, [f"{key}={value}"])


@pytest.mark.parametrize(("section", "key"), [("train", "epochs"), ("model", "backbone"), ("split", "valid")])
def test_config_is_frozen(tmp_path: Path, section: str, key: str):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(getattr(config_of(tmp_path), section), key, 1)


@pytest.mark.parametrize(
    ("own", "variant", "knowledge", "control", "name"),
    [
        ("both", "none", "none", "none", "none"),
        ("both", "user", "user", "none", "user"),
        ("both", "feature", "feature", "none", "feature"),
        ("user", "shuffled", "user", "shuffled", "user-shuffled"),
        ("scenario", "random", "scenario", "random", "scenario-random"),
        ("none", "random", "both", "random", "both-random"),
    ],
)
def test_using_changes_knowledge_and_seed_alone(
    tmp_path: Path, own: str, variant: str, knowledge: str, control: str, name: str
):
    config = config_of(tmp_path, model={"knowledge": own})
    used = config.using(variant, 9)
    assert (used.seed, used.model.knowledge, used.model.control) == (9, knowledge, control)
    assert used.model.variant == name
    assert config.seed == 1
    same = {"seed": 1, "model": config.model}
    assert used.model_copy(update=same) == config
    assert used.model.model_copy(update={"knowledge": own, "control": "none"}) == config.model


def test_using_a_variant_takes_the_control_away(tmp_path: Path):
    config = config_of(tmp_path, model={"knowledge": "both", "control": "shuffled"})
    assert config.using("both", 1).model.variant == "both"


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "{a=" * 3000 + "1" + "}" * 3000])
def test_what_is_nested_too_deeply_is_refused(minimal: str, tmp_path: Path, value: str):
    with pytest.raises(ConfigError, match=r"train.epochs=.*nested"):
        configs.load(minimal, [f"train.epochs={value}"])
    (tmp_path / "deep.toml").write_text(f"name = {value}")
    with pytest.raises(ConfigError, match=r"deep.toml: not valid TOML"):
        configs.load(str(tmp_path / "deep.toml"))


def test_a_line_break_in_a_value_brings_no_second_key(minimal: str):
    with pytest.raises(ConfigError, match=r"'train.epochs'"):
        configs.load(minimal, ["train.epochs=3\npatience=9"])


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_described_below_it(section: type[Section]):
    (source,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(source, ast.ClassDef)
    described = {
        key.target.id
        for key, text in pairwise(source.body)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
    assert set(section.model_fields) - described == set()


def test_every_section_is_public():
    assert {s for s in Section.__subclasses__() if s.__module__.startswith(configs.__name__)} < set(SECTIONS)


def test_variants_of_a_match_are_the_plain_model_din_and_the_match_without_levels(tmp_path: Path):
    parts = ("cosines", "ids")
    config = config_of(tmp_path, model={"match": parts, "knowledge": "both"}, extract={"reads": "items"})
    told = {name: config.using(name, 1).model for name in get_args(Variant)}
    assert {name: (model.variant, model.match) for name, model in told.items()} == {
        "none": ("none", ()),
        "din": ("din", ("ids",)),
        "match": ("match-din", parts),
        "feature": ("feature-match-din", parts),
        "user": ("user-match-din", parts),
        "scenario": ("scenario-match-din", parts),
        "both": ("both-match-din", parts),
        "shuffled": ("both-match-din-shuffled", parts),
        "random": ("both-match-din-random", parts),
    }
    whole = config_of(tmp_path, model={"knowledge": "user"}, extract={"reads": "items"}).using("match", 1).model
    assert whole.match == ("candidate", "cosines", "attention")
    alone = config.model_copy(update={"model": told["match"]}).using("random", 1).model
    assert (alone.knowledge, alone.variant) == ("none", "match-din-random")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"extract": {"reads": "items", "snapshots": 3}}, "snapshots is for reads = 'users'"),
        ({"extract": {"snapshots": 2}, "split": {"history_share": 0.5}}, "needs split.history_share = 1"),
    ],
)
def test_snapshots_are_of_users_who_are_read_whole(tmp_path: Path, sections: dict[str, Any], message: str):
    with pytest.raises(pydantic.ValidationError, match=message):
        config_of(tmp_path, **sections)
    config_of(tmp_path, extract={"snapshots": 3})


@pytest.mark.parametrize("sections", [{"model": {"match": ["cosines"]}}, {"evaluate": {"variants": ["match"]}}])
def test_matching_vectors_needs_those_of_items(tmp_path: Path, sections: dict[str, Any]):
    with pytest.raises(pydantic.ValidationError, match=r"need extract\.reads"):
        config_of(tmp_path, **sections)
    config_of(tmp_path, extract={"reads": "items"}, **sections)
    config_of(tmp_path, model={"match": ["ids"]}, evaluate={"variants": ["din"]})
