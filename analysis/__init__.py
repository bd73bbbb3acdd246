"""From runs to a law that can be trusted.

    from analysis import load_runs, compare, fit_law
    runs = load_runs("runs/")                     # or "wandb:entity/project", or both
    print(compare(runs).summary())
    law = fit_law(runs)
    law.predict(n_params=1e8, tokens=2e9)         # value and an interval for a new run
"""
_LAZY = {"load_runs": "analysis.runs", "load_history": "analysis.runs",
         "load_samples": "analysis.runs", "load_spec_of": "analysis.runs",
         "load_table": "analysis.table", "best_settings": "analysis.table",
         "compare": "analysis.comparison", "smooth": "analysis.comparison",
         "effects": "analysis.comparison.effects", "seed_noise": "analysis.comparison.noise",
         "fit_law": "analysis.scaling", "compute_optimal": "analysis.scaling.optimal",
         "fit_lr_law": "analysis.scaling.lr_law",
         "by_convention": "analysis.scaling.conventions",
         "sample_table": "analysis.samples", "side_by_side": "analysis.samples",
         "fresh_samples": "analysis.samples",
         "predict_spec": "analysis.predict", "outcomes": "analysis.predict"}


def __getattr__(name: str):
    """The names of the front door; pandas, scipy and torch are imported when one is used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    import importlib
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value       # importing analysis.comparison puts the module under that name
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
