"""The page for people, in a browser that is used as people use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import browser as browsers

if browsers.CHROMIUM is None:
    pytest.skip("there is no Chromium on PATH or in $CHROMIUM", allow_module_level=True)

import pymupdf
from playwright.sync_api import Browser, Locator, Page, expect

from mmrh_retriever import Reranker
from tests.serving.conftest import small_pages

SAMPLE = Path(__file__).parents[2] / "examples" / "sample_report.pdf"
DEBT, BOARD = "What was the net debt in 2023?", "How much does a member of the board earn in a year?"
KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsers.browser() as started:
        yield started


@pytest.fixture(scope="module")
def address(bundled: Reranker) -> Iterator[str]:
    with browsers.serving(bundled, max_question=200) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key figures, a scan, and the board: three pages of the sample report."""
    path = tmp_path_factory.mktemp("reports") / "report.pdf"
    with pymupdf.open(SAMPLE) as document:
        document.select([2, 6, 10])
        document.save(path)
    return path


@pytest.fixture(scope="module")
def answered(chromium: Browser, address: str, report: Path) -> str:
    """What stands behind the address of the page once a question about the report was answered."""
    with browsers.watched(chromium, address) as page:
        page.locator("input[type=file]").set_input_files(report)
        expect(page.get_by_role("checkbox", name="report.pdf 3 pages")).to_be_checked()
        page.get_by_label("Question", exact=True).fill(DEBT)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(chosen(page)).to_have_accessible_name("Rank 1: report.pdf, page 1")
        expect(chosen(page)).to_be_focused()
        return page.url.removeprefix(address)


@pytest.fixture
def page(chromium: Browser, address: str, answered: str) -> Iterator[Page]:
    """The page, opened anew with its question and file."""
    with browsers.watched(chromium, address, answered) as found:
        expect(chosen(found)).to_have_accessible_name("Rank 1: report.pdf, page 1")
        yield found


def chosen(page: Page) -> Locator:
    """The ranked page that is looked at."""
    return page.get_by_role("option", selected=True)


def picture(page: Page) -> Locator:
    """The page's picture, once it is there."""
    return page.locator("#sheet:not([aria-busy]) #picture[src^='blob:']")


def pasted(page: Page) -> str:
    """What is on the clipboard."""
    page.get_by_label("Question", exact=True).fill("")
    page.get_by_label("Question", exact=True).press("Control+v")
    return page.get_by_label("Question", exact=True).input_value()


def test_it_may_load_nothing_but_its_own_files(address: str) -> None:
    for path in ("", "page/main.js", "page/style.css"):
        answer = httpx.get(address + path)
        policy = answer.headers["content-security-policy"].split("; ")
        assert (answer.status_code, policy[0]) == (200, "default-src 'none'")
        assert not [rule for rule in policy if "unsafe" in rule or "*" in rule or "http" in rule]
        assert answer.headers["x-content-type-options"] == "nosniff"
    unchanged = httpx.get(
        f"{address}page/main.js", headers={"if-none-match": httpx.get(f"{address}page/main.js").headers["etag"]}
    )
    assert unchanged.status_code == 304


def test_the_address_keeps_question_and_files(page: Page, answered: str) -> None:
    assert re.fullmatch(r"#question=What\+was\+the\+net\+debt\+in\+2023%3F&files=[0-9a-f]{16}", answered)
    expect(page.get_by_label("Question", exact=True)).to_have_value(DEBT)
    expect(page).to_have_title(f"{DEBT} – mmrh")
    page.get_by_label("Question", exact=True).fill(BOARD)
    page.keyboard.press("Enter")
    expect(chosen(page)).to_have_accessible_name("Rank 1: report.pdf, page 3")
    page.go_back()
    expect(chosen(page)).to_have_accessible_name("Rank 1: report.pdf, page 1")
    page.reload()
    expect(chosen(page)).to_have_accessible_name("Rank 1: report.pdf, page 1")


