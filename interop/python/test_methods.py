"""Every method of the published client is called by some test. This is collected after all other tests."""

from __future__ import annotations

import pathlib

import pytest

import called


def test_every_method_of_the_client_is_called(request):
    here = pathlib.Path(__file__).parent
    run = {item.path for item in request.session.items}
    if run != set(here.glob("test_*.py")) or request.config.option.keyword or request.config.option.markexpr:
        pytest.skip("only a part of the suite is run")
    assert len(called.THERE) > 200, "the methods are not seen"
    missing = sorted(called.THERE - called.CALLED)
    assert not missing, "\n".join(missing)
