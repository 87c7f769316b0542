"""The reader behind Ray Serve: an application of its own, which asks the endpoint's log whose events are not read yet.

The log is its queue: who acts often is read once with all that came meanwhile, and a reader that was killed goes on
where the log has no code.
"""

import logging
import threading
import time
from typing import Any

from llm4msr import ray_session
from llm4msr.config import Config
from llm4msr.export.refresh import Served
from llm4msr.nearline.reader import Reader
from llm4msr.serve.app import APP, EVENTS
from llm4msr.serve.event_log import LoggedCode, LoggedEvent, Unread
from llm4msr.storage import StageOutput

NAME = "nearline"
PAUSE_S = 1.0
"""Between two looks at the log when nobody is left to be read: who acts within it is read once."""
AT_ONCE = 64
"""Events whose users are read together."""
MOST_EVENTS = 200
"""Of a user, the latest."""
LOG_S = 30.0
"""Seconds that the log may take to answer."""
log = logging.getLogger("ray.serve")


class LogAwayError(Exception):
    """The log does not answer."""


class Nearline:
    """Reads users as long as there are new events.

    Its thread ends with an error of the LLM's, which makes Ray Serve start another one.
    """

    def __init__(self, config: Config, prepared: StageOutput, extracted: StageOutput, served: Served):
        self._reader = Reader(config, prepared, extracted, served)
        self._epoch = self._sequence = 0
        self._error: Exception | None = None
        threading.Thread(target=self._follow, daemon=True).start()

    def check_health(self) -> None:
        """Ray Serve calls this now and then."""
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        is_away = False
        while True:
            try:
                if not self._read_some():
                    time.sleep(PAUSE_S)
                is_away = False
            except LogAwayError as error:  # it is asked again until it answers
                if not is_away:
                    log.error(f"nobody is read: {error}")
                is_away = True
                time.sleep(PAUSE_S)
            except Exception as error:
                log.exception("the reader ends")
                self._error = error
                return

    def _read_some(self) -> bool:
        """Says whether there was anybody to read."""
        unread: Unread = _ask("unread", self._sequence, AT_ONCE, MOST_EVENTS, self._reader.identity)
        if unread.epoch != self._epoch:
            self._epoch, self._sequence = unread.epoch, 0
            return True
        if unread.events:
            codes = self._reader.codes(unread.events)
            _ask("put_codes", [self._logged(user, events, codes.get(user)) for user, events in unread.events.items()])
        self._sequence = unread.sequence
        return bool(unread.events)

    def _logged(self, user: str, events: list[LoggedEvent], code_K: Any) -> LoggedCode:
        newest = max(events, key=lambda event: event.sequence)
        code = b"" if code_K is None else code_K.tobytes()
        return LoggedCode(0, user, newest.sequence, newest.arrived, self._reader.identity, self._reader.coder, code)


def _ask(method: str, *arguments: object) -> Any:
    """What the log of the endpoint beside it answers."""
    from ray import serve

    try:
        event_log = serve.get_deployment_handle(EVENTS, app_name=APP)
        return getattr(event_log, method).remote(*arguments).result(timeout_s=LOG_S)
    except Exception as error:
        raise LogAwayError(f"the log of events: {type(error).__name__}: {error}"[:1000]) from None


def application(config: Config, prepared: StageOutput, extracted: StageOutput, served: Served) -> Any:
    """The Ray Serve application; see `Reader` for what it is given."""
    import ray
    from ray import serve

    ray_session.connect()
    options = {"num_cpus": 1, "num_gpus": int(ray.cluster_resources().get("GPU", 0) >= 1)}
    deployment: Any = serve.deployment(name=NAME, ray_actor_options=options)(Nearline)
    return deployment.bind(config, prepared, extracted, served)
