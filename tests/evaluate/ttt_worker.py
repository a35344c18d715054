"""Scores with test-time training on some of this process's devices: a process of test_ttt_devices.py.

Arguments: numbers of devices joined by commas.
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from jgolf.audit.scorer import Heard
from jgolf.evaluate.ttt.adapted import adapted
from jgolf.evaluate.ttt.tuned import tuned
from tests.evaluate.test_hints import HINTS, repeating
from tests.evaluate.test_ttt import MODEL, SETTINGS, TUNED, make_params, make_text


def main(sizes: str) -> None:
    params, text = make_params(), make_text()
    for size in map(int, sizes.split(",")):
        mesh = Mesh(np.array(jax.devices()[:size]), ("data",))
        heard = Heard(text, range(0, len(text.tokens) - 1, 20))
        both = adapted(MODEL, params, repeating(text), 1, SETTINGS, mesh=mesh, hints=HINTS, observe=heard)
        found = {
            "adapted and hinted": both.nats.tolist(),
            "its predictions": [heard.told[target].every_token.tolist() for target in sorted(heard.asked)],
            "tuned": tuned(MODEL, params, text, 12, 4, TUNED, mesh=mesh, batch_tokens=24).nats.tolist(),
        }
        print("RESULT", json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
