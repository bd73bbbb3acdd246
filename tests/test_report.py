"""The report: whole, inert, without network, and honest about what it can't show."""
import io
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_folders import write_run
from wandb_server import API_KEY, wandb_server  # noqa: F401  (a fixture)

pytest.importorskip("matplotlib")
from analysis.report.page import esc  # noqa: E402
from analysis.report import Study, build_report, log_to_wandb, main  # noqa: E402
from analysis.runs import load_runs  # noqa: E402
from analysis.where import select  # noqa: E402
from slm.errors import UserError  # noqa: E402

SHA = "0123456789abcdef" * 2 + "01234567"
SHAPES = [(1, 16), (1, 32), (2, 48), (2, 64)]


def hostile(url: str) -> str:
    """Whatever text may do to a page, each aimed at our own server or at its title."""
    return (f"</td></script></style><script>document.title='pwned';fetch('{url}/1')</script>"
            f"<img src='{url}/2' onerror=\"document.title='pwned'\"><link rel=stylesheet href={url}"
            f"/3><iframe src=\"{url}/4\"></iframe><svg onload=\"document.title='pwned'\"><a href="
            f"\"javascript:document.title='pwned'\">'\"&<!--<meta http-equiv=refresh content=0;url="
            f"{url}/5>\x00<style>@import '{url}/6';</style>")


def plain_png() -> bytes:
    from PIL import Image
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="module")
def trap():
    """A server that nothing in a report may ask; .hits: what was asked of it."""
    hits = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hits, server.url = hits, f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trap) -> pd.DataFrame:
    """Twelve runs on a law, one predicted, one that diverged; names, reasons and texts attack."""
    folder, bad = tmp_path_factory.mktemp("report") / "runs", hostile(trap.url)
    rng = np.random.default_rng(0)
    for tokens in (102_400, 409_600, 1_638_400):
        for depth, width in SHAPES:
            path = write_run(folder, 5.0, model__n_layer=depth, model__n_embd=width,
                             train__tokens=tokens, train__batch_tokens=tokens // 10,
                             texts=("Once a fox.",))
            facts = json.loads((path / "summary.json").read_text())
            n, d = facts["params"]["matmul"], facts["tokens"]
            loss = (1.5 + 90 / n ** 0.4 + 200 / d ** 0.4) * np.exp(0.002 * rng.standard_normal())
            facts |= {"val_loss": loss, "time_sec": d}
            (path / "summary.json").write_text(json.dumps(facts))
    write_run(folder, None, "diverged", "validation loss nan at step 10", optim__lr=1.0)
    table = load_runs(folder)
    table["run"] = [f"{name} {bad}" for name in table["run"]]
    table.loc[table["status"] == "diverged", "reason"] = bad
    table.attrs["notes"], table["git_sha"] = [bad], SHA
    return table


@pytest.fixture(scope="module")
def study(runs, tmp_path_factory) -> Study:
    last = runs[runs.status == "finished"].nlargest(1, "flops").iloc[0]
    spec = {c: float(last[c]) for c in ("n_params", "tokens", "flops")}
    said = spec | {"identity": last.identity, "name": last.run, "value": last.loss * 1.01,
                   "low": last.loss * 0.9, "high": last.loss * 1.1, "made": "2025-01-01T00:00:00"}
    file = tmp_path_factory.mktemp("predictions") / "predictions.jsonl"
    file.write_text(json.dumps(said) + "\n")
    return Study(runs, bootstrap=40, predictions=file)


