"""Lines of the challenge's logs and what they tell, one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jgolf.errors import JgolfError
from jgolf.history import read_history
from jgolf.history.log import read_log

NAN = math.nan


@pytest.mark.parametrize(
    ("line", "step", "seconds", "loss", "multiplier"),
    [
        ("step:500/20000 train_loss:2.3955 train_time:42105ms step_avg:84.21ms", 500, 42.105, 2.3955, NAN),
        ("500/20000 train_loss: 3.3000 train_time: 0.9m tok/s: 7700000", 500, 54.0, 3.3, NAN),
        (
            "600/20000 train_loss: 1.4141 train_time: 64572ms ms/step since last line: 112.40 tok/s: 914335 "
            "lr_scale: 0.755 loop",
            600,
            64.572,
            1.4141,
            0.755,
        ),
        ("step: 7 / 20000  train_loss: 3.25  train_time: 2,600 ms", 7, 2.6, 3.25, NAN),
        ("step:500/20000 | train_loss:2.39 | train_time:42.1s | lr_mul:0.5", 500, 42.1, 2.39, 0.5),
        ("[rank 0] 12/20 train_loss=2.5, train_time=1.5min", 12, 90.0, 2.5, NAN),
        ("step:500/20000 train_loss:2.3955 step_avg:84.0ms", 500, 42.0, 2.3955, NAN),
        ("step:500/6500 loss:2.3955 t:42105ms lr:1e-3", 500, 42.105, 2.3955, NAN),
        ("step 500 loss 2.3955 elapsed 0.5h", 500, 1800.0, 2.3955, NAN),
        ("\x1b[2K\x1b[32mstep:\x1b[1;36m3\x1b[0m/9 train_loss:\x1b[1m2.5\x1b[0m train_time:5ms", 3, 0.005, 2.5, NAN),
        ("step:3/9 train_loss:2.5 train_time:5ms\r", 3, 0.005, 2.5, NAN),
        ("step:3/9 train_loss:nan train_time:5ms", 3, 0.005, NAN, NAN),
        ("step:3/9 train_loss:1e1 train_time:5", 3, NAN, 10.0, NAN),
    ],
)
def test_training_steps(line, step, seconds, loss, multiplier, tmp_path):
    train = _read(tmp_path, line).train
    found = [train[name][0] for name in ("step", "train_time_s", "train_loss", "learning_rate_multiplier")]
    np.testing.assert_allclose(found, [step, seconds, loss, multiplier])


@pytest.mark.parametrize(
    ("line", "step", "seconds", "loss", "bpb"),
    [
        (
            "step:500/1500 val_loss:1.2542 val_bpb:0.8289 train_time:79074ms step_avg:158.15ms",
            500,
            79.074,
            1.2542,
            0.8289,
        ),
        ("4900/20000 val_loss: 2.8100 val_bpb: 1.0880", 4900, NAN, 2.81, 1.088),
        ("0/20000 val_loss: 9.0000 val_bpb: 3.4800", 0, NAN, 9.0, 3.48),
        ("step 20, val_loss = 2.5, val_bpb = 1.5, train_time = 3 s", 20, 3.0, 2.5, 1.5),
    ],
)
def test_validations(line, step, seconds, loss, bpb, tmp_path):
    told = _read(tmp_path, line)
    found = [told.validation[name][0] for name in ("step", "train_time_s", "val_loss", "val_bpb")]
    np.testing.assert_allclose(found, [step, seconds, loss, bpb])
    assert told.scores == {}


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("pre-quantization post-ema", "pre_quantization"),
        ("diagnostic pre-quantization post-ema", "pre_quantization"),
        ("DIAGNOSTIC post_ema", "pre_quantization"),
        ("pre-quantization sliding window", "pre_quantization_sliding"),
        ("quantized", "standard"),
        ("diagnostic quantized", "standard"),
        ("post-quantization", "standard"),
        ("final_int8_zlib_roundtrip", "standard"),
        ("final_int8_zlib_roundtrip_exact", "standard"),
        ("final_int6_roundtrip_exact", "standard"),
        ("final_int6_sliding_window_exact", "sliding"),
        ("final_int6_sliding_window_s64_exact", "sliding"),
        ("quantized_sliding_window", "sliding"),
        ("sliding", "sliding"),
        ("quantized_ttt", "adapted"),
        ("quantized_ttt_phased", "adapted"),
        ("quantized_sliding_ttt", "adapted"),
        ("final_int8_ttt_lora", "adapted"),
        ("legal_ttt_exact", "adapted"),
        ("ttt_sliding:done", "adapted"),
    ],
)
@pytest.mark.parametrize(
    "form", ["{} val_loss:2.5 val_bpb:1.25 eval_time:1500ms", "  {}: val_loss=2.5, val_bpb=1.25 elapsed=1.5s"]
)
def test_scores_are_kept_apart(label, kind, form, tmp_path):
    told = _read(tmp_path, form.format(label))
    assert told.scores == {kind: (2.5, 1.25)}
    assert told.result == {"eval_s" if kind == "standard" else f"{kind}_eval_s": 1.5}
    assert not len(told.validation["step"])


@pytest.mark.parametrize(
    "line",
    [
        "ttt chunk 11/1893 val_loss:2.4 val_bpb:1.2",
        "quantized_ttt running val_loss:2.4 val_bpb:1.2",
        "best so far val_loss:2.4 val_bpb:1.2",
        'log0(f"final_int8_zlib_roundtrip val_loss:{q_val_loss:.4f} val_bpb:{q_val_bpb:.4f}")',
        'log0(f"step:{step}/{args.iterations} train_loss:{train_loss.item():.4f}")',
        "start time: 12.30.45, step by step",
        "# the sliding window brings the final val_bpb: 1.1428",
        "  ttt_chunk [11/1893] bpb=1.157 time=3.1s",
        "  sliding_eval [ 12.3%] 100/1234 windows running_bpb=1.1234",
    ],
)
def test_what_is_no_score(line, tmp_path):
    told = _read(tmp_path, line)
    assert told.scores == {} and not len(told.validation["step"]) and not len(told.train["step"])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Total submission size int6+zstd: 15497769 bytes"], {"total_bytes": 15497769}),
        (["Total submission size quantized+brotli: 15,990,000 bytes"], {"total_bytes": 15990000}),
        (["Total submission size int8+zlib: 15.86 MB"], {"total_bytes": 15860000}),
        (["Total submission size: 67272625 bytes"], {"total_bytes": 67272625}),
        (
            ["Total submission size: 67272625 bytes", "Total submission size int8+zlib: 15863489 bytes"],
            {"total_bytes": 15863489},
        ),
        (
            ["Total submission size int8+zlib: 15863489 bytes", "Total submission size: 67272625 bytes"],
            {"total_bytes": 15863489},
        ),
        (["Serialized model: 67224983 bytes"], {}),
        (
            ["Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025)"],
            {"artifact_bytes": 15815847},
        ),
        (["Code size: 47642 bytes"], {"code_bytes": 47642}),
        (["Code size (compressed): 20000 bytes", "Code size (uncompressed): 90000 bytes"], {"code_bytes": 20000}),
        (["peak memory allocated: 10184 MiB reserved: 10200 MiB"], {"peak_memory_bytes": 10184 << 20}),
        (["seed:1337"], {"seed": 1337}),
        (["  seed: 42"], {"seed": 42}),
        (["model_params:26993756"], {"num_params": 26993756}),
        (
            ["|   0  NVIDIA H100 80GB HBM3          On  |   00000000:19:00.0 Off |                    0 |"],
            {"device": "NVIDIA H100 80GB HBM3"},
        ),
        (
            ["stopping_early: wallclock_cap train_time: 588032ms step: 4900/20000"],
            {"step": 4900, "train_time_s": 588.032},
        ),
    ],
)
def test_facts(lines, expected, tmp_path):
    assert _read(tmp_path, *lines).result == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("layer_loop:enabled step:590 frac:0.350 encoder:[0, 1] decoder:[5, 3]", {"loop": 590}),
        ("swa:start step:14", {"SWA": 14}),
        ("late_qat:enabled step:16 scale:0.1483", {"late QAT": 16}),
        ("recurrence:activated at step 3000", {"loop": 3000}),
        ("swa:applying averaged 12 checkpoints", {}),
    ],
)
def test_events(line, expected, tmp_path):
    assert _read(tmp_path, line).events == expected


def test_a_mode_says_how_what_follows_was_scored(tmp_path):
    line = "final_int8_zlib_roundtrip val_loss:2.5 val_bpb:1.25"
    assert _read(tmp_path, "final_eval_mode:sliding_window stride:64", line).scores == {"sliding": (2.5, 1.25)}
    assert _read(tmp_path, "final_eval_mode:standard", line).scores == {"standard": (2.5, 1.25)}
    assert _read(tmp_path, f"{line} stride:64").scores == {"sliding": (2.5, 1.25)}


def test_a_score_in_bits_alone(tmp_path):
    (score,) = _read(tmp_path, "quantized_sliding_window val_bpb: 1.0828").scores.values()
    assert math.isnan(score.val_loss) and score.val_bpb == 1.0828


ROUNDTRIP = "final_int6_roundtrip_exact val_loss:1.93700000 val_bpb:1.14720000"
SLIDING = "final_int6_sliding_window_exact val_loss:1.89700000 val_bpb:1.12350000"
ALIAS = "final_int8_zlib_roundtrip_exact val_loss:1.89700000 val_bpb:1.12350000"


@pytest.mark.parametrize(
    "lines",
    [
        [ROUNDTRIP, SLIDING, ALIAS],
        [ALIAS, ROUNDTRIP, SLIDING],
        [ROUNDTRIP, SLIDING, ALIAS.replace("_exact", "").replace("0000", "")],
        [ROUNDTRIP.replace("_exact", "").replace("0000", ""), ROUNDTRIP, SLIDING, ALIAS],
        [ROUNDTRIP, "final_int6_roundtrip val_loss:1.9371 val_bpb:1.1473", SLIDING],
    ],
)
def test_a_score_printed_again_under_another_name_overwrites_nothing(lines, tmp_path):
    assert _read(tmp_path, *lines).scores == {"standard": (1.937, 1.1472), "sliding": (1.897, 1.1235)}


def test_an_alias_alone_is_no_standard_score(tmp_path):
    assert _read(tmp_path, SLIDING, ALIAS).scores == {"sliding": (1.897, 1.1235)}


@pytest.mark.parametrize("tells_tokens", [False, True])
def test_times_in_minutes_are_refined_by_the_speed(tells_tokens, tmp_path):
    """A tenth of a minute is 50 steps; tokens a second, which are not rounded so, tell the time to the second."""
    tokens, steps = 786_432, np.array([1, 5, *range(500, 5000, 500)])
    seconds = 0.096 * steps + 0.024 * np.maximum(0, steps - 2000)
    lines = [
        f"{step}/20000 train_loss: 3.0000 train_time: {time / 60:.1f}m tok/s: {step * tokens / time:.0f}"
        for step, time in zip(steps, seconds, strict=True)
    ]
    lines += [
        "4700/20000 val_loss: 2.8 val_bpb: 1.1",
        "stopping_early: wallclock_cap train_time: 516000ms step: 4700/20000",
    ]
    told = _read(tmp_path, *(["  train_batch_tokens: 786432"] if tells_tokens else []), *lines)
    np.testing.assert_allclose(told.train["train_time_s"], seconds, rtol=1e-5 if tells_tokens else 0.01)
    assert told.validation["train_time_s"].tolist() == [516.0]


def test_times_that_contradict_the_speed_stay_as_they_are(tmp_path):
    lines = [
        f"{step}/900 train_loss: 3.0 train_time: {step / 100:.1f}m tok/s: {speed}"
        for step, speed in ((100, 9), (200, 1))
    ]
    np.testing.assert_allclose(_read(tmp_path, *lines).train["train_time_s"], [60, 120])


def test_a_validation_without_a_time_is_placed_between_steps(tmp_path):
    lines = [f"{step}/99 train_loss: 3.0 train_time: {100 * step}ms" for step in (10, 20)]
    lines += [f"{step}/99 val_loss: 3.0 val_bpb: 2.0" for step in (0, 15, 25)]
    np.testing.assert_allclose(_read(tmp_path, *lines).validation["train_time_s"], [0, 1.5, 2.5])


def test_a_whole_log_of_the_later_form(tmp_path):
    path = tmp_path / "late.log"
    path.write_text(
        "0/20000 val_loss: 9.0000 val_bpb: 3.4800\n"
        "1/20000 train_loss: 9.0100 train_time: 0.0m tok/s: 8100000\n"
        "500/20000 train_loss: 3.3000 train_time: 0.9m tok/s: 7700000\n"
        "4900/20000 val_loss: 2.8100 val_bpb: 1.0880\n"
        "stopping_early: wallclock_cap train_time: 588032ms step: 4900/20000\n"
        "pre-quantization post-ema val_loss:2.80900000 val_bpb:1.08740000 eval_time:6000ms\n"
        "Total submission size quantized+brotli: 15990000 bytes\n"
        "quantized val_loss:2.84000000 val_bpb:1.09940000 eval_time:7000ms\n"
        "quantized_sliding_window val_loss:2.79700000 val_bpb:1.08280000 eval_time:84000ms\n"
        "quantized_ttt val_loss:2.79100000 val_bpb:1.08050000 eval_time:366000ms\n"
    )
    run = read_history(path)
    assert {kind: score.val_bpb for kind, score in run.scores.items()} == {
        **{"validation": 1.088, "pre_quantization": 1.0874, "standard": 1.0994},
        **{"sliding": 1.0828, "adapted": 1.0805},
    }
    assert run.result["adapted_eval_s"] == 366 and run.result["total_bytes"] == 15990000


def _read(folder, *lines: str):
    path = folder / "a.log"
    path.write_text("\n".join(lines) + "\n")
    return read_log(path)


def test_a_log_in_utf_16(tmp_path):
    """As PowerShell writes what it redirects."""
    path = tmp_path / "x.log"
    path.write_text("step:3/9 train_loss:2.5 train_time:5ms", encoding="utf-16")
    with pytest.raises(JgolfError, match="x.log: begins as UTF-16 does: convert it"):
        read_history(path)


def test_a_line_that_is_almost_a_device_takes_no_time(tmp_path):
    """Looked at 10¹⁰ times if each of its spaces could end the name."""
    _read(tmp_path, "step:3/9 train_loss:2.5 train_time:5ms\n| 0 NVIDIA a" + " " * (1 << 16) + "x")
