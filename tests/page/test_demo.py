"""The demo as a newcomer meets it: a command, a link, and a page where things happen."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page.browser import Browser

pytestmark = pytest.mark.browser


@pytest.fixture
def page_url(tmp_path: Path) -> Iterator[str]:
    """What the demo says where the page is; it runs for as long as the test."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-m", "stream", "demo", "--sample", "--web-port", "0", "--rate", "50"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)},
    ) as demo:
        assert demo.stdout is not None
        found = (re.search(r"Open the page: (http://\S+/)$", line) for line in demo.stdout)
        try:
            yield next(url for url in found if url)[1]
        finally:
            demo.terminate()


async def test_the_demos_page_is_alive(page_url: str, browser: Browser):
    """Orders of real customers, then events that go on: numbers, changes and warnings."""
    page = await browser.open(page_url, width=1280)
    await page.until("document.querySelector('#status').dataset.level === 'good'")
    await page.until("document.querySelectorAll('#changes li').length > 5")
    await page.until("document.querySelectorAll('#warnings li').length > 5")
    await page.until("Number(document.querySelector('#rate').textContent) > 10")
    before = await page.text("#changes")
    shown = f"document.querySelector('#changes').innerText !== {json.dumps(before)}"
    await page.until(shown)
    assert page.complaints == []
