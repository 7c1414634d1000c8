"""The page's parts: what a person gives on top, below it what each network says, as bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import MstdistillError
from ..markup import plain
from .asking import Answer, Asking

_SHOWN, _LETTERS = 5, 5000
_NOTE = "Everything happens on this machine: nothing is sent anywhere, and what you give is deleted when the page's server ends."
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
        with gr.Row():
            inputs = [_input(gr, name, kind) for name, kind in asking.kinds.items()]
        ask = gr.Button("Ask", variant="primary", elem_id="ask")
        gallery = _gallery(gr, asking) if asking.samples else None
        told = gr.Markdown("Nothing asked yet.", elem_id="told")
        with gr.Row():
            bars = [gr.Label(label=network.title, num_top_classes=_SHOWN, elem_id=f"says-{number}")
                    for number, network in enumerate(asking.networks)]  # fmt: skip
        ask.click(_given(gr, asking), inputs, [told, *bars], api_visibility="private")
        if gallery is not None:
            gallery.select(_clicked(gr, asking), None, [told, *bars], api_visibility="private")
    return page


def _input(gr: Any, name: str, kind: str) -> Any:
    if kind == "image":
        return gr.ImageEditor(
            label=f"{name}: draw here, or drop a picture", type="pil", sources=("upload", "clipboard"), format="png",
            canvas_size=(320, 320), layers=False, transforms=(), buttons=[],
            brush=gr.Brush(default_size=24, colors=["#000000"], color_mode="fixed"),
        )  # fmt: skip
    if kind == "audio":
        return gr.Audio(label=f"{name}: record, or drop a sound", type="filepath", sources=["microphone", "upload"],
                        buttons=[])  # fmt: skip
    return gr.Textbox(label=f"{name}: type here", lines=3, max_length=_LETTERS)


def _gallery(gr: Any, asking: Asking) -> Any:
    tiles = [(sample.picture, sample.title) for sample in asking.samples]
    return gr.Gallery(tiles, label="or click one of the data: the first instance of each class, as networks see it",
                      columns=5, height="auto", allow_preview=False, interactive=False, format="png", buttons=[],
                      elem_id="samples")  # fmt: skip


def _given(gr: Any, asking: Asking) -> Callable[..., list[Any]]:
    def answer(*values: Any) -> list[Any]:
        try:
            return _shown("What was given.", asking.answer(dict(zip(asking.kinds, values, strict=True))))
        except MstdistillError as error:
            raise gr.Error(str(error), print_exception=False) from None

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
