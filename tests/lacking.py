"""What to do where the machine lacks something a test needs: skip by name, or fail where everything must be there."""

import os
from typing import NoReturn

import pytest


def lacking(what: str, how_to_get_it: str) -> NoReturn:
    """End the test as skipped; as failed with HARDLOOP_TESTS_REQUIRE=all, which continuous integration sets."""
    message = f"{what} is not on this machine: {how_to_get_it}"
    if os.environ.get("HARDLOOP_TESTS_REQUIRE") == "all":
        pytest.fail(f"{message} (HARDLOOP_TESTS_REQUIRE=all forbids skipping)", pytrace=False)
    pytest.skip(message)