@pytest.fixture(scope="module")
def built(study, trap) -> str:
    import analysis.plots
    bad = hostile(trap.url)
    study.__dict__["samples"] = pd.DataFrame({"run": study.runs["run"], "step": 1, "tokens": 1e5,
                                              "prompt": bad, "text": bad})
    rows = [{"convention": name, "who": name, "warnings": 0, "E": 1.5} | {
        f"{k}{end}": v for k in ("a", "b", "alpha", "beta")
        for end, v in (("", 0.5), ("_low", 0.4), ("_high", 0.6))} for name in ("matmul", "6ND")]
    study.__dict__["conventions"] = pd.DataFrame(rows)       # fitting twelve ways takes a while
    svg, drawn = analysis.plots.to_svg, []

    def first_few(fig):
        drawn.append(fig)
        return svg(fig) if len(drawn) < 3 else b"<svg xmlns='http://www.w3.org/2000/svg'/>"

    with pytest.MonkeyPatch.context() as patch:     # rendering is slow, and tested in test_plots
        patch.setattr(analysis.plots, "to_svg", first_few)
        patch.setattr(analysis.plots, "to_png", lambda fig, dpi: plain_png())
        return build_report(study, f"title {bad}", f"python -m analysis.report {bad}")


class Page(HTMLParser):
    """What a page consists of: tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                 None)
    if found is None:
        pytest.skip("no Chromium (Debian: apt install chromium)")
    return found


def opened(folder, text: str, mark: str = "") -> str:
    """The page as headless Chromium, 1,200 pixels wide, has it after running its script."""
    (folder / "page.html").write_text(text, encoding="utf-8", errors="replace")
    done = subprocess.run(
        [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--window-size=1200,900", f"--user-data-dir={folder / 'profile'}",
         "--virtual-time-budget=2000", "--dump-dom", f"file://{folder / 'page.html'}{mark}"],
        capture_output=True, text=True, timeout=120)
    assert "<html" in done.stdout, done.stderr
    return done.stdout


# -- the page --------------------------------------------------------------------------------------

def test_everything_is_there(built, study):
    page = Page(built)
    images = [a for name, a in page.tags if name == "img"]
    titles = " | ".join(a["alt"] for a in images)
    for word in ("Loss curves over training tokens", "against parameters N", "against training "
                 "FLOPs", "against training time", "Residuals", "Resampled parameters",
                 "Compute-optimal", "Contours", "a in N* ~ C^a", "Predicted and reached"):
        assert word in titles, word
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", a["src"]) for a in images)
    law = study.law
    assert law.runs["run"].nunique() == 11                   # the predicted one is held out
    low, high = law.intervals["alpha"]
    text = " ".join(page.text.split())
    for words in (law.form.equation, f"alpha = {law.params['alpha']:.4g} [{low:.4g}, {high:.4g}]",
                  *law.warnings, "1 of 1 inside the interval", "13 runs; 12 finished, 1 diverged",
                  "Not here: no IsoFLOP profiles", "learning-rate curves need two", "bpe:512",
                  "n = 11 runs", "python -m analysis.report", "40 resamples over runs"):
        assert words in text, words
    assert study.outcomes["inside"].tolist() == [True]
    assert text.count("Not here: no IsoFLOP profiles") == 1
    assert SHA[:12] in text and SHA not in text
    assert len(built.encode("utf-8")) < 1e6


def test_nothing_in_a_page_can_act_or_load(built, trap):
    page = Page(built)
    assert [name for name, _ in page.tags].count("script") == 1
    assert not {"iframe", "link", "svg", "object", "embed", "form"} & {n for n, _ in page.tags}
    for name, attributes in page.tags:
        assert not any(key.startswith("on") or key == "style" for key in attributes), name
        for key in ("src", "href", "action", "srcset"):
            assert attributes.get(key, "#").startswith(("#", "data:image/")), (name, attributes)
    policy = next(a["content"] for n, a in page.tags
                  if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", built, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert trap.url in page.text                # the texts themselves are shown
    assert esc("\ud800\x00<'\"") == "?\ufffd&lt;&#x27;&quot;"


def test_chromium_sorts_it_and_finds_it_inert(built, trap, tmp_path):
    dom = opened(tmp_path, built, "#sort=loss,desc")
    assert trap.hits == []
    assert re.search(r"<title>title ", dom) and "<title>pwned" not in dom
    body = re.search(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', dom, re.S)[1]
    heads = re.findall(r'<th[^>]*data-key="(\w+)"',
                       re.search(r'<table class="sortable">(.*?)</thead>', dom, re.S)[1])
    losses = []
    for row in re.findall(r"<tr>(.*?)</tr>", body, re.S):
        cell = re.findall(r"<td([^>]*)>", row)[heads.index("loss")]
        value = re.search(r'data-v="([^"]+)"', cell)
        losses.append(float(value[1]) if value else None)
    known = [x for x in losses if x is not None]
    assert len(losses) == 13 and losses[-1] is None          # missing last, whichever way
    assert known == sorted(known, reverse=True) and len(set(known)) == 12
    assert 'data-key="loss" scope="col" class="n" aria-sort="descending"' in dom
    opened(tmp_path, f"<title>x</title>{hostile(trap.url)}")     # so the trap does catch
    assert {"/2", "/4"} <= set(trap.hits)


def test_the_tables_of_exponents_are_as_wide_as_the_page(built, tmp_path):
    free = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", built)
    ask = ("<script>document.title = [...document.querySelectorAll('#optimum .scroll, #conventions "
           ".scroll')].map(e => e.scrollWidth <= e.clientWidth).join(' ')</script></body>")
    dom = opened(tmp_path, free.replace("</body>", ask))
    assert re.search("<title>(.*?)</title>", dom)[1] == "true true"


def test_what_only_some_runs_have_is_not_the_same_in_all(runs):
    from analysis.report.parts import run_table
    table = runs.assign(run=[f"r{i}" for i in range(len(runs))], group="grid", lr=0.1)
    told = [re.search("The same in all runs: ([^<]*)", run_table(Study(t)))[1] for t in (
        table, table.assign(group=["grid"] * 12 + [None], lr=[0.1] * 12 + [np.nan]))]
    assert "group grid" in told[0] and "lr 0.1" in told[0]
    assert "group" not in told[1] and "lr" not in told[1]


def test_models_are_compared_by_the_texts_of_their_longest_runs(runs):
    from analysis.plots import samples_table
    from analysis.report.parts import samples
    table = pd.DataFrame({"run": ["small long", "small short", "large short", "large long"],
                          "n_params": [1e4, 1e4, 1e5, 1e5], "tokens": [8e5, 1e5, 1e5, 8e5],
                          "loss": [4.0, 5.0, 4.9, 3.0]})
    study = Study(table)
    study.__dict__["samples"] = texts = pd.DataFrame({
        "run": table["run"], "step": [8, 1, 1, 8], "tokens": table["tokens"], "prompt": "Once",
        "text": "Once upon"})
    heads = [" ".join(re.sub("<[^>]*>", " ", h).split())
             for h in re.findall("<th[^>]*>(.*?)</th>", samples(study))]
    assert heads[:2] == ["small long N = 10k, step 8, loss 4.000",
                         "large long N = 100k, step 8, loss 3.000"]
    fig = samples_table(texts, table)
    said = " ".join(t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text")))
    assert "loss 3.000" in said and "loss 4.900" not in said and "longest run" in said


def test_a_table_that_shows_little_still_gives_a_page(tmp_path, capsys):
    file, out = tmp_path / "points.csv", tmp_path / "report.html"
    file.write_text("Model Size,D,loss,kind\n1e6,1e8,3.0,a\n2e6,1e8,2.9,a\n3e6,1e8,,a\n"
                    "4e6,1e8,2,b\n")
    code = main([str(file), "--column", "n_params=Model Size", "--where", "kind = 'a' & b",
                 "--out", str(out)])
    assert code == 2 and "did not expect '&'" in capsys.readouterr().err
    assert main([str(file), "--column", "n_parms=Model Size", "--out", str(out)]) == 2
    assert "did you mean n_params" in capsys.readouterr().err
    assert main([str(file), "--column", "n_params=Model Size", "--where", "kind = 'a'",
                 "--out", str(out), "--title", "T"]) == 0
    page = Page(out.read_text())
    text = " ".join(page.text.split())
    for words in ("3 runs; where kind = 'a'", "Best: 2.9000 nats per token, run row 1",
                  "Not here: chinchilla has 5 parameters and needs at least 7 runs; there are 2",
                  "Not here: this table has no column where", "3 of 4 runs chosen: kind = 'a'",
                  "1 of 3 rows left out: 1 without a finite validation loss",
                  "--where 'kind = '\"'\"'a'\"'\"''"):
        assert words in text, words
    assert sum(name == "img" for name, _ in page.tags) == 3


@pytest.mark.parametrize("arguments, message", [
    (["nowhere"], "nowhere"), (["x.csv", "runs"], "give it alone"), (["x.csv"], "no such file"),
    (["runs", "--form", "L(X)"], "no law form"), (["runs", "--bootstrap", "3"], "20 or more"),
    (["runs", "--out", "no/where/x.html"], "no such folder"),
    (["nowhere", "--out", "."], "is a folder"),
    pytest.param(["nowhere", "--out", "/proc/x.html"], "can't be written", marks=pytest.mark.skipif(
        not Path("/proc/self").exists(), reason="no /proc"))])
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# -- choosing runs ---------------------------------------------------------------------------------

TABLE = pd.DataFrame({"lr": [0.1, 0.01, np.nan, 0.001], "n_layer": [1, 2, 2, 4],
                      "corpus": ["fables", "Tiny Stories", None, "fables"],
                      "tied": [True, False, None, True]})


@pytest.mark.parametrize("where, rows", [
    ("lr < 0.05", [1, 3]), ("lr != 0.1", [1, 3]), ("n_layer>=2 and lr<=1e-3", [3]),
    ("n_layer = 1 or n_layer = 4 and lr > 1", [0]),
    ("(n_layer = 1 or n_layer = 4) and lr < .01", [3]),
    ("corpus == fables", [0, 3]), ("corpus = 'tiny stories'", [1]), ("corpus != fables", [1]),
    ("tied = true", [0, 3]), ("tied != true", [1]), ("n_layer < 1_000", [0, 1, 2, 3])])
def test_conditions_choose_rows(where, rows):
    kept = select(TABLE.assign(row=range(4)), where)
    assert kept["row"].tolist() == rows and kept.attrs["filter"] == where
    assert f"{len(rows)} of 4 runs chosen" in kept.attrs["notes"][-1]


@pytest.mark.parametrize("where, message", [
    ("n_layr > 2", "did you mean n_layer"), ("lr < abc", "holds numbers"), ("lr <", "ends where"),
    ("corpus > a", "no order"), ("lr = 1 lr = 2", "did not expect"), ("(lr = 1", "parenthesis"),
    ("lr ** 2 > 1", "should come one of"), ("__import__('os').system('true')", "no column"),
    ("@lr > 1", "no column @lr"), ("lr > 100", "none of 4 runs"), ("(" * 500, "too many"),
    ("lr = 'x", "can't read"), ("= 1", "a column should stand")])
def test_anything_else_is_refused(where, message):
    with pytest.raises(UserError, match=re.escape(message)):
        select(TABLE, where)
    assert select(TABLE, None) is TABLE and select(TABLE, " ") is TABLE


# -- W&B -------------------------------------------------------------------------------------------

def test_the_page_is_logged_as_an_artifact(wandb_server, tmp_path, monkeypatch):  # noqa: F811
    page = tmp_path / "report.html"
    page.write_text("<p>a page</p>")
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="no API key"):
        log_to_wandb(page, "tester/slm", "T")
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with pytest.raises(UserError, match="ENTITY/PROJECT"):
        log_to_wandb(page, "tester", "T")
    import wandb
    wandb.teardown()                # forget another test's server
    try:
        assert "logged to tester/slm" in log_to_wandb(page, "tester/slm", "T")
    finally:
        wandb.teardown()
    found = list(wandb_server.artifacts.values())
    assert [a["name"] for a in found if a["state"] == "COMMITTED"] == ["report"]
