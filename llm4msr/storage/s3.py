"""How this package uses S3: patient with a store that it has reached, and quick to say when it cannot reach one.

Once a bucket has answered, a run of hours should survive a bad minute: ten tries with growing pauses, about a minute in
all. Before that, a wrong address or key is more likely than a bad minute: four tries, at most half a minute.
"""

import os
from functools import cache

from llm4msr.errors import StorageError

try:
    from botocore.exceptions import BotoCoreError
except ImportError:  # without the extra `s3` no bucket is used
    FAULTS: tuple[type[Exception], ...] = (OSError,)
else:
    FAULTS = (OSError, BotoCoreError)
"""What using a file on any storage can raise; botocore's own errors are no OSError."""

SCHEMES = ("s3://", "s3a://")
OPTIONS: dict[str, object] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 10},
        "connect_timeout": 10,
        "read_timeout": 60,
    },
}
"""For s3fs. botocore retries after 5xx, throttling and dropped connections, but by default only a few times. A listing
that s3fs caches would hide what workers on other machines write later."""

_FIRST = {"retries": {"mode": "standard", "total_max_attempts": 4}, "connect_timeout": 5, "read_timeout": 5}
_WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidClientTokenId"}


def reach(uri: str) -> None:
    """Ask for the URI's bucket, once in a process, to report at once what would make every later request fail.

    Raises:
        StorageError: no answer, no such bucket, no credentials, or wrong ones.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    _reach_bucket(uri.split("://", 1)[1].split("/", 1)[0], endpoint)


@cache
def _reach_bucket(bucket: str, endpoint: str) -> None:
    from s3fs import S3FileSystem

    where = endpoint or "the endpoint of your AWS settings"
    store = S3FileSystem(config_kwargs=_FIRST, skip_instance_cache=True)
    store.retries = 1  # on top of botocore's
    try:
        store.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except FAULTS as error:
        code = code_of(error)
        if problem := _refusal(code, where) if code else _silence(type(error).__name__, where):
            raise StorageError(f"s3://{bucket}: {problem}") from None


def code_of(error: BaseException) -> str:
    """The code in the store's answer that made s3fs raise this; empty if there was no answer."""
    return str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", ""))


def _refusal(code: str, where: str) -> str:
    """What the store says and what to do; empty if a retry may help, or if only listing is forbidden."""
    if code in ("NoSuchBucket", "404"):
        return f"no such bucket at {where}; create it, or change the URI"
    if code in _WRONG_KEY:
        return (
            f"{where} refuses the credentials ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where "
            "there is one, AWS_SESSION_TOKEN"
        )
    return ""


def _silence(error: str, where: str) -> str:
    """Why there was no request, or no answer."""
    if error in ("NoCredentialsError", "PartialCredentialsError"):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on every node, or give the nodes a role"
    return f"{where} gives no answer ({error}); check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the network"
