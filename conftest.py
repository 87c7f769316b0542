"""Fixtures of all tests, those below `tests` and those below `benchmarks`."""

pytest_plugins = ["tests.support.fixtures"]
