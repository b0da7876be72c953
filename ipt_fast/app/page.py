"""The page of ``ipt-fast app``, in Gradio; it asks nobody outside, and keeps nothing."""

import html
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from ipt_fast.app.photo import PhotoError, label, preview, read_photo, restore_photo
from ipt_fast.app.visits import ClosedError, Visits

_CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.said, .said > div { min-height: 1.6em; padding: 0 !important; overflow-wrap: anywhere; }
.said .error { color: var(--error-text-color, #b91c1c); font-weight: 600; }
"""
_LOOK = """async () => {
    const slider = document.querySelector('#slider');
    await Promise.allSettled([...slider.querySelectorAll('img')].map(image => image.decode()));
    requestAnimationFrame(() => slider.scrollIntoView({behavior: 'smooth', block: 'nearest'}));
}"""  # on a phone it lies below; without its images it has no height
_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # the reader's own: nothing is fetched
_AGE = 3600  # seconds after which an upload goes even where its page stays open


@dataclass(frozen=True)
class Setting:
    """What a page serves: the network, its tasks, what to call it, and how much it takes."""

    network: Any
    tasks: tuple[str, ...]
    description: str
    max_pixels: int
    max_upload: int  # bytes


def build(setting: Setting, root: Path) -> gr.Blocks:
    """Lay out the page; its files live under ``root``, which must be Gradio's own folder for files."""
    visits = Visits(root)
    choices = [(label(task), task) for task in setting.tasks]
    limit = f"up to {setting.max_pixels / 1e6:g} megapixels and {setting.max_upload / 2**20:g} MB"
    with gr.Blocks(title="ipt-fast", analytics_enabled=False, delete_cache=(60, _AGE)) as page:
        gr.Markdown(
            "# Restore a photo\n"
            f"Drop a photo ({limit}), choose what to do, compare, download. At work: {setting.description}. "
            "Photos go to the machine that runs this page and nowhere else, and are deleted when you close it."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.Image(
                    label="Photo", sources=["upload", "clipboard"], height=300, buttons=[], elem_id="photo"
                )
                photo.preprocess = _path  # type: ignore[assignment, method-assign]
                task = gr.Radio(choices, value=setting.tasks[0], label="What to do", elem_id="task")
                button = gr.Button("Restore", variant="primary", interactive=False, elem_id="restore")
                said = gr.HTML(elem_classes="said", elem_id="said", padding=False)
            with gr.Column(scale=3, min_width=300):
                slider = gr.ImageSlider(
                    label="Before | after", buttons=["fullscreen"], interactive=False, max_height=640, elem_id="slider"
                )
                download = gr.DownloadButton("Download", interactive=False, elem_id="download")

        def take(path: str | None, request: gr.Request) -> tuple:
            """Take an upload as the photo of this page, and show it."""
            folder = visits.renew(_name(request), None if path is None else Path(path).parent)
            if path is None:
                return None, gr.Button(interactive=False), "", *_nothing()
            try:
                source = _copied(Path(path), folder)
                loaded = read_photo(source, setting.max_pixels)
                shown = str(preview(loaded, folder / "preview.png"))
            except (PhotoError, OSError) as error:
                shutil.rmtree(folder / "photo", ignore_errors=True)
                return None, gr.Button(interactive=False), _message(str(error), wrong=True), *_nothing()
            height, width = loaded.pixels.shape[:2]
            text = "; ".join([f"{source.name}: {width} × {height} pixels", *loaded.notes])
            return shown, gr.Button(interactive=True), _message(f"{text}."), *_nothing()

        def drop(request: gr.Request) -> tuple:
            visits.close(_name(request))
            return gr.Button(interactive=False), "", *_nothing()

        def work(task: str, request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
            """Restore the photo of this page; stops as soon as the page is closed or has another photo."""
            session = _name(request)
            folder = visits.folder(session)
            source = next(folder.glob("photo/*"), None) if folder else None
            if folder is None or source is None:
                return *_nothing(), _message("Please drop a photo first.", wrong=True)
            try:
                loaded = read_photo(source, setting.max_pixels)
                show = _shares(lambda done: progress(done, desc="Restoring"), lambda: visits.check(session, folder))
                answer = restore_photo(setting.network, loaded, task, folder, source.stem[:100], show)
                visits.check(session, folder)
            except ClosedError:
                return *_nothing(), ""
            except (PhotoError, OSError, RuntimeError, MemoryError) as error:
                text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                return *_nothing(), _message(text, wrong=True)
            size = f"{answer.full.stat().st_size / 2**20:.1f} MB"
            ready = gr.DownloadButton(
                f"Download {answer.full.name} ({size})", value=str(answer.full), interactive=True, variant="primary"
            )
            return (str(answer.before), str(answer.after)), ready, _message(answer.text)

        def leave(request: gr.Request) -> None:
            visits.close(_name(request))

        answers = [slider, download]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        photo.upload(take, photo, [photo, button, said, *answers], **quiet)
        photo.clear(drop, None, [button, said, *answers], **quiet)
        button.click(None, js=_LOOK)  # the progress; first, or it waits for the work
        button.click(
            work, task, [*answers, said], show_progress_on=slider, concurrency_limit=1, api_visibility="private"
        ).then(None, js=_LOOK)
        page.unload(leave)
    return page


def _path(upload: ImageData | None) -> str | None:
    """Take any file; Gradio's own would open it, and fail on one that is broken."""
    return None if upload is None else upload.path


def _name(request: gr.Request) -> str:
    return request.session_hash or ""


def _nothing() -> tuple:
    """No comparison, and no download."""
    return None, gr.DownloadButton("Download", value=None, interactive=False, variant="secondary")


def _copied(upload: Path, folder: Path) -> Path:
    """Copy an upload into the page's own folder: Gradio's is shared by all who bring the same file."""
    (folder / "photo").mkdir()
    try:
        return Path(shutil.copyfile(upload, folder / "photo" / upload.name))
    except OSError as error:
        raise PhotoError("The upload did not arrive. Please drop the photo again.") from error


def _shares(show: Callable[[float], None], check: Callable[[], None]) -> Callable[[float], None]:
    """Return what ``restore`` calls with each share of the work: they are added up."""
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        check()
        done += share
        show(min(done, 1.0))

    return advance


def _message(text: str, wrong: bool = False) -> str:
    return f'<p role="status" class="{"error" if wrong else "note"}">{html.escape(text)}</p>'


@contextmanager
def served(setting: Setting, root: Path, host: str, port: int) -> Iterator[str]:
    """Serve the page while the context lasts, and yield its address; ``root`` as for ``build``.

    Raises:
        OSError: the address cannot be had.
    """
    page = build(setting, root)
    page.queue(max_size=20)
    _, address, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
        max_file_size=setting.max_upload, footer_links=[], run_history=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, css=_CSS,
        theme=gr.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"]),
    )  # fmt: skip
    try:
        yield address
    finally:
        page.close(verbose=False)
