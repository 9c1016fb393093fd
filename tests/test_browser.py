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


def pictures(tab) -> tuple[bytes, ...]:
    """The pictures of both models, once they are those of the runs that are chosen."""
    for i in range(2):
        tab.wait_for_function(
            f"(document.getElementById('explorer-picture-{i}').dataset.tile || '').startsWith("
            f"document.getElementById('explorer-sheet-{i}').src.split('/').pop() + ' ')"
        )
    return tuple(tab.locator(f"#explorer-picture-{i}").screenshot() for i in range(2))


def test_the_explorers_sliders_follow_the_keyboard_and_change_the_pictures(opened):
    tab = opened(EXPLORER)
    state = tab.locator("#explorer-state")
    tab.focus("#explorer-step")
    seen = {state.inner_text(): pictures(tab)}
    tab.keyboard.press("End")
    seen[state.inner_text()] = pictures(tab)
    tab.focus("#explorer-frame")
    tab.keyboard.press("Home")
    seen[state.inner_text()] = pictures(tab)
    tab.keyboard.press("PageUp")
    seen[state.inner_text()] = pictures(tab)
    assert len(seen) == 4 and len(set(seen.values())) == 4
    assert state.get_attribute("aria-live") == "polite"
    for name in ("task", "puzzle", "step", "frame"):
        assert tab.evaluate(f"document.getElementById('explorer-{name}').labels.length") == 1
    order = []
    tab.focus("#explorer-step")
    for _ in range(5):
        order.append(tab.evaluate("document.activeElement.id").removeprefix("explorer-"))
        tab.keyboard.press("Tab")
    assert order == ["step", "frame", "play", "task", "puzzle"]


def test_the_explorer_shows_every_run_of_every_task_and_model(opened):
    tab = opened(EXPLORER)
    seen, runs = set(), 0
    for task in tab.locator("#explorer-task option").all():
        tab.select_option("#explorer-task", task.get_attribute("value"))
        for index in range(tab.locator("#explorer-puzzle option").count()):
            tab.select_option("#explorer-puzzle", index=index)
            seen.update(pictures(tab))
            answers = tab.locator("#explorer-legend tbody tr").count()
            for i in range(2):
                assert tab.locator(f"#explorer-curve-{i} path:not(.before)").count() == answers >= 2
            runs += 2
    assert runs == 88 and len(seen) >= 76


def test_the_explorers_examples_are_what_they_are_called(opened):
    """By the numbers that the page holds: where the right answer leads, at the first step and at the last."""
    tab = opened(EXPLORER)

    def right(model: int) -> list[bool]:
        return tab.evaluate(
            """(model) => {
            const task = document.getElementById("explorer-task"), puzzle = document.getElementById("explorer-puzzle");
            const run = cosExplorer.models[model].tasks[task.selectedIndex].runs[puzzle.selectedIndex];
            return run.evidence.map((row) => run.answers.includes(run.names[row.indexOf(Math.max(...row))]));
        }""",
            model,
        )

    found = {}
    for button in tab.locator("#explorer-presets button").all():
        button.click()
        found[button.inner_text()] = right(0), right(1)
        assert button.get_attribute("aria-pressed") == "true" and tab.inner_text("#explorer-told")
    assert found["Spoils it"][1][0] and not found["Spoils it"][1][-1]
    assert all(map(all, found["One pass decides"]))
    tab.click("text=Two right answers")
    assert tab.locator("#explorer-legend tbody tr >> text=★").count() == 2
    tab.click("text=Changes its mind")
    shares = tab.evaluate("cosExplorer.models[1].tasks.find(t => t.name === 'bounce').runs[1].evidence")
    first, last = (sorted(row)[::-1] for row in (shares[0], shares[-1]))
    assert first[0] - first[1] < 0.1 and last[0] - last[1] > 0.5 and found["Changes its mind"][1][-1]


@pytest.mark.parametrize("mark", ["#", "?"])
def test_the_explorers_address_names_the_case(opened, mark):
    tab = opened(EXPLORER, query=f"{mark}task=two_routes&puzzle=3&step=2&frame=9")
    values = {name: tab.input_value(f"#explorer-{name}") for name in ("task", "puzzle", "step", "frame")}
    assert values == {"task": "two_routes", "puzzle": "3", "step": "2", "frame": "9"}
    seen = pictures(tab)
    tab.focus("#explorer-step")
    tab.keyboard.press("ArrowRight")
    assert "step=3" in tab.url and pictures(tab) != seen
    tab.click("text=One pass decides")
    tab.go_back()
    tab.wait_for_function("document.getElementById('explorer-task').value === 'two_routes'")
    assert tab.input_value("#explorer-step") == "3"


def test_the_explorer_frames_an_answer_that_the_reader_points_at(opened):
    tab = opened(EXPLORER, query="#task=maze&puzzle=0")
    plain = pictures(tab)
    tab.focus("#explorer-legend button >> nth=1")
    framed = pictures(tab)
    assert all(a != b for a, b in zip(plain, framed, strict=True))
    tab.focus("#explorer-step")
    assert pictures(tab) == plain


def test_the_explorer_plays_stops_and_follows_a_click_on_a_sheet_and_on_a_curve(opened):
    tab = opened(EXPLORER, query="#task=maze&puzzle=0&step=0&frame=16")
    pictures(tab)
    tab.click("#explorer-play")
    tab.wait_for_function("document.getElementById('explorer-step').value >= 2")
    tab.click("#explorer-play")
    here = tab.input_value("#explorer-step")
    tab.wait_for_timeout(1000)
    assert tab.input_value("#explorer-step") == here
    tab.click("#explorer-body summary")
    box = tab.locator("#explorer-sheet-1").bounding_box()
    tab.locator("#explorer-sheet-1").click(position={"x": 1, "y": box["height"] / 20 * 2.5})
    assert (tab.input_value("#explorer-step"), tab.input_value("#explorer-frame")) == ("2", "0")
    box = tab.locator("#explorer-curve-0").bounding_box()
    tab.locator("#explorer-curve-0").click(position={"x": box["width"] * 312 / 320, "y": box["height"] / 3})
    assert tab.input_value("#explorer-step") == "19"
