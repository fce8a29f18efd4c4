"""Somebody at the page, in a real browser."""

from typing import Any


class Page:
    """One page with its own profile; what its scripts complain of fails the test."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 860}} | context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)

    def _note(self, message: Any) -> None:
        # an answer of 4xx or 5xx is logged by the browser itself
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []


class Annotator:
    """Somebody at the page."""

    def __init__(self, browser: Any, url: str, token: str, **context: Any) -> None:
        self.page_of = Page(browser, **context)
        self.page = self.page_of.page
        self.url = url
        self.page.goto(f"{url}/#token={token}")
        self.page.wait_for_selector("#queue-list li, #queue-note:not(:empty)")

    def open(self, video_id: str, frame: int = 0) -> None:
        self.page.goto(f"{self.url}/?video={video_id}&frame={frame}")
        self.until(
            f"desk => desk.open?.frame === {frame}"
            " && desk.open.masks.base.size === desk.open.video.num_frames"
        )

    def until(self, condition: str) -> None:
        """Wait until something holds of the page's desk.

        Playwright's own waiting evaluates text within the page, which its policy forbids.
        """
        for _ in range(4500):
            if self.desk(condition):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never came: {condition}; the page says {self.text('#state')!r}")

    def desk(self, expression: str) -> Any:
        return self.page.evaluate(f"(({expression}))(window.desk)")

    def click(self, x: float, y: float, **options: Any) -> None:
        """On a pixel of the video."""
        self.page.mouse.click(*self.place(x, y), **options)

    def place(self, x: float, y: float) -> tuple[float, float]:
        box = self.page.locator("#stage").bounding_box()
        left, top = self.page.evaluate(f"window.stage.toScreen({x}, {y})")
        return box["x"] + left, box["y"] + top

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def shown(self, frame: int, object_id: int = 1) -> tuple[int, str]:
        """Area of the mask that is shown, and whether it is kept, a draft or a preview."""
        area, look = self.desk(
            f"desk => {{const [m, look] = desk.open.masks.shown({object_id}, {frame});"
            " return [m.area_px, look]}"
        )
        return area, look

    def text(self, place: str) -> str:
        return str(self.page.locator(place).inner_text())

    def says(self, text: str, place: str = "#state") -> None:
        """Wait until a place of the page says so: it follows the desk by a picture's time."""
        for _ in range(4500):
            if self.text(place) == text:
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"wanted {text!r} at {place}; the page says {self.text(place)!r}")
