"""Looks at pages of `shardwright layouts --html` as people do: in a browser, light and dark, on a screen and on a telephone.

    tests/report/run            (installs what this needs)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]

# Names as nobody means well by them.
HOSTILE = "two </title></style></script><script>alert(1)</script><img src=x onerror=alert(2)>"
MACHINE = f"""topology: "{HOSTILE}"
about: "{HOSTILE}"
gpu:
  - {{ kind: RTX 4090, gpus: 0-1 }}
  - {{ kind: "<b>card</b>", memory: 40 GiB, memory_bandwidth: 900 GB/s, gpus: 2-4 }}
gpus: 5
hubs:
  - {{ name: cpu0, kind: host-bridge, gpus: 0-4, bandwidth: 31.5 GB/s, numa: 0 }}
"""

# Texts whose contrast with what lies behind them is below that of WCAG's level AA.
FAINT = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *:not(svg, svg *, script)")) {
    const own = Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.push(`${element.tagName} ${element.className} "${element.textContent.trim().slice(0, 30)}": ${contrast.toFixed(2)}`);
  }
  return faint;
}"""


@dataclass(frozen=True)
class View:
    """How somebody looks."""

    name: str
    scheme: str
    width: int


VIEWS = [
    View("light", "light", 1280),
    View("dark", "dark", 1280),
    View("phone-light", "light", 390),
    View("phone-dark", "dark", 390),
]


def opened(browser: Browser, file: Path, view: View) -> tuple[Page, list[str]]:
    """The page, and a list of all that it asks for or complains of."""
    context = browser.new_context(color_scheme=view.scheme, viewport={"width": view.width, "height": 900})
    page = context.new_page()
    events: list[str] = []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: events.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    assert events == [f"request: {file.as_uri()}"], events
    events.clear()
    return page, events


def column(page: Page, head: str) -> list[float | None]:
    """The keys of a column from the top down; None where nothing is known."""
    keys = page.evaluate(
        """(head) => {
          const table = document.querySelector("table.layouts");
          const at = Array.from(table.tHead.rows[0].cells).findIndex((cell) => cell.textContent.trim() === head);
          return Array.from(table.tBodies[0].rows).map((row) => row.cells[at].dataset.key);
        }""",
        head,
    )
    return [float(key) if key else None for key in keys]


def check_sorting(page: Page) -> None:
    """A press on a head sorts, a second one turns it round; by mouse and by keyboard."""
    first = column(page, "#")
    assert first == sorted(first) and len(first) > 10

    def is_sorted(head: str, order: str) -> None:
        keys = column(page, head)
        known = [key for key in keys if key is not None]
        assert known == sorted(known, reverse=order == "descending"), (head, keys)
        assert all(key is None for key in keys[len(known) :]), (head, keys)
        sorts = page.eval_on_selector_all("table.layouts th", "all => all.map((th) => [th.textContent.trim(), th.ariaSort])")
        assert [order if name == head else "none" for name, _ in sorts] == [order for _, order in sorts], sorts
        assert page.locator("#sorted").text_content() == f"sorted by {head}, {order}"

    def head(name: str):
        return page.get_by_role("columnheader", name=name, exact=True).get_by_role("button")

    head("KV tokens").click()
    is_sorted("KV tokens", "descending")
    assert column(page, "#") != first
    head("KV tokens").click()
    is_sorted("KV tokens", "ascending")
    # To the next head and there, without a mouse.
    head("KV tokens").press("Tab")
    page.keyboard.press("Enter")
    is_sorted("at a time", "descending")
    head("ms/token").click()
    is_sorted("ms/token", "ascending")
    head("#").click()
    is_sorted("#", "ascending")
    assert column(page, "#") == first


def check_choice(page: Page) -> None:
    """Rows can be left out."""
    seen = "rows => rows.filter((row) => row.checkVisibility()).length"
    rows = lambda: page.eval_on_selector_all("table.layouts tbody tr", seen)  # noqa: E731
    everything = rows()
    page.get_by_role("radio", name="Pareto").check()
    pareto = rows()
    assert 0 < pareto == page.locator("tr.pareto").count() < everything, (pareto, everything)
    page.get_by_role("radio", name="all").check()
    assert rows() == everything


def check_policy(page: Page) -> None:
    """What gets into the page all the same does not run and does not load."""
    blocked = page.evaluate(
        """async () => {
          const blocked = [];
          document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
          document.body.insertAdjacentHTML("beforeend", '<img src="x.png" onerror="window.ran = 1"><p style="color: red">');
          const script = document.createElement("script");
          script.textContent = "window.ran = 2";
          document.body.append(script);
          await new Promise((resolve) => setTimeout(resolve, 200));
          return [blocked, window.ran ?? null];
        }"""
    )
    kinds, ran = blocked
    assert ran is None and {"img-src", "style-src-attr", "script-src-elem"} <= set(kinds), blocked


def main() -> None:
    shardwright, chromium, pictures = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        machine = folder / "machine.yaml"
        machine.write_text(MACHINE)
        wanted = {
            "one-node": ("llama-3.1-70b", ["--topology", "dgx-h100", "--concurrency", "64"]),
            "cluster": ("deepseek-v3", ["--topology", "dgx-h100", "--nodes", "16", "--concurrency", "1024"]),
            "stages": ("qwen2-7b", ["--topology", str(machine)]),
            "does-not-fit": ("llama-3.1-70b", ["--topology", "4xrtx4090"]),
        }
        for model in {model for model, _ in wanted.values()}:
            make = [sys.executable, ROOT / "bench/skeleton.py", model, folder / model]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        browser = playwright.chromium.launch(executable_path=chromium)
        for name, (model, args) in wanted.items():
            file = folder / f"{name}.html"
            command = [shardwright, "layouts", folder / model, *args, "--html", file]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == (1 if name == "does-not-fit" else 0), done
            for view in VIEWS:
                page, events = opened(browser, file, view)
                page.screenshot(path=pictures / f"{name}-{view.name}.png", full_page=True)
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= view.width, f"{name}, {view.name}: {wide} wide"
                page.eval_on_selector_all("details", "all => all.forEach((one) => { one.open = true; })")
                faint = page.evaluate(FAINT)
                assert not faint, f"{name}, {view.name}: {faint}"
                if name in ("one-node", "cluster"):
                    check_sorting(page)
                    check_choice(page)
                assert page.locator("main img, main b").count() == 0
                assert events == [], events
                page.context.close()
            print(f"{name}: {file.stat().st_size // 1024} KiB, looked at in {', '.join(view.name for view in VIEWS)}")
        page, _ = opened(browser, folder / "one-node.html", VIEWS[0])
        check_policy(page)
        browser.close()
    print(f"pages load nothing, sort and are readable; pictures of them are in {pictures}/")


if __name__ == "__main__":
    main()
