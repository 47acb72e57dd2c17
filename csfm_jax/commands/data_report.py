"""One HTML page with pictures of what stores hold: to be looked at before any accelerator hour is spent."""

from pathlib import Path

from data_pipelines import storage
from data_pipelines.errors import BadInput
from data_pipelines.store import open_stores


def run(places: list[str], output: Path | None, verify: str) -> None:
    from csfm_jax.reporting.facts import gather
    from csfm_jax.reporting.page import render

    if len(places) != 1:
        raise BadInput("csfm data report", f"{len(places)} places", "one; several separated by commas", "join them")
    path = output or Path("report.html")
    if path.suffix != ".html":
        raise BadInput("--output", "a name that does not end in .html", "one that does", "choose such a name")
    page = render([gather(store) for store in open_stores(places[0], verify)])
    storage.write_bytes(path, page.encode())
    print(f"wrote {path} ({len(page) / 1e6:.1f} MB)")
