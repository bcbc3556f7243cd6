"""The report: one self-contained HTML document and its figures, from saved results only."""

from pathlib import Path

from mechdiff.report import backend, document  # noqa: F401 (the backend before matplotlib)
from mechdiff.storage import files
from mechdiff.study import results_folder


def build(folder: Path | str) -> Path:
    """Writes `folder/report.html`, and its figures as PNG and SVG in `folder/figures`.

    Args:
      folder: a results folder, see `study/examine.py`; shows `planted.json` and `calibration.json` in it too.
    Returns:
      path of the document.
    Raises:
      MechdiffError: results are absent, damaged or unfinished, or the folder can't be written to.
    """
    folder = Path(folder)
    manifest, models = results_folder.read(folder)
    page = document.render(manifest, models, files.ensure_writable(folder))
    files.write_atomic(folder / "report.html", page)
    return folder / "report.html"
