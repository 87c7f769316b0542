"""Fixtures of all tests, those below `tests` and those below `benchmarks`; and which of them are marked `ray`."""

import pytest

pytest_plugins = ["tests.support.fixtures"]
SHARED = {"ray_session", "s3"}
"""Fixtures whose tests belong into one process, with what is made on them: Ray, and the S3 server."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share Ray, so that others can run beside them in a process of their own."""
    for item in items:
        if SHARED.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("ray")
