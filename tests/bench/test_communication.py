"""What devices exchange in a step, counted in compiled programs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from jgolf.bench.collectives import Collective, compiled_collectives

ROOT = Path(__file__).parents[2]
CONFIG = """
from dataclasses import replace
from jgolf.config import load

def config():
    recipe = load("pr592")
    model = replace(
        recipe.model, vocab_size=320, num_layers=4, model_dim=32, num_heads=2, num_kv_heads=1, bigram_buckets=64,
        bigram_dim=16, xsa_layers=(3,), rope_dims=8, value_embedding_layers=(3,), value_embedding_dim=8,
        loop_layers=(1,), num_loops=1, compute_dtype="float32",
    )
    train = replace(recipe.train, batch_tokens=1024, seq_len=32, num_ranks=8, accumulation=1)
    return replace(recipe, name="nano", model=model, train=train)
"""
# Matrices that Muon updates, by shape: four layers' q and out; k and v; up; down; and the projections of the bigram
# table and of the value table.
MUON_MATRICES = {(32, 32): 8, (32, 16): 8, (32, 96): 4, (96, 32): 4, (16, 32): 1, (8, 16): 1}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("communication") / "nano.py"
    path.write_text(CONFIG)
    options = ["--config", str(path), "--devices", "8", "--json"]
    command = [sys.executable, "-m", "jgolf", "bench", "communication", *options]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def _of(counted: dict, program: str, kind: str) -> dict:
    (found,) = [exchange for exchange in counted[program] if exchange["kind"] == kind]
    return found


def test_gradients_are_reduced_once_in_float32(counted: dict) -> None:
    """In the branch with the loop or in the one without, of which a step runs one."""
    for program in ("compiled", "intended"):
        reduced = _of(counted, program, "all-reduce")
        assert reduced["dtype"] == "f32"
        # and three numbers: the loss, the clock's reading and the request to stop
        assert reduced["num_bytes"] == counted["gradient_bytes"] + 3 * 4
    # As written: the four layers', all others', and the three numbers.
    assert _of(counted, "intended", "all-reduce")["count"] == 4 + 1 + 3


def test_muon_updates_are_gathered_once_in_bfloat16(counted: dict) -> None:
    def padded(count: int) -> int:
        return 0 if count == 1 else 8 * math.ceil(count / 8)  # a single matrix is not exchanged

    values = sum(padded(count) * rows * columns for (rows, columns), count in MUON_MATRICES.items())
    assert _of(counted, "intended", "all-gather")["dtype"] == "bf16"
    assert _of(counted, "intended", "all-gather")["num_bytes"] == 2 * values
    # The CPU has no bfloat16 of its own: there the compiled program exchanges float32 in its place.
    compiled = _of(counted, "compiled", "all-gather")
    assert compiled["num_bytes"] == {"f32": 4, "bf16": 2}[compiled["dtype"]] * values


def test_within_the_bound(counted: dict) -> None:
    muon_bytes = 2 * sum(count * rows * columns for (rows, columns), count in MUON_MATRICES.items())
    assert counted["muon_bytes"] == muon_bytes
    assert {exchange["kind"] for exchange in counted["compiled"]} == {"all-reduce", "all-gather"}
    assert counted["total_bytes"] <= 1.5 * counted["gradient_bytes"] + muon_bytes


def test_collectives_count_as_often_as_they_run() -> None:
    program = """HloModule jit_step
%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %reduced = (f32[4]{0}, bf16[2,3]{1,0}) all-reduce(%a, %b), replica_groups={}, to_apply=%add
}
%fused.2 (p: f32[4]) -> f32[4] {
  %done = f32[8]{0} all-gather-done(%started)
}
%off.3 (p: f32[16]) -> f32[16] {
  %reducing = ((f32[16]{0}), f32[16]{0}) all-reduce-start(%g), to_apply=%add
}
%on.4 (p: f32[16]) -> f32[16] {
  %reducing.2 = ((f32[16]{0}), f32[16]{0}) all-reduce-start(%g), to_apply=%add
}
ENTRY %main.5 (p: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  %started = (f32[4]{0}, f32[8]{0}) all-gather-start(%q), dimensions={0}
  %f = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused.2
  %c = f32[16]{0} conditional(%looped, %y, %z), branch_computations={%off.3, %on.4}
}
"""
    assert compiled_collectives(program) == [
        Collective("all-reduce", "bf16+f32", 4 * 4 + 6 * 2, times=5),
        Collective("all-reduce", "f32", 16 * 4, times=1),
        Collective("all-gather", "f32", 8 * 4, times=1),
    ]
