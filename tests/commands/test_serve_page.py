"""The page in a real browser: upload, result, overlay, token, and errors in words."""

import os
import shutil
import threading
from pathlib import Path

import pytest

pytest.importorskip("openvino")
uvicorn = pytest.importorskip("uvicorn")
webdriver = pytest.importorskip("selenium.webdriver")

from serving import make_bundle, photograph  # noqa: E402

from xcite.runtime.predictor import Predictor  # noqa: E402
from xcite.server.limits import Limits  # noqa: E402
from xcite.server.serve import create_app, listen  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium with chromedriver on this machine"
)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(make_bundle(tmp_path_factory.mktemp("page") / "bundle"), threads=1)


def _serving(predictor, **options):
    listener = listen("127.0.0.1", 0)
    app = create_app(predictor, Limits(max_bytes=500_000), **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listener.close()


@pytest.fixture(scope="module")
def address(predictor):
    yield from _serving(predictor)


@pytest.fixture(scope="module")
def guarded_address(predictor):
    yield from _serving(predictor, token="s3cret")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1000, 900)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    _until(browser, lambda: "7 classes" in _text(browser, "model"))
    yield browser
    # a blocked script, style or address would be written to the console
    errors = [
        entry["message"] for entry in browser.get_log("browser") if "/predict" not in str(entry)
    ]
    assert errors == []


def _until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda _: condition())


def _find(browser, name):
    return browser.find_element("id", name)


def _text(browser, name):
    return _find(browser, name).text


def _choose(browser, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _find(browser, "file").send_keys(str(path))


def _painted(browser):
    """Number of different colours the overlay shows."""
    return browser.execute_script(
        """const c = document.getElementById('overlay');
        const painted = c.getContext('2d').getImageData(0, 0, c.width, c.height);
        return new Set(new Uint32Array(painted.data.buffer)).size;"""
    )


def _shoot(browser, name):
    """Keep a screenshot where XCITE_SCREENSHOTS says."""
    if folder := os.environ.get("XCITE_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def proxied_address(predictor):
    for address in _serving(predictor, root_path="/models/xcite"):
        yield f"{address}/models/xcite"


def test_the_page_works_under_a_path(browser, proxied_address, tmp_path):
    browser.get(proxied_address)  # leads on to where links work
    _until(browser, lambda: "7 classes" in _text(browser, "model"))
    _choose(browser, tmp_path / "blobs.png", photograph(0))
    _until(browser, lambda: _find(browser, "result").is_displayed())
    browser.find_element("css selector", "footer a").click()
    _until(browser, lambda: browser.current_url == f"{proxied_address}/docs")
    assert browser.get_log("browser") == []


def test_upload_result_and_overlay(page, predictor, tmp_path):
    picture = photograph(0, width=640, height=420)
    _choose(page, tmp_path / "blobs.png", picture)
    _until(page, lambda: _find(page, "result").is_displayed())
    expected = predictor.predict(picture)[0]
    bars = page.find_elements("css selector", "#bars li")
    # class names are text, never markup: one of them is "<b>dog</b>"
    assert [bar.find_element("class name", "name").text for bar in bars] == [n for n, _ in expected]
    shown = [bar.find_element("class name", "value").text for bar in bars]
    assert shown[0] == f"{100 * expected[0][1]:.1f} %"
    assert expected[0][0] in _text(page, "answer")
    assert _find(page, "picture").size["width"] > 200
    assert _find(page, "overlay").is_displayed()
    assert _painted(page) > 50
    widths = page.execute_script(
        "return [...document.querySelectorAll('#bars .fill')].map(f => parseFloat(f.style.width))"
    )
    assert widths == pytest.approx([100 * share for _, share in expected], abs=0.01)
    _shoot(page, "result")
    _find(page, "look").click()
    assert not _find(page, "overlay").is_displayed()
    assert not _find(page, "error").is_displayed()


def test_errors_are_shown_in_words_and_the_next_picture_works(page, tmp_path):
    _choose(page, tmp_path / "cut.png", photograph(0)[:500])
    _until(page, lambda: "damaged" in _text(page, "error"))
    assert not _find(page, "result").is_displayed()
    _shoot(page, "error")
    _choose(page, tmp_path / "words.txt", b"no picture")
    _until(page, lambda: "words.txt is not a picture" in _text(page, "error"))
    _choose(page, tmp_path / "huge.png", b"x" * 600_000)
    _until(page, lambda: "the server takes 0.5 MiB" in _text(page, "error"))
    _choose(page, tmp_path / "good.jpg", photograph(1, kind="JPEG"))
    _until(page, lambda: _find(page, "result").is_displayed())
    assert not _find(page, "error").is_displayed()


def test_a_dropped_and_a_pasted_picture(page):
    make = """const bytes = Uint8Array.from(arguments[0]);
        const data = new DataTransfer();
        data.items.add(new File([bytes], arguments[1], {type: 'image/png'}));"""
    drop = (
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}));"
    )
    paste = (
        "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));"
    )
    for name, action in (("dropped.png", drop), ("pasted.png", paste)):
        page.execute_script(make + action, list(photograph(2)), name)
        _until(page, lambda name=name: _find(page, "picture").get_attribute("alt") == name)
        assert _find(page, "result").is_displayed()


