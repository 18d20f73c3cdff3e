"""Builders of panels, variables and annotations. All of them use the data source that the user selects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as queries

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "hftitan"
RATE = "$__rate_interval"
JOB_URL = "/d/hftitan-job?var-datasource=${datasource}&var-namespace=%s&var-job=%s"

Query = tuple[str, str]
"""PromQL and the legend of its series."""

PHASE_COLORS = {
    "Pending": "yellow",
    "Starting": "light-yellow",
    "Restarting": "orange",
    "Running": "green",
    "Suspended": "gray",
    "Succeeded": "blue",
    "Failed": "red",
}
"""Grafana colour of each job phase. Without it, Grafana colours series by their order in the panel."""


def targets(panel: Any, shown: Sequence[Query], *, instant: bool = False) -> Any:
    for i, (expr, legend) in enumerate(shown):
        made = prometheus.Dataquery().datasource(SOURCE).ref_id(chr(ord("A") + i)).expr(expr).legend_format(legend)
        panel.with_target(made.instant() if instant else made.range())
    return panel


def number(title: str, expr: str, *, unit: str = "short", help: str = "", legend: str = "", span: int = 3) -> Any:
    """Show one number or, with a `legend`, the name of the series instead."""
    panel = stat.Panel().title(title).description(help).datasource(SOURCE).unit(unit).height(4).span(span)
    panel.graph_mode(kinds.BigValueGraphMode.NONE).color_mode(kinds.BigValueColorMode.NONE).no_value("none")
    panel.text_mode(kinds.BigValueTextMode.NAME if legend else kinds.BigValueTextMode.VALUE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return targets(panel, [(expr, legend)], instant=True)


def lines(
    title: str,
    *shown: Query,
    unit: str = "short",
    help: str = "",
    stacked: bool = False,
    span: int = 8,
    log: bool = False,
) -> Any:
    panel = timeseries.Panel().title(title).description(help).datasource(SOURCE).unit(unit).height(8).span(span)
    panel.line_width(1).show_points(kinds.VisibilityMode.NEVER).span_nulls(False)
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
    )
    panel.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    if stacked:
        panel.fill_opacity(30).stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if log:
        panel.scale_distribution(common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(10))
    return targets(panel, shown)


def bars(title: str, expr: str, legend: str, *, unit: str = "short", help: str = "", span: int = 8) -> Any:
    panel = bargauge.Panel().title(title).description(help).datasource(SOURCE).unit(unit).height(8).span(span)
    panel.orientation(kinds.VizOrientation.HORIZONTAL).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return targets(panel, [(expr, legend)], instant=True)


def jobs_table(title: str, expr: str, value: str, *, unit: str, help: str, span: int = 12) -> Any:
    """Show one row per series: its labels, and its value in the column `value`. The job links to its dashboard."""
    panel = table.Panel().title(title).description(help).datasource(SOURCE).height(8).span(span).no_value("none")
    panel.with_target(
        prometheus.Dataquery().datasource(SOURCE).ref_id("A").expr(expr).format(queries.PromQueryFormat.TABLE).instant()
    )
    names = {"job_namespace": "namespace", "job_name": "job", "Value": value}
    panel.with_transformation(
        models.DataTransformerConfig(
            id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": names}
        )
    )
    link = {"title": "This job", "url": JOB_URL % ("${__data.fields.namespace}", "${__data.fields.job}")}
    panel.override_by_name("job", [models.DynamicConfigValue(id_val="links", value=[link])])
    panel.override_by_name(value, [models.DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def colored_series(panel: Any) -> Any:
    """Give each series that is named after a job phase the colour of that phase."""
    for phase, color in PHASE_COLORS.items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})
        panel.override_by_name(phase, [fixed])
    return panel


def colored_column(panel: Any) -> Any:
    """Give each text in the column `phase` of a table the colour of that phase."""
    colors = {phase: {"color": color, "index": i} for i, (phase, color) in enumerate(PHASE_COLORS.items())}
    mappings = models.DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": colors}])
    text = models.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"})
    return panel.override_by_name("phase", [mappings, text])


def dashboard_of(uid: str, title: str, description: str) -> dashboard.Dashboard:
    made = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).readonly()
    made.time("now-6h", "now").refresh("30s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    made.link(
        dashboard.DashboardLink("HFTitanJob")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .keep_time(True)
    )
    return made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))


def choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A variable with exactly one selected value."""
    made = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    return made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)


class Moments(dashboard.AnnotationQuery):
    """Annotations at the times that a series has as values (Unix seconds). Grafana draws equal values once."""

    def __init__(self, name: str, seconds: str, color: str) -> None:
        super().__init__()
        self.name(name).datasource(SOURCE).enable(True).icon_color(color).expr(f"{seconds} * 1000")

    def build(self) -> models.AnnotationQuery:
        return _ByValue(**vars(super().build()))


class _ByValue(models.AnnotationQuery):
    """Adds `useValueForTime` of the Prometheus data source ("use series value as timestamp"), which the SDK lacks."""

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "useValueForTime": True, "titleFormat": self.name, "step": "30s"}
