"""gRPC-Web, from a page in a real browser: `make browser` installs it."""

import functools
import http.server
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.envoy.conftest import listener
from tests.serving import synthetic

CHROMIUM = shutil.which("chromium")
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: make browser")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files, without a line on stderr for each."""

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def site():
    """A web server with the examples, and its origin."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=EXAMPLES))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def page(site, tmp_path):
    """Opens the example in a browser, and gives what it shows in the end."""

    def show(**query):
        command = [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--virtual-time-budget=20000", "--dump-dom", f"{site}/browser.html?{urlencode(query)}"),
        ]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=60, env={"HOME": str(tmp_path)}
        )
        (shown,) = re.findall(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
        return shown

    return show


def test_a_page_calls_predict(replica, sidecar, page, site):
    """A page of an allowed origin gets the answer, and the server's error if there is one."""
    server = replica(synthetic(scale=2.0))

    def allow(config):
        (host,) = listener(config)["route_config"]["virtual_hosts"]
        host["typed_per_filter_config"]["envoy.filters.http.cors"]["allow_origin_string_match"] = [{"exact": site}]

    envoy = sidecar(server.addresses["public"], allow)
    to = f"http://{envoy.address}"
    assert page(server=to, model="model", row="1.5,2,-3,0") == "y: 3, 4, -6, 0"
    assert page(server=to, model="nobody").startswith("failed: status 5: ")
    assert page(server=to, model="model", row="1,2").startswith("failed: status 3: ")


def test_a_page_from_elsewhere_does_not(replica, sidecar, page):
    """The deployed file names another origin, so the browser keeps the answer from this page."""
    envoy = sidecar(replica(synthetic()).addresses["public"])
    assert page(server=f"http://{envoy.address}", model="model") == "failed: Failed to fetch"
