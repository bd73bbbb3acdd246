"""From runs to a law that can be trusted.

    from analysis import load_table, fit_law
    law = fit_law(load_table("points.csv"))
    print(law.summary())
"""
_LAZY = {"fit_law": "analysis.scaling", "load_table": "analysis.table",
         "best_settings": "analysis.table", "compute_optimal": "analysis.optimal",
         "by_convention": "analysis.conventions"}


def __getattr__(name: str):
    """The few names of the front door; pandas and scipy are imported when one of them is used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    import importlib
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