def test_scores_and_boxes_of_a_page_are_shown(page: Page) -> None:
    expect(page.get_by_role("heading", name="report.pdf")).to_be_visible()
    expect(page.locator("#page-place")).to_have_text("Page 1 of 3")
    expect(page.locator("dt")).to_contain_text(["Score", "Attention", "Text", "Probability"])
    shown = page.locator("dd .number").all_text_contents()
    assert 0.5 < float(shown[0]) <= 1.0
    assert re.fullmatch(r"\d+ %", shown[3])
    expect(page.locator("#box-list li")).to_have_count(5)
    expect(page.locator("#box-list")).to_contain_text("Net debt")
    expect(page.locator("#overlay > div")).to_have_count(5)


def test_arrow_keys_and_clicks_go_through_the_ranks(page: Page) -> None:
    options = page.get_by_role("option")
    expect(options).to_have_count(3)
    names = [option.get_attribute("aria-label") for option in options.all()]
    options.nth(0).focus()
    for key, index in (("ArrowDown", 1), ("ArrowRight", 2), ("ArrowDown", 2), ("Home", 0), ("ArrowUp", 0), ("End", 2)):
        page.keyboard.press(key)
        expect(options.nth(index)).to_be_focused()
        expect(chosen(page)).to_have_accessible_name(names[index])
    options.nth(1).click()
    expect(chosen(page)).to_have_accessible_name(names[1])
    expect(page.locator("#picture")).to_have_attribute("alt", re.compile(f"{names[1][-6:].capitalize()} of report.pdf"))
    page.get_by_role("button", name="Better page").click()
    expect(page.get_by_role("status")).to_have_text(names[0])
    page.keyboard.press("ArrowRight")  # the focus is on the button
    expect(chosen(page)).to_have_accessible_name(names[1])
    page.get_by_label("Question", exact=True).press("ArrowRight")  # the cursor moves
    expect(chosen(page)).to_have_accessible_name(names[1])


def test_heat_map_and_boxes_can_be_left_out(page: Page) -> None:
    with_heat = picture(page).get_attribute("src")
    page.get_by_role("button", name="Heat map").click()
    expect(page.get_by_role("button", name="Heat map", pressed=False)).to_be_visible()
    expect(picture(page)).not_to_have_attribute("src", with_heat)
    expect(picture(page)).to_have_accessible_name("Page 1 of report.pdf")
    page.get_by_role("button", name="Heat map").click()
    expect(picture(page)).to_have_accessible_name("Page 1 of report.pdf, with the heat map of the question")
    expect(page.locator("#overlay > div").first).to_be_visible()
    page.get_by_role("button", name="Boxes").click()
    expect(page.locator("#overlay > div").first).to_be_hidden()


def test_boxes_stand_where_they_are_on_the_page(page: Page) -> None:
    sheet = page.locator("#sheet").bounding_box()
    box = page.locator("#overlay > div").first.bounding_box()
    page.get_by_role("button", name="Copy citation").click()
    x0, y0, x1, y1 = (int(side) for side in re.findall(r"\d+", pasted(page).partition("box")[2]))
    scale = sheet["width"] / 595
    assert box["x"] - sheet["x"] == pytest.approx(x0 * scale, abs=1.5)
    assert box["y"] - sheet["y"] == pytest.approx(y0 * scale, abs=1.5)
    assert box["width"] == pytest.approx((x1 - x0) * scale, abs=2)
    assert box["height"] == pytest.approx((y1 - y0) * scale, abs=2)


def test_the_page_is_zoomed_and_chosen_boxes_come_into_view(page: Page) -> None:
    width = page.locator("#sheet").bounding_box()["width"]
    for _ in range(3):
        page.get_by_role("button", name="Larger").click()
    assert page.locator("#sheet").bounding_box()["width"] == pytest.approx(2 * width, abs=2)
    footer = page.locator("#box-list .pick", has_text="Harbour Line Ferries")
    footer.click()
    expect(footer).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#overlay > .chosen")).to_be_in_viewport()
    page.get_by_role("button", name="Fit the page, zoom is 200 %").click()
    assert page.locator("#sheet").bounding_box()["width"] == pytest.approx(width, abs=2)
    expect(page.get_by_role("button", name="Smaller")).to_have_attribute("aria-disabled", "true")


