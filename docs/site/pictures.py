"""Pictures in the page's own colours, and the ones of docs/why-log-odds.md.

python docs/site/pictures.py    draws those again, into docs/figures
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

import losslab
from losslab.losses.explain import curves, odds_function
from losslab.report.figures import NARROW, WIDE, loss_shapes
from losslab.report.marks import marked_line
from losslab.report.panels import add_legend, make_panels
from losslab.report.style import AXIS, BASELINE_COLOR, FAINT, INK, look, styles
from losslab.report.svg import inline_svg

FIGURES = Path(__file__).parent.parent / "figures"
_PAGE_COLORS = {
    INK: "var(--color-foreground-primary)",
    BASELINE_COLOR: "var(--color-foreground-primary)",
    AXIS: "var(--color-foreground-muted)",
    FAINT: "var(--color-background-border)",
    "#ffffff": "var(--color-background-primary)",
    "white": "var(--color-background-primary)",
}
_WIDTH = 4.2  # inches, for telephones as well
_COLOR = re.compile("|".join(rf"{color}\b" for color in _PAGE_COLORS))


def inlined(svg: str, title: str, kind: str = "") -> str:
    """A block of Markdown that holds the SVG itself, in the page's colours."""
    text = _COLOR.sub(lambda match: _PAGE_COLORS[match[0]], svg[svg.index("<svg") :])
    lines = "\n".join(line for line in text.splitlines() if line.strip())
    figure = f'<figure class="curves {kind}" title="{title}">\n{lines}\n</figure>'
    return f"```{{raw}} html\n{figure}\n```\n"


def loss_curves(losses: dict[str, torch.nn.Module], name: str, title: str, *, start: float) -> str:
    """Loss and slope against p from ``start``, for a wide page and for a narrow one."""
    p = torch.linspace(start, 0.999, 999, dtype=torch.float64)
    shapes = {spec: (p, *curves(module, p)) for spec, module in losses.items()}
    parts = []
    for kind, width in (("wide", WIDE), ("narrow", NARROW)):
        svg = inline_svg(loss_shapes(shapes, width=width), name=f"{name}-{kind}", title=title)
        parts.append(inlined(svg, title, kind))
    return "\n".join(parts)


def draw_against_log_odds() -> Figure:
    """The losses as they are: one line each, over the log-odds."""
    specs = ["cross_entropy", "encouraging(log_end=1, eps=0)", "expectation", "focal", "hinge"]
    a = torch.linspace(-6, 6, 241, dtype=torch.float64)
    looks = styles(specs)
    with look():
        made = make_panels(1, _WIDTH, least=2.5, height=2.7, legend=specs)
        axes = made.axes[0]
        for spec in specs:
            psi, _ = odds_function(losslab.loss(spec))
            marked_line(axes, spec, a, psi(a), looks[spec], markevery=40)
        axes.set_xlabel("log-odds a of the true class")
        axes.set_title("ψ(a), nats")
        axes.set_ylim(-6.2, 7.2)
        add_legend(made.figure, specs, looks, _WIDTH)
    return made.figure


def pull_in_float32(a: torch.Tensor) -> dict[str, torch.Tensor]:
    """|∂L/∂z_y| of two logits (a, 0) in float32: PyTorch's cross-entropy and losslab's losses."""
    losses = {
        "F.cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
        "losslab cross_entropy": losslab.loss("cross_entropy", reduction="sum"),
        "encouraging(log_end=1, eps=0)": losslab.loss(
            "encouraging(log_end=1, eps=0)", reduction="sum"
        ),
    }
    found = {}
    for name, loss in losses.items():
        logits = torch.stack([a, torch.zeros_like(a)], dim=1).requires_grad_()
        loss(logits, torch.zeros(len(a), dtype=torch.long)).backward()
        found[name] = logits.grad[:, 0].abs()
    return found


def draw_float32() -> Figure:
    """Where the pull on a well-classified example is rounded away."""
    a = torch.linspace(0, 40, 161)
    found = pull_in_float32(a)
    looks = styles(list(found))
    with look():
        made = make_panels(1, _WIDTH, least=2.5, height=2.7, legend=list(found))
        axes = made.axes[0]
        for i, (name, pull) in enumerate(found.items()):
            seen = pull > 0
            above = {"markevery": (8 + 12 * (i % 2), 24), "zorder": 4 - i}
            marked_line(axes, name, a[seen], pull[seen], looks[name], **above)
        end = a[found["F.cross_entropy"] > 0].max().item()
        axes.annotate(
            "exactly 0 from here on",
            (end, 6e-8),
            (end + 2.5, 2e-5),
            arrowprops={"arrowstyle": "-", "color": INK},
        )
        axes.set_yscale("log")
        axes.set_yticks([1, 1e-5, 1e-10, 1e-15], ["1", "10⁻⁵", "10⁻¹⁰", "10⁻¹⁵"])
        axes.minorticks_off()
        axes.set_xlabel("log-odds a of the true class")
        axes.set_title("pull on the true class's logit, float32")
        add_legend(made.figure, list(found), looks, _WIDTH)
    return made.figure


PICTURES = {
    "why-log-odds-psi": draw_against_log_odds,
    "why-log-odds-float32": draw_float32,
}


def main() -> None:
    for name, draw in PICTURES.items():
        svg = inline_svg(draw(), name=name, title=name)
        file = FIGURES / f"{name}.svg"
        file.write_text(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n")
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
