"""Whether all processes of a run read the same data."""

from __future__ import annotations

import json
import socket

from jgolf.config import Config, DataConfig
from jgolf.data.fingerprint import data_fingerprint
from jgolf.data.shards import find_shards, open_shard
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.errors import DataError
from jgolf.progress import counted
from jgolf.train.peers import Peers


def check_same_data(config: Config, peers: Peers) -> str:
    """The fingerprint of the data, after a comparison with the other processes'.

    Other shards would give other numbers of batches, and processes that wait for one another for ever.

    Raises:
      DataError: another process has others; every process raises the same.
    """
    fingerprint = data_fingerprint(config.data)
    if peers.count == 1:
        return fingerprint
    own = {"fingerprint": fingerprint, "host": socket.gethostname(), "data": _description(config.data)}
    found = [json.loads(text) for text in peers.exchange("data", json.dumps(own))]
    for index, other in enumerate(found):
        if other["fingerprint"] != found[0]["fingerprint"]:
            raise DataError(
                f"{config.data.dir}: other data for process {index}, on {other['host']} ({other['data']}), than for "
                f"process 0, on {found[0]['host']} ({found[0]['data']}): expected the same shards and tokenizer on all "
                "hosts; copy them from one to the others"
            )
    return fingerprint


def _description(data: DataConfig) -> str:
    """What people can tell apart: numbers and lengths, and the tokenizer's first digits."""
    parts = []
    for split in ("train", "val"):
        lengths = [len(open_shard(path)) for path in find_shards(data.dir, split)]
        parts.append(f"{counted(len(lengths), f'{split} shard')} of {sum(lengths):,} tokens")
    tokenizer = load_tokenizer(find_tokenizer(data.dir, data.tokenizer))
    return f"{', '.join(parts)}, tokenizer {tokenizer.fingerprint[:8]}…"