def test_citations_name_file_page_and_box(page: Page) -> None:
    page.get_by_role("button", name="Copy the citation of box 2").click()
    expect(page.get_by_role("status")).to_contain_text("Copied: report.pdf, page 1, box ")
    assert re.fullmatch(r"report\.pdf, page 1, box \d+, \d+, \d+, \d+ pt from the upper left", pasted(page))


def test_without_a_probable_page_the_page_says_so(page: Page) -> None:
    expect(page.locator("#doubt")).to_be_hidden()
    page.get_by_label("Question", exact=True).fill("Which moon of Jupiter is the largest?")
    page.keyboard.press("Enter")
    expect(page.locator("#doubt")).to_contain_text("No page is probably evidence: the highest probability is")


def test_a_file_can_be_dropped_and_removed(chromium: Browser, address: str) -> None:
    name = "<img src=x onerror=alert(1)>.pdf"
    content = list(small_pages("The ferry was painted green."))
    with browsers.watched(chromium, address, bypass_csp=True) as page:  # for what makes the drop
        files = page.evaluate_handle(
            """([name, content]) => {
                const files = new DataTransfer();
                files.items.add(new File([new Uint8Array(content)], name));
                return files;
            }""",
            [name, content],
        )
        page.dispatch_event("body", "dragover", {"dataTransfer": files})
        expect(page.locator("#drop")).to_have_class("drop over")
        page.dispatch_event("body", "drop", {"dataTransfer": files})
        expect(page.locator("#files li", has_text=name).get_by_role("checkbox")).to_be_checked()  # a name is no markup
        page.get_by_role("button", name=f"Remove {name}").click()
        page.get_by_role("button", name="Keep it").click()
        expect(page.locator("#files li", has_text=name)).to_have_count(1)
        page.get_by_role("button", name=f"Remove {name}").click()
        page.get_by_role("button", name="Remove it").click()
        expect(page.locator("#files li", has_text=name)).to_have_count(0)
        expect(page.get_by_role("button", name="Choose files")).to_be_focused()


def test_long_files_are_read_in_portions(chromium: Browser, address: str) -> None:
    content = small_pages(*(f"Chapter {number}." for number in range(1, 7)), "The ferry was painted green.")
    asked: list[dict[str, Any]] = []
    with browsers.watched(chromium, address) as page:
        page.on("request", lambda sent: asked.append(sent.post_data_json) if sent.url.endswith("/v1/rank") else None)
        page.locator("input[type=file]").set_input_files(
            {"name": "long.pdf", "mimeType": "application/pdf", "buffer": content}
        )
        expect(page.get_by_role("checkbox", name="long.pdf")).to_be_checked()
        for question in ("Which colour has the ferry?", "Which is the first chapter?"):
            page.get_by_label("Question", exact=True).fill(question)
            page.keyboard.press("Enter")
            expect(page).to_have_title(f"{question} – mmrh")
    assert [body.get("pages") for body in asked] == ["1-4", "5-7", None, None]
    assert asked[2]["query"] == "Which colour has the ferry?"


def test_a_question_waits_for_the_model(chromium: Browser, address: str, answered: str) -> None:
    with browsers.watched(chromium, address) as page:
        page.route("**/readyz", lambda route: route.fulfill(status=503))
        page.goto(address + answered)
        page.reload()
        expect(page.locator("#model")).to_have_text("Model: reader, loading")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#waiting-text")).to_contain_text("Waiting for the model")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#waiting")).to_be_hidden()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.unroute("**/readyz")
        expect(chosen(page)).to_have_accessible_name("Rank 1: report.pdf, page 1")


