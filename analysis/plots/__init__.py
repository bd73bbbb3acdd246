"""Figures, one function each; all return a Matplotlib Figure with n, filter and conventions in the
line under it, show themselves in a notebook and leave no state behind.

    from analysis import plots
    plots.loss_vs(runs, "flops", law).savefig("loss.png", dpi=150)

Rules: a point is a run (seeds apart, never only a mean); log axes say 10M and 1e15; optima on the
edge of what was tried are hollow; colours can be told apart by colour-blind readers and in print.
"""
from analysis.plots.base import Picture, caption, style, to_png, to_svg, without_caption
from analysis.plots.dynamics import plot_dynamics
from analysis.plots.fit import bootstrap_pairs, conventions, residuals
from analysis.plots.heldout import extrapolation
from analysis.plots.interpret import attention_head, attention_maps, neuron_map, neuron_texts
from analysis.plots.laws import contours, isoflop, optimum
from analysis.plots.runs import loss_curves, loss_vs
from analysis.plots.sweeps import heat_maps, lr_curves, samples_table

__all__ = ["Picture", "attention_head", "attention_maps", "bootstrap_pairs", "caption", "contours",
           "conventions", "extrapolation", "heat_maps", "isoflop", "loss_curves", "loss_vs",
           "lr_curves", "neuron_map", "neuron_texts", "optimum", "plot_dynamics", "residuals",
           "samples_table", "style", "to_png", "to_svg", "without_caption"]
