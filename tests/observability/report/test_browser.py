"""The page in headless Chromium: what a person sees, hears and does there."""

import threading
import time

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright
from scipy.stats import binomtest

from observability.report.audio import ReportAudio
from observability.report.html import build_report
from observability.report.server import CurrentReport, ReportServer
from observability.report.source import ReportSource
from observability.run_directory import RunDirectory
from tests.controller.examples import iteration
from tests.observability.report.made import begin

pytestmark = pytest.mark.operate
OPENED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


@pytest.fixture(scope="module")
def chromium(tool):
    path = tool("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens an address; afterwards nothing may have gone wrong, and nothing been asked of anybody else."""
    contexts, faults, requests = [], [], []

    def open_page(address: str, width: int = 1280, scheme: str = "light") -> Page:
        context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    # Its own address, and the sounds that it made files of in memory.
    pages = [url for url in requests if not url.startswith("blob:")]
    assert {url.partition("/")[0] for url in pages} <= {"file:"} or all("127.0.0.1" in url for url in pages), pages


def heard(player: Locator, seconds: float = 10.0) -> float:
    """How much of a sound was played, in seconds, as soon as any of it was."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        played = player.locator("audio").evaluate("audio => audio.played.length ? audio.played.end(0) : 0")
        if played > 0.05:
            return played
        time.sleep(0.05)
    return 0.0


def test_it_opens_quickly(page, opened):
    # The quickest of a few: what else the machine does meanwhile is not the page's.
    assert min(opened(page.as_uri()).evaluate(OPENED) for _ in range(3)) <= 2000


def test_it_draws_its_plots(page, opened):
    seen = opened(page.as_uri())
    expect(seen.locator("h1")).to_have_text("made")
    assert seen.title() == "made · Duet"
    lines = seen.locator("#charts path.line, #charts path.area, #scores path.line")
    drawn = [path.get_attribute("d") for path in lines.all()]
    assert len(drawn) > 12
    assert all(d.count("L") >= 5 for d in drawn if d)
    assert sum(1 for d in drawn if not d) == 1  # the manner was never measured
    assert all(path.bounding_box()["width"] > 100 for path in lines.all()[:4])
    assert seen.locator("#charts rect.shade").count() == 2  # λ was set from outside in two iterations


def test_a_plot_is_read_by_keyboard(page, opened):
    seen = opened(page.as_uri())
    plot = seen.locator("#charts figure").first
    plot.locator("svg").focus()
    seen.keyboard.press("Home")
    expect(plot.locator(".reading")).to_contain_text("iteration 1")
    seen.keyboard.press("ArrowRight")
    expect(plot.locator(".reading")).to_contain_text("iteration 2")


def test_every_reply_can_be_heard(page, opened):
    seen = opened(page.as_uri())
    players = seen.locator("#question .player")
    assert players.count() == 5  # the question, before, two stages, after
    players.nth(1).locator("button").click()
    assert heard(players.nth(1)) > 0.05
    assert players.nth(1).locator("audio").evaluate("audio => audio.duration") > 0.3
    # Another one takes its place, by keyboard.
    seen.locator("#questions [aria-selected=true]").focus()
    seen.keyboard.press("4")
    assert heard(players.nth(4)) > 0.05
    assert players.nth(1).locator("audio").evaluate("audio => audio.paused")


def test_the_tokens_are_a_coloured_strip(page, opened):
    seen = opened(page.as_uri())
    strip = seen.locator("#question .strip").first
    assert "speech" in strip.get_attribute("aria-label")
    colours = {
        kind: strip.locator(f".{kind}").first.evaluate("node => getComputedStyle(node).backgroundColor")
        for kind in ("text", "speech", "boundary", "end")
    }
    assert len(set(colours.values())) == 4
    assert all(box["width"] > 2 for box in (span.bounding_box() for span in strip.locator("span").all()))


def test_filters_change_the_list(page, opened):
    seen = opened(page.as_uri())
    questions = seen.locator("#questions [role=option]")
    everything = questions.count()
    for key in ("gain", "malformed", "disagreement", "stages"):
        pill = seen.locator(f"#filters [data-key={key}]")
        pill.click()
        expect(pill).to_have_attribute("aria-pressed", "true")
        assert 0 < questions.count() < everything
        assert str(questions.count()) == pill.locator(".many").inner_text()
    seen.locator("#filters [data-key=gain]").click()
    changes = [float(text.replace("−", "-")) for text in seen.locator("#questions .change").all_inner_texts()]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] > 0
    seen.locator("#filters [data-key=disagreement]").click()
    expect(seen.locator("#question .heard").first).to_contain_text("oh seven it is")
    seen.locator("#filters [data-key=loss]").click()
    expect(seen.locator("#questions")).to_contain_text("None")


def test_questions_are_chosen_by_keyboard(page, opened):
    seen = opened(page.as_uri())
    seen.locator("#questions [aria-selected=true]").focus()
    first = seen.locator("#question h3").inner_text()
    seen.keyboard.press("ArrowDown")
    assert seen.locator("#question h3").inner_text() != first
    expect(seen.locator("#questions [aria-selected=true]")).to_be_focused()
    seen.keyboard.press("ArrowUp")
    expect(seen.locator("#question h3")).to_have_text(first)


def test_the_blind_test_takes_votes_by_keyboard_and_reports_a_share(page, opened):
    seen = opened(page.as_uri())
    seen.locator("#blind-start").focus()
    seen.keyboard.press("Enter")
    # Replies A and B differ only in their order; nothing on the page says which is which.
    shown = seen.locator("#blind-pair").inner_html()
    assert not any(word in shown for word in ("Before", "After", "weights", "total"))
    seen.keyboard.press("1")
    assert heard(seen.locator("#blind-pair [data-play='1'] .player")) > 0.05
    swapped = []
    for vote in ("a", "b", "a", "x"):
        swapped.append(seen.evaluate("blind.pairs[blind.at].swapped"))
        seen.keyboard.press(vote)
    seen.keyboard.press("Escape")
    wins = sum(vote == ("a" if later_is_a else "b") for vote, later_is_a in zip("aba", swapped, strict=False))
    result = seen.locator("#blind-result")
    expect(result).to_be_focused()
    expect(result).to_contain_text(f"{round(100 * wins / 3)} % for the later reply, {wins} of 3 votes")
    expect(result).to_contain_text("1 without a difference")
    low, high = seen.evaluate(f"wilson({wins}, 3)")
    expect(result).to_contain_text(f"95 % interval {round(low * 100)} % to {round(high * 100)} %")
    assert seen.locator(".voted tbody tr").count() == 4


def test_the_order_of_the_blind_test_is_drawn_and_fair(page, opened):
    seen = opened(page.as_uri())
    once = "startBlind(blindPairs().pairs); return blind.pairs.map((pair) => pair.swapped)"
    drawn = seen.evaluate(f"Array.from({{length: 40}}, () => {{ {once}; }}).flat()")
    assert 0.4 < sum(drawn) / len(drawn) < 0.6


def test_the_interval_is_wilson_s(page, opened):
    seen = opened(page.as_uri())
    for wins, votes in ((7, 10), (0, 5), (24, 24), (1, 2), (300, 500)):
        expected = binomtest(wins, votes).proportion_ci(0.95, method="wilson")
        assert seen.evaluate(f"wilson({wins}, {votes})") == pytest.approx([expected.low, expected.high], abs=1e-6)
    assert seen.evaluate("wilson(0, 0)") == [0, 1]


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_phone(page, opened, width):
    seen = opened(page.as_uri(), width)
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    seen.locator("#blind-start").click()
    assert seen.evaluate("document.documentElement.scrollWidth") <= width


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper(page, opened, scheme):
    """WCAG 2 AA: a contrast of 4.5 for text."""
    seen = opened(page.as_uri(), scheme=scheme)

    def colour(selector: str, name: str) -> str:
        return seen.locator(selector).first.evaluate(f"node => getComputedStyle(node).{name}")

    paper = luminance(colour("body", "backgroundColor"))
    assert (paper < 0.1) == (scheme == "dark")
    for selector in ("body", ".lead", "nav a", ".good", ".details", "#question h4 small", ".set", ".tick"):
        own = luminance(colour(selector, "fill" if selector == ".tick" else "color"))
        contrast = (max(own, paper) + 0.05) / (min(own, paper) + 0.05)
        assert contrast >= 4.5, f"{selector} has a contrast of {contrast:.2f}"


def test_everything_that_can_be_used_has_a_name(page, opened):
    seen = opened(page.as_uri())
    nameless = "nodes => nodes.filter((n) => !(n.ariaLabel || n.textContent.trim())).length"
    assert seen.locator("button, a, input, svg[role=img], [role=option]").evaluate_all(nameless) == 0
    assert seen.locator("h1").count() == 1
    assert seen.locator("html").get_attribute("lang") == "en"


def test_a_served_page_follows_the_run(root, tmp_path, opened):
    directory = tmp_path / "runs" / "young"
    records: RunDirectory = begin(root, directory)
    source = ReportSource.open(directory)
    current = CurrentReport(lambda: build_report(source, ReportAudio(None, None, "none")), source.state_of_files)
    with ReportServer("127.0.0.1", 0, current) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            seen = opened(server.address)
            expect(seen.locator("#charts")).to_contain_text("No iteration has finished")
            records.add_iteration(iteration(1))
            records.add_iteration(iteration(2))
            expect(seen.locator("#facts")).to_contain_text("0.220", timeout=15_000)
            assert seen.locator("#charts path.line").count() > 5
        finally:
            server.shutdown()
            thread.join()
