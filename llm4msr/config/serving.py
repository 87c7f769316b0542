"""The HTTP endpoint."""

from pydantic import Field

from llm4msr.config.section import Section


class SecondConfig(Section):
    """A second bundle beside `serve.bundle`, for some users. A deployment's `user_config` changes it in place."""

    bundle: str = ""
    """Its URI; empty = none."""
    share: float = Field(0.0, ge=0, le=1)
    """Share of the users it is for: those whose hash, 64 bits of BLAKE2b of the salt, a zero byte and the user id, is
    below so much of 2^64. Who was there before stays when it grows."""
    shadow: bool = False
    """`false`: it alone ranks for these users. `true`: `serve.bundle` does, and what the second one says is counted and
    thrown away."""
    salt: str = Field("", max_length=200)
    """Another salt draws other users."""


class LogConfig(Section):
    """A log of what was served: a sample of the requests with what the model read and answered, as Parquet files."""

    folder: str = Field("", pattern=r"^(/.*|[a-z][a-z0-9+.-]*://.*)?$")
    """Folder in full, or URI, of which this log's files alone are ever deleted; empty = no log."""
    share: float = Field(0.01, ge=0, le=1)
    """Share of the requests, drawn at random."""
    days: float = Field(7.0, gt=0)
    """How long a request stays there."""
    max_bytes: int = Field(1 << 30, ge=1 << 16)
    """Most bytes of all files; beyond it, the oldest go."""
    file_rows: int = Field(5_000, ge=1, le=100_000)
    """Most requests of a file. A replica writes one when it holds so many, or after half a minute."""


class ServeConfig(Section):
    """The HTTP endpoint. Limits are for one replica unless they say otherwise."""

    host: str = "127.0.0.1"
    """Address to listen at: `127.0.0.1` is this machine alone, `0.0.0.0` all its IPv4 addresses, `::` all
    of IPv6 too."""
    port: int = Field(8000, ge=1, le=65535)
    """TCP port to listen at."""
    allowed_hosts: tuple[str, ...] = ()
    """Without an API token, only requests whose Host is local, `host`, or one of these are answered, such as a
    service's name; `*` stands for any characters. With a token every Host is."""
    bundle: str = ""
    """URI of the bundle; empty = the one that this config exported."""
    second: SecondConfig = SecondConfig()
    """A second bundle, to split users between the two or to try it unseen."""
    allow_backbones: tuple[str, ...] = ()
    """Import paths of backbones that a bundle may name: loading it runs their code. `model.backbone` of the served
    config is one of them."""
    replicas: int = Field(1, ge=1)
    """Processes that rank, each with a copy of the model and one CPU; more serve more requests at once."""
    max_replicas: int = Field(0, ge=0)
    """If more than `replicas`: as many replicas as the load needs, up to this many; 0 = always `replicas`."""
    max_candidates: int = Field(1000, ge=1, le=100_000)
    """Candidates of one HTTP request; more are refused with 413."""
    max_history: int = Field(200, ge=0, le=1_000)
    """Events in the history of one ranking request; more are refused with 422."""
    max_body_bytes: int = Field(1 << 20, ge=1024)
    """Most bytes of a request's body; a larger one is refused with 413."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests that a replica works on at once; others wait for a place."""
    max_queued_requests: int = Field(128, ge=1)
    """Requests that wait for a place, at each replica behind HAProxy, else at each of Ray Serve's own proxies; more are
    refused with 429. With those that a replica works on, the default is under a second of requests with 1,000
    candidates each."""
    timeout_s: float = Field(10.0, gt=0)
    """Seconds in which the body of a request must arrive, else 408."""
    events: str = Field("", pattern=r"^(/.*)?$")
    """Folder of the log of `POST /v1/events`, in full, on a disk of the machine that keeps it; empty = no events."""
    events_days: float = Field(7.0, gt=0)
    """How long an event is kept. Newer bundles and refreshes know it if it has come into their data by then."""
    recent_events: int = Field(1_000_000, ge=1)
    """The most events, of all users together, that each replica holds: 200 to 400 bytes each, at most `max_history` of
    a user. Beyond that, those of the users who were active longest ago are dropped. A replica that starts reads as many
    of the log's latest."""
    nearline: bool = False
    """Whether an LLM that is kept open reads users again whose events are new, for a model whose users an LLM has read
    (`extract.reads = "users"`); their codes then count. `llm4msr serve` starts it, with the config's LLM."""
    follow_s: float = Field(60.0, ge=0)
    """Seconds between a replica's looks for newer codes from `llm4msr refresh`; 0 = never."""
    log: LogConfig = LogConfig()
    """A log of what was served."""
    explore: bool = False
    """Whether `llm4msr serve` shows the explorer, a page below /explore. It opens this config's run and its LLM."""
    access_log: bool = False
    """A line with the request id for each request in Ray Serve's log files."""
