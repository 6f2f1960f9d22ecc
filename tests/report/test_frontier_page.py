"""The page of a frontier: every repair in it, chosen by slider, picture or table; whole without script; safe names."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from biased_task import task
from html_pages import CHROMIUM, Browser, Page, look_at

from repairopt import Bound, Frontier, FrontierPoint, GroupGap, MissRate, SpecificationError, trace_frontier
from repairopt.report import frontier_page

TARGETS = [0.25, 0.1, 0.02]
HOSTILE = {
    "a script ends": "</script><script>window.hacked = 1</script>",
    "an attribute ends": '" onmouseover="window.hacked = 1" x="',
    "a single quote": "' onfocus='window.hacked = 1",
    "an image": "<img src=x onerror=window.hacked=1>",
    "a comment": "<!-- --><script>window.hacked=1</script>",
    "a template": "{{ 7 * 7 }}${7*7}\u2028",
    "right to left": "\u202egap\u202c \u0645\u0631\u062d\u0628\u0627 \U0001f600 &lt;b&gt;",
}
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")


@pytest.fixture(scope="module")
def traced():
    toy = task(count=400)
    goal = GroupGap.observed(toy.inputs, column=1, target=0.1)
    miss = Bound(MissRate(toy.inputs, toy.labels, 1), slack=0.1, name="missed ones")
    data = {"data": (toy.inputs, toy.labels), "held_out": toy.held_out}
    return trace_frontier(toy.model, goal, [toy.keep(0.3), miss], targets=TARGETS, weights="last", **data)


@pytest.fixture(scope="module")
def html(traced) -> str:
    return traced.to_html(features=["merit", "group"])


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_each_repair_is_there_with_its_own_figures(traced, page):
    repairs = [attributes for tag, attributes in page.attributes if tag == "article"]
    assert [one["id"] for one in repairs] == ["repair-1", "repair-2", "repair-3"]
    for point, one in zip(traced.points, repairs, strict=True):
        report = point.repair.report
        assert str(report.verdict).upper() in one["data-said"]
        assert f"at most {point.target:.4f}" in one["data-said"]
        assert f"{point.held_out_value:.4f} on held-out data" in one["data-said"]
        goal = report.measure(held_out=True)
        assert goal.target == point.target, "the twin has the bound of its point"
        assert ["group gap", "held-out data", f"{goal.before:.4f}", f"{goal.after:.4f}"] in [c[:4] for c in page.cells]
        claim = next(one for one in report.claims if one.name == "missed ones")
        assert f"{claim.interval.low:.4f} to {claim.interval.high:.4f}" in [c[4] for c in page.cells if len(c) == 7]
        changed = f"{report.changed:,}"
        assert any(c[1] == str(report.verdict) and c[-1] == changed for c in page.cells if len(c) == 7)


def test_prices_groups_and_rows_are_those_of_each_repair(traced, page):
    for point in traced.points:
        for name, price in point.repair.report.prices.items():
            shown = [c[2] for c in page.cells if len(c) == 3 and c[0] == name]
            numbers = [float(text.split()[0].replace(",", "")) for text in shown]
            assert any(number == pytest.approx(price, rel=1e-3, abs=1e-9) for number in numbers), shown
        for rates in point.repair.report.evidence.rates:
            if rates.quantity == "favorable rate":
                sides = zip(rates.groups, rates.before, rates.after, strict=True)
                cells = [[group, f"{before:.3f}", f"{after:.3f}"] for group, before, after in sides]
                assert all(cell in [c[:3] for c in page.cells if len(c) == 6] for cell in cells)
    assert page.row("row", "true label")[-2:] == ["merit", "group"]


def test_the_page_needs_no_network_and_runs_its_own_script_only(html, page):
    for tag, attributes in page.attributes:
        assert tag not in ("link", "iframe", "img", "object")
        assert not (attributes.get("src") or "").strip()
        assert (attributes.get("href") or "#").startswith("#")
        assert not [key for key in attributes if key.startswith("on")]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.attributes if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_names_of_the_user_are_text(text):
    toy = task(count=120)
    goal = GroupGap.observed(toy.inputs, column=1, target=0.1)
    found = trace_frontier(
        toy.model,
        type(goal)(goal.samples, target=0.1, name=text),
        [Bound(MissRate(toy.inputs, toy.labels, 1), slack=0.3, name=f"b {text}")],
        targets=[0.2],
        weights="last",
        held_out=toy.held_out,
    )
    page = Page(found.to_html(title=text, features=[text, "group"], patches=[text]))
    assert sum(tag == "script" for tag, _ in page.attributes) == 1
    assert not [tag for tag, a in page.attributes if tag == "img" or any(key.startswith("on") for key in a)]
    assert [c[0] for c in page.cells if c[1:2] == ["repair data"]][:2] == [text, f"b {text}"]
    assert any(text in (a.get("aria-label") or "") for _, a in page.attributes)
    assert text in page.row("row", "true label")


def test_points_without_repairs_have_no_page_and_few_points_have_one(traced, tmp_path):
    bare = FrontierPoint(0.1, 0.1, 0.9, 0.1, 0.9, True)
    with pytest.raises(SpecificationError, match="its page shows repairs, and a point has none"):
        Frontier("gap", bare, (bare,)).to_html()
    one = Frontier(traced.name, traced.original, traced.points[:1])
    assert one.save_html(tmp_path / "one.html").read_text(encoding="utf-8").count("<article") == 1


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_slider_picture_and_table_choose_a_repair(html, tmp_path, width):
    found = look_at(
        html,
        """
        const win = doc.defaultView, slider = doc.getElementById("slider"), said = doc.getElementById("said");
        const shown = () => [...doc.querySelectorAll("article")].filter(a => a.getClientRects().length).map(a => a.id);
        const state = () => [shown(), slider.value, said.textContent === slider.getAttribute("aria-valuetext"),
          [...doc.querySelectorAll("[aria-current]")].map(a => a.dataset.repair)];
        const out = [state()];
        slider.focus(); const focused = doc.activeElement === slider;
        slider.stepDown(); slider.dispatchEvent(new win.Event("input")); out.push(state());
        const dot = doc.querySelector("svg a[data-repair=repair-1]");
        dot.focus(); dot.dispatchEvent(new win.MouseEvent("click", {bubbles: true, cancelable: true}));
        out.push(state());
        doc.querySelector("td a[data-repair=repair-2]").click(); out.push(state());
        const box = one => one.getBoundingClientRect(), all = name => [...doc.querySelectorAll(name)];
        const wide = all("main *:not(thead *)").filter(one => box(one).right > doc.wide && !one.closest(".rows"));
        const small = all("input, summary, svg .area, td a").filter(one => one.getClientRects().length
          && box(one).height < 12);
        const search = doc.querySelector("article:not([hidden]) .search input");
        const names = [slider.computedRole, slider.computedName, said.getAttribute("role"), said.ariaLive,
          dot.computedRole, dot.computedName, search.closest("article").computedRole, search.computedRole,
          search.computedName];
        return {out, focused, names, wide: wide.map(one => one.outerHTML.slice(0, 80)), small: small.length,
          scrollWidth: doc.documentElement.scrollWidth};
        """,
        tmp_path,
        width,
    )
    last, earlier, first, middle = found["out"]
    assert last == [["repair-3"], "3", True, ["repair-3", "repair-3"]], "the tightest that is met is shown first"
    assert earlier == [["repair-2"], "2", True, ["repair-2", "repair-2"]]
    assert first == [["repair-1"], "1", True, ["repair-1", "repair-1"]]
    assert middle == earlier
    assert found["focused"]
    assert found["names"] == [
        *("slider", "Choose a repair", "status", "polite", "link", "Repair 1 of 3, group gap at most 0.2500"),
        *("article", "searchbox", "Search"),
    ]
    assert found["wide"] == []
    assert found["small"] == 0
    assert found["scrollWidth"] <= width


@pytest.mark.slow
@in_a_browser
def test_rows_are_searched_and_an_address_chooses(html, tmp_path):
    found = look_at(
        html,
        """
        const win = doc.defaultView, search = doc.querySelector("article:not([hidden]) .search");
        const [words, box] = search.querySelectorAll("input"), table = search.nextElementSibling;
        const all = [...table.querySelectorAll("tbody tr")], said = () => search.querySelector("output").textContent;
        const open = () => all.filter(row => row.getClientRects().length);
        const shown = doc.querySelector("article:not([hidden])").id, before = [all.length, said()];
        const cell = all[0].cells[0].textContent;
        words.value = cell + " "; words.dispatchEvent(new win.Event("input"));
        const fits = open().every(row => row.textContent.includes(cell.trim())), some = [open().length, said()];
        words.value = "no such text"; words.dispatchEvent(new win.Event("input")); const none = said();
        words.value = ""; box.checked = true; box.dispatchEvent(new win.Event("input"));
        const changed = open().every(row => row.cells[2].textContent !== row.cells[3].textContent);
        const count = open().length;
        return {shown, before, fits, some, none, changed, count, all: all.length};
        """,
        tmp_path,
        1280,
        address="#repair-2",
    )
    assert found["shown"] == "repair-2"
    assert found["before"] == [found["all"], f"{found['all']} of {found['all']} rows"]
    assert found["fits"]
    assert found["some"] == [found["some"][0], f"{found['some'][0]} of {found['all']} rows"]
    assert 1 <= found["some"][0] < found["all"]
    assert found["none"] == f"0 of {found['all']} rows"
    assert found["changed"]
    assert 0 < found["count"] < found["all"]


@pytest.mark.slow
@in_a_browser
def test_the_search_finds_changed_rows_that_are_not_on_the_page(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(frontier_page, "LISTED", 5)
    html = traced.to_html(features=["merit", "<script>group</script>"])
    found = look_at(
        html,
        """
        const win = doc.defaultView, search = doc.querySelector("article:not([hidden]) .search");
        const [words, box] = search.querySelectorAll("input"), table = search.nextElementSibling;
        const listed = () => table.querySelectorAll("tbody tr:not([hidden])").length;
        const said = () => search.querySelector("output").textContent;
        const further = JSON.parse(search.querySelector("script").textContent), before = [listed(), said()];
        const last = further[further.length - 1], texts = row => [...row.cells].map(cell => cell.textContent);
        words.value = last.slice(4).join(" "); words.dispatchEvent(new win.Event("input"));
        const hit = texts(table.querySelector("tbody tr:not([hidden])")), one = said();
        words.value = ""; words.dispatchEvent(new win.Event("input"));
        return {before, hit, last, one, after: [listed(), said()], further: further.length};
        """,
        tmp_path,
        1280,
        address="#repair-3",
    )
    whole = 5 + found["further"]
    assert found["further"] > 5
    assert found["hit"] == found["last"]
    assert found["one"] == f"1 of {whole} rows"
    assert found["before"] == found["after"] == [5, f"{whole} of {whole} rows, 5 listed"]


@pytest.mark.slow
@in_a_browser
def test_without_script_all_repairs_are_shown_and_no_control(html, tmp_path):
    found = look_at(
        html,
        """
        const seen = name => [...doc.querySelectorAll(name)].filter(one => one.getClientRects().length).length;
        return {repairs: seen("article"), controls: seen("#slider, .search"), said: seen(".unscripted")};
        """,
        tmp_path,
        400,
        scripts=False,
    )
    assert found == {"repairs": 3, "controls": 0, "said": 1}


SHOWN = "[...document.querySelectorAll('article')].filter(a => a.getClientRects().length).map(a => a.id).join()"
FOCUS = "(e => e.id || e.dataset.repair || e.type || e.getAttribute('aria-label') || e.tagName)(document.activeElement)"


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_keyboard_reaches_and_moves_everything(html, tmp_path, width):
    with Browser(html, tmp_path, width) as browser:
        assert browser.ask("innerWidth") == width
        order = []
        for _ in range(4):
            browser.press("Tab")
            order.append(browser.ask(FOCUS))
        assert order == ["repair-1", "repair-2", "repair-3", "slider"]
        browser.press("Home")
        assert browser.ask(SHOWN) == "repair-1"
        browser.press("ArrowRight")
        assert browser.ask(SHOWN) == "repair-2"
        browser.press("End")
        assert browser.ask(SHOWN) == "repair-3"
        assert browser.ask("document.getElementById('said').textContent").startswith("Repair 3 of 3")
        browser.ask("document.querySelector('svg a').focus()")
        browser.press("Enter")
        assert browser.ask(SHOWN) == "repair-1"
        browser.ask("document.querySelector('article:not([hidden]) [type=search]').focus()")
        for letter in "zzz":
            browser.press(letter)
        assert browser.ask("document.querySelector('article:not([hidden]) output').textContent").startswith("0 of ")
        browser.press("Tab")
        browser.press(" ")
        assert browser.ask("document.activeElement.checked") is True
        outline = browser.ask("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", "what has the focus is seen"


@pytest.mark.slow
@in_a_browser
def test_a_screen_reader_finds_names_roles_and_tables(html, tmp_path):
    with Browser(html, tmp_path, 400) as browser:
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        heard = [node for node in nodes if not node["ignored"]]
        known = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in heard]
        roles = [role for role, _ in known]
        assert roles.count("article") == 1, "hidden repairs are hidden to all"
        assert ("slider", "Choose a repair") in known
        slider = next(node for node in nodes if node["role"]["value"] == "slider")
        assert slider["value"]["value"] == 3 or str(slider["value"]["value"]).startswith("Repair 3 of 3")
        assert {"status", "table", "row", "cell", "columnheader", "search", "searchbox", "checkbox"} <= set(roles)
        assert not [role for role, name in known if role in ("link", "region", "slider", "searchbox") and not name]
        assert roles.count("heading") >= 6


@pytest.mark.slow
@in_a_browser
def test_on_paper_is_the_chosen_repair_whole_and_no_control(html, tmp_path):
    with Browser(html, tmp_path, 700) as browser:
        browser.ask("document.getElementById('slider').value = 2")
        browser.ask("document.getElementById('slider').dispatchEvent(new Event('input'))")
        browser.call("Emulation.setEmulatedMedia", media="print")
        browser.ask("window.dispatchEvent(new Event('beforeprint'))")
        assert browser.ask(SHOWN) == "repair-2"
        seen = "document.querySelectorAll('{}').values().filter(e => e.getClientRects().length).toArray().length"
        assert browser.ask(seen.format("#slider, .search")) == 0
        assert browser.ask(seen.format("article:not([hidden]) details > .scroll")) >= 1
        beyond = "[...document.querySelectorAll('td')].filter(e => e.getBoundingClientRect().right > 700).length"
        assert browser.ask(beyond) == 0
        assert len(browser.call("Page.printToPDF")["data"]) > 10_000
