"""The report, from saved results only."""


def build(folder):
    return folder / "report.html"
