"""Pictures of the dashboards: recorded from a real Prometheus, kept, and drawn panel by panel."""

from pathlib import Path

import pytest

import backfilled
import picture_dashboards
from dashboard_pictures.drawing import Board
from dashboard_pictures.recording import POINTS, Recording, keep, kept
from dashboard_pictures.tables import merged
from dashboard_pictures.units import written
from grafana_dashboards.asked import NAMES, dashboard, panels


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both pictures, and what they are drawn of."""
    folder = tmp_path_factory.mktemp("images")
    with backfilled.prometheus(tmp_path_factory.mktemp("prometheus")) as prometheus:
        run = ["--namespace", backfilled.NAMESPACE, "--name", backfilled.RUN]
        between = ["--start", str(backfilled.START), "--end", str(backfilled.END)]
        picture_dashboards.main(["--prometheus", prometheus.address, *run, *between], folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_it_is_drawn_of_what_was_kept_and_no_panel_is_left_out(
    images: Path, name: str, tmp_path: Path
) -> None:
    board = Board(kept(images / f"dashboard-{name}.json"))
    board.save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (images / f"dashboard-{name}.png").read_bytes()
    titles = {text.get_text() for text in board.figure.texts}
    assert {panel["title"] for panel in panels(dashboard(name))} <= titles
    assert len(board.figure.axes) == len(panels(dashboard(name)))


@pytest.mark.parametrize("name", NAMES)
def test_no_line_lies_on_the_upper_edge_or_runs_through_a_number(name: str, tmp_path: Path) -> None:
    board = Board(kept(picture_dashboards.IMAGES / f"dashboard-{name}.json"))
    board.save(tmp_path / "drawn.png")
    seen = []
    for panel, axes in zip(panels(dashboard(name)), board.figure.axes, strict=True):
        lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == len(board.minutes)]
        values = [value for line in lines for value in line if value == value]
        if values:
            low, high = axes.get_ylim()
            part = (max(values) - low) / (high - low)
            assert part < {"stat": 1 / 3, "timeseries": 0.99}[panel["type"]], panel["title"]
            seen.append(panel["type"])
    assert {*seen} == {"stat", "timeseries"}


def test_a_recording_has_each_query_of_the_dashboard_and_a_value_for_each_moment(images: Path) -> None:
    recording = kept(images / "dashboard-run.json")
    for panel in panels(dashboard("run")):
        for target in panel["targets"]:
            assert recording.answer(target), panel["title"]
            length = 1 if target["instant"] else POINTS + 1
            assert {len(each.values) for each in recording.answer(target)} == {length}
    assert (recording.minutes[0], recording.minutes[-1]) == (0, 30)


def test_what_is_kept_is_what_was_recorded(tmp_path: Path) -> None:
    recording = Recording("run", "team", "qwen3", 0.0, 5.0, {"up": []})
    keep(recording, tmp_path / "kept.json")
    assert kept(tmp_path / "kept.json") == recording


def test_a_run_is_one_row_of_its_table_and_what_is_not_well_comes_first(images: Path) -> None:
    (runs,) = (panel for panel in panels(dashboard("fleet")) if panel["title"] == "Runs")
    row, waits = merged(runs, kept(images / "dashboard-fleet.json"))
    assert (row["Run"], waits["Run"]) == (backfilled.RUN, backfilled.WAITS)
    assert (row["Phase"], row["Trains"], row["GPUs"]) == ("Running", "main", backfilled.GPUS)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.25, "percentunit", "25 %"),
        (5400, "s", "1.5 hour"),
        (0.0042, "s", "4.2 ms"),
        (3 * 2**30, "bytes", "3 GiB"),
        (41250, "si:tok/s", "41.2 ktok/s"),
        (130, "si:tok/s", "130 tok/s"),
        (0.0004, "sci", "4.00e-04"),
        (12, "none", "12"),
        (1.5e10, "short", "15 Bil"),
    ],
)
def test_values_have_their_units(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text
