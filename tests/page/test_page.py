"""The page in a real browser, on a phone's and a desktop's width, fed by a real worker."""

import re

import pytest

from stream import data
from stream.domains import discover
from stream.rules import parse
from tests.page.browser import Browser, Page
from tests.page.conftest import Shop

pytestmark = pytest.mark.browser

PHONE, DESKTOP = 390, 1280
READY = "document.querySelector('#status').dataset.level === 'good'"
#: No element that holds text reaches beyond the window, but inside something that scrolls.
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter((node) =>
  node.getBoundingClientRect().right > innerWidth + 1 && !node.closest('.scroll, .skip')
).map((node) => node.outerHTML.slice(0, 80))
"""
#: Text whose contrast with what is behind it is below what WCAG AA wants.
PALE = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll('body *')].filter((node) => node.checkVisibility()
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return shown.map((node) => {
    const pair = [channels(getComputedStyle(node).color), behind(node)].map(light).sort();
    return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), node.outerHTML.slice(0, 80)];
  }).filter(([contrast]) => contrast < 4.5);
})()
"""


async def opened(browser: Browser, shop: Shop, width: int = DESKTOP, **how: str | bool) -> Page:
    """The page, once it shows that all is well and what has changed."""
    page = await browser.open(shop.url, width=width, **how)  # type: ignore[arg-type]
    await page.until(READY)
    await page.until("document.querySelectorAll('#changes li').length > 0")
    await page.until("document.querySelectorAll('#population summary').length > 0")
    return page


async def test_who_opens_it_sees_what_goes_on(browser: Browser, shop: Shop):
    """State, changes with their reasons, warnings and numbers; nothing but ours is loaded."""
    page = await opened(browser, shop)
    assert "All is well: 8 of 8 partitions served by 1 worker" in await page.text("#status")
    changes = await page.text("#changes")
    assert re.search(r"anna\s+gained Price sensitive", changes)
    assert "after an event: Orders with a coupon, 90 days 100 %" in changes
    assert re.search(r"berta\s+Value tier: → ?Super VIP", changes)
    warnings = await page.text("#warnings")
    assert re.search(r"carla\s+may be lost on \d{4}-\d\d-\d\d", warnings)
    assert re.search(r"dora\s+is lost", warnings)
    await page.until("document.querySelector('#known').textContent.startsWith('4 users known')")
    population = await page.text("#population")
    assert re.search(r"Value tier\s+Super VIP\s+1\s+Potential VIP\s+0\s+Basic\s+3", population)
    await page.until(  # what waits is known once the broker has said so
        r"/Purchases\s+4\s+0\s+0\s/.test(document.querySelector('#domains').innerText)"
    )
    assert all(request.startswith((shop.url, "data:")) for request in page.requests)
    assert page.complaints == []


async def test_what_happens_appears_by_itself(browser: Browser, shop: Shop):
    """A change, its warning, and the number of users, with no hand moved."""
    page = await opened(browser, shop)
    await shop.order("carla")
    await page.until("document.querySelector('#changes').innerText.includes('carla')")
    await page.until("document.querySelector('#warnings').innerText.includes('came back')")
    await shop.order("emil")
    await page.until("document.querySelector('#known').textContent.startsWith('5 users known')")
    assert page.complaints == []


async def test_one_user_is_explained(browser: Browser, shop: Shop):
    """Found by hand: tags, since when, the rule that holds and what it reads, all features."""
    page = await opened(browser, shop)
    await page.js("document.querySelector('#id').focus()")
    await page.type(" berta ")
    await page.press("Enter")
    await page.until("document.querySelectorAll('#user .held li').length > 1")
    body = await page.text("#user-body")
    assert re.search(r"Value tier Super VIP since [\d: -]+\(2 days\)", body)
    assert "Why: holds now: spend_365d > 50000" in body
    assert re.search(r"Spend \(yuan\), 365 days\s+60,000", body)
    assert re.search(r"Last change: .* after an event \(berta-", body)
    # It is asked for again when something of him changes.
    await shop.order("berta", type="refund", amount=55_000)
    await page.until("document.querySelector('#user-body').innerText.includes('5,000')")
    assert "Why: holds now: spend_365d < 10000" in await page.text("#user-body")


async def test_nobody_and_a_user_on_the_move_are_told_apart(
    browser: Browser, shop: Shop, monkeypatch: pytest.MonkeyPatch
):
    """Unknown is an answer; what cannot be said now is asked again."""
    page = await opened(browser, shop)
    await page.js("document.querySelector('#id').value = '<b>nobody</b>'")
    await page.js("document.querySelector('#search').requestSubmit()")
    await page.until("document.querySelector('#user-body').innerText.includes('ever applied')")
    assert await page.text("#user-title") == "<b>nobody</b>"
    with monkeypatch.context() as during:
        during.setattr(shop.service.ownership, "_assigned", False)
        await page.js("document.querySelector('#close').click()")
        await page.js("document.querySelector('#id').value = 'anna'")
        await page.js("document.querySelector('#search').requestSubmit()")
        await page.until("document.querySelector('#user-body').innerText.includes('again')")
    await page.until("document.querySelector('#user-body').innerText.includes('Price sensitive')")


async def test_numbers_that_are_not_whole_are_said_to_be_so(browser: Browser, shop: Shop):
    """A partition that nobody serves is missing in every number."""
    page = await opened(browser, shop)
    shop.service.ownership._close_soon(3)
    await page.until("document.querySelector('#status').innerText.includes('7 of 8 partitions')")
    assert "incomplete" in await page.text("#status")