def test_by_keyboard_and_for_screen_readers(page, tmp_path):
    from selenium.webdriver.common.keys import Keys

    def press(key):
        webdriver.ActionChains(page).send_keys(key).perform()

    press(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "file"
    outline = page.execute_script(
        "return getComputedStyle(document.querySelector('#drop label')).outlineStyle"
    )
    assert outline == "solid"  # the focus is seen although the input itself is not
    assert _find(page, "file").accessible_name == "Choose a picture"
    _choose(page, tmp_path / "a.png", photograph(3))
    _until(page, lambda: _find(page, "result").is_displayed())
    assert _find(page, "error").get_attribute("role") == "alert"
    spoken = _find(page, "status")
    assert spoken.get_attribute("aria-live") == "polite"
    assert spoken.get_attribute("textContent").startswith("Most likely: ")
    assert _find(page, "look").accessible_name == "Show where the model looked"
    press(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("id") == "look"
    press(Keys.SPACE)
    assert not _find(page, "overlay").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_dark_and_narrow(page, tmp_path, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        _choose(page, tmp_path / "a.png", photograph(4, width=300, height=500))
        _until(page, lambda: _find(page, "result").is_displayed())
        _shoot(page, f"narrow-{scheme}")
        overflow = page.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 0
        background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        bright = sum(int(part) for part in background[4:-1].split(",")) > 380
        assert bright == (scheme == "light")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    _shoot(page, f"wide-{scheme}")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_asks_for_the_token(browser, guarded_address, tmp_path):
    browser.get(guarded_address)
    _until(browser, lambda: _find(browser, "access").is_displayed())
    _choose(browser, tmp_path / "a.png", photograph(0))
    _until(browser, lambda: "token" in _text(browser, "error"))
    _shoot(browser, "token")
    _find(browser, "token").send_keys("wrong\n")
    _until(browser, lambda: "refused" in _text(browser, "error"))
    _find(browser, "token").clear()
    _find(browser, "token").send_keys("s3cret\n")
    # the picture chosen before is sent now
    _until(browser, lambda: _find(browser, "result").is_displayed())
    assert not _find(browser, "access").is_displayed()


@pytest.fixture
def preferring(browser):
    """Sets what languages the browser prefers; English again afterwards."""

    def prefer(languages):
        browser.execute_cdp_cmd(
            "Emulation.setUserAgentOverride",
            {"userAgent": "test", "acceptLanguage": languages},
        )

    yield prefer
    prefer("en-US")


def test_the_page_speaks_the_browsers_language(browser, preferring, predictor, address, tmp_path):
    preferring("de-DE,zh-TW,en")
    browser.get(address)
    _until(browser, lambda: "7 个类别" in _text(browser, "model"))
    assert browser.title == "Xcite：这张图片上是什么？"
    assert browser.find_element("tag name", "html").get_attribute("lang") == "zh"
    assert _text(browser, "hint") == "或拖放到这里，或粘贴"
    _shoot(browser, "chinese")
    _choose(browser, tmp_path / "cut.png", photograph(0)[:500])
    _until(browser, lambda: "cut.png：图片已损坏" in _text(browser, "error"))
    _choose(browser, tmp_path / "{0} {side}; x.txt", b"no picture")
    _until(browser, lambda: "{0} {side}; x.txt 不是图片" in _text(browser, "error"))
    picture = photograph(0, width=640, height=420)
    _choose(browser, tmp_path / "blobs.png", picture)
    _until(browser, lambda: _find(browser, "result").is_displayed())
    # names of classes are not words of the page, and never markup
    named = browser.find_elements("css selector", "#bars .name")
    assert [name.text for name in named] == [n for n, _ in predictor.predict(picture)[0]]
    assert "最可能：" in _find(browser, "status").get_attribute("textContent")
    assert _text(browser, "about").startswith("用时 ")
    _shoot(browser, "chinese-result")
    preferring("en-GB,zh")
    browser.get(address)
    _until(browser, lambda: "7 classes" in _text(browser, "model"))
    assert "or drop it here" in _text(browser, "hint")


def test_documentation_in_the_browser(browser, address):
    browser.get(f"{address}/docs")
    assert "POST /predict" in browser.find_element("tag name", "body").text
    _shoot(browser, "docs")
