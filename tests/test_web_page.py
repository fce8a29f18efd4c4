"""The page in a real browser: clicks, drafts, conflicts, the queue, the codec."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from annotator import Annotator, Page
from scripted_refinements import Scene, ScriptedRefinements, ScriptedVideos
from serving import READER, TOKENS, app_over, served

from sam2model import rle
from workflows.refine_types import Span
from workflows.rows import Review

pytestmark = pytest.mark.cluster
pytest_plugins = ["browser"]

FRAMES = 24
# h×w masks and what they are as COCO run lengths
GOLDEN = [
    (np.array([[0, 0, 1, 1, 1, 0, 1]], bool), "231N"),
    (np.array([[0, 0, 1, 1, 1, 0, 1]], bool).T, "231N"),
    (np.zeros((2, 3), bool), "6"),
    (np.ones((2, 3), bool), "06"),
    (np.eye(3, dtype=bool), "013000"),
    (np.pad(np.ones((1, 3), bool), ((1, 2), (2, 1))), "9130003"),
    (np.zeros((480, 854), bool), "PZ`<"),
    (np.ones((480, 854), bool), "0PZ`<"),
    (np.zeros((848, 480), bool), "P`]<"),
]


@pytest.fixture
def refinements() -> ScriptedRefinements:
    made = ScriptedRefinements({f"v{n}": Scene(num_frames=FRAMES) for n in (1, 2, 3)})
    for video_id in ("v1", "v2", "v3"):
        made.label(video_id)
    made.flag("v1", 1, [{"frame_index": 7, "kind": "area_jump", "doubt": 0.8}])
    made.flag("v2", 2, [{"frame_index": 3, "kind": "overlap", "doubt": 0.6}])
    return made


@pytest.fixture
def url(refinements: ScriptedRefinements) -> Iterator[str]:
    with served(app_over(refinements, ScriptedVideos(refinements))) as where:
        yield where


@pytest.fixture
def annotator(chromium: Any, url: str) -> Iterator[Callable[..., Annotator]]:
    made: list[Annotator] = []

    def come(token: str = TOKENS["ada"], **context: Any) -> Annotator:
        made.append(Annotator(chromium, url, token, **context))
        return made[-1]

    yield come
    for one in made:
        one.page_of.close()


def test_an_annotator_corrects_saves_and_accepts(
    annotator: Callable[..., Annotator], refinements: ScriptedRefinements
) -> None:
    ada = annotator()
    ada.page.click("#queue-list li button")  # the most doubtful: v1, object 1, frame 7
    ada.until("desk => desk.open?.frame === 7 && desk.open.masks.base.size >= 24")
    ada.says("⚑ area jump (object 1)", "#frame-flag")
    before = Scene().disc(0, 7).sum()
    assert ada.shown(7) == (before, "kept")

    ada.click(82, 103)  # two clicks grow the disc by three pixels
    ada.click(90, 103)
    ada.until("desk => desk.open.masks.preview.size === 1 && !desk.open.preview")
    assert ada.shown(7) == (Scene().disc(0, 7, 3).sum(), "preview")
    ada.click(90, 103)  # on a point: it is taken away
    ada.until("desk => desk.open.masks.shown(1, 7)[0].area_px === " + str(before))
    ada.press("Control+z")
    ada.until(f"desk => desk.open.masks.shown(1, 7)[0].area_px > {before}")
    ada.says("1 correction, not propagated")
    ada.says(f"Frames 0 to {FRAMES - 1}, object 1", "#span-text")

    ada.press("p")
    ada.until("desk => desk.open.draft")
    assert ada.shown(20) == (Scene().disc(0, 20, 3).sum(), "draft")
    assert ada.shown(20, object_id=2)[1] == "kept"
    assert refinements.open("v1").revision == 1
    gained = ada.desk("desk => desk.open.masks.timeline(1).gained[20]")
    assert 0.1 < gained < 0.3

    ada.press("Control+s")
    ada.until("desk => desk.open.isSaved && desk.open.video.revision === 2")
    ada.says("saved")
    assert refinements.drafts("v1") == ()
    assert ada.shown(20) == (Scene().disc(0, 20, 3).sum(), "kept")
    (track, _) = refinements.open("v1").tracks
    assert track.author == "ada" and track.prompts[-1]["points"] == [  # type: ignore[comparison-overlap]
        {"x": pytest.approx(82, abs=1), "y": pytest.approx(103, abs=1), "positive": True},
        {"x": pytest.approx(90, abs=1), "y": pytest.approx(103, abs=1), "positive": True},
    ]

    ada.press("Enter")  # accepts, and goes on to the next of the queue
    ada.until("desk => desk.open?.video.video_id === 'v2' && desk.open.frame === 3")
    assert refinements.open("v1").tracks[0].review == Review.ACCEPTED
    assert ada.desk("desk => desk.open.objectId") == 2
    ada.press("x")
    ada.until("desk => desk.open?.video.video_id !== 'v2'")
    assert refinements.open("v2").tracks[1].review == Review.REJECTED


def test_negative_clicks_boxes_absence_and_new_objects_are_prompts(
    annotator: Callable[..., Annotator],
) -> None:
    ada = annotator()
    ada.open("v1", 5)
    ada.click(76, 102)
    ada.click(20, 20, button="right")
    ada.page.keyboard.down("Alt")
    ada.click(30, 20)
    ada.page.keyboard.up("Alt")
    ada.page.click("#tool-negative")
    ada.click(40, 20)
    (prompt,) = ada.desk("desk => desk.open.session.edits()")
    assert [point["positive"] for point in prompt["points"]] == [True, False, False, False]

    ada.page.click("#tool-positive")
    ada.press("n")
    ada.page.mouse.move(*ada.place(140, 180))
    ada.page.mouse.down()
    ada.page.mouse.move(*ada.place(160, 200), steps=3)
    ada.page.mouse.move(*ada.place(181, 221), steps=3)
    ada.page.mouse.up()
    box = ada.desk("desk => desk.open.session.prompt(3, 5).box")
    assert (box["x0"], box["y1"]) == (pytest.approx(140, abs=1), pytest.approx(221, abs=1))

    ada.press("2", "a")
    mask = ada.desk("desk => desk.open.session.prompt(2, 5).mask")
    assert rle.decode(mask["counts"], *mask["size"]).sum() == 0
    ada.press("Delete")
    assert ada.desk("desk => desk.open.session.prompt(2, 5)") is None
    ada.press("Control+z", "Control+z", "Control+Shift+z")
    assert ada.desk("desk => desk.open.session.prompt(2, 5)?.mask.size") == [240, 320]

    ada.press("Control+s")
    ada.until("desk => desk.open.isSaved && desk.open.video.tracks.length === 3")
    assert ada.shown(9, object_id=2) == (0, "kept")


def test_what_is_not_saved_is_there_again_after_the_page_was_closed(
    annotator: Callable[..., Annotator], refinements: ScriptedRefinements
) -> None:
    ada = annotator()
    ada.open("v1", 5)
    ada.click(76, 102)
    ada.click(84, 102)
    ada.until("desk => desk.open.masks.preview.size === 1")
    ada.open("v1", 5)  # the page is loaded anew
    ada.until("desk => desk.open.masks.preview.size === 1")
    ada.says("1 correction, not propagated")
    ada.press("p")
    ada.until("desk => desk.open.draft")
    ada.open("v1", 9)
    ada.until("desk => desk.open.draft")
    ada.says("draft of 1 correction, not saved")
    assert ada.shown(9) == (Scene().disc(0, 9, 3).sum(), "draft")
    ada.press("Control+s")
    ada.until("desk => desk.open.isSaved")
    assert refinements.open("v1").revision == 2


def test_cancelling_keeps_what_was_computed_as_a_draft(
    annotator: Callable[..., Annotator], refinements: ScriptedRefinements
) -> None:
    refinements.step_s = 0.15
    ada = annotator()
    ada.open("v1", 5)
    ada.click(76, 102)
    ada.click(84, 102)
    ada.press("p")
    ada.until("desk => desk.open.done >= 3")
    ada.page.wait_for_selector("#cancel")
    ada.press("Escape")
    ada.until("desk => desk.open.draft && !desk.open.propagating")
    (draft,) = refinements.drafts("v1", "ada")
    kept = len(list(refinements.draft_masks("v1", draft.draft_id)))
    assert 3 <= kept < FRAMES
    assert ada.shown(1)[1] == "draft" and ada.shown(FRAMES - 1)[1] == "kept"
    ada.press("Control+s")
    ada.until("desk => desk.open.isSaved")
    assert refinements.open("v1").revision == 2


@pytest.mark.parametrize("choice", ["mine", "theirs"])
def test_two_people_on_one_object_are_one_revision_and_one_choice(
    annotator: Callable[..., Annotator], refinements: ScriptedRefinements, choice: str
) -> None:
    ada, bob = annotator(), annotator(TOKENS["bob"])
    for one in (ada, bob):
        one.open("v1", 5)
        one.click(76, 102)
        one.click(84, 102)
        one.press("p")
        one.until("desk => desk.open.draft")
    ada.press("Control+s")
    ada.until("desk => desk.open.isSaved")
    bob.press("Control+s")
    bob.page.wait_for_selector("#conflict-dialog[open]")
    assert "revision 2 was saved by ada" in bob.page.locator("#conflict-text").inner_text()
    assert bob.page.locator("#conflict-rows td").all_inner_texts() == [
        "revision 2, ada, open",
        "1 correction",
    ]
    assert refinements.open("v1").revision == 2
    bob.page.click(f"#conflict-{choice}")
    bob.until("desk => desk.open.video.revision === 2 && !desk.open.draft")
    if choice == "theirs":
        bob.says("")
        assert bob.desk("desk => desk.open.session.isChanged") is False
        return
    bob.says("1 correction, not propagated")
    bob.press("Control+s")
    bob.until("desk => desk.open.isSaved")
    assert refinements.open("v1").tracks[0].author == "bob"
    assert [one.author for one in refinements.history("v1")] == ["bob", "ada", None]


def test_a_span_may_be_dragged_and_only_it_is_propagated(
    annotator: Callable[..., Annotator], refinements: ScriptedRefinements
) -> None:
    ada = annotator()
    ada.open("v1", 12)
    ada.click(98, 105)
    ada.click(106, 105)
    ada.until("desk => desk.span && desk.span[1] === 23")
    box = ada.page.locator("#timeline").bounding_box()
    x_of = "window.timeline.xOf"
    for grip, frame in (("0", 10), (f"{FRAMES}", 16)):
        start, end = ada.page.evaluate(f"[{x_of}({grip}), {x_of}({frame} + 0.5)]")
        inside = -3 if frame == 16 else 1
        ada.page.mouse.move(box["x"] + start + inside, box["y"] + 34)
        ada.page.mouse.down()
        ada.page.mouse.move(box["x"] + end, box["y"] + 34, steps=4)
        ada.page.mouse.up()
    assert ada.desk("desk => desk.span") == [10, 16]
    assert ada.page.locator("#span-kind").input_value() == "custom"
    ada.press("Control+s")
    ada.until("desk => desk.open.isSaved")
    areas = {f.frame_index: f.masks[0].area_px for f in refinements.masks("v1")}
    assert areas[16] > Scene().disc(0, 16).sum()
    assert areas[17] == Scene().disc(0, 17).sum() and areas[9] == Scene().disc(0, 9).sum()


def test_a_video_labelled_in_part_is_corrected_in_that_part(chromium: Any) -> None:
    refinements = ScriptedRefinements({"v1": Scene(num_frames=FRAMES)})
    refinements.label("v1", span=Span(0, 15))
    with served(app_over(refinements, ScriptedVideos(refinements))) as url:
        ada = Annotator(chromium, url, TOKENS["ada"])
        ada.page.click("#queue-list li button")
        ada.until("desk => desk.open?.masks.base.size === 16 && desk.open.frame >= 0")
        ada.page.fill("#frame", "20")
        ada.page.keyboard.press("Enter")
        ada.until("desk => desk.open.frame === 20")
        ada.click(124, 108)
        ada.until("desk => !document.querySelector('#toast').hidden")
        assert "labelled on frames 0 to 15 only" in ada.page.locator("#toast").inner_text()
        assert ada.desk("desk => desk.open.session.corrections") == 0
        ada.page.fill("#frame", "7")
        ada.page.keyboard.press("Enter")
        ada.until("desk => desk.open.frame === 7")
        ada.click(82, 103)
        ada.until("desk => desk.open.session.corrections === 1")
        assert ada.desk("desk => desk.span") == [0, 15]
        ada.page_of.close()


def test_the_page_says_what_it_waits_for(annotator: Callable[..., Annotator]) -> None:
    ada = annotator()
    ada.open("v1", 7)
    assert ada.page.locator("#waiting").is_hidden()
    held: list[Any] = []
    ada.page.route("**/preview", lambda route: held.append(route))
    ada.click(82, 103)
    ada.page.wait_for_selector("#waiting:not([hidden])")
    ada.says("Asking the model …", "#waiting")
    ada.until("desk => desk.open.preview !== null")
    held[0].continue_()
    ada.page.wait_for_selector("#waiting", state="hidden")


def test_frames_come_from_the_service_and_those_near_before_they_are_asked_for(
    annotator: Callable[..., Annotator],
) -> None:
    ada = annotator()
    asked: list[str] = []
    ada.page.on("request", lambda request: asked.append(request.url))
    ada.open("v1", 10)
    ada.until("desk => [2, 18].every((k) => desk.open.pictures.has(k))")
    frames = {int(url.split("/frames/")[1].split(".")[0]) for url in asked if "/frames/" in url}
    assert frames == set(range(2, 19))
    ada.press("Shift+ArrowRight")
    ada.until("desk => desk.open.frame === 20")
    ada.press("[")
    ada.until("desk => desk.open.frame === 7")
    ada.press(" ")
    ada.until("desk => desk.open.frame >= 11")
    ada.press(" ")
    assert ada.desk("desk => desk.open.isPlaying") is False


def test_a_token_is_asked_for_and_a_reader_is_told_what_it_may_not_do(
    chromium: Any, url: str, annotator: Callable[..., Annotator]
) -> None:
    page_of = Page(chromium)
    page_of.page.goto(url)
    page_of.page.wait_for_selector("#token-dialog[open]")
    page_of.page.fill("#token", "not the token")
    page_of.page.keyboard.press("Enter")
    page_of.page.wait_for_selector("#token-fault:not([hidden])")
    page_of.page.fill("#token", TOKENS["ada"])
    page_of.page.keyboard.press("Enter")
    page_of.page.wait_for_selector("#queue-list li")
    page_of.close()

    rita = annotator(READER)
    assert "token" not in rita.page.url
    rita.open("v1", 5)
    rita.click(76, 102)
    rita.page.wait_for_selector("#toast[data-kind=fault]")
    assert "may not do that" in rita.page.locator("#toast").inner_text()


def test_everything_has_a_name_and_can_be_reached_by_keys(
    annotator: Callable[..., Annotator],
) -> None:
    ada = annotator(reduced_motion="reduce")
    ada.open("v1", 7)
    unnamed = ada.page.evaluate(
        """[...document.querySelectorAll("button, input, select, canvas")].filter((one) =>
            !(one.ariaLabel || one.innerText?.trim() || one.labels?.length
              || one.getAttribute("aria-label"))).map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    slider = ada.page.locator("#timeline")
    assert slider.get_attribute("aria-valuetext") == f"frame 7 of {FRAMES}, object 1: area_jump"
    seen = set()
    for _ in range(60):
        ada.press("Tab")
        seen.add(ada.page.evaluate("document.activeElement.id"))
        outline = ada.page.evaluate(
            "document.activeElement === document.body ||"
            " getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        )
        assert outline, seen
    assert {"stage", "timeline", "tool-positive", "accept", "frame", "opacity", "play"} <= seen
    moving = ada.page.evaluate(
        "[...document.querySelectorAll('*')].some((one) => "
        "!['0s', ''].includes(getComputedStyle(one).transitionDuration.split(',')[0]))"
    )
    assert not moving


def test_the_pages_run_lengths_are_pythons(chromium: Any, url: str) -> None:
    page_of = Page(chromium)
    page_of.page.goto(url)
    rng = np.random.default_rng(1)
    masks = [mask for mask, _ in GOLDEN]
    for _ in range(40):
        height, width = rng.integers(1, 60, 2)
        masks.append(rng.random((height, width)) < rng.choice([0.02, 0.5, 0.98]))
    masks.append(np.asarray(np.add.outer(np.arange(1080), np.arange(1920)) % 700 < 300))
    counts = [rle.encode_mask(mask) for mask in masks]
    assert counts[: len(GOLDEN)] == [golden for _, golden in GOLDEN]
    given = [[c, *mask.shape] for c, mask in zip(counts, masks, strict=True)]
    answers = page_of.page.evaluate(
        """async (given) => {
          const { decodeMask, decodeRuns, encodeRuns } = await import("/web/wire.js");
          return given.map(([counts, height, width], i) => {
            const pixels = decodeMask(counts, height, width);
            let ones = 0, places = 0;
            pixels.forEach((bit, at) => { ones += bit; places = (places + bit * at) % 1000003; });
            return [ones, places, encodeRuns(decodeRuns(counts)) === counts];
          });
        }""",
        json.loads(json.dumps(given)),
    )
    for mask, (ones, places, is_same) in zip(masks, answers, strict=True):
        assert ones == mask.sum() and is_same
        assert places == int(np.flatnonzero(mask).sum() % 1_000_003)
    pairs = [
        (a, b) for a in masks for b in masks if a.shape == b.shape and a is not b and a.size < 4000
    ]
    pairs.append((masks[6], masks[7]))
    found = page_of.page.evaluate(
        """async (pairs) => {
          const { differences } = await import("/web/wire.js");
          return pairs.map(([a, b]) => differences(a, b));
        }""",
        [[rle.encode_mask(a), rle.encode_mask(b)] for a, b in pairs],
    )
    assert found == [[int((a & ~b).sum()), int((b & ~a).sum())] for a, b in pairs]
    wrong = ["0", "5", "PZ`<", "1\n2", "é", "o", "Ã", "0OOOOOOOOOOO", "9130003"]
    refused = page_of.page.evaluate(
        """async (wrong) => {
          const { decodeMask } = await import("/web/wire.js");
          return wrong.filter((counts) => {
            try { decodeMask(counts, 2, 3); } catch (error) { return error instanceof RangeError; }
            return false;
          });
        }""",
        wrong,
    )
    assert refused == wrong
    page_of.close()
