"""The loss plot of a run: loss over steps with its phases shaded, learning rate and lambda below."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bitnet_crds.plan import Plan
from bitnet_trainer.report import StepRecord

_INK = "#1f2933"
_FAINT = "#8a96a3"
_LOSS = "#1d5fa8"
_TEACHER = "#c2571a"
_RATE = "#2f7d5b"
_LAMBDA = "#8a4fa3"
_SHADES = ("#f3f6fa", "#e6edf5")


def plot_loss(records: Sequence[StepRecord], plan: Plan, path: Path) -> Path:
    """Draws the steps in `records` (at least one) to a PNG at `path`, and returns the path."""
    figure = Figure(figsize=(9, 5.2), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    _draw_phases(upper, plan, named=True)
    _draw_phases(lower, plan, named=False)
    _draw_losses(upper, records)
    _draw_schedules(lower, plan)
    upper.set_xlim(0, plan.end_step)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set_xlabel("optimiser step", color=_INK)
    for axes in (upper, lower):
        _plain(axes)
    pending = path.with_name(f".{path.name}")
    figure.savefig(pending, format="png")
    pending.replace(path)
    return path


def _draw_phases(axes: Axes, plan: Plan, named: bool) -> None:
    trained = [phase for phase in plan.phases if phase.first_step < min(phase.end_step, plan.end_step)]
    for number, phase in enumerate(trained):
        end_step = min(phase.end_step, plan.end_step)
        axes.axvspan(phase.first_step, end_step, color=_SHADES[number % 2], lw=0, zorder=0)
        if named:
            label = f"{phase.name} + teacher" if phase.teacher else phase.name
            axes.annotate(
                label,
                xy=((phase.first_step + end_step) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
                color=_TEACHER if phase.teacher else _INK,
            )


def _draw_losses(axes: Axes, records: Sequence[StepRecord]) -> None:
    """Every objective by itself, unweighted: a total jumps where a phase changes the weights."""
    names = list(dict.fromkeys(name for record in records for name in record.objectives))
    ends: list[tuple[float, float, str, str]] = []
    for name in names:
        shown = [record for record in records if record.loss is not None and name in record.objectives]
        color = _TEACHER if name == "teacherLogits" else _LOSS
        steps = [record.step for record in shown]
        raw = [record.objectives[name].raw for record in shown]
        smooth = _smoothed(raw, span=max(1, len(records) // 40))
        axes.plot(steps, raw, color=color, alpha=0.25, lw=1)
        axes.plot(steps, smooth, color=color, lw=2, marker="o" if len(steps) == 1 else "")
        ends.append((smooth[-1], steps[-1], f"{name} {smooth[-1]:.2f}", color))
    _name_lines(axes, ends)
    skipped = [
        record.step for before, record in pairwise(records) if record.skipped_steps > before.skipped_steps
    ]
    for step in skipped:
        axes.axvline(step, color="#b3261e", lw=1, ls=":")
    axes.set_ylabel("loss (nats per token)", color=_INK)


def _name_lines(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Writes each line's name and last value at its end, (y, x, text, colour), none on another."""
    low, high = axes.get_ylim()
    lowest = low
    for y, x, text, color in sorted(ends):
        y = max(y, lowest)
        lowest = y + 0.06 * (high - low)
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
            annotation_clip=False,
        )


def _draw_schedules(axes: Axes, plan: Plan) -> None:
    steps = range(plan.end_step)
    rates = [plan.learning_rate.at(step) / plan.learning_rate.peak for step in steps]
    lambdas = [plan.quantization_lambda.at(step) for step in steps]
    axes.plot(steps, rates, color=_RATE, lw=1.6, label=f"learning rate / {plan.learning_rate.peak:g}")
    axes.plot(steps, lambdas, color=_LAMBDA, lw=1.6, label="quantisation lambda")
    axes.set_ylim(-0.05, 1.1)
    axes.set_yticks([0, 1])
    axes.legend(frameon=False, fontsize=8, loc="center", labelcolor=_INK)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9, color=_FAINT)


def _smoothed(values: Sequence[float], span: int) -> list[float]:
    """Exponential mean over about `span` values, its start corrected as Adam's moments are."""
    factor = 1 - 1 / span
    smooth, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = factor * mean + (1 - factor) * value
        weight = factor * weight + (1 - factor)
        smooth.append(mean / weight)
    return smooth
