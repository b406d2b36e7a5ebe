"""`alpage plan inference`: the table and the object of a plan, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from alpage.cost import Precision, Step
from alpage.hardware import resolve_cluster
from alpage.hardware.cluster_file import to_toml
from alpage.planners import choose_layout
from alpage.shapes import SHAPES, named_shape
from alpage.units import format_bytes, format_seconds

ARGUMENTS = ("plan", "inference", "--model", "palm-540b", "--cluster", "tpu-v4-64")
DECODE = (*ARGUMENTS, "--phase", "decode", "--batch", "64", "--weights", "int8")

CANDIDATE_KEYS = {
    "layout",
    "attention_sharding",
    "mesh",
    "batch",
    "weights",
    "kv",
    "step_time_s",
    "device_s_per_token",
    "mfu",
    "terms",
    "memory_bytes_per_device",
}
PLAN_KEYS = CANDIDATE_KEYS | {
    "model",
    "cluster",
    "phase",
    "context",
    "num_candidates",
    "runner_up",
    "explain",
    "remedies",
    "bounds",
}
SWITCH_KEYS = {"before", "after", "collectives", "wire_bytes_per_device", "time_s"}


@pytest.fixture(scope="module")
def choice():
    step = Step(num_sequences=64, num_new_tokens=1, num_past_tokens=2048)
    precisions = [Precision(weights="int8")]
    cluster = resolve_cluster("tpu-v4-64")
    return choose_layout(named_shape("palm-540b"), cluster, step, precisions=precisions)


def answered(command_line, *arguments):
    status, out, err = command_line(*arguments)
    assert (status, err) == (0, "")
    return out


def test_json_is_the_choice(command_line, choice):
    plan = json.loads(answered(command_line, *DECODE, "--json"))
    best = choice.best
    assert set(plan) == PLAN_KEYS
    assert set(plan["runner_up"]) == CANDIDATE_KEYS
    assert (plan["model"], plan["cluster"], plan["phase"]) == ("palm-540b", "tpu-v4-64", "decode")
    assert (plan["context"], plan["batch"]) == (2048, 64)
    assert plan["layout"] == best.layout.name
    assert plan["attention_sharding"] == best.attention_sharding
    assert plan["mesh"] == dict(best.mesh.axes)
    assert plan["step_time_s"] == pytest.approx(best.step_s)
    assert plan["mfu"] == pytest.approx(best.mfu)
    assert sum(plan["terms"].values()) == pytest.approx(plan["step_time_s"])
    assert plan["memory_bytes_per_device"] == round(best.memory.total_bytes)
    assert plan["runner_up"]["layout"] == choice.runner_up.layout.name
    assert plan["runner_up"]["step_time_s"] == pytest.approx(choice.runner_up.step_s)


def test_json_tells_what_the_remedies_would_save(command_line):
    plan = json.loads(answered(command_line, *DECODE, "--json"))
    for remedy in plan["remedies"].values():
        assert remedy["saved_s"] + remedy["step_time_s"] == pytest.approx(plan["step_time_s"])
    assert {"overlap", "one_shot", "other_layout", "together"} <= set(plan["remedies"])
    assert "int8_weights" not in plan["remedies"]  # They are int8 already.
    assert plan["bounds"]["additive_s"] < plan["step_time_s"]


def test_both_phases_share_a_mesh_and_what_is_between_them_is_told(command_line):
    plan = json.loads(answered(command_line, *ARGUMENTS, "--weights", "int8", "--json"))
    assert set(plan) == {"prefill", "decode", "switch"}
    assert set(plan["prefill"]) == set(plan["decode"]) == PLAN_KEYS
    assert set(plan["switch"]) == SWITCH_KEYS
    assert plan["prefill"]["mesh"] == plan["decode"]["mesh"]
    assert (plan["prefill"]["batch"], plan["decode"]["batch"]) == (1, 64)


def test_table_has_the_numbers(command_line, choice):
    table = answered(command_line, *DECODE)
    best, other = choice.best, choice.runner_up
    assert table.startswith("palm-540b on tpu-v4-64: decode of 64 sequences behind 2,048 tokens\n")
    for number in (
        f"{best.layout.name} on {best.mesh}",
        f"{format_seconds(best.step_s)}, MFU {best.mfu:.1%}",
        f"{format_bytes(best.memory.total_bytes)} of 32.0 GiB a device",
        f"{1e3 * best.terms.latency_s:,.3f} ms",
        f"{1e3 * other.step_s:,.3f} ms",
        f"{1e3 * (other.step_s - best.step_s):+,.3f} ms",
    ):
        assert number in table
    assert re.search(r"^one-shot collectives +[\d.]+ ms +[\d.]+% +[\d.]+ ms$", table, re.MULTILINE)


def test_page_shows_what_is_printed(command_line):
    page = (Path(__file__).parents[3] / "docs" / "plan.md").read_text(encoding="utf-8")
    shown = page.partition("```console\n$ alpage ")[2].partition("```")[0].splitlines()
    printed = answered(command_line, *shown[0].split()).splitlines()
    assert len(shown) > 15
    assert [line for line in shown[1:] if line not in (*printed, "...")] == []


def test_table_of_both_adds_up(command_line):
    table = answered(command_line, *ARGUMENTS, "--new-tokens", "100")
    assert "prefill of 1 sequence of 2,048 tokens" in table
    assert "decode of 64 sequences behind 2,048 tokens" in table
    assert "switch: weights stay" in table
    assert " + 100 x " in table.splitlines()[-1]


def test_report_is_written(command_line, tmp_path):
    path = tmp_path / "plan.html"
    status, out, err = command_line(*DECODE, "--html", path, "--json")
    assert (status, err) == (0, f"drawn in {path}\n")
    assert json.loads(out)["layout"] in path.read_text(encoding="utf-8")


def test_auto_prices_int8_too(command_line):
    plan = json.loads(
        answered(command_line, *ARGUMENTS, "--phase", "decode", "--weights", "auto", "--json")
    )
    assert plan["weights"] == "int8"


def test_cost_may_take_a_smaller_batch(command_line):
    arguments = (*ARGUMENTS, "--phase", "prefill", "--batch", "512", "--json")
    latency = json.loads(answered(command_line, *arguments))
    cost = json.loads(answered(command_line, *arguments, "--objective", "cost"))
    assert cost["batch"] <= latency["batch"] == 512
    assert cost["device_s_per_token"] <= latency["device_s_per_token"]


def test_width_that_nothing_cuts_is_named(command_line):
    arguments = ("plan", "inference", "--phase", "decode", "--cluster", "h100-3", "--model")
    out = answered(command_line, *arguments, "llama-3-8b")
    assert "Every device keeps the whole model and computes all of it: d_ff 14336 cannot be" in out
    status, _, err = command_line(*arguments, "gpt3-175b")
    assert status == 1
    assert "every device keeps the whole model, since d_model 12288" not in err  # It is 3 x 4096.
    status, _, err = command_line(*arguments, "llama-3-405b")
    assert status == 1
    assert "every device keeps the whole model, since d_ff 53248 cannot be cut into 3" in err


CLUSTER = ("--cluster", "tpu-v4-64")
MODEL = ("--model", "palm-540b")
REFUSED = {
    "unknown model": (("--model", "nope", *CLUSTER), ", ".join(SHAPES)),
    "unknown cluster": ((*MODEL, "--cluster", "tpu-v9-64"), "Perhaps you mean tpu-v4"),
    "bad size": ((*MODEL, "--cluster", "tpu-v4-63"), "cluster='tpu-v4-63': comes with"),
    "no such cluster file": ((*MODEL, "--cluster", "/no/such.toml"), "cannot be read"),
    "phase": ((*MODEL, *CLUSTER, "--phase", "decoding"), "phase='decoding': must be prefill"),
    "objective": ((*MODEL, *CLUSTER, "--objective", "speed"), "must be latency or cost"),
    "weights": ((*MODEL, *CLUSTER, "--weights", "int3"), "weights='int3': must be one of"),
    "kv": ((*MODEL, *CLUSTER, "--kv", "fp8"), "kv='fp8': must be one of"),
    "batch": ((*MODEL, *CLUSTER, "--batch", "0"), "batch=0: must be"),
    "huge batch": ((*MODEL, *CLUSTER, "--batch", str(10**12)), "batch=1000000000000: must be"),
    "no prompt": ((*MODEL, *CLUSTER, "--phase", "prefill", "--context", "0"), "context=0: must"),
    "new tokens": ((*MODEL, *CLUSTER, "--new-tokens", "0"), "new_tokens=0: must be"),
    "prefill batch of one phase": (
        (*MODEL, *CLUSTER, "--phase", "decode", "--prefill-batch", "2"),
        "prefill_batch=2: is for plans of both phases",
    ),
    "too small": ((*MODEL, "--cluster", "h100-4"), "cluster='h100-4': has 74.5 GiB a device"),
    "html in no directory": (
        (*MODEL, *CLUSTER, "--phase", "decode", "--html", "/no/such/plan.html"),
        "html='/no/such/plan.html': cannot be written: No such file or directory",
    ),
    "html is a directory": (
        (*MODEL, *CLUSTER, "--phase", "decode", "--html", "/"),
        "html='/': cannot be written: Is a directory",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusal_is_one_line_and_status_1(arguments, message, command_line):
    status, out, err = command_line("plan", "inference", *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("missing", [MODEL, CLUSTER], ids=["cluster", "model"])
def test_model_and_cluster_are_asked_for(missing, command_line):
    status, _, err = command_line("plan", "inference", *missing)
    assert status == 2
    assert "Missing option" in err


def test_machine_that_was_not_measured_is_told_how_to_be(command_line, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, _, err = command_line("plan", "inference", *MODEL, "--cluster", "local")
    assert status == 1
    assert "cluster='local': this machine was not measured. Run: alpage hardware." in err


def test_cluster_from_a_file(command_line, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(resolve_cluster("tpu-v4-64")), encoding="utf-8")
    arguments = ("plan", "inference", *MODEL, "--phase", "decode", "--json", "--cluster")
    from_file = json.loads(answered(command_line, *arguments, path))
    assert from_file == json.loads(answered(command_line, *arguments, "tpu-v4-64"))
