"""One self-contained HTML page: no script, no network; light and dark, phone and print; numbers below every figure."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Every run's and every suite's page.
PAGE = "report.html"

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --tint: #f6f8fa;
  --s0: #2f6fb0; --s1: #c2571a; --s2: #2c8a57; --s3: #8b5bb0; --s4: #b0892f; --s5: #3b9aa6; --s6: #b04a6f;
  --s7: #6b7a2f; --s8: #7a6b5b; --s9: #5b6b7a; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e3e7eb; --soft: #98a2ad;
  --line: #3a424b; --tint: #1d2228; --s0: #6fa8dc; --s1: #e58b52; --s2: #63bd8b; --s3: #b792d6; --s4: #d8b766;
  --s5: #73c5cf; --s6: #d9819f; --s7: #a5b562; --s8: #b3a391; --s9: #94a5b6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem;
  border-bottom: 1px solid var(--line); } p { margin: .4rem 0; } .soft { color: var(--soft); }
figure { margin: .8rem 0; } figcaption { font-weight: 600; } .chart { display: block; width: 100%;
  max-width: 30rem; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid var(--line); }
.pictures th, .pictures td { padding: .15rem .3rem; text-align: center; vertical-align: bottom; border: 0;
  white-space: normal; } .pictures thead th { min-width: 4.5rem; max-width: 7rem; overflow-wrap: anywhere; }
.pictures tbody th { vertical-align: middle; } .pictures th:first-child { position: sticky; left: 0; min-width: 0;
  background: var(--paper); } .pictures img { display: block; width: 100%; min-width: 4.5rem; max-width: 6rem;
  margin: 0 auto; } .pictures span { color: var(--soft); }
.lead { font-size: 1.15rem; margin: .8rem 0; } .lead + .soft { font-size: .9rem; }
progress { width: 100%; height: 1rem; accent-color: var(--s0); } svg .soft { fill: var(--soft); }
.key { font-size: .85rem; line-height: 1.4; } .key span { display: inline-block; margin-right: 1.2em; }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--tint); padding: .8rem; overflow-x: auto; font-size: .8rem; }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 11px; }
  details > * { display: block; }
  figure, tr { break-inside: avoid; } }
"""


def title_of(task: str, target: str) -> str:
    """Of a run's page, while it runs and afterwards."""
    return f"{task}: a student that sees {target}"


def standalone(svg: str) -> str:
    """A chart of a page as a file of its own, in the same colours, light and dark."""
    start = svg.index(">", svg.index("<svg")) + 1
    colours = STYLE[: STYLE.index("* {")]
    head = svg[:start]
    style = f"{colours} svg {{ background: var(--paper); }} .soft {{ fill: var(--soft); }}"
    return f"{head}<style>{style}</style>{svg[start:]}"


@dataclass
class Page:
    """A page in the making: headings, paragraphs, figures with their numbers, tables.

    Attributes:
        reload: seconds after which a browser asks for the page anew; 0: never.
    """

    title: str
    subtitle: str = ""
    reload: int = 0
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """A section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def say(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def lead(self, text: str, how: str = "") -> None:
        """What the page says first, larger than the rest, and how it was found, smaller."""
        kept = html.escape(text.replace(" %", "\u00a0%"))  # on one line with its number
        self.parts.append(f'<p class="lead">{kept}</p>')
        if how:
            self.parts.append(f'<p class="soft">{html.escape(how)}</p>')

    def progress(self, done: int, total: int, about: str) -> None:
        """How far something is."""
        self.parts.append(
            f'<progress value="{done}" max="{max(total, 1)}" aria-label="{html.escape(about)}"></progress>'
        )

    def figure(self, caption: str, svg: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A chart, with its numbers, if any, in a table that opens below it."""
        numbers = f"<details><summary>figures</summary>{table_html(header, rows)}</details>" if rows else ""
        self.parts.append(f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}{numbers}</figure>")

    def pictures(
        self, caption: str, titles: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    ) -> None:
        """Small pictures in rows and columns.

        Args:
            titles: of the columns.
            rows: a title each, and by column a picture's data URI with the words below it.
        """
        head = "".join(f"<th>{html.escape(title)}</th>" for title in ("", *titles))
        body = ""
        for name, cells in rows:
            body += f'<tr><th scope="row">{html.escape(name)}</th>'
            for title, (source, words) in zip(titles, cells, strict=True):
                about = f"{name}: {title}" + (f", predicts {words}" if words else "")
                below = html.escape(words) or "&nbsp;"
                body += f'<td><img src="{source}" alt="{html.escape(about)}"><span>{below}</span></td>'
            body += "</tr>"
        self.parts.append(
            f'<figure class="pictures"><figcaption>{html.escape(caption)}</figcaption><div class="scroll"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
        )

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Within the block figures stand beside one another where there is room."""
        self.parts.append('<div class="pair">')
        yield
        self.parts.append("</div>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table."""
        self.parts.append(table_html(header, rows))

    def text(self, title: str, content: str) -> None:
        """Verbatim text that opens."""
        self.parts.append(
            f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(content)}</pre></details>"
        )

    def render(self) -> str:
        """The whole page."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            + (f'<meta http-equiv="refresh" content="{self.reload}">' if self.reload else "")
            + '<link rel="icon" href="data:,">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>"
            f'<h1>{html.escape(self.title)}</h1><p class="soft">{html.escape(self.subtitle)}</p>'
            + "\n".join(self.parts)
            + "</body></html>\n"
        )


def table_html(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers with four digits."""

    def cell(value: Any) -> str:
        return html.escape(f"{value:.4f}" if isinstance(value, float) else str(value))

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