def test_refusals_are_shown_as_the_server_says_them(page: Page, tmp_path: Path) -> None:
    false = tmp_path / "notes.pdf"
    false.write_text("plain text")
    page.locator("input[type=file]").set_input_files(false)
    expect(page.locator("#uploads").get_by_role("alert")).to_contain_text("notes.pdf is not an image that can be read")
    page.get_by_role("button", name="Dismiss notes.pdf").click()
    expect(page.locator("#uploads li")).to_have_count(0)
    page.get_by_label("Question", exact=True).fill("x" * 300)
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_have_text("A question has 300 characters; 200 are taken. Shorten it.")
    page.get_by_role("checkbox", name="report.pdf").uncheck()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#problem")).to_have_text("Choose a file first.")


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(chromium: Browser, bundled: Reranker, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(KEY)
    content = {
        "name": "ferry.pdf",
        "mimeType": "application/pdf",
        "buffer": small_pages("The ferry is green.", "Oars."),
    }
    keys = str(tmp_path / "keys.txt")
    with browsers.serving(bundled, api_key_file=keys) as address, browsers.watched(chromium, address) as page:
        field = page.get_by_label("This server asks for an API key")
        expect(field).to_be_focused()
        field.fill("a-key-that-is-not-known")
        page.keyboard.press("Enter")
        expect(page.locator("#key-problem")).to_contain_text("Expected a known API key")
        field.fill(KEY)
        page.keyboard.press("Enter")
        expect(field).to_be_hidden()
        page.locator("input[type=file]").set_input_files(content)
        page.get_by_label("Question", exact=True).fill("Which colour has the ferry?")
        expect(page.get_by_role("checkbox", name="ferry.pdf")).to_be_checked()
        page.keyboard.press("Enter")
        expect(chosen(page)).to_have_accessible_name("Rank 1: ferry.pdf, page 1")
        expect(picture(page)).to_be_visible()
        page.reload()
        expect(picture(page)).to_be_visible()
        page.get_by_role("button", name="Forget the key").click()
        expect(field).to_be_focused()


def test_everything_works_by_keyboard_alone(chromium: Browser, address: str, report: Path) -> None:
    with browsers.watched(chromium, address) as page:
        page.on("filechooser", lambda _: None)  # from now on, as a key may come before the browser heeds it

        def tab_to(target: Locator) -> None:
            for _ in range(40):
                page.keyboard.press("Tab")
                if target.and_(page.locator(":focus")).count():
                    return
            raise AssertionError(f"Tab does not reach {target}")

        tab_to(page.get_by_role("link", name="Skip to the question"))
        page.keyboard.press("Enter")
        expect(page.get_by_label("Question", exact=True)).to_be_focused()
        page.reload()
        tab_to(page.get_by_role("button", name="Choose files"))
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(report)
        expect(page.get_by_role("checkbox", name="report.pdf")).to_be_checked()
        tab_to(page.get_by_label("Question", exact=True))
        page.keyboard.type(BOARD)
        page.keyboard.press("Enter")
        expect(chosen(page)).to_be_focused()
        expect(chosen(page)).to_have_accessible_name("Rank 1: report.pdf, page 3")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowUp")
        tab_to(page.get_by_role("button", name="Boxes"))
        page.keyboard.press("Space")
        expect(page.locator("#overlay > div").first).to_be_hidden()
        tab_to(page.get_by_role("button", name="Larger"))
        page.keyboard.press("Enter")
        tab_to(page.locator("#pane"))
        tab_to(page.get_by_role("button", name="Copy citation"))
        page.keyboard.press("Enter")
        tab_to(page.locator("#box-list .pick").nth(1))
        page.keyboard.press("Enter")
        expect(page.locator("#overlay > div").nth(1)).to_have_class("chosen")
        assert pasted(page).startswith("report.pdf, page 3, box ")


def barriers(axe: Any, page: Page) -> list[tuple[str, list[str]]]:
    """The rules that elements of the page break."""
    broken = axe.run(page).response["violations"]
    return [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in broken]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_no_barrier(chromium: Browser, address: str, answered: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}, "bypass_csp": True}  # to run axe
    with browsers.watched(chromium, address, **options) as page:
        expect(page.locator("#model")).to_have_text("Model: reader")
        assert barriers(axe, page) == []
        page.goto(address + answered)
        expect(picture(page)).to_be_visible()
        page.get_by_role("button", name="Copy citation").click()
        assert barriers(axe, page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#files .sign").first.click()
        assert barriers(axe, page) == []
