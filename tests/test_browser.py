"""The pages as a browser shows them: Chromium without a window, at a phone's width and a desk's, light and dark, by keyboard."""

import base64
import os
import pathlib
import shutil

import pytest
from test_compare import made_run
from test_report import fake_curves, fake_results, fake_samples

from irl_jax import cli, paths
from irl_jax.artifacts import read_json
from irl_jax.stages import report
from irl_jax.workdir import read_config

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTHS = {390: 844, 1280: 900}
EVIL = ('<script>window.ran = 1</script><img src=x onerror="window.ran = 2"><svg onload="window.ran = 3"></svg>'
        '<style>body{display:none}</style>')
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 27, 32)"}


@pytest.fixture(scope="module")
def driver():
    """A headless Chromium; without one a skip, or a failure where IRL_JAX_REQUIRE_CHROMIUM=1."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser, chromedriver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not browser or not chromedriver:
        message = "no Chromium with its driver: apt-get install chromium chromium-driver"
        pytest.fail(message) if os.environ.get("IRL_JAX_REQUIRE_CHROMIUM") == "1" else pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield started
    started.quit()


def samples_with_evil():
    samples = fake_samples(6)
    samples[4]["prompt"] += EVIL
    samples[4]["responses"][2] |= dict(source=EVIL, text=f"jellyfish {EVIL} " + "without-a-place-to-break" * 20)
    return samples


WITH_SAMPLES = ("made up", pytest.param("smoke run", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=[*WITH_SAMPLES, "compared"])
def page(request, tmp_path_factory):
    """(what the page is, its path)."""
    folder = tmp_path_factory.mktemp("page")
    if request.param == "made up":
        return request.param, report.write_report(folder, fake_results(prompts=8, samples=16), samples_with_evil(), fake_curves())
    if request.param == "compared":
        runs = [made_run(folder / name, seed, 0.1 * seed, sft__learning_rate=rate) for name, seed, rate in (
            ("a0", 0, 1e-3), ("a1", 1, 1e-3), ("b-in-a-folder-with-a-long-name-that-has-to-break-somewhere", 0, 2e-3))]
        assert cli.main(["compare", *runs, f"--out={folder}"]) == 0
        return request.param, str(folder / "compare.html")
    run = paths.of(folder / "w")
    assert cli.main(["run", f"--config={ROOT / 'configs' / 'testbed.py'}:smoke", f"--workdir={run}"]) == 0
    material = report.read(run)
    results = {**material.results, "settings": read_config(run).to_dict(), "run": read_json(run / "config.json")}
    samples = [*material.samples[:4], samples_with_evil()[4], *material.samples[4:]]
    return request.param, report.write_report(run / "report", results, samples, material.curves)


@pytest.fixture
def shown(driver, page):
    """A function that opens the page at a width in a colour scheme."""
    def show(width, scheme="light"):
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(
            width=width, height=WIDTHS[width], deviceScaleFactor=1, mobile=width < 500))
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[dict(name="prefers-color-scheme", value=scheme)]))
        driver.get(pathlib.Path(page[1]).resolve().as_uri())
        return driver

    return show


def screenshot(driver, path):
    size = driver.execute_script("return [document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    clip = dict(x=0, y=0, width=size[0], height=min(size[1], 16000), scale=1)
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", dict(format="png", captureBeyondViewport=True, clip=clip))
    path.write_bytes(base64.b64decode(taken["data"]))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_say_nothing_on_the_console(shown, page, tmp_path, width, scheme):
    driver = shown(width, scheme)
    assert driver.get_log("browser") == []
    run = driver.execute_script
    for opened in (False, True):
        run("for (const part of document.querySelectorAll('details')) part.open = arguments[0]", opened)
        assert run("return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)") <= width
        wide = run("return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip') && "
                   "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))")
        assert wide == []
    assert run("return getComputedStyle(document.body).backgroundColor") == BACKGROUNDS[scheme]
    images = run("return [...document.images].map(i => [i.complete && i.naturalWidth > 100, i.currentSrc === i.getAttribute('src')])")
    assert images and all(image == [True, scheme == "light"] for image in images)  # drawn, and the version of the scheme
    assert run("return window.ran") is None
    text = run("return [...document.querySelectorAll('p, td, th, dd, li, figcaption, a')].filter(e => e.getClientRects().length)"
               ".map(e => parseFloat(getComputedStyle(e).fontSize))")
    assert min(text) >= 12.0
    assert screenshot(driver, tmp_path / f"{width}-{scheme}.png").stat().st_size > 10_000
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("page", WITH_SAMPLES, indirect=True)
def test_search_filters_the_samples(shown, page):
    driver = shown(390)

    def visible(words):
        field = driver.find_element("id", "search")
        field.clear()
        field.send_keys(words)
        return [article.find_element("tag name", "h3").text for article in driver.find_elements("css selector", "#samples article")
                if article.is_displayed()]

    assert visible("") == ["Prompt 1", "Prompt 2", "Prompt 3"]  # the others are folded
    assert visible("JellyFish  onerror") == ["Prompt 5"]  # and found where they are folded
    assert driver.find_element("css selector", ".search output").text.startswith("1 of ")
    assert visible("jellyfish kangaroo") == []
    assert "<script>window.ran" in driver.find_element("id", "samples").get_attribute("textContent")
    assert driver.execute_script("return window.ran") is None and driver.get_log("browser") == []


def test_the_keyboard_reaches_everything(shown, page):
    from selenium.webdriver.common.keys import Keys

    driver, reached = shown(1280), []
    links = [link.get_attribute("href") for link in driver.find_elements("css selector", "nav a")]
    for _ in range(80):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = driver.switch_to.active_element
        if focused.tag_name == "body":  # round once
            break
        reached.append(focused.get_attribute("href") or focused.get_attribute("id"))
        outline = driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
        assert outline == "solid", f"the focus on {reached[-1]} cannot be seen"
        if reached[-1] == "search":
            break
    assert reached[0].endswith("#main") and reached[1 : 1 + len(links)] == links
    if page[0] == "compared":
        return
    driver.find_element("css selector", 'nav a[href="#samples"]').send_keys(Keys.ENTER)
    assert driver.execute_script("return location.hash") == "#samples"
    for _ in range(5):  # from where the link led
        driver.switch_to.active_element.send_keys(Keys.TAB)
        if driver.switch_to.active_element.get_attribute("id") == "search":
            break
    assert driver.switch_to.active_element.get_attribute("id") == "search"
    driver.switch_to.active_element.send_keys("jelly", Keys.ENTER)  # Enter leads nowhere
    assert driver.current_url.startswith("file:") and driver.execute_script("return location.search") == ""


def test_the_policy_holds_even_where_escaping_did_not(shown):
    """Markup smuggled in whole: nothing of it runs, and the browser says why."""
    driver = shown(1280)
    driver.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", EVIL)
    driver.execute_script("const s = document.createElement('script'); s.textContent = 'window.ran = 4'; document.body.append(s)")
    assert driver.execute_script("return window.ran") is None
    assert driver.execute_script("return getComputedStyle(document.body).display") == "block"
    refused = [line["message"] for line in driver.get_log("browser")]
    assert refused and all("Content Security Policy" in message or "ERR_" in message for message in refused)
