"""A report as one HTML file that asks nothing of any server, and as markdown."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping

from odm_deploy.errors import MissingError
from odm_deploy.installing import install_extra
from odm_deploy.proof.parity_text import WORST_LAYERS, markdown_table, rows, to_markdown
from odm_deploy.report.content import ReportContent
from odm_deploy.report.layer_statistics import LayerStatistics
from odm_deploy.report.svg import Bar, bar_chart, distribution_chart, share_text
from odm_deploy.version import __version__

_LAYER_HEAD = ("layer", "bits", "mismatch", "clipped", "weight error")


def check_can_render() -> None:
    """Check that pages can be written here, before the minutes that measuring takes.

    Raises:
        MissingError: jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise MissingError("jinja2 is not installed", why="it fills in the page", fix=install_extra("report"))


def to_html(content: ReportContent) -> str:
    """The report as one self-contained page: styles, charts and pictures are inside.

    Raises:
        MissingError: jinja2 is not installed.
    """
    check_can_render()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("odm_deploy.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=content,
        version=__version__,
        agreement=rows(content.parity),
        runtime=", ".join(f"{key} {value}" for key, value in content.parity.runtime.items() if value not in ("", None)),
        charts=_charts(content),
        worst=WORST_LAYERS,
        share=share_text,
    )


def to_report_markdown(content: ReportContent) -> str:
    """The report's figures as markdown; pictures and charts are the page's."""

    def row(layer: LayerStatistics) -> tuple[str, ...]:
        error = content.weight_errors.get(layer.name)
        bits, lost = f"w{layer.weight_bits}a{layer.grid.bits}", "" if error is None else share_text(error)
        return f"`{layer.name}`", bits, share_text(layer.mismatch), share_text(layer.clipped_share), lost

    lines = [f"# {content.title}", ""]
    lines += [f"- {name}: {value}" for name, value in content.facts]
    lines += ["", "## Agreement", "", to_markdown(content.parity)]
    lines += ["## int8 coverage", "", content.coverage_line(), "", "## Latency", ""]
    if content.bench is None:
        lines += [content.bench_note, ""]
    else:
        timed = markdown_table(("", "median ms", "p99 ms", "output Mpix/s"), content.latency_rows())
        lines += [content.latency_line(), "", *timed, ""]
    lines += ["## Layers", "", *markdown_table(_LAYER_HEAD, map(row, content.layers))]
    return "\n".join([*lines, ""])


def _charts(content: ReportContent) -> dict[str, object]:
    """The charts as SVG, marked as safe: `svg` escapes what it is given."""
    from markupsafe import Markup

    mismatches = {layer.name: layer.mismatch for layer in content.layers if math.isfinite(layer.mismatch)}
    # Layers without a figure of their own are those that lose everything.
    worst_first = sorted(content.layers, key=lambda layer: -mismatches.get(layer.name, math.inf))
    return {
        "mismatch": _bars(mismatches, "mismatch by layer"),
        "weights": _bars(content.weight_errors, "weight error by layer"),
        "distributions": [
            (layer, Markup(distribution_chart(*layer.histogram.occupied(), layer.grid, f"input of {layer.name}")))
            for layer in worst_first
        ],
    }


def _bars(values: Mapping[str, float], title: str) -> tuple[object, object] | None:
    """A chart of the worst layers and, where there are more, one of all in network order."""
    from markupsafe import Markup

    bars = [Bar(name, value, share_text(value)) for name, value in values.items()]
    if not bars:
        return None
    worst = sorted(bars, key=lambda bar: -bar.value)[:WORST_LAYERS]
    everything = Markup(bar_chart(bars, f"{title}, all")) if len(bars) > len(worst) else None
    return Markup(bar_chart(worst, title)), everything
