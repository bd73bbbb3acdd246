"""One self-contained HTML page: text, tables and figures, everything escaped, nothing loaded.

The page's Content-Security-Policy allows no network at all, images only inline, and only the very
script and style below (by hash): what slipped through escaping could not run. Style and script
know nothing of the report.
"""
from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from slm.errors import UserError
from slm.files import private

SVG_BYTES = 110_000        # a figure with more becomes a PNG
PNG_DPI = 150
WHOLE = 30                 # rows of a table that is as high as it is; a longer one scrolls
MOST_COLOURS = 6000        # of a PNG that is given a palette


class Html(str):
    """Markup of our own making; any other str is text and gets escaped."""


BREAK = Html("<br>")


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text (or Html), what it is sorted by (default: the text), a CSS
    class."""
    text: str
    value: float | None = None
    kind: str = ""


def esc(text: object) -> Html:
    """Any text as HTML, in element content and in quoted attributes, without the home folder or a
    key; Html stays as it is."""
    if isinstance(text, Html):
        return text
    line = private(str(text)).encode("utf-8", "replace").decode("utf-8")
    return Html(html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", line)))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(esc(p) for p in parts))


def tag(name: str, *content: object, **attributes: str) -> Html:
    """<name attributes>content</name>; class_ and data_x become class and data-x."""
    given = "".join(f' {k.rstrip("_").replace("_", "-")}="{esc(v)}"'
                    for k, v in attributes.items() if v != "")
    return Html(f"<{name}{given}>{join(content)}</{name}>")


def bullets(lines: Iterable[object], **attributes: str) -> Html:
    items = [tag("li", line) for line in lines]
    return tag("ul", *items, **attributes) if items else Html("")


def absent(reason: object) -> Html:
    """Why something is not there, in one line."""
    return tag("p", "Not here: ", str(reason), class_="absent")


def number(value: float, how: Callable[[float], str] | str = ".4g") -> Cell:
    """A numeric cell; a missing value is empty and sorts last."""
    if value is None or not math.isfinite(value):
        return Cell("", None, "n")
    return Cell(how(value) if callable(how) else format(value, how), float(value), "n")


def table(heads: list[object], rows: list[list], keys: list[str] | None = None,
          sortable: bool = False) -> Html:
    """A table of texts and Cells. keys: a name for each column, by which #sort=key[,desc] at the
    end of the page's address sorts it."""
    titles = []
    for i, head in enumerate(heads):
        label = tag("button", head, type="button") if sortable else head
        numeric = any(isinstance(row[i], Cell) and row[i].kind == "n" for row in rows)
        titles.append(tag("th", label, data_key=keys[i] if keys else "", scope="col",
                          class_="n" if numeric else ""))
    body = []
    for row in rows:
        cells = [c if isinstance(c, Cell) else Cell(c) for c in row]
        body.append(tag("tr", *[tag("td", c.text, class_=c.kind, data_v="" if c.value is None else
                                    f"{c.value:.12g}") for c in cells]))
    inner = tag("thead", tag("tr", *titles)) + tag("tbody", *body)
    return tag("div", tag("table", Html(inner), class_="sortable" if sortable else ""),
               class_="scroll whole" if len(rows) <= WHOLE and not sortable else "scroll")


def figure(draw: Callable, pixels: bool = False) -> Html:
    """The figure that draw() returns, inline, its caption as text; the reason where it can't be
    drawn from these runs. pixels: as PNG, which large SVGs become anyway."""
    from analysis.plots import to_png, to_svg, without_caption
    try:
        fig = draw()
    except UserError as e:
        return absent(e)
    text = without_caption(fig)
    kind, data = "svg+xml", b"" if pixels else compact(to_svg(fig))
    if pixels or len(data) > SVG_BYTES:
        kind, data = "png", fewer_colours(to_png(fig, PNG_DPI))
    titles = [fig.get_suptitle(), *[ax.get_title(loc="left") for ax in fig.axes]]
    alt = next((t for t in titles if t), "figure").replace("\\$", "$")
    width, height = (round(100 * x) for x in fig.get_size_inches())
    source = f"data:image/{kind};base64," + base64.b64encode(data).decode()
    image = Html(f'<img src="{source}" alt="{esc(alt)}" width="{width}" height="{height}">')
    return tag("figure", image, tag("figcaption", text))


def compact(svg: bytes) -> bytes:
    """Coordinates to a hundredth of a point (but not factors of scale): a third smaller."""
    return re.sub(rb"(?<!scale\()(\b\d+\.\d\d)\d+", rb"\1", svg)


