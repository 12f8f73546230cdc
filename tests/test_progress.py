"""Ticks for finished sections, on the built book in a browser without a network."""

import json
import re

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from conftest import NOTEBOOKS
from in_browser import PHONE, WIDE, open_tab, until

PHASES = [path for path in NOTEBOOKS if path.stem.startswith("phase")]
HOME = "notebooks/phase0_foundation.html"
TITLE = "Where does training memory go?"
BEGIN = "gpt2-book/done/"
KEY = f"{BEGIN}phase0_foundation#where-does-training-memory-go"
STORED = """Object.fromEntries(Object.entries({...localStorage})
  .filter(([key]) => !["mode", "theme"].includes(key)))"""  # those are the theme's
REFUSED = """Object.defineProperty(window, "localStorage", {
  get() { throw new Error("refused"); }
})"""
FULL = """const { setItem } = Storage.prototype;
Storage.prototype.setItem = function (key, value) {
  if (key.startsWith("gpt2-book")) throw new DOMException("full", "QuotaExceededError");
  setItem.call(this, key, value);
}"""


def theirs(error, faults):
    if "progress.js" not in error.stack:
        faults.remove(f"script error: {error}")


@pytest.fixture
def opened(server, browser):
    """Yield a function that opens a tab, and see that nothing goes wrong in any."""
    tabs = []

    def open_page(page=HOME, scheme="light", before=""):
        tab, faults = open_tab(browser, server, scheme)
        tabs.append((tab, faults))
        if before:
            tab.add_init_script(before)
        if before == REFUSED:  # the theme fails there, on its own account
            tab.on("pageerror", lambda error: theirs(error, faults))
        tab.goto(server + page)
        return tab

    yield open_page
    for tab, faults in tabs:
        assert not faults
        tab.context.close()


def box(tab, title=TITLE):
    return tab.get_by_role("checkbox", name=f"Done with “{title}”", exact=True)


def section_link(tab, name):
    contents = tab.get_by_role("navigation", name="On this page")
    return contents.get_by_role("link", name=name, exact=True)


def phase_link(tab, name):
    return tab.get_by_role("navigation", name="Main").get_by_role("link", name=name)


def summary(tab):
    return tab.locator(".page-done").inner_text()


def total(tab):
    return tab.locator(".section-done input").count()


def tick_all(tab):
    boxes = "document.querySelectorAll('.section-done input:not(:checked)')"
    tab.evaluate(f"{boxes}.forEach((box) => box.click())")


def expect_ticked(tab, ticked=True):
    """See that box, contents, navigation and the line at the start agree."""
    assert box(tab).is_checked() == ticked
    assert section_link(tab, f"{TITLE}, done").count() == ticked
    assert section_link(tab, TITLE).count() == (not ticked)
    assert bool(phase_link(tab, f", 1 of {total(tab)} done").count()) == ticked
    if ticked:
        assert summary(tab).startswith(f"1 of {total(tab)} sections done. ")
    else:
        assert summary(tab).startswith(f"0 of {total(tab)} sections done: tick each")


# What a phase's file says, read without showing it.
SECTIONS = """async (page) => {
  const text = await (await fetch(page)).text();
  const parsed = new DOMParser().parseFromString(text, "text/html");
  return [...parsed.querySelectorAll("article h2")].map((h2) => {
    h2.querySelector(".headerlink").remove();
    const section = h2.parentElement;
    const boxes = section.querySelectorAll("input[data-section]");
    const last = section.lastElementChild;
    return [section.id, h2.textContent, last.textContent.trim(),
      last.contains(boxes[0]) && boxes.length === 1 && boxes[0].dataset.section];
  });
}"""


@pytest.fixture(scope="module")
def table(site):
    """Return what the script knows: {page: ids of its sections}."""
    script = (site / "_static" / "progress.js").read_text("utf-8")
    return json.loads(re.search(r"const SECTIONS = (\{.*\});", script)[1])


def test_every_section_of_a_phase_ends_with_its_box(opened, server, table):
    tab = opened("book/reading.html")
    assert list(table) == [path.stem for path in PHASES]
    for path in PHASES:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        headings = sum(len(re.findall(r"^## ", text, re.M)) for text in texts)
        sections = tab.evaluate(SECTIONS, f"{server}notebooks/{path.stem}.html")
        assert table[path.stem] == [name for name, *_ in sections]
        assert len(sections) == headings
        for name, title, label, ticks in sections:
            assert ticks == name
            assert label == f"Done with “{title}”"