async def test_definitions_that_are_switched_are_those_shown(browser: Browser, shop: Shop):
    """A new title, with nothing loaded anew by hand."""
    page = await opened(browser, shop)
    text = data.TAGS.read_text("utf-8").replace("version: 1 ", "version: 2 ", 1)
    changed = text.replace("en: Price sensitive", "en: Loves coupons")
    shop.service.reload(parse(changed, "tags.yaml", discover()))
    await page.until("document.querySelector('#population').innerText.includes('Loves coupons')")
    assert "Loves coupons" in await page.text("#changes")


async def test_a_worker_that_is_gone_is_said_to_be(browser: Browser, shop: Shop):
    """What is shown is not of now."""
    page = await opened(browser, shop)
    await shop.service.web.stop()
    await page.until("document.querySelector('#status').dataset.level === 'bad'")
    assert "No connection" in await page.text("#status")


async def test_the_language_is_the_browsers_until_somebody_chooses(browser: Browser, shop: Shop):
    """And is that choice when the page is opened again."""
    page = await opened(browser, shop, language="zh-CN,zh;q=0.9,en;q=0.8")
    assert await page.js("document.documentElement.lang") == "zh-CN"
    assert "一切正常" in await page.text("#status")
    assert re.search(r"anna\s+获得 价格敏感型", await page.text("#changes"))
    await page.js("document.querySelector('[data-language=en]').click()")
    assert "All is well" in await page.text("#status")
    assert await page.js("document.documentElement.lang") == "en"
    await page.call("Page.reload")
    await page.until("document.readyState === 'complete' && document.title === 'tagstream'")
    await page.until(READY)
    assert "All is well" in await page.text("#status")
    assert not re.search(r"[一-鿿]", (await page.text("body")).replace("中文", ""))


async def test_no_text_is_missing_in_either_language(browser: Browser, shop: Shop):
    """Both have the same keys, at every depth."""
    page = await opened(browser, shop)
    keys = """
    import('/page/text.js').then(({ TEXT }) => {
      const keys = (one, path) => typeof one === 'object'
        ? Object.entries(one).flatMap(([key, value]) => keys(value, `${path}.${key}`)) : [path];
      return [keys(TEXT.en, ''), keys(TEXT.zh, '')];
    })
    """
    english, chinese = await page.js(keys)
    assert english == chinese
    used = await page.js("[...document.querySelectorAll('[data-t]')].map((one) => one.dataset.t)")
    assert {f".{key}" for key in used} <= set(english)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
async def test_it_fits_and_can_be_read(
    browser: Browser, shop: Shop, width: int, dark: bool, tmp_path
):
    """On a phone and on a desktop, light and dark, in both languages, with a user opened."""
    for language in ("en", "zh-CN"):
        page = await opened(browser, shop, width=width, dark=dark, language=language)
        await page.js("for (const one of document.querySelectorAll('details')) one.open = true")
        assert await page.js("document.documentElement.scrollWidth") == width
        assert await page.js(TOO_WIDE) == []
        assert await page.js(PALE) == []
        await page.screenshot(tmp_path / f"{language}.png")
        await page.js("document.querySelector('#changes button[data-user]').click()")
        await page.until("document.querySelectorAll('#user .held li').length > 0")
        assert await page.js(TOO_WIDE) == []
        assert await page.js(PALE) == []
        assert page.complaints == []


async def test_everything_can_be_done_with_the_keyboard(browser: Browser, shop: Shop):
    """Each control in turn, then a user opened and closed, with the focus back where it was."""
    page = await opened(browser, shop)
    reached = []
    for _ in range(12):
        await page.press("Tab")
        reached.append(
            await page.js("document.activeElement.id || document.activeElement.innerText")
        )
    assert reached[:8] == [
        *("Skip to the content", "中文", "English", "id", "Show", "filter", "pause"),
        await page.js("document.querySelector('#changes button').innerText"),
    ]
    await page.js("document.querySelector('#changes button').focus()")
    user = await page.js("document.activeElement.innerText")
    await page.press("Enter")
    await page.until("document.querySelector('#user').open")
    assert await page.text("#user-title") == user
    await page.press("Escape")
    await page.until("!document.querySelector('#user').open")
    assert await page.js("document.activeElement.innerText") == user


async def test_a_screen_reader_has_a_name_for_everything(browser: Browser, shop: Shop):
    """Landmarks, headings in order, controls with names; the status is announced."""
    page = await opened(browser, shop)
    names = await page.names()
    roles = {role for role, _ in names}
    assert {"banner", "main", "search", "contentinfo", "status", "heading", "table"} <= roles
    for role in ("button", "link", "searchbox", "combobox", "region", "table"):
        assert all(name for found, name in names if found == role), role
    levels = await page.js(
        "[...document.querySelectorAll('h1, h2, h3')].filter((one) => one.checkVisibility())"
        ".map((one) => Number(one.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


async def test_lists_can_be_held_and_narrowed(browser: Browser, shop: Shop):
    """Paused, one tag alone, one kind of warning alone."""
    page = await opened(browser, shop)
    await page.js("document.querySelector('#pause').click()")
    assert await page.text("#pause") == "Go on"
    await shop.order("emil")
    await page.until("document.querySelector('#known').textContent.startsWith('5 users known')")
    assert "emil" not in await page.text("#changes")
    await page.js("document.querySelector('#pause').click()")
    await page.until("document.querySelector('#changes').innerText.includes('emil')")
    await page.js(
        "(() => { const one = document.querySelector('#filter'); one.value = 'value_tier';"
        " one.dispatchEvent(new Event('change')); })()"
    )
    lines = (await page.text("#changes")).split("after an event")
    assert all("Value tier" in line for line in lines[:-1])
    await page.js("document.querySelector('[data-status=raised]').click()")
    assert "is lost" not in await page.text("#warnings")
    assert "may be lost" in await page.text("#warnings")