def fewer_colours(png: bytes) -> bytes:
    """With a palette of 256, a third of the bytes; as it is where colours run into one another."""
    from PIL import Image            # comes with Matplotlib
    image, out = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    if image.getcolors(MOST_COLOURS) is None:
        return png
    image.quantize(256, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return out.getvalue()


def section(anchor: str, title: str, *content: object) -> Html:
    return tag("section", tag("h2", title), *content, id=anchor)


def page(title: str, sections: list[tuple[str, str, Html]], head: Html) -> str:
    """The whole page. sections: (anchor, title, content) in order; head: under the title."""
    def digest(code: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"

    policy = (f"default-src 'none'; img-src data:; style-src {digest(STYLE)}; "
              f"script-src {digest(SCRIPT)}; base-uri 'none'; form-action 'none'")
    links = [Html(f'<a href="#{anchor}">{esc(name)}</a>') for anchor, name, _ in sections]
    body = join([tag("header", tag("h1", title), head), tag("nav", join(links, " · ")),
                 *[section(*s) for s in sections]], "\n")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{esc(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""


STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --line: #d9d9d9; --bg: #fff;
  --shade: #f5f5f3; --good: #00694d; --bad: #b04a00; --link: #005a91; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e3; --soft: #a5a5a2; --line: #3c3c3c;
  --bg: #191a1b; --shade: #232426; --good: #4cc9a0; --bad: #ff9a57; --link: #7cc4f2; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  color: var(--ink); background: var(--bg); max-width: 880px; margin: 0 auto;
  padding: 24px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 10px; padding-top: 10px; border-top: 2px solid var(--ink); }
h3 { font-size: 16px; margin: 26px 0 6px; }
p, ul { margin: 8px 0; } ul { padding-left: 20px; } li { margin: 3px 0; }
a { color: var(--link); }
header p, .soft, figcaption { color: var(--soft); font-size: 13px; font-weight: normal; }
td .soft, th .soft { font-size: 12px; }
nav { font-size: 13px; margin: 10px 0 0; }
.key { font-size: 16px; } .key li { margin: 6px 0; }
.warn { border-left: 4px solid var(--bad); background: var(--shade); margin: 14px 0;
  padding: 8px 14px; } .warn p { margin: 0; font-weight: 600; }
.absent { color: var(--soft); border-left: 3px solid var(--line); padding-left: 10px; }
figure { margin: 18px 0 22px; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px;
  padding: 6px; border: 1px solid var(--line); }
figcaption { margin-top: 4px; overflow-wrap: anywhere; }
.scroll { overflow: auto; max-height: 560px; margin: 10px 0; border: 1px solid var(--line);
  width: fit-content; max-width: 100%; }
.whole { max-height: none; }
table { border-collapse: collapse; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { max-width: 360px; overflow-wrap: break-word; }
td.i { white-space: nowrap; } td.name, td.text { overflow-wrap: anywhere; }
td.reason { min-width: 150px; overflow-wrap: anywhere; } th.n { text-align: right; }
th { position: sticky; top: 0; background: var(--shade); z-index: 1; }
.sortable th { white-space: nowrap; }
@media (min-width: 700px) { .sortable { width: max-content; } }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " \\25B2"; font-size: 9px; }
th[aria-sort=descending] button::after { content: " \\25BC"; font-size: 9px; }
td.n { text-align: right; white-space: nowrap; } td.name { min-width: 170px; }
td.good { color: var(--good); font-weight: 600; } td.bad { color: var(--bad); font-weight: 600; }
td.text { min-width: 190px; max-width: 420px; white-space: pre-wrap; line-height: 1.45; }
pre { font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--shade);
  padding: 10px 12px; white-space: pre-wrap; overflow-wrap: anywhere; margin: 8px 0; }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--link); }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --bg: #fff; --line: #bbb;
  --shade: #f2f2f2; --good: #00694d; --bad: #b04a00; } body { max-width: none; font-size: 10.5pt;
  padding: 0; } nav { display: none; } .scroll { overflow: visible; max-height: none; }
  table { font-size: 7.5pt; } td { white-space: normal; } th { position: static; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
"""

SCRIPT = """
"use strict";
function value(row, i) {
  const cell = row.cells[i];
  if ("v" in cell.dataset) return Number(cell.dataset.v);
  const text = cell.textContent.trim();
  return text === "" ? null : text.toLowerCase();
}
function sort(head, down) {
  const table = head.closest("table"), body = table.tBodies[0], i = head.cellIndex;
  const rows = Array.from(body.rows).map((row, at) => [value(row, i), at, row]);
  rows.sort(([a, i], [b, j]) => {
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1) || i - j;
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows.map(row => row[2]));
}
for (const head of document.querySelectorAll("table.sortable th")) {
  head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    sort(head, down);
    history.replaceState(null, "", "#sort=" + head.dataset.key + (down ? ",desc" : ""));
  });
}
function sortByAddress() {
  const asked = /^#sort=([a-z_]+)(,desc)?$/.exec(location.hash);
  if (asked === null) return;
  const head = document.querySelector('table.sortable th[data-key="' + asked[1] + '"]');
  if (head === null) return;
  if (asked[2]) sort(head, false);
  head.firstElementChild.click();
}
addEventListener("hashchange", sortByAddress);
sortByAddress();
"""
