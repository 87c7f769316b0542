"""S3 as this package asks it: patient with a store that it has reached, and quick to say so where it cannot reach one.

Once a bucket has answered, a run of hours shall outlive a bad minute: ten tries with growing pauses, about a minute in
all. Before that, a wrong address or key is more likely than a bad minute: four tries, at most half a minute.
"""

import os
from functools import cache
from typing import Any

from llm4msr.errors import StorageError

try:
    from botocore.exceptions import BotoCoreError
except ImportError:  # without the extra `s3` nobody gets here with a bucket
    FAULTS: tuple[type[Exception], ...] = (OSError,)
else:
    FAULTS = (OSError, BotoCoreError)
"""What a file on any storage can raise; botocore's own are no OSError."""

SCHEMES = ("s3://", "s3a://")
OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 10},
        "connect_timeout": 10,
        "read_timeout": 60,
    },
}
"""For s3fs. botocore tries again on 5xx, throttling and dropped connections; its own tries are few. A listing that s3fs
keeps would hide what workers on other machines write later."""

_FIRST = {"retries": {"mode": "standard", "total_max_attempts": 4}, "connect_timeout": 5, "read_timeout": 5}
_WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidClientTokenId"}


def reach(uri: str) -> None:
    """Ask for the URI's bucket, once in a process: what makes every later request fail is told here.

    Raises:
        StorageError: no answer, no such bucket, no credentials, or wrong ones.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    _ask(uri.split("://", 1)[1].split("/", 1)[0], endpoint)


@cache
def _ask(bucket: str, endpoint: str) -> None:
    from s3fs import S3FileSystem

    where = endpoint or "the endpoint of your AWS settings"
    store = S3FileSystem(config_kwargs=_FIRST, skip_instance_cache=True)
    store.retries = 1  # on top of botocore's
    try:
        store.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except FAULTS as error:
        code = code_of(error)
        if wrong := _refusal(code, where) if code else _silence(type(error).__name__, where):
            raise StorageError(f"s3://{bucket}: {wrong}") from None


def code_of(error: BaseException) -> str:
    """The code in the store's answer that made s3fs raise this; empty where there was none."""
    return str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", ""))


def _refusal(code: str, where: str) -> str:
    """What the store says and what to do; nothing where trying again helps, or what may not be listed may be read."""
    if code in ("NoSuchBucket", "404"):
        return f"no such bucket at {where}; create it, or change the URI"
    if code in _WRONG_KEY:
        return (
            f"{where} refuses the credentials ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where "
            "there is one, AWS_SESSION_TOKEN"
        )
    return ""


def _silence(error: str, where: str) -> str:
    """Why nothing was asked or answered."""
    if error in ("NoCredentialsError", "PartialCredentialsError"):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or give the nodes a role"
    return f"{where} gives no answer ({error}); check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network"
