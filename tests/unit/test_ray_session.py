import errno
import pickle
import socket
import subprocess
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError

from llm4msr import errors, ray_session
from llm4msr.ray_session import unwrap_errors


@unwrap_errors
def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("kind", [errors.DataError, errors.StorageError, errors.TooManyFailedError])
def test_our_own_error_passes(kind: type[Exception]):
    with pytest.raises(kind, match=r"^mine$"):
        raised(kind("mine"))


def of_a_task(cause: Exception) -> Exception:
    """As Ray raises in the driver what a task raised: an instance of both classes, with a traceback for its text."""
    return RayTaskError("task", "Traceback ...\nllm4msr.errors.DataError: only a text", cause).as_instanceof_cause()


def of_a_training(cause: Exception) -> Exception:
    return WorkerGroupError("Traceback ...", {0: cause})


@pytest.mark.parametrize("wrapped", [of_a_task, of_a_training])
@pytest.mark.parametrize("kind", [errors.StorageError, errors.MissingExtraError])
def test_our_error_behind_one_of_rays_is_raised_as_itself(wrapped, kind: type[errors.LLM4MSRError]):
    with pytest.raises(kind, match=r"^file a:\ndamaged$") as caught:
        raised(wrapped(kind("file a:\ndamaged")))
    assert type(caught.value) is kind


@pytest.mark.parametrize("wrapped", [of_a_task, of_a_training])
def test_a_full_disk_behind_one_of_rays_is_one_message(wrapped):
    with pytest.raises(errors.FullDiskError, match=r"^/full/file: no space left on its disk; free some"):
        raised(wrapped(OSError(errno.ENOSPC, "No space left on device", "/full/file")))


def test_what_ray_adds_to_a_message_is_not_shown():
    error = errors.StorageError("file a: damaged")
    error.args = (f"{error.args[0]}\nFailed to apply UDF transform after 1/1 attempts",)
    assert str(pickle.loads(pickle.dumps(error))) == "file a: damaged"


class Actor:
    """Stands for what Ray keeps alive as long as anybody holds it."""


def test_an_error_that_somebody_keeps_holds_nothing_of_the_run_that_failed():
    actors: list[weakref.ref[Actor]] = []

    @unwrap_errors
    def run() -> None:
        actor = Actor()
        actors.append(weakref.ref(actor))
        try:
            next(iter(()))
        except StopIteration:
            raise of_a_task(errors.StorageError("file a: damaged")) from None

    with pytest.raises(errors.StorageError) as caught:
        run()
    assert actors[0]() is None
    assert caught.value.args


def test_a_text_that_only_looks_like_ours_is_not_taken_for_it():
    with pytest.raises(RuntimeError):
        raised(RuntimeError("llm4msr.errors.DataError: only a text"))


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError, match="plain"):
        raised(KeyError("plain"))


@pytest.fixture
def listener() -> Iterator[int]:
    """A port where somebody listens who is no Ray cluster: every connection is closed at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "refused"),
        ("ray://127.0.0.1:1", "refused"),
        ("http://127.0.0.1:8265", "not HOST:PORT"),
        ("nonsense", "not HOST:PORT"),
        ("127.0.0.1:99999", "not HOST:PORT"),
        ("[::1]:1", r"refused|Cannot assign|unreachable"),
    ],
)
def test_an_address_where_no_cluster_answers_is_named(address: str, why: str):
    with pytest.raises(errors.ConfigError, match=rf"no Ray cluster at .*({why}).*RAY_ADDRESS says") as caught:
        ray_session.refuse_dead_cluster(address, "RAY_ADDRESS")
    assert address in str(caught.value)


def test_what_listens_but_is_no_cluster_is_told(listener: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_session, "ANSWER_SECONDS", 2.0)
    with pytest.raises(errors.ConfigError, match="does not answer as a Ray cluster"):
        ray_session.refuse_dead_cluster(f"127.0.0.1:{listener}", "RAY_ADDRESS")


def test_a_cluster_that_asks_for_a_token_is_no_dead_one(listener: int, monkeypatch: pytest.MonkeyPatch):
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        raised = b"ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing"
        return subprocess.CompletedProcess(command, 1, b"", b"Traceback ...\n" + raised)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(errors.ConfigError, match=r"asks for a token .* set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN"):
        ray_session.refuse_dead_cluster(f"127.0.0.1:{listener}", "RAY_ADDRESS")


def test_a_ray_that_does_not_start_in_time_is_one_message(monkeypatch: pytest.MonkeyPatch):
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # which it is where other tests have started it
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(errors.LLM4MSRError, match=r"did not start on this machine: The current .* run again later"):
        ray_session.connect()


def test_lines_of_c_code_with_the_mark_are_left_out(capfd: pytest.CaptureFixture[str]):
    import os

    with ray_session.without_lines(b"logging.cc"):
        os.write(2, b"[x] logging.cc:303: Set ray log level\nkept\n")
    assert capfd.readouterr().err == "kept\n"