def test_a_tick_is_remembered(opened):
    tab = opened()
    expect_ticked(tab, False)
    box(tab).check()
    expect_ticked(tab)
    tab.reload()
    expect_ticked(tab)
    assert tab.evaluate(STORED) == {KEY: "yes"}
    tab.get_by_role("link", name="Glossary").click()
    tab.wait_for_url("**/glossary.html*")
    assert phase_link(tab, re.compile("Phase 0.*, 1 of")).inner_text().count("1 of")
    assert not tab.locator(".page-toc .done-mark").count()
    tab.go_back()
    expect_ticked(tab)
    box(tab).uncheck()
    expect_ticked(tab, False)
    assert tab.evaluate(STORED) == {}


def test_a_finished_phase_has_a_tick_and_can_be_cleared(opened):
    tab = opened()
    tab.evaluate("localStorage.other = 'kept'")
    tick_all(tab)
    assert summary(tab).startswith(f"All {total(tab)} sections done. ")
    assert phase_link(tab, "Phase 0: Foundation setup, done").inner_text().count("✓")
    tab.goto(tab.url.replace("phase0_foundation", "phase4_sampling"))
    box(tab, "Streaming").check()
    tab.get_by_role("button", name="Clear these ticks").click()
    assert not tab.locator(".section-done input:checked").count()
    assert phase_link(tab, "Phase 0: Foundation setup, done").count()
    button = tab.get_by_role("button", name="Bring them back")
    assert button.evaluate("(e) => e === document.activeElement")
    button.click()
    assert box(tab, "Streaming").is_checked()
    tab.get_by_role("button", name="Clear these ticks").click()
    tab.reload()
    assert not tab.locator(".page-done button").is_visible()
    assert tab.evaluate("localStorage.other") == "kept"


@pytest.mark.parametrize("before", [REFUSED, FULL], ids=["refused", "full"])
def test_a_browser_that_keeps_nothing(before, opened):
    tab = opened(before=before)
    box(tab).check()
    expect_ticked(tab)
    assert "they last for this visit" in summary(tab)
    assert tab.get_by_text("For this visit only.").count() == 1
    box(tab).uncheck()
    assert not tab.get_by_text("For this visit only.").count()
    tab.reload()
    expect_ticked(tab, False)


def test_opened_from_a_folder(site, browser):
    tab, faults = open_tab(browser, site.as_uri() + "/")
    tab.goto(f"{site.as_uri()}/{HOME}")
    box(tab).check()
    other = tab.url.replace("phase0_foundation", "phase4_sampling")

    def check():
        tab.goto(other)  # another process, which may hear of the tick a little later
        assert phase_link(tab, re.compile("Phase 0.*, 1 of")).count()

    until(tab, check)
    assert not faults


def test_rubbish_in_the_storage_is_let_be(opened):
    tab = opened()
    rubbish = {
        KEY: "<img src=x onerror=alert(1)>",
        KEY + "-and-more": "yes",
        f"{BEGIN}phase0_foundation#": "yes",
        f"{BEGIN}phase9_nowhere#exercises": "yes",
        f"{BEGIN}constructor#name": "yes",
        BEGIN: "{",
        "": "null",
    }
    tab.evaluate("(all) => Object.assign(localStorage, all)", rubbish)
    tab.reload()
    expect_ticked(tab, False)
    box(tab).check()
    expect_ticked(tab)
    tab.get_by_role("button", name="Clear these ticks").click()
    del rubbish[KEY]
    assert tab.evaluate(STORED) == rubbish


def test_two_tabs_stay_in_step(opened):
    tab = opened()
    other = tab.context.new_page()
    other.goto(tab.url)
    box(other).check()
    tab.wait_for_function("document.querySelector('.section-done input:checked')")
    expect_ticked(tab)
    box(tab, "Exercises").check()
    other.wait_for_function(
        "document.querySelectorAll('.section-done input:checked').length === 2"
    )
    tab.evaluate("localStorage.clear()")
    other.wait_for_function("!document.querySelector('.section-done input:checked')")
    expect_ticked(other, False)


