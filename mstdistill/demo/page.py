"""The page's parts: what a person gives on top, below it what each network says, as bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import MstdistillError
from ..markup import plain
from .asking import Answer, Asking

_SHOWN, _LETTERS = 5, 5000
_NOTE = "Everything happens on this machine. Nothing is sent anywhere, and nothing of what you give is kept."
CSS = ".gradio-container {width: 100%; max-width: 60rem !important; margin: auto}"
# The brush in hand from the start: Gradio's canvas begins with none, and says so only in small print.
_BRUSH = """() => { let tries = 100; const wait = setInterval(() => {
  const found = document.querySelectorAll('[id^="draw-"] button[aria-label="Brush"]');
  found.forEach(button => button.click());
  if (found.length || !--tries) clearInterval(wait);
}, 100) }"""
# Fonts of the machine: none is fetched.
_FONTS = ("system-ui", "sans-serif")


def theme() -> Any:
    """Gradio's own, with the machine's fonts."""
    import gradio as gr

    return gr.themes.Default(font=list(_FONTS), font_mono=["ui-monospace", "monospace"])


def build(asking: Asking, keep_seconds: int) -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        keep_seconds: after so long, files that the page was given are deleted.
    """
    import gradio as gr

    with gr.Blocks(title="mstdistill demo", analytics_enabled=False, delete_cache=(keep_seconds, keep_seconds)) as page:
        gr.Markdown(f"# {plain(asking.title)}\n\n{_NOTE}")
        inputs = [part for name, kind in asking.kinds.items() for part in _inputs(gr, name, kind)]
        ask = gr.Button("Ask", variant="primary", elem_id="ask")
        gallery = _gallery(gr, asking) if asking.samples else None
        told = gr.Markdown("Nothing asked yet.", elem_id="told")
        with gr.Row():
            bars = [gr.Label(label=network.title, num_top_classes=_SHOWN, elem_id=f"says-{number}")
                    for number, network in enumerate(asking.networks)]  # fmt: skip
        ask.click(_given(asking), inputs, [told, *bars], api_visibility="private")
        if gallery is not None:
            gallery.select(_clicked(gr, asking), None, [told, *bars], api_visibility="private")
        if "image" in asking.kinds.values():
            page.load(None, js=_BRUSH)
    return page


def _inputs(gr: Any, name: str, kind: str) -> list[Any]:
    """Where a modality is given: of a picture two places, for a drawing and for a file."""
    if kind == "image":
        drawing = gr.Sketchpad(
            label=f"{name}: draw here", type="pil", format="png", canvas_size=(320, 320), layers=False, transforms=(),
            buttons=[], brush=gr.Brush(default_size=24, colors=["#000000"], color_mode="fixed"), elem_id=f"draw-{name}",
        )  # fmt: skip
        dropped = gr.Image(label=f"{name}: or drop a picture, which goes before a drawing", type="filepath",
                           image_mode=None, sources=["upload", "clipboard"], height=160, buttons=[],
                           elem_id=f"drop-{name}")  # fmt: skip
        return [dropped, drawing]
    if kind == "audio":
        return [gr.Audio(label=f"{name}: record, or drop a sound", type="filepath", sources=["microphone", "upload"],
                         buttons=[], elem_id=f"drop-{name}")]  # fmt: skip
    return [gr.Textbox(label=f"{name}: type here", lines=3, max_length=_LETTERS, elem_id=f"type-{name}")]


def _gallery(gr: Any, asking: Asking) -> Any:
    gr.Markdown("Or click one of the data: the first instance of each class, as the networks see it.")
    tiles = [(sample.picture, sample.title) for sample in asking.samples]
    return gr.Gallery(tiles, show_label=False, columns=5, height="auto", object_fit="contain", allow_preview=False,
                      interactive=False, format="png", buttons=[], elem_id="samples")  # fmt: skip


def _given(asking: Asking) -> Callable[..., list[Any]]:
    def answer(*values: Any) -> list[Any]:
        rest = iter(values)
        given = {name: (next(rest), next(rest)) if kind == "image" else next(rest)
                 for name, kind in asking.kinds.items()}  # fmt: skip
        try:
            return _shown("What was given.", asking.answer(given))
        except MstdistillError as error:
            return [plain(str(error)), *(None for _ in asking.networks)]

    return answer


def _clicked(gr: Any, asking: Asking) -> Callable[..., list[Any]]:
    def answer(event: Any) -> list[Any]:
        sample = asking.samples[event.index]
        return _shown(f"Clicked: {plain(sample.title)}.", asking.told(sample.inputs))

    # Gradio hands the event to a parameter of this type alone
    answer.__annotations__ = {"event": gr.SelectData}
    return answer


def _shown(line: str, answers: list[Answer | None]) -> list[Any]:
    note = "" if all(answers) else " An empty box: its network sees something that wasn't given too."
    return [line + note, *answers]
