import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm4msr import config as configs
from llm4msr import errors, pipeline, progress, storage
from llm4msr.errors import MissingExtraError, StorageError
from llm4msr.knowledge.engines import models
from llm4msr.text import mask
from tests.support.data import config_of, write_data


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert str(storage.path("a/b")) == str(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("file:///data/a b", "/data/a b"),
        ("file:///data/a%20b", "/data/a b"),
        ("FILE:///data/a", "/data/a"),
        ("file:/data/a#b?c", "/data/a#b?c"),
        ("file://localhost/data", "/data"),
        ("local:///data", "/data"),
        ("~", "HOME"),
        ("~/a/b", "HOME/a/b"),
        ("file:///~/a", "HOME/a"),
        ("file://~/a", "HOME/a"),
        ("./~/a", "CWD/~/a"),
        ("a/~b", "CWD/a/~b"),
        ("a:b", "CWD/a:b"),
    ],
)
def test_a_place_on_this_machine(uri: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/of/someone")
    monkeypatch.chdir(tmp_path)
    found = storage.path(uri)
    assert isinstance(found, Path)
    assert str(found) == place.replace("HOME", "/home/of/someone").replace("CWD", str(tmp_path))
    assert storage.path(found) == found


def test_the_home_of_another_user(tmp_path: Path):
    import pwd

    me = pwd.getpwuid(os.getuid())
    assert str(storage.path(f"~{me.pw_name}/x")) == str(Path(me.pw_dir) / "x")
    with pytest.raises(StorageError, match=r"~nobody-of-that-name/x: no such user"):
        storage.path("~nobody-of-that-name/x")


def test_a_file_uri_with_two_slashes_is_told_apart():
    with pytest.raises(StorageError, match=r"'data' would be a machine; .*file:///data/runs"):
        storage.path("file://data/runs")


@pytest.mark.parametrize(
    "uri",
    ["nosuch://a/b", "s3:/a/b", "s3:a/b", "gs:a/b", "data:a/b", "zip://a/b", "ftp://127.0.0.1:1/a/b", "dbfs://a/b"],
)
def test_a_scheme_that_cannot_be_used_is_refused(uri: str):
    with pytest.raises(StorageError, match=r"a/b: .*use a local path or a scheme"):
        storage.path(uri)


@pytest.mark.parametrize(
    "uri", ["file:runs", "file:~/runs", "file:", "file://", "local:runs", "file://localhost", "a\0b", "file:///a%00b"]
)
def test_what_is_no_whole_path_becomes_no_folder(uri: str):
    with pytest.raises(StorageError):
        storage.path(uri)


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [
        ("gs://b/x", "gcsfs", "gcs"),
        ("gcs://b/x", "gcsfs", "gcs"),
        ("abfs://c/x", "adlfs", "azure"),
        ("abfss://c@account.dfs.core.windows.net/x", "adlfs", "azure"),
        ("az://c/x", "adlfs", "azure"),
    ],
)
def test_the_extra_of_a_scheme_is_named(uri: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    if package in __import__("fsspec").available_protocols():
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingExtraError, match=rf"/x: .*pip install 'llm4msr\[{extra}\]'"):
        storage.path(uri)


def test_the_extra_of_s3_is_named():
    code = "import sys; sys.modules['s3fs'] = None; from llm4msr import storage; storage.path('S3://b/x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # others have loaded it here
    assert "MissingExtraError: s3://b/x: " in done.stderr
    assert "pip install 'llm4msr[s3]'" in done.stderr


def test_the_package_of_another_scheme_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "dropboxdrivefs", None)
    with pytest.raises(MissingExtraError, match=r"dropbox://a/b: .*dropboxdrivefs.*with pip"):
        storage.path("dropbox://a/b")


def test_every_place_of_a_config_may_lie_at_home_or_behind_a_file_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    data = write_data(tmp_path / "data")
    (tmp_path / "small.toml").write_text(
        f"name = 'small'\nstorage = 'file://{tmp_path}/runs'\n[source]\nkind = 'table'\npath = '~/data'\n"
    )
    given = config_of(data, storage="~/runs").model_dump()["source"]["table"]
    overrides = [f"source.table.{k}={json.dumps(v)}" for k, v in given.items() if v not in ("", ())]
    loaded = configs.load("~/small.toml", overrides)
    output = pipeline.prepare(loaded)
    assert output.folder.parent == tmp_path / "runs" / "prepare"
    assert pipeline.prepare(configs.load(f"file://{tmp_path}/small.toml", [*overrides, "storage=~/runs"])).reused
    (tmp_path / "llm").symlink_to(llama)
    assert models.resolve("~/llm") == models.resolve(f"file://{tmp_path}/llm") == tmp_path / "llm"
    with pytest.raises(StorageError, match=r"'~/none': no such folder"):
        models.resolve("~/none")
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:se/cr+et@bucket/x: no", "s3://***@bucket/x: no"),
        ("at https://user:p@ss@host:80/a", "at https://***@host:80/a"),
        ("redis://:secret@host:6379", "redis://***@host:6379"),
        ("https://ghp_secret@host/x", "https://***@host/x"),
        ('{"a": "sftp://u:pw@h/x", "b": "y@z"}', '{"a": "sftp://***@h/x", "b": "y@z"}'),
        ("https://h/x?a=1&X-Amz-Signature=abc&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("https://h/x?sv=1&sig=a%2Fb' not", "https://h/x?sv=1&sig=***' not"),
        ("https://h/x?token=abc", "https://h/x?token=***"),
        ("http://host:8000/v1/a@b", "http://host:8000/v1/a@b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("abfss://c@account.dfs.core.windows.net/x", "abfss://c@account.dfs.core.windows.net/x"),
        ("user:pw@host without a scheme", "user:pw@host without a scheme"),
    ],
)
def test_passwords_in_uris_are_not_shown(text: str, shown: str, capfd: pytest.CaptureFixture[str]):
    assert mask(text) == shown
    assert str(errors.DataError(text)) == shown
    progress.say(text)
    assert capfd.readouterr().err == shown + "\n"


def test_masking_long_text_takes_no_longer_than_reading_it():
    for text in ("://a:b" * 200_000, "?" + "a" * 1_000_000, "://" + "a" * 1_000_000, "http://" * 150_000):
        mask(text)


def test_a_manifest_and_its_summary_hold_no_password(monkeypatch: pytest.MonkeyPatch):
    folder = storage.path("memory://user:pw@passwords/out")
    config = {"source": {"path": "https://user:pw@host/data?token=abc"}}
    built = storage.StageResult(files={}, rows=0)
    output = storage.publish(folder, "prepare", 1, config, {"model": "s3://a:pw@b/m"}, lambda _: built)
    text = storage.read_text(folder / storage.MANIFEST) + json.dumps(output.summary())
    assert "pw" not in text
    assert "abc" not in text
    assert output.manifest.config["source"]["path"] == "https://***@host/data?token=***"


def test_keys_in_an_s3_uri_are_refused_and_not_repeated():
    with pytest.raises(StorageError, match=r"s3://\*\*\*@bucket/x: a URI of S3 holds no keys") as raised:
        storage.path("s3://AKIA:pa/ss@bucket/x")
    assert "ss@" not in str(raised.value)


@pytest.mark.parametrize(
    "uri", ["https://user:pa/word@host/x", "http://host:x/y", "http://host:99999/y", "http://[::1"]
)
def test_a_url_without_a_port_is_refused(uri: str):
    with pytest.raises(StorageError, match=r"not a URL with a port") as refusal:
        storage.path(uri)
    assert "pa/word" not in str(refusal.value)
