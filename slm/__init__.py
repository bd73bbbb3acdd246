"""slm: from a YAML spec to a scaling law you can trust.

    import slm
    slm.load("runs/<run>").generate("Once upon a time", max_new_tokens=100)
"""
__version__ = "0.1.0"

_LAZY = {"load": "slm.generate", "GPT": "slm.model", "GPTConfig": "slm.shape",
         "load_spec": "slm.spec", "Fables": "slm.corpora.fables"}


def __getattr__(name: str):
    """The few names of the front door; torch is imported when one of them needs it."""
    if name not in _LAZY:
        raise AttributeError(f"module 'slm' has no attribute {name!r}")
    import importlib
    return getattr(importlib.import_module(_LAZY[name]), name)
