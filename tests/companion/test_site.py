"""The site: it builds without a warning, and a browser shows it without a network, a kernel or an error."""

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from urllib.request import urlopen

import pytest

from hcnn.companion.interpretation.storage import load_interpretation

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PAGES = ["index", *sorted(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")), "explorer",
         "results", "ledger", "api"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site, built here."""
    missing = [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra `site` is not installed: no {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", folder / "doctrees",
                           SITE, folder / "html"], capture_output=True, encoding="utf-8",
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


class Browser:
    """One tab of a headless Chromium, spoken to by its DevTools protocol. errors: what its console has complained of;
    asked: the addresses it wanted.
    """

    def __init__(self, process, folder):
        from websocket import create_connection  # of jupyter-server
        port, end = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port.exists() and port.read_text(encoding="utf-8").count("\n")):
            assert process.poll() is None and time.monotonic() < end, "the browser did not start"
            time.sleep(0.1)
        with urlopen(f"http://127.0.0.1:{port.read_text(encoding='utf-8').split()[0]}/json") as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        self.socket = create_connection(tab["webSocketDebuggerUrl"], timeout=60, suppress_origin=True)
        self.count, self.errors, self.asked = 0, [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """The result of a command; events that come before it are noted."""
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params)))
        while (answer := json.loads(self.socket.recv())).get("id") != self.count:
            self.note(answer.get("method"), answer.get("params"))
        assert "error" not in answer, answer
        return answer["result"]

    def note(self, event, about):
        if event == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        if event == "Runtime.exceptionThrown" or (event == "Log.entryAdded" and about["entry"]["level"] == "error") \
                or (event == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert")):
            self.errors.append(json.dumps(about)[:400])

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, address):
        """The page, its scripts run and its mathematics set."""
        self.call("Page.navigate", url=address)
        ready, end = "document.readyState == 'complete' && !!window.MathJax?.startup?.promise", time.monotonic() + 60
        while not self.value(f"location.href == {json.dumps(address)} && {ready}"):
            assert time.monotonic() < end, f"{address} did not load"
            time.sleep(0.05)
        self.value("MathJax.startup.promise.then(() => 1)")

    def press(self, key, code):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code,
                  **({"text": "\r"} if key == "Enter" else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    pytest.importorskip("websocket", reason="no websocket-client to speak to the browser")
    folder = tmp_path_factory.mktemp("browser")
    process = subprocess.Popen(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Browser(process, folder)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def visit(built, browser):
    """Opens a page of the site as a file."""
    browser.errors.clear()
    browser.asked.clear()

    def opened(page):
        browser.open((built / f"{page}.html").as_uri())
        return browser

    yield opened
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_no_page_loads_anything_from_elsewhere(built):
    loaded = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']*""")
    found = {page: loaded.findall((built / f"{page}.html").read_text(encoding="utf-8")) for page in PAGES}
    assert {page: links for page, links in found.items() if links} == {}


@pytest.mark.parametrize("page", PAGES)
def test_a_browser_shows_every_page_with_its_mathematics_no_wider_than_a_phone_and_no_error(visit, browser, page):
    for width in (390, 1280):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1,
                     mobile=width < 500)
        shown = visit(page)
        assert shown.value("document.documentElement.scrollWidth") <= width
    assert shown.errors == []
    assert [address for address in shown.asked if not address.startswith(("file:", "data:"))] == []
    assert shown.value("document.querySelector('h1').textContent").strip()
    assert shown.value("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)") == []
    assert shown.value("document.querySelectorAll('mjx-merror, [data-mml-node=merror]').length") == 0
    formulas = shown.value("document.querySelectorAll('.math').length")
    assert shown.value("[...document.querySelectorAll('.math')].filter(m => m.querySelector('svg')).length") == formulas
    if page in ("api", "explorer") or page.startswith("notebooks/"):
        assert formulas > 0
    text = "(a => (a.querySelectorAll('pre, code').forEach(e => e.remove()), a.textContent))"
    text = shown.value(f"{text}(document.querySelector('article').cloneNode(true))")
    assert re.findall(r"\$[^$\n]+\$", text) == []


def test_the_ledger_filters_and_sorts_by_keyboard(visit):
    shown = visit("ledger")
    rows = "[...document.querySelectorAll('table.ledger tbody tr')].filter(r => !r.hidden)"
    everything = shown.value(f"{rows}.length")
    assert everything == len((ROOT / "results/tables/ledger.csv").read_text(encoding="utf-8").splitlines()) - 1
    shown.value("document.querySelector('.filter input').focus()")
    shown.call("Input.insertText", text="reproduced mathematics")
    left = shown.value(f"{rows}.map(r => r.textContent)")
    assert 0 < len(left) < everything and all("reproduced" in row and "mathematics" in row for row in left)
    assert shown.value("document.querySelector('.filter output').textContent") == f"{len(left)} of {everything} rows"
    shown.value("document.querySelector('table.ledger th button').focus()")
    for order in ("ascending", "descending"):
        shown.press("Enter", 13)
        assert shown.value("document.querySelector('table.ledger th').ariaSort") == order
        names = shown.value(f"{rows}.map(r => r.cells[0].textContent)")
        by_name = shown.value(f"{json.dumps(names)}.sort((a, b) => a.localeCompare(b))")
        assert names == (by_name if order == "ascending" else by_name[::-1])


def test_the_explorer_follows_the_arrow_keys(visit):
    shown = visit("explorer")
    state = "document.querySelector('#explore [role=status]').textContent"
    for name, key, code in (("depth", "ArrowLeft", 37), ("tau", "ArrowRight", 39), ("image", "ArrowRight", 39)):
        before = shown.value(state)
        picture = shown.value("[...document.querySelectorAll('.search canvas')].map(c => c.toDataURL()).join()")
        shown.value(f"[...document.querySelectorAll('[name={name}]')].at(0).focus()")
        shown.press(key, code)
        assert shown.value(state) != before
        assert shown.value("[...document.querySelectorAll('.search canvas')].map(c => c.toDataURL()).join()") != picture


def test_the_explorer_shows_what_the_run_has_stored():
    spec = importlib.util.spec_from_file_location("explorer", SITE / "explorer.py")
    explorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(explorer)
    stored = json.loads((SITE / "explorer.json").read_text(encoding="utf-8"))
    found = load_interpretation(explorer.RUN)
    assert json.loads(json.dumps(explorer.describe(found, stored["classes"]))) == stored, "run site/explorer.py again"
    d, f, t = 8, 1, 3
    picture = stored["sprites"][stored["nearest"][d][f][t]]
    assert picture[0] == found["database"][found["image_index"][d, t, f]]
    size = 8 * 10
    near = base64.b64decode(stored["arrays"][d][f])[(t + 1) * size:(t + 2) * size]
    assert near.index(max(near)) == found["nearest_arrays_11"][t, f].argmax()
    files = ("explorer.json", "static/explorer.jpg")
    assert sum((SITE / file).stat().st_size for file in files) < 2e6


def test_every_text_at_which_a_page_cuts_the_readme_stands_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    cuts = [(page.name, text) for page in SITE.glob("*.md") for text in re.findall(
        r':(?:start-after|end-before): "(.*)"', page.read_text(encoding="utf-8"))]
    assert cuts and [(page, text) for page, text in cuts if text not in readme] == []


def test_the_extra_and_the_target_and_the_workflow_belong_together():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["site"] and all(re.fullmatch(r"[a-z-]+==[0-9.]+", pin) for pin in extras["site"])
    assert "'.[site]'" in (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = (ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8")
    assert "make site" in workflow and "path: site/_build/html" in workflow
