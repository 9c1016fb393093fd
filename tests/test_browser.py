"""The built pages in Chromium: quiet, offline, within the window, operable by keyboard, readable for everybody."""

from __future__ import annotations

import pytest
from chromium import PAGES

# what readers read; listings of source code (_modules) are Sphinx's own pages
FOUND = sorted(page for page in PAGES.rglob("*.html") if not {"_static", "_modules"} & set(page.parts))
EXPLORER = PAGES / "book" / "explorer.html"
OWN = "article.bd-article"  # what the book's authors write, as opposed to the theme's frame around it


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
@pytest.mark.parametrize("page", FOUND, ids=lambda page: page.stem)
def test_a_page_is_quiet_offline_and_no_wider_than_the_window(opened, page, width, scheme):
    tab = opened(page, width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("page", FOUND, ids=lambda page: page.stem)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_our_own_content_has_no_serious_accessibility_fault(opened, page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: use `make browser-test`").Axe()
    tab = opened(page, scheme=scheme)
    if not tab.locator(OWN).count():
        pytest.skip("a page of the theme, without content of ours")
    found = axe.run(tab, context=OWN, options={"preload": False}).response["violations"]
    grave = [v for v in found if v["impact"] in ("serious", "critical")]
    faults = [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:200]}" for v in grave]
    assert not faults


def test_the_search_lists_its_hits_from_a_file(opened):
    tab = opened(PAGES / "search.html", query="?q=maze")
    tab.wait_for_selector("#search-results li a")


def picture(tab) -> bytes:
    tab.wait_for_function("document.getElementById('explorer-picture').dataset.tile")
    return tab.locator("#explorer-picture").screenshot()


def test_the_explorers_sliders_follow_the_keyboard_and_change_the_picture(opened):
    tab = opened(EXPLORER)
    state = tab.locator("#explorer-state")
    tab.focus("#explorer-step")
    seen = {state.inner_text(): picture(tab)}
    tab.keyboard.press("End")
    seen[state.inner_text()] = picture(tab)
    tab.focus("#explorer-frame")
    tab.keyboard.press("Home")
    seen[state.inner_text()] = picture(tab)
    tab.keyboard.press("PageUp")
    seen[state.inner_text()] = picture(tab)
    assert len(seen) == 4 and len(set(seen.values())) == 4
    assert state.get_attribute("aria-live") == "polite"
    for name in ("model", "task", "run", "step", "frame"):
        assert tab.evaluate(f"document.getElementById('explorer-{name}').labels.length") == 1
    order = []
    tab.focus("#explorer-model")
    for _ in range(6):
        order.append(tab.evaluate("document.activeElement.id").removeprefix("explorer-"))
        tab.keyboard.press("Tab")
    assert order == ["model", "task", "run", "play", "step", "frame"]


def shown(tab) -> bytes:
    """The picture, once it is that of the run that is chosen."""
    tab.wait_for_function(
        "(document.getElementById('explorer-picture').dataset.tile || '').startsWith("
        "document.getElementById('explorer-all').src.split('/').pop() + ' ')"
    )
    return picture(tab)


def test_the_explorer_shows_every_run_of_every_task_and_model(opened):
    tab = opened(EXPLORER)
    seen, runs = set(), 0
    for model in range(tab.locator("#explorer-model option").count()):
        tab.select_option("#explorer-model", index=model)
        for task in tab.locator("#explorer-task option").all():
            tab.select_option("#explorer-task", task.get_attribute("value"))
            for index in range(tab.locator("#explorer-run option").count()):
                tab.select_option("#explorer-run", index=index)
                seen.add(shown(tab))
                curves = tab.locator("#explorer-curve path").count()
                assert curves == tab.locator("#explorer-legend tbody tr").count() >= 2
                runs += 1
    assert runs == 80 and len(seen) >= 70


def test_another_model_is_shown_at_the_same_task_puzzle_step_and_frame(opened):
    tab = opened(EXPLORER)
    models = tab.locator("#explorer-model option").all_inner_texts()
    assert models == ["ten blocks (cos-mini)", "three blocks (cos-mini-shallow)"]
    tab.select_option("#explorer-task", "two_routes")
    tab.select_option("#explorer-run", index=3)
    tab.fill("#explorer-step", "2")
    tab.fill("#explorer-frame", "9")

    def place():
        values = {name: tab.input_value(f"#explorer-{name}") for name in ("task", "step", "frame")}
        return values | {"puzzle": tab.evaluate("document.getElementById('explorer-run').selectedIndex")}

    before, prompt, ten = place(), tab.inner_text("#explorer-prompt"), shown(tab)
    tab.focus("#explorer-model")
    tab.keyboard.press("ArrowDown")
    assert tab.input_value("#explorer-model") == "cos-mini-shallow"
    assert shown(tab) != ten and place() == before == {
        "task": "two_routes",
        "step": "2",
        "frame": "9",
        "puzzle": 3,
    }
    assert tab.inner_text("#explorer-prompt") == prompt
    tab.select_option("#explorer-task", "maze")
    assert tab.input_value("#explorer-model") == "cos-mini-shallow"
    tab.select_option("#explorer-task", "two_routes")
    tab.select_option("#explorer-model", "cos-mini")
    assert shown(tab) == ten and place() == before


def test_the_explorer_plays_stops_and_follows_a_click_on_the_sheet(opened):
    tab = opened(EXPLORER)
    picture(tab)
    tab.click("#explorer-play")
    tab.wait_for_function("document.getElementById('explorer-step').value >= 2")
    tab.click("#explorer-play")
    here = tab.input_value("#explorer-step")
    tab.wait_for_timeout(1000)
    assert tab.input_value("#explorer-step") == here
    box = tab.locator("#explorer-all").bounding_box()
    tab.locator("#explorer-all").click(position={"x": 1, "y": box["height"] / 20 * 2.5})
    assert (tab.input_value("#explorer-step"), tab.input_value("#explorer-frame")) == ("2", "0")