def test_by_keyboard_alone(opened):
    tab = opened()
    box(tab).evaluate("""(box) => {
      const all = [...document.querySelectorAll("a[href], button, input, summary")];
      all[all.indexOf(box) - 1].focus();
    }""")
    for _ in range(5):  # what scrolls sideways takes the focus, too
        tab.keyboard.press("Tab")
        if box(tab).evaluate("(e) => e === document.activeElement"):
            break
    outline = box(tab).evaluate("(e) => getComputedStyle(e).outline")
    assert "solid 2px" in outline
    tab.keyboard.press("Space")
    expect_ticked(tab)
    button = tab.get_by_role("button", name="Clear these ticks")
    button.focus()
    tab.keyboard.press("Enter")
    expect_ticked(tab, False)
    tab.keyboard.press("Space")
    expect_ticked(tab)


def test_a_screen_reader_hears_the_marks(opened):
    """Ask the browser itself: Playwright has a reckoning of its own."""
    tab = opened()
    box(tab).check()
    tree = tab.context.new_cdp_session(tab).send("Accessibility.getFullAXTree")
    names = {
        node["name"]["value"]
        for node in tree["nodes"]
        if node.get("role", {}).get("value") == "link" and "name" in node
    }
    assert f"{TITLE}, done" in names
    assert f"Phase 0: Foundation setup, 1 of {total(tab)} done" in names
    assert tab.get_by_role("status").first.inner_text().startswith("1 of ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(scheme, opened):
    tab = opened(scheme=scheme, before=FULL)
    box(tab).check()
    tab.evaluate(AXE_SCRIPT)
    found = tab.evaluate("""async () => {
      document.querySelectorAll(".cell, .math").forEach((e) => e.remove());
      const found = await axe.run({preload: false, resultTypes: ["violations"]});
      return found.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html}`));
    }""")
    assert not found


def test_nothing_moves_at_load_or_by_a_tick(opened):
    """Marks and boxes have their places before the script runs."""
    tab = opened()
    places = """() => [...document.querySelectorAll("h2, .bd-links a, .toc-entry a")]
      .map((e) => JSON.stringify(e.getBoundingClientRect()))"""
    scripted = re.compile(r"/progress\.js")
    for size in (WIDE, PHONE):
        tab.set_viewport_size(size)
        tab.context.route(scripted, lambda route: route.fulfill(body=""))
        tab.reload()
        before = tab.evaluate(places)
        tab.context.unroute(scripted)
        tab.reload()
        assert tab.evaluate(places) == before
        tick_all(tab)
        assert tab.evaluate(places) == before
        width = tab.evaluate("document.documentElement.scrollWidth")
        assert width <= size["width"]
        tab.get_by_role("button", name="Clear these ticks").click()


def test_counts_do_not_cover_titles(opened, table):
    tab = opened()
    keys = [f"{BEGIN}{page}#{name}" for page in table for name in table[page][:-1]]
    tab.evaluate("(keys) => keys.forEach((key) => localStorage[key] = 'yes')", keys)
    tab.reload()
    overlaps = """() => [...document.querySelectorAll(".done-mark")].filter((mark) => {
      const text = document.createRange();
      text.selectNodeContents(mark.parentElement);
      text.setEndBefore(mark);
      const seen = mark.firstChild.getBoundingClientRect();
      return [...text.getClientRects()].some((t) => t.right > seen.left
        && t.left < seen.right && t.bottom > seen.top && t.top < seen.bottom);
    }).map((mark) => mark.parentElement.textContent)"""
    assert tab.locator(".bd-links .done-mark").count() == len(PHASES)
    assert tab.evaluate(overlaps) == []


def test_without_a_script_the_page_is_as_before(server, browser):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(server + HOME)
    assert tab.locator(".section-done").count()
    for each in tab.locator(".section-done, .page-done").all():
        assert not each.is_visible()
    phase, other = (
        tab.locator(".bd-links a", has_text="Phase 1"),
        tab.locator(".bd-links a", has_text="Glossary"),
    )
    padding = "(e) => getComputedStyle(e).paddingRight"
    assert phase.evaluate(padding) == other.evaluate(padding)
    context.close()


def test_paper_shows_no_boxes(opened):
    tab = opened()
    box(tab).check()
    tab.emulate_media(media="print")
    for each in tab.locator(".section-done, .page-done, .done-mark").all():
        assert not each.is_visible()


def test_search_excerpts_leave_the_boxes_out(opened):
    tab = opened("search.html?q=foundation")
    text = tab.evaluate(
        """async (page) => Search.htmlToText(await (await fetch(page)).text())""", HOME
    )
    assert TITLE in text
    assert "Done with" not in text
    assert "sections done" not in text
