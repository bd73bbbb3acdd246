"""Real TinyStories with GPT-2's tokenizer: a hundred steps, and the loss falls as recorded."""
import run
from tiny import metrics, only_run

# Measured with torch 2.13.0 on x86-64 (1 thread): validation loss after 0, 50 and 100 steps.
RECORDED = {0: 10.838, 50: 5.950, 100: 5.639}


def test_real_stories_are_learnt_as_recorded(reference_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = run.main([
        str(run_file()), f"--data.path={reference_data / 'tinystories'}", "--model.n_layer=2",
        "--model.n_embd=64", "--model.n_head=4", "--model.dropout=0", "--train.steps=100",
        "--train.batch_tokens=512", "--train.micro_batch=4", "--train.eval_interval=50",
        "--data.eval_tokens=4096", "--optim.lr=5e-3", "--track.wandb=disabled",
        "--sample.max_new_tokens=10"])
    assert code == 0
    val = {m["step"]: m["val/loss"] for m in metrics(only_run(tmp_path)) if "val/loss" in m}
    assert val.keys() == RECORDED.keys()
    for step, loss in RECORDED.items():
        assert abs(val[step] - loss) < 0.03, val


def run_file():
    from tiny import ROOT
    return ROOT / "experiments" / "tinystories.yaml"
