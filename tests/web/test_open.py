"""A page that anyone could steer does not open."""

import pytest

from scenarios.demo import DemoOptions
from scenarios.web.app import run_with_page
from splitsight.errors import UserError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("token", [False, True])
def test_a_page_for_others_needs_token_and_tls(tmp_path, host, token):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef")
    options = DemoOptions(host=host, token_file=path if token else None)
    with pytest.raises(UserError, match=f"a page on {host} would let anyone on the network steer it: give it a token"):
        run_with_page(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_short_token(tmp_path):
    path = tmp_path / "token"
    path.write_text("short")
    with pytest.raises(UserError, match=r"the page's token in .* has 5 characters: give at least 16"):
        run_with_page(DemoOptions(token_file=path), tmp_path / "run")
